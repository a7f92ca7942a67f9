package node_test

import (
	"context"
	"math"
	"strings"
	"sync"
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

// disks holds the disks of a sim's nodes.
type disks struct {
	mu    sync.Mutex
	free  map[string]uint64
	delay map[string]time.Duration
	hang  map[string]chan struct{}
}

func newDisks() *disks {
	return &disks{free: map[string]uint64{}, delay: map[string]time.Duration{}, hang: map[string]chan struct{}{}}
}

func (d *disks) opts(o node.Options) node.Options {
	name := o.ID
	o.FreeBytes = func() (uint64, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if free, ok := d.free[name]; ok {
			return free, nil
		}
		return math.MaxUint64, nil
	}
	return o.WithDelay(func(string) error {
		d.mu.Lock()
		delay, hang := d.delay[name], d.hang[name]
		d.mu.Unlock()
		time.Sleep(delay)
		if hang != nil {
			<-hang
		}
		return nil
	})
}

func (d *disks) setFree(bytes uint64, nodes ...*simNode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		d.free[n.name] = bytes
	}
}

func (d *disks) setDelay(delay time.Duration, nodes ...*simNode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		d.delay[n.name] = delay
	}
}

// stall makes a node's writes wait until the returned function is called.
func (d *disks) stall(n *simNode) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch := make(chan struct{})
	d.hang[n.name] = ch
	return sync.OnceFunc(func() {
		d.mu.Lock()
		delete(d.hang, n.name)
		d.mu.Unlock()
		close(ch)
	})
}

// C-12: the leader's disk is full. The leadership moves, nothing acknowledged is lost, and the node
// participates again once there is room. Without the check votes fail next, and the node with them
// permanently. If it did ask for votes, it would win again and again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		full := s.leader()
		l := s.load(1)
		time.Sleep(time.Second)
		l.since()
		start := time.Now()
		d.setFree(1<<20, full)
		now := s.leader(s.others(full)...)
		t.Logf("moved after %s", time.Since(start))
		must.Less(t, 5*time.Second, time.Since(start))
		for range 15 {
			time.Sleep(time.Second)
			must.False(t, full.IsLeader())
		}
		must.Less(t, 2, s.terms()-now.Raft().CurrentTerm())
		term := s.terms()
		must.Error(t, now.LeadershipTransferTo(t.Context(), full.ID(), full.name))
		time.Sleep(time.Second)
		must.Eq(t, term, s.terms()) // no election was attempted
		must.ErrorContains(t, full.Snapshot(t.Context()), "almost full")
		now = s.leader(s.others(full)...)
		// This also holds if the other node dies: the full node does not become the leader, and
		// there is none.
		s.kill(now)
		time.Sleep(5 * time.Second)
		must.False(t, full.IsLeader())
		term = s.terms()
		time.Sleep(5 * time.Second)
		must.Eq(t, term, s.terms())
		s.start(now)
		s.leader(s.others(full)...)

		start = time.Now()
		d.setFree(node.MinFree, full)
		count, _ := l.stop()
		s.converged(5*time.Second, s.nodes...)
		t.Logf("%d writes; the node has caught up %s after there was room", count, time.Since(start))
		l.lost(full)

		// All disks are full: writes are refused with a reason, and continue once there is room.
		d.setFree(0, s.nodes...)
		refused := ""
		for range 100 {
			for _, n := range s.nodes {
				if err := write1(t.Context(), n.Node, "h", 1); err != nil && strings.Contains(err.Error(), "almost full") {
					must.Eq(t, core.Unavailable, core.KindOf(err))
					refused = core.HintOf(err)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		must.StrContains(t, refused, "Free space")
		time.Sleep(10 * time.Second)
		d.setFree(math.MaxUint64, s.nodes...)
		start = time.Now()
		must.NoError(t, write1(t.Context(), s.leader().Node, "h", 1))
		t.Logf("writes again %s after there was room", time.Since(start))
		must.Less(t, 2*time.Second, time.Since(start))
		s.converged(15*time.Second, s.nodes...)
	})
}

