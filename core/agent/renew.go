package agent

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	// renewLook bounds the wait for a renewal: timers stop while a machine sleeps, so the wall
	// clock is checked now and then.
	renewLook = time.Hour
	// renewRetry is the pause after a failed renewal: a third of the certificate's lifetime is left
	// for retries.
	renewRetry = time.Minute
	// movedRetry is the pause after a failed renewal while clients are refused: the queens may have
	// to elect a leader first, or to learn of the new address.
	movedRetry = time.Second
)

// renewal renews a certificate before it expires.
type renewal struct {
	now     func() time.Time // the wall clock
	due     func() time.Time
	expires func() time.Time
	renew   func(ctx context.Context) error
	moves   <-chan struct{} // signals that the machine has moved
	log     hclog.Logger
}

// renew renews the node's certificate in time, until ctx ends, and at once when the machine has
// moved: clients refuse a certificate for the old address. byCluster reports whether the cluster
// signs it.
func (n *network) renew(ctx context.Context, hosts []string, byCluster bool) error {
	r := renewal{
		now: time.Now, due: n.identity.RenewAt, expires: func() time.Time { return n.identity.Node().NotAfter },
		renew: func(ctx context.Context) error { return n.renewNow(ctx, hosts) }, log: n.log,
	}
	if byCluster {
		r.moves = n.moves
	}
	return r.run(ctx, byCluster && n.identity.Outdated())
}

func (r renewal) run(ctx context.Context, moved bool) error {
	for {
		// Round drops the monotonic clock reading, which does not count sleep.
		wait := r.due().Sub(r.now().Round(0))
		if wait <= 0 || moved {
			err := r.renew(ctx)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case core.KindOf(err) == core.Unsupported:
				moved = false
				r.log.Warn("the certificate ends soon, or is not for this machine's address, and cannot be renewed by the cluster", "expires", r.expires(), "error", err)
				wait = renewLook
			case err != nil && moved:
				r.log.Warn("the certificate is not for this machine's address yet, trying again", "error", err)
				wait = movedRetry
			case err != nil:
				r.log.Error("cannot renew the certificate, trying again", "expires", r.expires(), "error", err)
				wait = renewRetry
			default:
				moved = false
				r.log.Info("certificate renewed", "expires", r.expires())
				continue
			}
		}
		timer := time.NewTimer(min(wait, renewLook))
		select {
		case <-timer.C:
		case <-r.moves:
			moved = true
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}
