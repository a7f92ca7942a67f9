package node_test

import (
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/node"
)

// disks are the disks of a sim's nodes.
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

// stall has a node's writes wait until the returned function is called.
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

// C-12: the leader's disk is full. The leadership moves, nothing that was acknowledged is lost, and the node takes part again when there is room.
// Without the check votes fail next, and the node for ever with them. If it did ask for votes, it would win again and again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		full := s.leader()
		l := s.load(2)
		time.Sleep(time.Second)
		l.gap = 0
		start := time.Now()
		d.setFree(1<<20, full)
		now := s.leader(s.others(full)...)
		t.Logf("moved after %s", time.Since(start))
		must.Less(t, 5*time.Second, time.Since(start))
		for range 60 {
			time.Sleep(time.Second)
			must.False(t, full.IsLeader())
		}
		must.Less(t, 2, s.terms()-now.Raft().CurrentTerm())
		// Also when the other one dies: it does not become the leader, and there is none.
		s.kill(now)
		time.Sleep(10 * time.Second)
		must.False(t, full.IsLeader())
		term := s.terms()
		time.Sleep(10 * time.Second)
		must.Eq(t, term, s.terms())
		s.start(now)
		s.leader(s.others(full)...)

		start = time.Now()
		d.setFree(node.MinFree, full)
		count, _ := l.stop()
		s.converged(5*time.Second, s.nodes...)
		t.Logf("%d writes; the node has caught up %s after there was room", count, time.Since(start))
		l.lost(full)

		// All disks are full: writes are refused with a reason, and go on when there is room.
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
		time.Sleep(time.Minute)
		d.setFree(math.MaxUint64, s.nodes...)
		start = time.Now()
		must.NoError(t, write1(t.Context(), s.leader().Node, "h", 1))
		t.Logf("writes again %s after there was room", time.Since(start))
		must.Less(t, 2*time.Second, time.Since(start))
		s.converged(15*time.Second, s.nodes...)
	})
}

// A write to the leader's disk hangs, and raft's loop with it. The others elect another leader; the one that hangs answers no read.
// Without the silence its heartbeats go on, and nobody writes until the disk answers.
func TestDiskStalls(t *testing.T) {
	t.Parallel()
	d := newDisks()
	simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
		stuck := s.leader()
		l := s.load(2)
		time.Sleep(time.Second)
		start := time.Now()
		release := d.stall(stuck)
		defer release()
		now := s.leader(s.others(stuck)...)
		t.Logf("another leader after %s", time.Since(start))
		must.Less(t, 4*time.Second, time.Since(start))
		must.NoError(t, write1(t.Context(), now.Node, "h", 1))
		_, err := stuck.ReadIndex(t.Context(), false)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "disk")
		must.False(t, stuck.IsLeader())
		must.Eq(t, "", stuck.Leader())
		time.Sleep(time.Minute)
		release()
		time.Sleep(2 * time.Second)
		l.stop()
		s.converged(5*time.Second, s.nodes...)
		l.lost(stuck)

		// A follower's disk that hangs is nobody else's matter.
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

// C-20: the leader's disk takes 200 ms for each write. The leadership moves; where all disks are slow it does not go round and round.
func TestDiskSlow(t *testing.T) {
	t.Parallel()
	t.Run("one", func(t *testing.T) {
		t.Parallel()
		d := newDisks()
		simulate(t, 3, d.opts, func(t *testing.T, s *sim) {
			slow := s.leader()
			l := s.load(2)
			time.Sleep(20 * time.Second)
			must.Eq(t, slow, s.leader())
			start := time.Now()
			d.setDelay(200*time.Millisecond, slow)
			now := s.leader(s.others(slow)...)
			t.Logf("moved after %s", time.Since(start))
			must.Less(t, 10*time.Second, time.Since(start))
			time.Sleep(time.Minute)
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
			d.setDelay(120*time.Millisecond, s.nodes...)
			l := s.load(1)
			for range 600 {
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
			t.Logf("%d moves and %d writes in 10 minutes, the longest gap %s", changes.Load(), count, gap)
			must.Less(t, 12, changes.Load())
			must.Greater(t, 1000, count)
			s.converged(15*time.Second, s.nodes...)
		})
	})
}
