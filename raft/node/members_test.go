package node_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// gossip holds what every node of a sim knows about the others.
type gossip struct {
	mu      sync.Mutex
	members map[string]node.Member // by node id
}

func (g *gossip) Members() []node.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []node.Member
	for _, m := range g.members {
		out = append(out, m)
	}
	return out
}

func (g *gossip) put(m node.Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[m.NodeID] = m
}

func (g *gossip) alive(n *simNode) {
	g.put(node.Member{NodeID: n.name, RaftID: n.ID(), Name: n.name, Address: n.name, Alive: true})
}

func (g *gossip) gone(n *simNode, left bool) {
	g.put(node.Member{NodeID: n.name, RaftID: n.ID(), Name: n.name, Address: n.name, Left: left})
}

// piloted simulates a cluster whose leaders run the autopilot.
func piloted(t *testing.T, size int, opts func(node.Options) node.Options, test func(t *testing.T, s *sim, g *gossip)) {
	t.Helper()
	g := &gossip{members: map[string]node.Member{}}
	simulate(t, size, opts, func(t *testing.T, s *sim) {
		for _, n := range s.nodes {
			g.alive(n)
			s.kill(n) // restarted below with a lead
		}
		for _, n := range s.nodes {
			s.pilot(n, g)
		}
		test(t, s, g)
	})
}

// pilot starts a node that runs the autopilot as its lead.
func (s *sim) pilot(n *simNode, g *gossip) {
	s.t.Helper()
	n.duty = func(ctx context.Context, on *node.Node) error { return on.Autopilot(ctx, g) }
	if !n.up {
		s.start(n)
	}
	g.alive(n)
}

