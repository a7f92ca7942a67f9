package node_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// An overview: election, writes, the leader killed, another elected, nothing lost, the leadership
// handed over, no majority.
func TestThreeQueens(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		first := s.leader()
		for i := range 100 {
			must.NoError(t, write1(t.Context(), first.Node, fmt.Sprintf("h%03d", i), 1))
		}
		time.Sleep(time.Second)
		for _, n := range s.nodes {
			must.Len(t, 100, n.State().Hives(nil))
			must.Eq(t, first.name, n.Leader())
			leader, ok := n.LeaderServer()
			must.True(t, ok)
			must.Eq(t, node.Server{NodeID: first.name, RaftID: first.ID(), Address: first.name, Voter: true, Leader: true}, leader)
			must.Eq(t, n == first, n.lead.Load())
			must.Less(t, 100*time.Millisecond, n.LastContact())
			if n != first {
				_, err := n.Apply(t.Context(), fsm.RemoveHive("h000"))
				must.Eq(t, core.Unavailable, core.KindOf(err))
				must.StrContains(t, err.Error(), first.name)
				must.False(t, first.LastContact() > 0)
			}
		}
		s.kill(first)
		must.False(t, first.lead.Load())
		second := s.leader()
		must.Len(t, 100, second.State().Hives(nil))
		must.NoError(t, write1(t.Context(), second.Node, "h100", 1))

		// lead fails: another node takes over, and the first one does not lead at the same time.
		third := s.others(first, second)[0]
		must.NoError(t, second.LeadershipTransfer(t.Context()))
		time.Sleep(5 * time.Second)
		must.True(t, third.lead.Load())
		must.False(t, second.lead.Load())
		must.NoError(t, third.Barrier(t.Context()))
		must.Len(t, 101, third.State().Hives(nil))
		must.NoError(t, third.LeadershipTransferTo(t.Context(), second.ID(), second.name))
		must.Eq(t, second, s.leader())
		must.Eq(t, core.Conflict, core.KindOf(second.LeadershipTransferTo(t.Context(), second.ID(), second.name)))

		// Without a majority nothing is written, and the caller gets an error when its deadline
		// passes.
		s.net.split(names(second), names(third))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := second.Apply(ctx, fsm.RemoveHive("h000"))
		must.ErrorIs(t, err, node.ErrOutcomeUnknown)
		time.Sleep(5 * time.Second)
		must.False(t, second.lead.Load())
		must.Greater(t, 4*time.Second, second.LastContact())
	})
}

// C-01 in short: the leader is killed repeatedly under load, and returns. Every acknowledged write
// is kept. The gap is short: without Lost the nodes wait for the election timeout, and it is 250 ms
// or more.
func TestKillLeader(t *testing.T) {
	t.Parallel()
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			simulate(t, size, nil, func(t *testing.T, s *sim) {
				s.leader()
				time.Sleep(time.Second)
				l := s.load(2)
				time.Sleep(time.Second)
				l.since()
				for range 3 {
					dead := s.leader()
					s.kill(dead)
					s.leader()
					time.Sleep(500 * time.Millisecond)
					s.start(dead)
					time.Sleep(time.Second)
				}
				count, gap := l.stop()
				t.Logf("%d writes, the longest gap %s", count, gap)
				must.Less(t, 225*time.Millisecond, gap) // the time of the third in turn, and some round trips
				s.converged(5*time.Second, s.nodes...)
				for _, n := range s.nodes {
					l.lost(n)
				}
			})
		})
	}
}

// The first two in turn lack the dead leader's last entry, which reaches the other two while they
// wait: these refuse the first its vote. Even so, the next election must not wait for the timeouts.
func TestLastEntryArrivesLate(t *testing.T) {
	t.Parallel()
	simulate(t, 5, nil, func(t *testing.T, s *sim) {
		dead := s.leader()
		must.NoError(t, write1(t.Context(), dead.Node, "h", 1))
		time.Sleep(time.Second)
		index, term := dead.Raft().LastIndex(), dead.Raft().CurrentTerm()
		rest := s.others(dead)
		slices.SortFunc(rest, func(a, b *simNode) int { return strings.Compare(a.ID(), b.ID()) })
		at := time.Now()
		s.kill(dead)
		time.Sleep(time.Until(at.Add(simDelay + 10*time.Microsecond)))
		for _, n := range rest[2:] {
			_, err := n.Inject(&raft.AppendEntriesRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(dead.ID()), Addr: []byte(dead.name)},
				Term:      term, PrevLogEntry: index, PrevLogTerm: term,
				Entries: []*raft.Log{{Index: index + 1, Term: term, Type: raft.LogNoop}},
			})
			must.NoError(t, err)
		}
		s.leader()
		took := time.Since(at)
		t.Logf("a new leader after %s", took)
		must.Less(t, 200*time.Millisecond, took)
	})
}

