package agent

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	// renewLook bounds the wait for a renewal: timers stand still while a machine sleeps, so that
	// the wall clock is looked at now and then.
	renewLook = time.Hour
	// renewRetry is the pause after a renewal that failed: there is a third of the certificate's
	// life for it.
	renewRetry = time.Minute
	// movedRetry is the same where clients are refused meanwhile: the queens may have to elect a
	// leader first, or hear of the new address.
	movedRetry = time.Second
)

// renewal keeps a certificate from ending.
type renewal struct {
	now     func() time.Time // the wall clock
	due     func() time.Time
	expires func() time.Time
	renew   func(ctx context.Context) error
	moves   <-chan struct{} // the machine has moved
	log     hclog.Logger
}

// renew has the node's certificate renewed in time, until ctx ends, and at once where the machine
// has moved: clients refuse the one that it has. byCluster says that the cluster signs it.
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
		// Round drops the monotonic clock, which does not count a sleep.
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