func (s *sim) voters() string {
	var out []string
	for _, v := range s.leader().Servers() {
		name := v.NodeID
		if !v.Voter {
			name = "(" + name + ")"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// until waits for a condition.
func (s *sim) until(within time.Duration, what string, done func() bool) {
	s.t.Helper()
	for start := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > within {
			s.t.Fatalf("%s: not after %s; members: %s", what, within, s.voters())
		}
		synctest.Wait()
	}
}

// Membership changes: a new queen gets a vote once it has been healthy for a while; a dead one is
// removed if more than the minimum are left, and only after it has been dead for long; one that
// leaves on purpose is removed at once; a changed address is followed.
func TestAutopilot(t *testing.T) {
	t.Parallel()
	opts := func(o node.Options) node.Options { o.DeadAfter = 20 * time.Second; return o }
	piloted(t, 3, opts, func(t *testing.T, s *sim, g *gossip) {
		s.leader()
		time.Sleep(15 * time.Second)
		fourth := s.add("queen-3", opts)
		s.pilot(fourth, g)
		must.False(t, fourth.HasState())
		start := time.Now()
		s.until(5*time.Second, "added", func() bool { return strings.Contains(s.voters(), "(queen-3)") })
		s.until(20*time.Second, "promoted", func() bool { return strings.Contains(s.voters(), " queen-3") })
		t.Logf("a new queen has a vote after %s", time.Since(start))
		must.Greater(t, 9*time.Second, time.Since(start)) // not before it has been healthy for 10 s
		must.True(t, fourth.HasState())

		// A dead queen, with more than the minimum left.
		dead := s.others(s.leader(), fourth)[0]
		s.kill(dead)
		g.gone(dead, false)
		time.Sleep(15 * time.Second)
		must.StrContains(t, s.voters(), dead.name)
		s.until(30*time.Second, "removed", func() bool { return !strings.Contains(s.voters(), dead.name) })

		// A dead queen, with only the minimum left.
		dead2 := s.others(s.leader(), dead)[0]
		s.kill(dead2)
		g.gone(dead2, false)
		time.Sleep(40 * time.Second)
		must.StrContains(t, s.voters(), dead2.name)
		s.pilot(dead2, g)
		time.Sleep(20 * time.Second)

		// The removed queen returns with its state: as a nonvoter first.
		s.pilot(dead, g)
		s.until(40*time.Second, "back", func() bool { return strings.Contains(" "+s.voters(), " "+dead.name) })
		s.converged(5*time.Second, s.nodes...)

		// A queen leaves on purpose.
		leaver := s.others(s.leader())[0]
		s.kill(leaver)
		g.gone(leaver, true)
		s.until(10*time.Second, "left", func() bool { return !strings.Contains(s.voters(), leaver.name) })

		// Gossip loses a queen that raft still hears from: nothing happens.
		s.pilot(leaver, g)
		s.until(40*time.Second, "back", func() bool { return strings.Contains(" "+s.voters(), " "+leaver.name) })
		g.gone(leaver, false)
		time.Sleep(40 * time.Second)
		must.StrContains(t, s.voters(), leaver.name)
		g.mu.Lock()
		delete(g.members, leaver.name)
		g.mu.Unlock()
		time.Sleep(40 * time.Second)
		must.StrContains(t, s.voters(), leaver.name)
		g.alive(leaver)

		// A follower changes its address, then the leader.
		for _, mover := range []*simNode{s.others(s.leader())[0], s.leader()} {
			s.kill(mover)
			other := mover.name + "-elsewhere"
			mover.opts = func(o node.Options) node.Options { o.Transport = s.net.attach(other); return opts(o) }
			s.start(mover)
			g.put(node.Member{NodeID: mover.name, RaftID: mover.ID(), Name: mover.name, Address: other, Alive: true})
			s.until(10*time.Second, "moved", func() bool {
				for _, v := range s.leader().Servers() {
					if v.NodeID == mover.name {
						return v.Address == other && v.Voter
					}
				}
				return false
			})
		}
		s.converged(15*time.Second, s.nodes...)
	})
}

// A queen that leaves just after it got its vote stays removed: autopilot, which acts on the state
// of a tick ago, does not promote it again.
func TestPromotedQueenLeaves(t *testing.T) {
	t.Parallel()
	piloted(t, 3, nil, func(t *testing.T, s *sim, g *gossip) {
		s.leader()
		time.Sleep(15 * time.Second)
		fourth := s.add("queen-3", nil)
		for range 10 { // whether autopilot looks or acts first is random
			s.pilot(fourth, g)
			s.until(40*time.Second, "promoted", func() bool { return strings.Contains(s.voters(), " queen-3") })
			g.gone(fourth, true)
			must.NoError(t, s.leader().RemoveServer(t.Context(), fourth.ID()))
			s.kill(fourth)
			for range 100 {
				must.StrNotContains(t, s.voters(), "queen-3")
				time.Sleep(50 * time.Millisecond)
			}
		}
	})
}

// The only queen of a cluster changes its address: once it leads, it knows itself by the new one.
func TestOwnAddress(t *testing.T) {
	t.Parallel()
	simulate(t, 1, nil, func(t *testing.T, s *sim) {
		only := s.leader()
		s.kill(only)
		only.opts = func(o node.Options) node.Options { o.Transport = s.net.attach("elsewhere"); return o }
		s.start(only)
		s.leader()
		time.Sleep(time.Second)
		must.Eq(t, []node.Server{{NodeID: only.name, RaftID: only.ID(), Address: "elsewhere", Voter: true, Leader: true}}, only.Servers())
	})
}

// C-15: a queen loses its disk, and starts again at the same address. Promises under its old id no
// longer count: with the leader dead as well, its vote must not elect the third queen, which was
// cut off and lacks a write. If any answer counted, it would, and the write would be lost.
func TestAmnesia(t *testing.T) {
	t.Parallel()
	for _, anybody := range []bool{false, true} {
		t.Run(fmt.Sprintf("any answer counts %v", anybody), func(t *testing.T) {
			t.Parallel()
			simulate(t, 3, func(o node.Options) node.Options { return o.WithoutIdentity(anybody) }, func(t *testing.T, s *sim) {
				leader := s.leader()
				forgets, lacks := s.others(leader)[0], s.others(leader)[1]
				time.Sleep(time.Second)
				s.net.split(names(lacks), names(leader, forgets))
				must.NoError(t, write1(t.Context(), leader.Node, "acked", 1))
				old := forgets.ID()
				s.kill(leader)
				s.kill(forgets)
				forgets.mem = node.NewMemory()
				s.start(forgets)
				must.NotEq(t, old, forgets.ID())
				must.Eq(t, forgets.name, forgets.NodeID())
				s.net.heal()
				time.Sleep(20 * time.Second)
				if anybody {
					wrong := s.leader()
					_, ok := wrong.State().Hive(nil, "acked")
					must.False(t, ok)
					return
				}
				must.False(t, lacks.IsLeader())
				must.False(t, forgets.IsLeader())
				s.start(leader)
				now := s.leader()
				must.Eq(t, leader, now)
				_, ok := now.State().Hive(nil, "acked")
				must.True(t, ok)
				// Its old id gets no acknowledgement, and it is added under its new one.
				must.NoError(t, now.RemoveServer(t.Context(), old))
				must.NoError(t, now.AddNonvoter(t.Context(), forgets.ID(), forgets.name))
				must.NoError(t, now.AddVoter(t.Context(), forgets.ID(), forgets.name))
				s.converged(5*time.Second, s.nodes...)
			})
		})
	}
}

// The same with the autopilot: the lost identity is removed at once, and the new one gets a vote
// without manual action.
func TestAmnesiaHeals(t *testing.T) {
	t.Parallel()
	opts := func(o node.Options) node.Options { o.Stabilization = 2 * time.Second; return o }
	piloted(t, 3, opts, func(t *testing.T, s *sim, g *gossip) {
		l := s.load(1)
		forgets := s.others(s.leader())[0]
		time.Sleep(4 * time.Second)
		old := forgets.ID()
		s.kill(forgets)
		forgets.mem = node.NewMemory()
		s.pilot(forgets, g)
		start := time.Now()
		s.until(30*time.Second, "a vote again", func() bool {
			for _, v := range s.leader().Servers() {
				must.NotEq(t, 4, len(s.leader().Servers()))
				if v.RaftID == forgets.ID() {
					return v.Voter
				}
			}
			return false
		})
		t.Logf("a vote again after %s", time.Since(start))
		for _, v := range s.leader().Servers() {
			must.NotEq(t, old, v.RaftID)
		}
		l.stop()
		s.converged(5*time.Second, s.nodes...)
		l.lost(forgets)
	})
}

// C-16 (hashicorp/raft issue 212): a follower is down while the leader truncates its log past the
// follower's end, and returns under load.
func TestFarBehind(t *testing.T) {
	t.Parallel()
	simulate(t, 3, func(o node.Options) node.Options { return o.WithTrailing(8) }, func(t *testing.T, s *sim) {
		leader := s.leader()
		follower := s.others(leader)[0]
		s.kill(follower)
		l := s.load(4)
		for range 4 {
			time.Sleep(time.Second)
			for _, n := range s.others(follower) {
				must.NoError(t, n.Snapshot(t.Context()))
			}
		}
		start := time.Now()
		s.start(follower)
		index := s.leader().AppliedIndex()
		must.NoError(t, follower.WaitApplied(t.Context(), index))
		t.Logf("caught up with %d after %s and %d snapshots", index, time.Since(start), s.net.sent(follower.name))
		must.Less(t, 10*time.Second, time.Since(start))
		must.Between(t, 1, s.net.sent(follower.name), 2)
		time.Sleep(time.Second)
		must.Less(t, 3, s.net.sent(follower.name))
		l.stop()
		s.converged(5*time.Second, s.nodes...)
		l.lost(follower)
	})
}

// C-17: queens are added, removed and replaced during partitions and load. There are never two
// majorities, and nothing is lost.
func TestMembersChangeDuringPartitions(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		l := s.load(1)
		for round := range 4 {
			old := s.leader()
			// The leader is cut off while it adds a queen.
			added := s.add(fmt.Sprintf("queen-%d", 3+round), nil)
			s.net.split(names(old), names(s.others(old)...))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			must.Error(t, old.AddVoter(ctx, added.ID(), added.name))
			cancel()
			now := s.leader(s.others(old)...)
			ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
			must.NoError(t, now.AddNonvoter(ctx, added.ID(), added.name))
			must.NoError(t, now.AddVoter(ctx, added.ID(), added.name))
			if round%2 == 1 {
				must.NoError(t, now.RemoveServer(ctx, old.ID()))
			}
			cancel()
			// Only one side has a majority: the old leader cannot do the same on its side.
			ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			must.Error(t, write1(ctx, old.Node, "minority", 1))
			cancel()
			s.net.heal()
			time.Sleep(2 * time.Second)
			if round%2 == 1 {
				// The removed queen cannot disturb the others, and its machine is then shut down.
				term := s.terms()
				time.Sleep(3 * time.Second)
				must.Eq(t, term, s.leader().Raft().CurrentTerm())
				s.kill(old)
			}
		}
		count, _ := l.stop()
		t.Logf("%d writes; members: %s", count, s.voters())
		must.Len(t, 5, s.leader().Servers())
		s.converged(15*time.Second, s.nodes...)
		for _, n := range s.nodes {
			if n.up {
				l.lost(n)
				_, ok := n.State().Hive(nil, "minority")
				must.False(t, ok)
			}
		}
	})
}

