package registry

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// syncTimeout bounds the wait for a leader, and for this node to catch up with it.
	syncTimeout = 5 * time.Second
	// LookPatience is that bound where an answer exists even without the leader.
	LookPatience = time.Second
)

// Sync returns once this node's registry is as fresh as c requires: a View taken afterwards is.
// Errors: Unavailable without a leader, or for a linearizable read without a majority; Invalid for
// an unknown consistency; ctx's.
func (r *Registry) Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error) {
	switch c {
	case core.ConsistencyStale:
		return core.ReadInfo{Index: r.AppliedIndex(), Leader: r.Leader(), LastContact: core.Duration(r.LastContact()), Stale: !r.Leads()}, nil
	case "", core.ConsistencyDefault, core.ConsistencyLinearizable:
	default:
		return core.ReadInfo{}, core.Errorf(core.Invalid, "unknown consistency %q", c[:min(len(c), 40)]).Hint("It is default, stale or linearizable.")
	}
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	info, err := r.sync(limited, c == core.ConsistencyLinearizable)
	switch {
	case err == nil:
		return info, nil
	case ctx.Err() == nil && limited.Err() != nil:
		err = core.Errorf(core.Unavailable, "the leader did not answer within %s", syncTimeout)
	}
	if core.KindOf(err) == core.Unavailable {
		err = core.WithHint(err, "Ask again in a moment, or ask for what this queen knows: ?consistency=stale, --stale.")
	}
	return core.ReadInfo{}, err
}

// CatchUp returns once this node knows everything acknowledged before, so that a change builds on
// it: the caller may have made the last change at another queen.
func (r *Registry) CatchUp(ctx context.Context) error {
	if r.self == nil || r.Leads() {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	_, err := r.sync(limited, false)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return r.NotLeader()
	}
	return err
}

// LookUp returns what find finds. On a miss this node catches up with the leader and looks again:
// the entry may just have been added at another queen. Errors: find's.
func LookUp[T any](ctx context.Context, r *Registry, find func() (T, error)) (T, error) {
	v, err := find()
	if core.KindOf(err) != core.NotFound {
		return v, err
	}
	limited, cancel := context.WithTimeout(ctx, LookPatience)
	defer cancel()
	if r.CatchUp(limited) != nil {
		return v, err
	}
	return find()
}

func (r *Registry) sync(ctx context.Context, verify bool) (core.ReadInfo, error) {
	switch {
	case r.self == nil && !r.Leads():
		return core.ReadInfo{}, r.NotLeader()
	case r.self == nil: // alone: everything it acknowledged is applied
		return core.ReadInfo{Index: r.AppliedIndex(), Leader: r.id}, nil
	case r.Leads() && staleReads:
		return core.ReadInfo{Index: r.AppliedIndex(), Leader: r.id}, nil
	case r.Leads():
		index, err := r.ReadIndex(ctx, verify)
		if err == nil {
			err = r.WaitApplied(ctx, index)
		}
		if err == nil || ctx.Err() != nil || r.IsLeader() {
			return core.ReadInfo{Index: r.AppliedIndex(), Leader: r.id}, err
		}
		// The leadership was lost meanwhile: ask the next leader.
	}
	resp, err := queenv1.NewClusterServiceClient(r.self).ReadIndex(ctx, &queenv1.ReadIndexRequest{Verify: verify})
	if err != nil {
		return core.ReadInfo{}, rpc.FromStatus(err)
	}
	if err := r.WaitApplied(ctx, resp.GetIndex()); err != nil {
		return core.ReadInfo{}, err
	}
	return core.ReadInfo{Index: r.AppliedIndex(), Leader: resp.GetLeader(), LastContact: core.Duration(r.LastContact())}, nil
}
