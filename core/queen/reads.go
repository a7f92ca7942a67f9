package queen

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

const (
	syncTimeout  = 5 * time.Second // for a leader, and for this queen to catch up with it
	lookPatience = time.Second     // the same for an answer that comes in any case
)

// Sync returns when this queen's replica is as new as c asks: after it, what this queen reads from
// its registry is. Errors: Unavailable when there is no leader, or for a linearizable read no
// majority; Invalid for an unknown consistency; ctx's.
func (q *Queen) Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error) {
	n := q.opts.Node
	switch c {
	case core.ConsistencyStale:
		return core.ReadInfo{Index: n.AppliedIndex(), Leader: n.Leader(), LastContact: core.Duration(n.LastContact()), Stale: !q.leads()}, nil
	case "", core.ConsistencyDefault, core.ConsistencyLinearizable:
	default:
		return core.ReadInfo{}, core.Errorf(core.Invalid, "there is no consistency %q", clipped(string(c))).Hint("It is default, stale or linearizable.")
	}
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	info, err := q.sync(limited, c == core.ConsistencyLinearizable)
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

// catchUp has this queen know what was acknowledged before, so that a change builds on that: the
// caller may have made the last one at another queen.
func (q *Queen) catchUp(ctx context.Context) error {
	if q.opts.Membership == nil || q.leads() {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	_, err := q.sync(limited, false)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return q.notLeader()
	}
	return err
}

// lookedUp is what find finds. Where it is not found this queen catches up with the leader first
// and looks again: what the caller names may have come to the registry a moment ago, at another
// queen. Errors: find's.
func lookedUp[T any](ctx context.Context, q *Queen, find func() (T, error)) (T, error) {
	v, err := find()
	if core.KindOf(err) != core.NotFound {
		return v, err
	}
	limited, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	if q.catchUp(limited) != nil {
		return v, err
	}
	return find()
}

func (q *Queen) sync(ctx context.Context, verify bool) (core.ReadInfo, error) {
	n := q.opts.Node
	switch {
	case q.opts.Membership == nil && !q.leads():
		return core.ReadInfo{}, q.notLeader()
	case q.opts.Membership == nil: // what it has acknowledged it has applied, and there is nobody else
		return core.ReadInfo{Index: n.AppliedIndex(), Leader: q.opts.ID}, nil
	case q.leads() && staleReads:
		return core.ReadInfo{Index: n.AppliedIndex(), Leader: q.opts.ID}, nil
	case q.leads():
		index, err := n.ReadIndex(ctx, verify)
		if err == nil {
			err = n.WaitApplied(ctx, index)
		}
		if err == nil || ctx.Err() != nil || n.IsLeader() {
			return core.ReadInfo{Index: n.AppliedIndex(), Leader: q.opts.ID}, err
		}
		// The leadership was lost meanwhile: the next leader knows.
	}
	resp, err := queenv1.NewClusterServiceClient(q.opts.Membership.Self).ReadIndex(ctx, &queenv1.ReadIndexRequest{Verify: verify})
	if err != nil {
		return core.ReadInfo{}, rpc.FromStatus(err)
	}
	if err := n.WaitApplied(ctx, resp.GetIndex()); err != nil {
		return core.ReadInfo{}, err
	}
	return core.ReadInfo{Index: n.AppliedIndex(), Leader: resp.GetLeader(), LastContact: core.Duration(n.LastContact())}, nil
}

// leads reports whether this queen has taken over the leadership and still has it. Raft knows of
// its loss some milliseconds before the queen's own loop does: a read in between would be refused
// here, instead of waiting for the next leader.
func (q *Queen) leads() bool { return q.liveness.Leads() && q.opts.Node.IsLeader() }

func (q *Queen) notLeader() error {
	err := core.Errorf(core.Unavailable, "this queen does not lead the cluster")
	if leader := q.opts.Node.Leader(); leader != "" && leader != q.opts.ID {
		return core.WithHint(err, "Ask the leader, queen %s.", leader)
	}
	if problem := q.opts.Node.DiskProblem(); problem != nil {
		return problem
	}
	return core.WithHint(err, "Try again in a moment: a leader is being elected.")
}

// apply writes a command to raft and returns when it is in force, or refused.
func (q *Queen) apply(ctx context.Context, requestID string, c *raftv1.Command) error {
	_, err := q.registry.Write(ctx, requestID, c)
	return err
}