// C-18: a command that an older queen does not know is refused before it is logged, as long as that
// queen is alive. Without the gate the old queen stops at the entry, and again at each start.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	var lowest atomic.Uint32
	opts := func(o node.Options) node.Options { o.MinFSM = lowest.Load; return o }
	simulate(t, 3, opts, func(t *testing.T, s *sim) {
		leader := s.leader()
		newer := fsm.RemoveHive("h")
		must.Eq(t, 2, fsm.Required(newer))
		lowest.Store(1) // an old one is alive
		must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
		before := leader.Raft().LastIndex()
		_, err := leader.Apply(t.Context(), newer)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "upgrade")
		must.Eq(t, before, leader.Raft().LastIndex())
		lowest.Store(0) // unknown, as before there was gossip
		_, err = leader.Apply(t.Context(), newer)
		must.NoError(t, err)
		lowest.Store(2)
		_, err = leader.Apply(t.Context(), newer)
		must.NoError(t, err)
		s.converged(time.Second, s.nodes...)
	})
}

// C-19: a command at which the state machine would stop is refused before it is logged.
func TestPoison(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		must.NoError(t, leader.Barrier(t.Context()))
		before := leader.Raft().LastIndex()
		unknown := &raftv1.Command{RequestId: "from the future"}
		// an operation that this build does not know
		unknown.ProtoReflect().SetUnknown([]byte{0xfa, 0x7f, 0x01, 'x'})
		huge := hive("h", 1)
		huge.Name = strings.Repeat("x", fsm.MaxCommandBytes)
		for name, c := range map[string]*raftv1.Command{
			"nothing": {}, "unknown": unknown, "newer": {MinFsm: 99}, "no id": fsm.SyncHive(core.Hive{}, nil), "huge": fsm.SyncHive(huge, nil),
			"not text": fsm.RemoveHive("\xff"),
		} {
			_, err := leader.Apply(t.Context(), c)
			must.Error(t, err, must.Sprint(name))
			must.Eq(t, before, leader.Raft().LastIndex(), must.Sprint(name))
		}
		must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
		s.converged(time.Second, s.nodes...)
	})
}