// C-02: two of three nodes die. Writes are then refused in time, and nothing is lost. Then one
// returns.
func TestQuorumLost(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		l := s.load(2)
		time.Sleep(time.Second)
		a, b := s.others(leader)[0], s.others(leader)[1]
		s.kill(a)
		s.kill(b)
		time.Sleep(time.Second)
		l.stop()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.Unavailable, core.KindOf(write1(ctx, leader.Node, "h", 1)))
		must.Less(t, 1100*time.Millisecond, time.Since(start))
		_, err := leader.ReadIndex(ctx, false)
		must.Eq(t, core.Unavailable, core.KindOf(err))

		start = time.Now()
		s.start(b)
		now := s.leader()
		must.NoError(t, write1(t.Context(), now.Node, "h", 1))
		t.Logf("written again %s after a majority was there", time.Since(start))
		must.Less(t, time.Second, time.Since(start))
		l.lost(now)
		s.start(a)
		s.converged(5*time.Second, s.nodes...)
	})
}

// C-06: the leader is cut off for 30 s. The majority continues; the minority refuses writes and
// linearizable reads, and its state is kept.
func TestPartition(t *testing.T) {
	t.Parallel()
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			simulate(t, size, nil, func(t *testing.T, s *sim) {
				old := s.leader()
				must.NoError(t, write1(t.Context(), old.Node, "before", 1))
				time.Sleep(time.Second)
				l := s.load(2)
				cut := time.Now()
				s.net.split(names(old), names(s.others(old)...))
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				must.Error(t, write1(ctx, old.Node, "minority", 1))
				stepped := time.Since(cut)
				// Reads without a quorum check are answered no longer than the lease.
				_, err := old.ReadIndex(t.Context(), false)
				must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(stepped))
				now := s.leader(s.others(old)...)
				must.NoError(t, write1(t.Context(), now.Node, "majority", 1))
				must.Less(t, 2*time.Second, time.Since(cut))
				_, known := old.State().Hive(nil, "before")
				must.True(t, known)
				// Cut off for 30 s, mostly without load.
				time.Sleep(2 * time.Second)
				l.stop()
				time.Sleep(28 * time.Second)
				must.Greater(t, 25*time.Second, old.LastContact())
				term := s.terms()
				s.net.heal()
				time.Sleep(5 * time.Second)
				must.Less(t, term+2, s.terms())
				s.converged(5*time.Second, s.nodes...)
				for _, n := range s.nodes {
					l.lost(n)
					_, ok := n.State().Hive(nil, "majority")
					must.True(t, ok)
				}
			})
		})
	}
}

// C-07: the leader's messages arrive, but the answers do not. The leader steps down within its
// lease, and no election storm follows. If unanswered heartbeats counted as contact, it would stay.
func TestOneWayPartition(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		old := s.leader()
		time.Sleep(time.Second)
		term := s.terms()
		start := time.Now()
		for _, n := range s.others(old) {
			s.net.oneWay(n.name, old.name)
		}
		for old.IsLeader() {
			time.Sleep(time.Millisecond)
		}
		t.Logf("stepped down after %s", time.Since(start))
		must.Less(t, 350*time.Millisecond, time.Since(start))
		now := s.leader(s.others(old)...)
		must.NoError(t, write1(t.Context(), now.Node, "h", 1))
		must.Less(t, 3*time.Second, time.Since(start))
		time.Sleep(time.Minute)
		t.Logf("%d terms in a minute", s.terms()-term)
		must.Less(t, 6, s.terms()-term)
		s.net.heal()
		s.converged(5*time.Second, s.nodes...)
	})
}

// C-07: two followers are cut off from each other, and the leader sees both; then two see only the
// third, which is not the leader.
func TestBridgePartition(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		a, b := s.others(leader)[0], s.others(leader)[1]
		term := s.terms()
		s.net.split(names(a), names(b))
		time.Sleep(time.Minute)
		must.Eq(t, leader, s.leader())
		must.Eq(t, term, s.terms())
		s.net.heal()
		time.Sleep(time.Second)
		s.net.split(names(leader), names(a)) // b is the bridge
		time.Sleep(time.Minute)
		now := s.leader()
		must.NoError(t, write1(t.Context(), now.Node, "h", 1))
		t.Logf("%d terms in a minute", s.terms()-term)
		must.Less(t, 6, s.terms()-term)
		s.net.heal()
		s.converged(5*time.Second, s.nodes...)
	})
}

