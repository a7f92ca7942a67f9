package queen

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/node"
)

// member is one of several queens.
type member struct {
	q     *Queen
	node  *node.Node
	trans *raft.InmemTransport
	kill  func() // as a crash would
}

// newQueens runs queens that form one cluster, in a bubble, until its end.
func newQueens(t *testing.T, size int, change ...func(*Options)) []*member {
	t.Helper()
	var members []*member
	var nodes []*node.Node
	var transports []*raft.InmemTransport
	for i := range size {
		id := fmt.Sprintf("q%d", i)
		_, trans := raft.NewInmemTransport(raft.ServerAddress("addr-" + id))
		members = append(members, &member{trans: trans})
	}
	for i, m := range members {
		id := fmt.Sprintf("q%d", i)
		for _, other := range members {
			m.trans.Connect(other.trans.LocalAddr(), other.trans)
		}
		n, err := node.Open(node.Options{ID: id, Logger: coretest.Logger(t), Transport: m.trans, Bootstrap: node.Later})
		must.NoError(t, err)
		nodes, transports = append(nodes, n), append(transports, m.trans)
		opts := Options{Registry: registry.New(n), ID: id, Logger: coretest.Logger(t), Pinger: fakePinger(noSign)}
		for _, f := range change {
			f(&opts)
		}
		m.node, m.q = n, New(opts)
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			must.NoError(t, m.q.Run(ctx))
		}()
		killed := false
		m.kill = func() {
			if killed {
				return
			}
			killed = true
			for _, other := range members {
				other.trans.Disconnect(m.trans.LocalAddr())
			}
			m.trans.DisconnectAll()
			cancel()
			<-ran
			must.NoError(t, n.Shutdown())
		}
	}
	t.Cleanup(func() {
		for _, m := range members {
			m.kill()
		}
		time.Sleep(time.Minute) // bubble time: whatever still waits for an answer times out
	})
	formCluster(t, nodes, transports)
	return members
}

// formCluster forms one raft cluster of the nodes; nodes that already have state keep it.
func formCluster(t *testing.T, nodes []*node.Node, transports []*raft.InmemTransport) {
	t.Helper()
	var voters []node.Voter
	for i, n := range nodes {
		voters = append(voters, node.Voter{ID: n.ID(), Address: string(transports[i].LocalAddr())})
	}
	for _, n := range nodes {
		if !n.HasState() {
			must.NoError(t, n.Bootstrap(voters))
		}
	}
}

func leaderOf(t *testing.T, members []*member) *member {
	t.Helper()
	for range 10_000 {
		for _, m := range members {
			if m.q.Registry.Leads() {
				return m
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no leader")
	return nil
}

// A new leader already has the hives' reports: it writes only what changed meanwhile, at once, and
// loses no hive. Every queen keeps routing.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := newQueens(t, 3)
		var hives []*simhive.Hive
		for i := range 10 {
			hives = append(hives, simhive.New(fmt.Sprintf("h%d", i), 2))
		}
		first := leaderOf(t, members)
		living := members
		tellAll := func(hives []*simhive.Hive) {
			for _, h := range hives {
				for _, m := range living {
					h.MustTell(t, m.q.liveness)
				}
			}
		}
		tellAll(hives)
		time.Sleep(time.Second)
		tellAll(hives)
		for _, m := range members {
			must.Len(t, 20, m.q.Registry.View().Workers(nil))
			must.Len(t, 10, m.q.ready("m0"))
		}
		index := first.node.AppliedIndex()

		// The leader is lost, and with it one hive; all loads and another hive's workers change
		// before there is a new leader.
		first.kill()
		living = nil
		for _, m := range members {
			if m != first {
				living = append(living, m)
			}
		}
		dead, rest := hives[9], hives[:9]
		for _, m := range living {
			dead.HangUp(m.q.liveness)
		}
		hives[0].Workers = hives[0].Workers[1:]
		for _, h := range rest {
			h.Workers[0].Load.Active = 3
		}
		tellAll(rest)
		for _, m := range living {
			must.Len(t, 8, m.q.ready("m0")) // without the dead hive's, and without the one that its hive no longer reports
			w, err := m.q.hives.Worker(t.Context(), "w-h5-0")
			must.NoError(t, err)
			must.Eq(t, 3, w.Load.Active)
		}

		second := leaderOf(t, living)
		led := time.Now()
		time.Sleep(20 * time.Millisecond)
		index += 3 // raft's own two entries for a new leader, and what changed
		must.Eq(t, index, second.node.AppliedIndex())
		time.Sleep(300 * time.Millisecond) // followers learn of it with the leader's next heartbeat
		for _, m := range living {
			must.Eq(t, index, m.node.AppliedIndex())
			must.Len(t, 1, m.q.Registry.View().WorkersOfHive(nil, "h0"))
		}
		// A hive that reported while there was no leader now gets the confirmation.
		for _, h := range rest {
			resp, err := h.Link(second.q.liveness).Answer()
			must.NoError(t, err)
			must.True(t, resp.GetRegistered(), must.Sprint(h.Hive.ID))
		}

		// The lost hive has time to find the new leader.
		for time.Since(led) < liveness.LinkGrace-200*time.Millisecond {
			tellAll(rest)
			time.Sleep(100 * time.Millisecond)
			must.Eq(t, core.HiveReady, second.q.Registry.View().PeekHive(nil, "h9").Status)
		}
		for time.Since(led) < liveness.LinkGrace+200*time.Millisecond {
			tellAll(rest)
			time.Sleep(100 * time.Millisecond)
		}
		for _, m := range living {
			must.Eq(t, core.HiveDown, m.q.Registry.View().PeekHive(nil, "h9").Status)
		}
		for range 60 {
			tellAll(rest)
			time.Sleep(time.Second)
		}
		for _, m := range living {
			must.Eq(t, index+1, m.node.AppliedIndex())
			for _, h := range m.q.hives.List() {
				must.Eq(t, h.ID != "h9", h.Status == core.HiveReady)
			}
		}
	})
}

// A queen that is cut off from the others keeps routing by the hives' reports, and writes nothing.
func TestMinorityRoutesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		members := newQueens(t, 3)
		leader := leaderOf(t, members)
		a, b := simhive.New("a", 1), simhive.New("b", 1)
		for range 3 {
			for _, m := range members {
				a.MustTell(t, m.q.liveness)
				b.MustTell(t, m.q.liveness)
			}
			time.Sleep(100 * time.Millisecond)
		}
		var cut *member
		for _, m := range members {
			if m != leader {
				cut = m
			}
		}
		cut.trans.DisconnectAll()
		for _, m := range members {
			m.trans.Disconnect(cut.trans.LocalAddr())
		}
		index := cut.node.AppliedIndex()
		for second := range 30 {
			for _, m := range members {
				a.MustTell(t, m.q.liveness)
				if second < 10 {
					b.MustTell(t, m.q.liveness)
				}
			}
			time.Sleep(time.Second)
		}
		must.Eq(t, index, cut.node.AppliedIndex())
		must.Len(t, 1, cut.q.ready("m0")) // a; b is suspect here
		must.Eq(t, core.HiveReady, cut.q.Registry.View().PeekHive(nil, "b").Status)
		must.Eq(t, core.HiveDown, leaderOf(t, members).q.Registry.View().PeekHive(nil, "b").Status)
	})
}

// fakePinger answers as the test specifies.
type fakePinger func(ctx context.Context, hive string) error

func (f fakePinger) Ping(ctx context.Context, hive string) error { return f(ctx, hive) }

func noSign(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}