// A snapshot is restored into its own cluster: on all nodes, including those that were down. The
// index increases, and the cluster continues.
func TestSaveAndRestore(t *testing.T) {
	t.Parallel()
	simulate(t, 3, func(o node.Options) node.Options { return o.WithTrailing(4) }, func(t *testing.T, s *sim) {
		leader := s.leader()
		_, err := leader.Apply(t.Context(), fsm.InitCluster(core.Cluster{ID: "c1", Name: "one", CACertificates: []byte("x")}, nil, nil))
		must.NoError(t, err)
		must.NoError(t, write1(t.Context(), leader.Node, "before", 7))
		for _, c := range []*raftv1.Command{
			fsm.PutNode(core.Node{ID: "n1", Name: "n1", Roles: []core.Role{core.RoleHive}, RPCAddress: "n1:1", KeyHash: bytes.Repeat([]byte("k"), 32), CertificateExpiresAt: time.Now()}, ""),
			fsm.PutToken(core.Token{ID: "t1", Name: "t1", Kind: core.TokenAPI, SecretHash: bytes.Repeat([]byte("s"), 32), Scopes: core.Scopes(), CreatedAt: time.Now()}),
		} {
			_, err := leader.Apply(t.Context(), c)
			must.NoError(t, err)
		}
		var saved bytes.Buffer
		must.NoError(t, leader.SaveSnapshot(t.Context(), &saved))
		info, err := fsm.Inspect(bytes.NewReader(saved.Bytes()))
		must.NoError(t, err)
		must.Eq(t, "c1", info.Cluster)
		must.Eq(t, leader.AppliedIndex(), info.Index)
		for i := range uint64(20) {
			must.NoError(t, write1(t.Context(), leader.Node, "after", i+1))
		}
		down := s.others(leader)[0]
		s.kill(down)

		follower := s.others(leader, down)[0]
		must.Eq(t, core.Unavailable, core.KindOf(follower.RestoreSnapshot(t.Context(), bytes.NewReader(saved.Bytes()))))
		must.NoError(t, follower.SaveSnapshot(t.Context(), &bytes.Buffer{})) // its own state
		index := leader.AppliedIndex()
		must.Eq(t, core.Integrity, core.KindOf(leader.RestoreSnapshot(t.Context(), strings.NewReader("no snapshot"))))
		must.Error(t, leader.RestoreSnapshot(t.Context(), bytes.NewReader(saved.Bytes()[:saved.Len()-3])))
		must.Eq(t, index, leader.AppliedIndex())

		for _, c := range []*raftv1.Command{fsm.RevokeNode("n1"), fsm.RevokeToken("t1")} {
			_, err := leader.Apply(t.Context(), c)
			must.NoError(t, err)
		}
		abandoned := leader.State().Abandoned()
		must.NoError(t, leader.RestoreSnapshot(t.Context(), bytes.NewReader(saved.Bytes())))
		<-abandoned
		must.GreaterEq(t, index, leader.AppliedIndex())
		s.start(down)
		for _, n := range s.nodes {
			must.NoError(t, n.WaitApplied(t.Context(), leader.AppliedIndex()))
			_, ok := n.State().Hive(nil, "after")
			must.False(t, ok)
			h, ok := n.State().Hive(nil, "before")
			must.True(t, ok)
			must.Eq(t, 7, h.Incarnation)
			must.True(t, n.State().Snapshot().Revoked(nil, "n1"))
			_, ok = n.State().Token(nil, "t1")
			must.False(t, ok)
		}
		must.NoError(t, write1(t.Context(), leader.Node, "later", 1))
		s.converged(5*time.Second, s.nodes...)
		for _, n := range s.nodes { // restart all, each with the restored state in its log
			s.kill(n)
		}
		for _, n := range s.nodes {
			s.start(n)
		}
		must.NoError(t, write1(t.Context(), s.leader().Node, "later", 2))
		s.converged(5*time.Second, s.nodes...)

		// Another cluster's snapshot is refused.
		other := fsm.New()
		data, err := fsm.Encode(fsm.InitCluster(core.Cluster{ID: "c2", Name: "two", CACertificates: []byte("x")}, nil, nil))
		must.NoError(t, err)
		other.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: data})
		var foreign bytes.Buffer
		must.NoError(t, fsm.WriteSnapshot(&foreign, other.State().Snapshot()))
		err = s.leader().RestoreSnapshot(t.Context(), &foreign)
		must.Eq(t, core.Conflict, core.KindOf(err), must.Sprint(err))
		must.StrContains(t, err.Error(), "c2")
	})
}

