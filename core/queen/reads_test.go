package queen

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// leaderConn stands in for the connection that forwards a method to the leader.
type leaderConn struct {
	grpc.ClientConnInterface
	leader func() *Queen
}

// Invoke supports only ReadIndex and Apply.
func (c leaderConn) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	var answer proto.Message
	var err error
	switch req := req.(type) {
	case *queenv1.ReadIndexRequest:
		answer, err = c.leader().Registry.Service(hclog.NewNullLogger()).ReadIndex(ctx, req)
	case *queenv1.ApplyRequest:
		answer, err = c.leader().Registry.Service(hclog.NewNullLogger()).Apply(ctx, req)
	default:
		return fmt.Errorf("%s is not passed on here", method)
	}
	if err != nil {
		return rpc.ToStatus(err)
	}
	proto.Merge(resp.(proto.Message), answer)
	return nil
}

// lateQueen returns a queen that believes it leads because its node did: it does not run, so it
// never learns of the loss.
func lateQueen(t *testing.T, m *member, leader func() *Queen) *Queen {
	q := New(Options{Registry: registry.New(m.node), ID: m.q.opts.ID, Logger: coretest.Logger(t), Network: &membership.Network{Self: leaderConn{leader: leader}}})
	q.liveness.TakeOver()
	return q
}

// Raft learns of a lost leadership some milliseconds before the queen does. A read in between is
// answered by the next leader, not refused.
func TestReadAfterLostLeadership(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := newQueens(t, 3)
		old := leaderOf(t, members)
		late := lateQueen(t, old, func() *Queen { return leaderOf(t, members).q })
		info, err := late.Registry.Sync(t.Context(), core.ConsistencyDefault)
		must.NoError(t, err)
		must.Eq(t, old.q.opts.ID, info.Leader)

		must.NoError(t, old.node.LeadershipTransfer(t.Context()))
		for _, c := range []core.Consistency{core.ConsistencyDefault, core.ConsistencyLinearizable} {
			info, err = late.Registry.Sync(t.Context(), c)
			must.NoError(t, err, must.Sprint(c))
			must.NotEq(t, old.q.opts.ID, info.Leader)
		}
		must.False(t, late.Registry.Leads())
	})
}

// The same, if the leadership is lost while the majority is being asked to confirm it.
func TestReadWhileLosingLeadership(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := newQueens(t, 3)
		old := leaderOf(t, members)
		others := slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m == old })
		late := lateQueen(t, old, func() *Queen {
			next := leaderOf(t, others).q
			for _, m := range others {
				m.trans.Connect(old.trans.LocalAddr(), old.trans)
				old.trans.Connect(m.trans.LocalAddr(), m.trans)
			}
			return next
		})
		_, err := late.Registry.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		synctest.Wait() // no answer is in transit
		for _, m := range others {
			m.trans.Disconnect(old.trans.LocalAddr())
		}
		old.trans.DisconnectAll()
		must.True(t, late.Registry.Leads())
		info, err := late.Registry.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		must.NotEq(t, old.q.opts.ID, info.Leader)
	})
}

// An entry just added at another queen is found, by name and in the status, at a queen that has not
// received it yet. If no leader confirms how fresh the registry is, the answer is returned all the
// same.
func TestReadsBehindLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := newQueens(t, 3)
		leader := leaderOf(t, members)
		behind := members[0]
		if behind == leader {
			behind = members[1]
		}
		q := New(Options{
			Registry: registry.New(behind.node), ID: behind.q.opts.ID, Logger: coretest.Logger(t), LocalHive: func() string { return "" },
			HiveConn: func(string) (grpc.ClientConnInterface, error) {
				return nil, core.Errorf(core.Unavailable, "no way")
			},
			Network: &membership.Network{Gossip: &gossipstub.Pool{}, Self: leaderConn{leader: func() *Queen { return leader.q }}},
		})
		connect := func(on bool) {
			for _, m := range members {
				if m != behind && on {
					m.trans.Connect(behind.trans.LocalAddr(), behind.trans)
					behind.trans.Connect(m.trans.LocalAddr(), m.trans)
				} else if m != behind {
					m.trans.Disconnect(behind.trans.LocalAddr())
					behind.trans.Disconnect(m.trans.LocalAddr())
				}
			}
		}
		joined := 0
		// join adds a hive with one worker while the queen receives nothing for the given time.
		join := func(deaf time.Duration) (hive string) {
			synctest.Wait()
			connect(false)
			h := simhive.New(fmt.Sprintf("h%d", joined), 1)
			joined++
			h.MustTell(t, leader.q.liveness)
			for len(leader.q.Registry.View().Workers(nil)) < joined {
				time.Sleep(time.Millisecond)
			}
			must.Less(t, joined, len(behind.q.Registry.View().Workers(nil)))
			go func() {
				time.Sleep(deaf)
				connect(true)
			}()
			return h.Hive.ID
		}

		hive := join(100 * time.Millisecond)
		h, err := q.hives.Named(t.Context(), hive)
		must.NoError(t, err)
		must.Eq(t, hive, h.ID)
		_, err = q.hives.Named(t.Context(), "h9")
		mustFail(t, err, core.NotFound, `no hive "h9"`)

		hive = join(100 * time.Millisecond)
		id := leader.q.Registry.View().Workers(nil)[1].ID
		w, err := q.hives.Worker(t.Context(), id)
		must.NoError(t, err)
		must.Eq(t, hive, w.Hive)

		join(100 * time.Millisecond)
		s, err := q.status(t.Context(), core.Request{Operation: core.OpStatus})
		must.NoError(t, err)
		must.Len(t, 3, s.Hives)
		must.False(t, s.Read.Stale)

		hive = join(time.Minute)
		began := time.Now()
		_, err = q.hives.Named(t.Context(), hive)
		mustFail(t, err, core.NotFound, hive)
		must.Eq(t, registry.LookPatience, time.Since(began))
		s, err = q.status(t.Context(), core.Request{Operation: core.OpStatus})
		must.NoError(t, err)
		must.Len(t, 3, s.Hives)
		must.True(t, s.Read.Stale)
	})
}