// A follower whose disk is full has as much of the log as any, and the leader dies. The follower
// does not stand, for it could not write its first entry. If it asked for votes it would get them,
// being the first to ask.
func TestFullDiskNoCandidate(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		full, other, leader := s.nodes[0], s.nodes[1], s.nodes[2] // the first node is the first to stand
		if now := s.leader(); now != leader {
			must.NoError(t, now.LeadershipTransferTo(t.Context(), leader.ID(), leader.name))
		}
		must.Eq(t, leader, s.leader(leader))
		must.NoError(t, write1(t.Context(), leader.Node, "h", 1))
		time.Sleep(time.Second)
		d.setFree(0, full)
		term := s.terms()
		must.Error(t, leader.LeadershipTransferTo(t.Context(), full.ID(), full.name))
		time.Sleep(time.Second)
		must.Eq(t, term, s.terms()) // nor does it stand when it is asked to
		s.kill(leader)
		time.Sleep(100 * time.Millisecond)
		must.True(t, other.IsLeader())
		must.Eq(t, term+1, s.terms())
	})
}

// A write to the leader's disk hangs, and raft's loop with it. The others elect another leader; the
// hanging one answers no reads. If it were not silenced, its heartbeats would continue, and no node
// could write until the disk answered.
func TestDiskStalls(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		stuck := s.leader()
		l := s.load(1)
		time.Sleep(time.Second)
		start := time.Now()
		release := d.stall(stuck)
		defer release()
		now := s.leader(s.others(stuck)...)
		t.Logf("another leader after %s", time.Since(start))
		must.Less(t, 4*time.Second, time.Since(start))
		must.NoError(t, write1(t.Context(), now.Node, "h", 1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := stuck.ReadIndex(ctx, false)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "disk")
		start = time.Now()
		must.Eq(t, core.Unavailable, core.KindOf(write1(ctx, stuck.Node, "h", 1)))
		must.Zero(t, time.Since(start)) // the call does not wait for it
		must.False(t, stuck.IsLeader())
		must.Eq(t, "", stuck.Leader())
		time.Sleep(10 * time.Second)
		release()
		time.Sleep(2 * time.Second)
		l.stop()
		s.converged(5*time.Second, s.nodes...)
		l.lost(stuck)

		// A hanging disk of a follower does not affect the others.
		leader := s.leader()
		follower := s.others(leader)[0]
		release = d.stall(follower)
		for i := range 50 {
			must.NoError(t, write1(t.Context(), leader.Node, "x", uint64(i+1)))
			time.Sleep(100 * time.Millisecond)
		}
		must.Eq(t, leader, s.leader())
		release()
		s.converged(15*time.Second, s.nodes...)
	})
}

// C-20: the leader's disk takes 200 ms for each write. The leadership moves; if all disks are slow,
// it does not keep moving.
func TestDiskSlow(t *testing.T) {
	t.Parallel()
	t.Run("one", func(t *testing.T) {
		t.Parallel()
		d := newDisks()
		simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
			slow := s.leader()
			l := s.load(1)
			time.Sleep(5 * time.Second)
			must.Eq(t, slow, s.leader())
			start := time.Now()
			d.setDelay(200*time.Millisecond, slow)
			now := s.leader(s.others(slow)...)
			t.Logf("moved after %s", time.Since(start))
			must.Less(t, 10*time.Second, time.Since(start))
			time.Sleep(15 * time.Second)
			must.Eq(t, now, s.leader())
			d.setDelay(0, slow)
			l.stop()
			s.converged(15*time.Second, s.nodes...)
			l.lost(slow)
		})
	})
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		d := newDisks()
		simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
			var changes atomic.Int32
			last := s.leader()
			d.setDelay(180*time.Millisecond, s.nodes...)
			l := s.load(1)
			for range 300 {
				time.Sleep(time.Second)
				synctest.Wait()
				for _, n := range s.nodes {
					if n != last && n.lead.Load() {
						changes.Add(1)
						last = n
					}
				}
			}
			d.setDelay(0, s.nodes...)
			count, gap := l.stop()
			t.Logf("%d moves and %d writes in 5 minutes, the longest gap %s", changes.Load(), count, gap)
			must.Less(t, 10, changes.Load())
			must.Greater(t, 400, count)
			s.converged(15*time.Second, s.nodes...)
		})
	})
}