func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		must.Eq(t, core.Conflict, core.KindOf(leader.Bootstrap([]node.Voter{{ID: leader.ID(), Address: leader.name}})))
		lone := s.add("queen-9", nil)
		must.Eq(t, core.Invalid, core.KindOf(lone.Bootstrap([]node.Voter{{ID: "somebody", Address: "else"}})))
		must.Eq(t, core.Invalid, core.KindOf(lone.Bootstrap(nil)))
		never := s.add("queen-8", func(o node.Options) node.Options { o.Bootstrap = node.Never; return o })
		must.Eq(t, core.Conflict, core.KindOf(never.Bootstrap([]node.Voter{{ID: never.ID(), Address: never.name}})))
		time.Sleep(time.Minute)
		must.False(t, never.IsLeader())
		must.False(t, never.HasState())
		must.Eq(t, core.Conflict, core.KindOf(onlyVoter(t, s, lone)))
		must.NoError(t, leader.RemoveServer(t.Context(), "nobody"))
	})
}

// A queen that is too late to bootstrap the cluster gets an error, and joins it all the same: the
// two others have elected a leader in the meantime.
func TestBootstrapTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 3, nil)
		defer s.end()
		voters := s.list()
		for _, n := range s.nodes[:2] {
			must.NoError(t, n.Bootstrap(voters))
		}
		s.leader()
		late := s.nodes[2]
		must.Eq(t, core.Conflict, core.KindOf(late.Bootstrap(voters)))
		must.NoError(t, write1(t.Context(), s.leader().Node, "hive-1", 1))
		s.until(5*time.Second, "written", func() bool { return late.State().AppliedIndex() >= s.leader().State().AppliedIndex() })
		must.True(t, late.HasState())
		must.Len(t, 3, late.Servers())
		s.kill(s.others(late)[0]) // its vote counts: with it, two of three are left
		s.leader()
	})
}

// onlyVoter makes the node a cluster of one and tries to remove it.
func onlyVoter(t *testing.T, s *sim, n *simNode) error {
	t.Helper()
	must.NoError(t, n.Bootstrap([]node.Voter{{ID: n.ID(), Address: n.name}}))
	start := time.Now()
	s.leader(n)
	must.Less(t, 100*time.Millisecond, time.Since(start))
	return n.RemoveServer(t.Context(), n.ID())
}