// C-14 (hashicorp/raft issues 605 and 606): one of three nodes is down, and the leader is forced to
// step down. One of the two leads again soon.
func TestStepDownOfTwo(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		s.kill(s.others(leader)[0])
		other := s.others(leader)[1]
		must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
		for range 5 {
			s.net.split(names(leader), names(other))
			for leader.IsLeader() {
				time.Sleep(time.Millisecond)
			}
			s.net.heal()
			start := time.Now()
			leader = s.leader()
			t.Logf("a leader again after %s", time.Since(start))
			must.Less(t, 2*time.Second, time.Since(start))
			must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
			for _, n := range s.nodes {
				if n.up && n != leader {
					other = n
				}
			}
			time.Sleep(time.Second)
		}
	})
}

// A write or read that waits for a hanging leader ends with its context.
func TestReadIndex(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		follower := s.others(leader)[0]
		_, err := follower.ReadIndex(t.Context(), false)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, err.Error(), leader.name)
		for i := range uint64(20) {
			must.NoError(t, write1(t.Context(), leader.Node, "h", i+1))
			for _, verify := range []bool{false, true} {
				last := leader.Raft().LastIndex()
				index, err := leader.ReadIndex(t.Context(), verify)
				must.NoError(t, err)
				must.Eq(t, last, leader.Raft().LastIndex()) // reading adds no entry
				must.NoError(t, follower.WaitApplied(t.Context(), index))
				h, ok := follower.State().Hive(nil, "h")
				must.True(t, ok)
				must.Eq(t, i+1, h.Incarnation)
			}
		}
		// Indexes of entries that are not commands.
		must.NoError(t, leader.Barrier(t.Context()))
		must.NoError(t, follower.WaitApplied(t.Context(), leader.Raft().LastIndex()))
		must.Less(t, leader.Raft().LastIndex(), follower.AppliedIndex())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(follower.WaitApplied(ctx, 1<<40)))

		// The new leader knows what the old one acknowledged.
		s.kill(leader)
		now := s.leader()
		index, err := now.ReadIndex(t.Context(), false)
		must.NoError(t, err)
		must.Eq(t, index, now.AppliedIndex())

		// C-04, C-05: a leader that was stopped, and has not noticed that time has passed, answers
		// no read from its old state.
		other := s.others(leader, now)[0]
		s.net.split(names(now), names(other))
		time.Sleep(200 * time.Millisecond) // it is still the leader
		must.True(t, now.IsLeader())
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = now.ReadIndex(ctx, true)
		must.Error(t, err)
		synctest.Wait()
	})
}

// C-05: a majority's messages from before the question do not answer it. A process that was stopped
// finds such messages in its sockets when it continues.
func TestReadIgnoresEarlierAnswers(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		leader := s.leader()
		must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
		arrived, release := s.net.holdAnswers()
		for range s.others(leader) {
			<-arrived
		}
		s.net.split(names(leader), names(s.others(leader)...))
		must.True(t, leader.IsLeader())
		result := make(chan error)
		go func() {
			_, err := leader.ReadIndex(t.Context(), true)
			result <- err
		}()
		synctest.Wait() // it has asked
		release()
		must.Eq(t, core.Unavailable, core.KindOf(<-result))
		must.False(t, leader.IsLeader())
	})
}

// A newly elected leader has entries that its predecessor acknowledged, and does not know yet that
// they are committed. It answers no read until it does.
func TestReadOfNewLeader(t *testing.T) {
	t.Parallel()
	simulate(t, 3, nil, func(t *testing.T, s *sim) {
		for i := range uint64(5) {
			leader := s.leader()
			time.Sleep(time.Second)
			must.NoError(t, write1(t.Context(), leader.Node, "h", i+1))
			s.kill(leader)
			var now *simNode
			for now == nil {
				time.Sleep(100 * time.Microsecond)
				for _, n := range s.nodes {
					if n.up && n.IsLeader() {
						now = n
					}
				}
			}
			_, err := now.ReadIndex(t.Context(), false)
			must.NoError(t, err)
			h, _ := now.State().Hive(nil, "h")
			must.Eq(t, i+1, h.Incarnation)
			s.start(leader)
			s.converged(5*time.Second, s.nodes...)
		}
	})
}

// Kept connections to a restarted server are broken, one after another.
func TestAskAnew(t *testing.T) {
	t.Parallel()
	n := open(t, node.Options{ID: "queen-a"})
	asked := 0
	answer := func(errs ...error) func() error {
		asked = 0
		return func() error {
			asked++
			if asked > len(errs) {
				return nil
			}
			return errs[asked-1]
		}
	}
	must.NoError(t, n.Anew(answer(io.EOF, fmt.Errorf("read: %w", syscall.ECONNRESET), syscall.EPIPE)))
	must.Eq(t, 4, asked)
	must.ErrorIs(t, n.Anew(answer(io.EOF, syscall.ECONNREFUSED)), syscall.ECONNREFUSED)
	must.Eq(t, 2, asked)
	must.ErrorIs(t, n.Anew(answer(io.EOF, io.EOF, io.EOF, io.EOF, io.EOF)), io.EOF)
	must.Eq(t, 4, asked)
}