// The disk fills up after the end of the log was deleted and before its replacement is written: the
// replacement is written nevertheless, using the reserved space. Otherwise raft assumes that the
// deleted entries exist, and refuses everything that the leader sends until the queen is restarted.
func TestDiskFullAfterTruncation(t *testing.T) {
	t.Parallel()
	free := uint64(math.MaxUint64)
	d := node.NewDisk(node.NewMemory(), func() (uint64, error) { return free, nil })
	entry := func(i uint64) *raft.Log { return &raft.Log{Index: i, Term: 1} }
	must.NoError(t, d.StoreLogs([]*raft.Log{entry(1), entry(2), entry(3)}))
	must.NoError(t, d.DeleteRange(2, 3))
	free = 1 << 20
	must.NoError(t, d.StoreLog(entry(2)))
	must.Error(t, d.StoreLog(entry(3))) // nothing more is accepted
	must.Error(t, d.DeleteRange(2, 2))  // nor is anything deleted that cannot be replaced
	last, err := d.LastIndex()
	must.NoError(t, err)
	must.Eq(t, 2, last)
	must.NoError(t, d.SetUint64([]byte("CurrentTerm"), 2)) // votes continue
	must.NoError(t, d.Set([]byte("LastVoteCand"), []byte("x")))
	must.NoError(t, d.DeleteRange(1, 1)) // and so does freeing space
	free = node.MinFree
	must.NoError(t, d.StoreLog(entry(3)))
}

// A vote's term and its candidate are stored together or not at all.
func TestVoteIsOneWrite(t *testing.T) {
	t.Parallel()
	m := node.NewMemory()
	d := node.NewDisk(m, func() (uint64, error) { return math.MaxUint64, nil })
	vote := func() (uint64, string) {
		term, err := m.Stable().GetUint64([]byte("LastVoteTerm"))
		must.NoError(t, err)
		candidate, _ := m.Stable().Get([]byte("LastVoteCand")) // a missing key is an error there
		return term, string(candidate)
	}
	must.NoError(t, d.SetUint64([]byte("LastVoteTerm"), 7))
	term, candidate := vote()
	must.Eq(t, 0, term)
	must.Eq(t, "", candidate)
	must.NoError(t, d.Set([]byte("LastVoteCand"), []byte("a")))
	term, candidate = vote()
	must.Eq(t, 7, term)
	must.Eq(t, "a", candidate)
}

// C-05: the leader's loop hangs for less time than it takes to be silenced, it is cut off, and
// others lead in the meantime. It believes that it still leads, and must not answer from its state,
// which lacks what was acknowledged since. It would if it did not check its lease.
func TestReadOfDeposedLeader(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		old := s.leader()
		must.NoError(t, write1(t.Context(), old.Node, "h", 1))
		time.Sleep(time.Second)
		_, err := old.ReadIndex(t.Context(), false)
		must.NoError(t, err)
		s.net.split(names(old), names(s.others(old)...))
		release := d.stall(old)
		defer release()
		go func() { _, _ = old.Apply(t.Context(), fsm.RemoveHive("nobody")) }() // makes the loop hang
		now := s.leader(s.others(old)...)
		must.NoError(t, write1(t.Context(), now.Node, "h", 2))
		must.True(t, old.IsLeader()) // so it believes
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = old.ReadIndex(ctx, false)
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err), must.Sprint(err))
		release()
		s.net.heal()
		s.converged(15*time.Second, s.nodes...)
	})
}

// A lone queen whose disk is full does not stand for election until there is room: it would win
// each election, and lose the leadership with its first entry.
func TestLoneQueenFullDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDisks()
		n, err := node.Open(d.opts(node.Options{ID: "q1"}).WithMemory(node.NewMemory()))
		must.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx, func(ctx context.Context) error { <-ctx.Done(); return nil }) }()
		defer func() {
			must.NoError(t, n.Shutdown())
			cancel()
			must.NoError(t, <-done)
		}()
		put := func() error {
			limited, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := n.Apply(limited, fsm.SetHiveDraining("h1", true))
			return err
		}
		time.Sleep(3 * time.Second)
		must.True(t, n.IsLeader())
		d.setFree(1<<20, &simNode{name: "q1"})
		must.Eq(t, core.Unavailable, core.KindOf(put()))
		time.Sleep(10 * time.Second)
		term := n.Raft().CurrentTerm()
		time.Sleep(10 * time.Minute)
		must.Eq(t, term, n.Raft().CurrentTerm())
		began := time.Now()
		err = put()
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, err.Error(), "disk is almost full")
		must.Eq(t, 0, time.Since(began)) // it does not wait for raft
		must.ErrorContains(t, n.DiskProblem(), "disk is almost full")
		must.Eq(t, "", n.Leader())

		d.setFree(math.MaxUint64, &simNode{name: "q1"})
		time.Sleep(3 * time.Second)
		must.True(t, n.IsLeader())
		must.Eq(t, core.NotFound, core.KindOf(put()))
		d.setFree(1<<20, &simNode{name: "q1"}) // it also ends while it waits
		must.Eq(t, core.Unavailable, core.KindOf(put()))
		time.Sleep(10 * time.Second)
	})
}
