package node_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// member is a node of a cluster within a synctest bubble.
type member struct {
	*node.Node
	trans *raft.InmemTransport
	ran   chan error
	lead  atomic.Bool // its lead runs
}

// The shape holds for three queens: election, writes, the leader killed, another elected, nothing lost.
func TestThreeQueens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := cluster(t, 3)
		defer func() {
			for _, m := range members {
				must.NoError(t, m.Shutdown())
				must.NoError(t, <-m.ran)
			}
			time.Sleep(time.Minute) // what raft has in flight
		}()

		first := leader(t, members)
		for i := range 100 {
			_, err := first.Apply(t.Context(), fsm.SyncHive(hive(fmt.Sprintf("h%03d", i), 1), nil))
			must.NoError(t, err)
		}
		time.Sleep(time.Second)
		for _, m := range members {
			must.Len(t, 100, m.State().Hives(nil))
			must.Eq(t, first.Leader(), m.Leader())
			must.Eq(t, m == first, m.lead.Load())
			if m != first {
				_, err := m.Apply(t.Context(), fsm.RemoveHive("h000"))
				must.Eq(t, core.Unavailable, core.KindOf(err))
				must.StrContains(t, err.Error(), first.Leader())
			}
		}

		must.NoError(t, first.Shutdown())
		must.NoError(t, <-first.ran)
		must.False(t, first.lead.Load())
		rest := []*member{}
		for _, m := range members {
			m.trans.Disconnect(first.trans.LocalAddr())
			if m != first {
				rest = append(rest, m)
			}
		}
		members = rest
		start := time.Now()
		second := leader(t, members)
		t.Logf("new leader after %s", time.Since(start))
		must.Len(t, 100, second.State().Hives(nil))
		_, err := second.Apply(t.Context(), fsm.SyncHive(hive("h100", 1), nil))
		must.NoError(t, err)

		// Lead gives up: the other takes over, and the one that gave up does not lead at the same time.
		var third *member
		for _, m := range members {
			if m != second {
				third = m
			}
		}
		must.NoError(t, second.LeadershipTransfer(t.Context()))
		time.Sleep(5 * time.Second)
		must.True(t, third.lead.Load())
		must.False(t, second.lead.Load())
		must.NoError(t, third.Barrier(t.Context()))
		must.Len(t, 101, third.State().Hives(nil))

		// Without a majority nothing is written, and the caller is told so when its time is up.
		second.trans.DisconnectAll()
		third.trans.DisconnectAll()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = third.Apply(ctx, fsm.RemoveHive("h000"))
		must.ErrorIs(t, err, node.ErrOutcomeUnknown)
		time.Sleep(5 * time.Second)
		must.False(t, third.lead.Load())
	})
}

func cluster(t *testing.T, size int) []*member {
	t.Helper()
	voters := []node.Voter{}
	members := []*member{}
	for i := range size {
		id := fmt.Sprintf("queen-%d", i)
		addr, trans := raft.NewInmemTransport(raft.ServerAddress("addr-" + id))
		voters = append(voters, node.Voter{ID: id, Address: string(addr)})
		members = append(members, &member{trans: trans, ran: make(chan error, 1)})
	}
	for i, m := range members {
		for _, other := range members {
			m.trans.Connect(other.trans.LocalAddr(), other.trans)
		}
		n, err := node.Open(node.Options{ID: voters[i].ID, Logger: logger(t), Transport: m.trans, Voters: voters})
		must.NoError(t, err)
		m.Node = n
		go func() {
			m.ran <- n.Run(t.Context(), func(ctx context.Context) error {
				must.True(t, m.lead.CompareAndSwap(false, true)) // never two
				<-ctx.Done()
				m.lead.Store(false)
				return nil
			})
		}()
	}
	return members
}

func leader(t *testing.T, members []*member) *member {
	t.Helper()
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		for _, m := range members {
			if m.lead.Load() {
				return m
			}
		}
	}
	t.Fatal("no leader")
	return nil
}
