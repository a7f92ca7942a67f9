package node_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/node"
)

// stat returns one of raft's numbers.
func stat(t *testing.T, n *simNode, key string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(n.Raft().Stats()[key], 10, 64)
	must.NoError(t, err)
	return v
}

func setTerm(t *testing.T, m *node.Memory, term uint64) {
	t.Helper()
	must.NoError(t, m.Stable().SetUint64([]byte("CurrentTerm"), term))
}

// C-13 (hashicorp/raft issue 697): a follower was the leader of a term without followers, and has
// entries that the others do not have. They have dropped theirs, except for a snapshot. With
// Options that leave the log alone, raft sends the snapshot again and again, and the follower never
// catches up.
func TestSnapshotOntoDivergedLog(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		behind int64 // number of entries from the follower's last to the snapshot's
		stuck  bool  // whether raft alone gets stuck
	}{
		{"beyond the snapshot", -50, true},
		{"one beyond the snapshot", -1, true},
		{"as far as the snapshot", 0, true},
		{"not as far", 3, false},
	} {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/raft alone %v", tt.name, alone), func(t *testing.T) {
				t.Parallel()
				opts := func(o node.Options) node.Options { return o.WithTrailing(1).WithoutAlign(alone) }
				simulate(t, 3, opts, func(t *testing.T, s *sim) {
					follower, term, snapshot := prepareDivergence(t, s)
					diverge(t, follower, uint64(int64(snapshot)-tt.behind), term) //nolint:gosec // small
					for _, n := range s.others(follower) {
						must.Less(t, n.Raft().CurrentTerm(), term)
					}
					s.start(follower)
					leader := s.leader()
					if alone && tt.stuck {
						time.Sleep(time.Second)
						must.Greater(t, 5, s.net.sent(follower.name))
						must.NoError(t, write1(t.Context(), leader.Node, "h", 1000))
						time.Sleep(time.Second)
						must.Less(t, leader.AppliedIndex(), follower.AppliedIndex())
						return
					}
					must.NoError(t, write1(t.Context(), leader.Node, "h", 1000))
					s.converged(5*time.Second, s.nodes...)
					must.Between(t, 1, s.net.sent(follower.name), 2)
					if alone {
						return
					}
					first, err := follower.mem.Logs().FirstIndex()
					must.NoError(t, err)
					// nothing older is left that it could send to others
					must.Eq(t, snapshot, first)
					// It continues: as a follower, as the leader, and after a restart.
					for i := range uint64(20) {
						must.NoError(t, write1(t.Context(), leader.Node, "h", 1001+i))
					}
					s.converged(5*time.Second, s.nodes...)
					must.Less(t, 3, s.net.sent(follower.name))
					s.kill(follower)
					s.start(follower)
					s.converged(5*time.Second, s.nodes...)
					time.Sleep(time.Second)
					must.NoError(t, leader.LeadershipTransferTo(t.Context(), follower.ID(), follower.name))
					must.NoError(t, write1(t.Context(), s.leader().Node, "h", 2000))
					s.converged(5*time.Second, s.nodes...)
				})
			})
		}
	}
}

// The follower installed the snapshot, got one more entry that no other node has, and was
// restarted: its log has a gap at the snapshot's end.
func TestRestartBehindSnapshotGap(t *testing.T) {
	t.Parallel()
	for _, alone := range []bool{false, true} {
		t.Run(fmt.Sprintf("raft alone %v", alone), func(t *testing.T) {
			t.Parallel()
			opts := func(o node.Options) node.Options { return o.WithTrailing(1).WithoutAlign(alone) }
			simulate(t, 3, opts, func(t *testing.T, s *sim) {
				follower, _, snapshot := prepareDivergence(t, s)
				rest := s.others(follower)
				term := rest[0].Raft().CurrentTerm() + 1
				follower.mem.TakeSnapshot(rest[0].mem)
				first, _ := follower.mem.Logs().FirstIndex()
				last, _ := follower.mem.Logs().LastIndex()
				must.NoError(t, follower.mem.Logs().DeleteRange(first, last))
				must.NoError(t, follower.mem.Logs().StoreLog(&raft.Log{Index: snapshot + 1, Term: term, Type: raft.LogNoop}))
				setTerm(t, follower.mem, term)
				for _, n := range rest {
					s.kill(n)
					setTerm(t, n.mem, term+1)
				}
				for _, n := range rest {
					s.start(n)
				}
				leader := s.leader()
				must.NoError(t, write1(t.Context(), leader.Node, "h", 1000))
				s.start(follower)
				if alone {
					time.Sleep(time.Second)
					must.Less(t, leader.AppliedIndex(), follower.AppliedIndex())
					return
				}
				s.converged(5*time.Second, s.nodes...)
				must.Eq(t, 0, s.net.sent(follower.name)) // the gap was closed at the start
			})
		})
	}
}

// prepareDivergence kills a follower, and lets the others continue in later terms until all they
// have is a snapshot. It returns a term in which the follower may have been the leader, and the
// snapshot's index.
func prepareDivergence(t *testing.T, s *sim) (follower *simNode, term, snapshot uint64) {
	t.Helper()
	leader := s.leader()
	for i := range uint64(10) {
		must.NoError(t, write1(t.Context(), leader.Node, "h", i+1))
	}
	s.converged(time.Second, s.nodes...)
	follower = s.others(leader)[0]
	rest := s.others(follower)
	for _, n := range s.nodes {
		s.kill(n)
	}
	term = 10
	for _, n := range rest {
		setTerm(t, n.mem, 20)
		s.start(n)
	}
	leader = s.leader()
	for i := range uint64(30) {
		must.NoError(t, write1(t.Context(), leader.Node, "h", i+100))
	}
	s.converged(time.Second, rest...)
	for _, n := range rest {
		must.NoError(t, n.Snapshot(t.Context()))
	}
	snapshot = stat(t, rest[0], "last_snapshot_index")
	must.Eq(t, snapshot, stat(t, rest[1], "last_snapshot_index"))
	return follower, term, snapshot
}

// diverge adds entries of the term, up to an index, to a node that is down.
func diverge(t *testing.T, n *simNode, to, term uint64) {
	t.Helper()
	last, err := n.mem.Logs().LastIndex()
	must.NoError(t, err)
	for i := last + 1; i <= to; i++ {
		must.NoError(t, n.mem.Logs().StoreLog(&raft.Log{Index: i, Term: term, Type: raft.LogNoop}))
	}
	setTerm(t, n.mem, term)
}
