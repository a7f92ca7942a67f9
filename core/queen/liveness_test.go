package queen

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// simHive is a hive that speaks to queens without gRPC between them: thousands fit into a test.
type simHive struct {
	hive    core.Hive
	workers []core.Worker
	lines   map[*Queen]*simLine
}

type simLine struct {
	*line
	seq uint64
}

func newSimHive(id string, workers int) *simHive {
	h := &simHive{lines: map[*Queen]*simLine{}, hive: core.Hive{
		ID: id, Name: "name-" + id, Version: "1", OS: "linux", Arch: "amd64", Incarnation: 1, Status: core.HiveReady, WorkerTypes: []string{"cpu"},
		Devices: []core.Device{{ID: "cpu", Kind: "cpu", TotalBytes: 1 << 30, FreeBytes: 1 << 29}},
	}}
	for i := range workers {
		h.workers = append(h.workers, core.Worker{
			ID: fmt.Sprintf("w-%s-%d", id, i), Hive: id, Type: "cpu", Version: "1", Model: fmt.Sprintf("m%d", i), ModelDigest: "sha256:00", Device: "cpu",
			Slots: 4, ContextTokens: 512, State: core.WorkerReady, Nonce: fmt.Sprintf("nonce-%s-%d", id, i),
		})
	}
	return h
}

func (h *simHive) report(at time.Time) *report {
	r := &report{at: at, hive: h.hive, workers: append([]core.Worker(nil), h.workers...)}
	r.hive.Devices = append([]core.Device(nil), h.hive.Devices...)
	for i := range r.workers {
		r.workers[i].Load.At = at
	}
	return r
}

// tell reports to a queen, over a new line where there is none, and returns when the queen wants
// the next report.
func (h *simHive) tell(t *testing.T, q *Queen) (next time.Duration, err error) {
	t.Helper()
	l, ok := h.lines[q]
	if !ok {
		opened, err := q.openLine(t.Context(), h.hive)
		if err != nil {
			return 0, err
		}
		l = &simLine{line: opened}
		h.lines[q] = l
	}
	l.seq++
	if err := q.take(l.line, l.seq, h.report(q.opts.Now()), false); err != nil {
		h.hangUp(q)
		return 0, err
	}
	resp, err := q.answer(l.line)
	if err != nil {
		h.hangUp(q)
		return 0, err
	}
	return resp.GetNext().AsDuration(), nil
}

func (h *simHive) mustTell(t *testing.T, q *Queen) time.Duration {
	t.Helper()
	next, err := h.tell(t, q)
	must.NoError(t, err)
	return next
}

func (h *simHive) hangUp(q *Queen) {
	if l, ok := h.lines[q]; ok {
		delete(h.lines, q)
		q.closeLine(l.line)
	}
}

// fakePinger answers as the test says.
type fakePinger func(ctx context.Context, hive string) error

func (f fakePinger) Ping(ctx context.Context, hive string) error { return f(ctx, hive) }

func noSign(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func withPinger(p fakePinger) func(*Options) { return func(o *Options) { o.Pinger = p } }

func (c *cluster) status(hive string) core.HiveStatus {
	c.t.Helper()
	h, err := c.q.Hive(c.t.Context(), hive)
	must.NoError(c.t, err)
	return h.Status
}

// Five hours of three hives whose load changes all the time: not one entry in the log.
func TestFiveHoursWriteNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", withPinger(noSign))
		var hives []*simHive
		for i := range 3 {
			h := newSimHive(fmt.Sprintf("h%d", i), 4)
			hives = append(hives, h)
			h.mustTell(t, c.q)
		}
		c.eventually("all are registered", func() bool { return len(c.q.registry().Workers(nil)) == 12 })
		index := c.node.AppliedIndex()
		started := time.Now()
		for n := 0; time.Since(started) < 5*time.Hour; n++ {
			for i, h := range hives {
				h.hive.Devices[0].FreeBytes = int64(n)
				h.workers[n%4].Load = core.Load{Active: (n + i) % 5, Queued: n % 3, TokensPerSecond: float64(n), TokensTotal: int64(n), KVUsedTokens: n}
				must.Eq(t, BeatInterval, h.mustTell(t, c.q))
			}
			time.Sleep(BeatInterval)
		}
		must.Eq(t, index, c.node.AppliedIndex())
		must.Eq(t, core.HiveReady, c.status("h0"))
		// The next entry follows right upon the last: there was none of raft's own either.
		_, err := c.node.Apply(t.Context(), fsm.RemoveHive("nobody"))
		must.NoError(t, err)
		must.Eq(t, index+1, c.node.AppliedIndex())
		w, err := c.q.Worker(t.Context(), "w-h0-1")
		must.NoError(t, err)
		must.Positive(t, w.Load.TokensTotal)
	})
}

// The wall clock jumps by ten seconds every second and by an hour now and then: nobody is lost, and
// nothing is written.
func TestWallClockJumps(t *testing.T) {
	t.Parallel()
	for name, pinger := range map[string]Pinger{"alone": nil, "with gossip": fakePinger(noSign)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var offset atomic.Int64
				c := newCluster(t, "", func(o *Options) {
					o.Pinger = pinger
					o.Now = func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
				})
				var hives []*simHive
				for i := range 3 {
					h := newSimHive(fmt.Sprintf("h%d", i), 1)
					hives = append(hives, h)
					h.mustTell(t, c.q)
				}
				c.eventually("all are registered", func() bool { return len(c.q.registry().Workers(nil)) == 3 })
				index := c.node.AppliedIndex()
				for second := range 600 {
					jump := 10 * time.Second
					if second%60 > 50 {
						jump = time.Hour
					}
					if second%2 == 1 {
						jump = -jump
					}
					offset.Store(int64(jump))
					for _, h := range hives {
						h.mustTell(t, c.q)
					}
					for range 10 {
						time.Sleep(BeatInterval / 10)
						for _, h := range hives {
							must.Eq(t, core.HiveReady, c.status(h.hive.ID))
						}
					}
				}
				must.Eq(t, index, c.node.AppliedIndex())
				must.Len(t, 3, c.q.workers())
				// And one that is silent is noticed all the same.
				hives[0].hangUp(c.q)
				time.Sleep(DownAlone + time.Second)
				must.Eq(t, core.HiveDown, c.status("h0"))
			})
		})
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	alive := func(context.Context, string) error { return nil }
	for _, tc := range []struct {
		name    string
		pinger  fakePinger
		end     func(h *simHive, q *Queen)
		suspect time.Duration // since the last report
		down    time.Duration // at least; at most 250 ms more
	}{
		{"cable cut", noSign, func(*simHive, *Queen) {}, BeatInterval + SuspectGrace, DownAfter},
		{"gossip knows nobody", func(context.Context, string) error { return errors.New("who?") }, func(*simHive, *Queen) {}, BeatInterval + SuspectGrace, DownAfter},
		{"crash", noSign, func(h *simHive, q *Queen) { h.hangUp(q) }, 0, DownAfter},
		{"stuck, but alive", alive, func(*simHive, *Queen) {}, BeatInterval + SuspectGrace, BeatInterval + SuspectGrace + SilentAlive},
		{"line lost, but alive", alive, func(h *simHive, q *Queen) { h.hangUp(q) }, 0, SilentAlive},
		{"shutting down", noSign, func(h *simHive, q *Queen) {
			l := h.lines[q]
			_ = q.take(l.line, l.seq+1, h.report(time.Now()), true)
			h.hangUp(q)
		}, 0, DownAfter},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "", withPinger(tc.pinger))
				h, other := newSimHive("h1", 1), newSimHive("h2", 1)
				h.mustTell(t, c.q)
				other.mustTell(t, c.q)
				c.eventually("both are registered", func() bool { return len(c.q.registry().Workers(nil)) == 2 })
				index := c.node.AppliedIndex()
				h.mustTell(t, c.q)
				last := time.Now()
				tc.end(h, c.q)
				pick := func() int { return len(c.q.ready("m0")) }
				var suspect, down time.Duration
				for down == 0 && time.Since(last) < time.Minute {
					other.mustTell(t, c.q)
					synctest.Wait()
					since := time.Since(last)
					if suspect == 0 && pick() == 1 {
						suspect = max(since, 1)
						must.Eq(t, core.HiveSuspect, c.status("h1"))
						must.Eq(t, index, c.node.AppliedIndex()) // that is in memory alone
					}
					if c.status("h1") == core.HiveDown {
						down = since
					}
					time.Sleep(10 * time.Millisecond)
				}
				must.Between(t, tc.suspect, suspect, tc.suspect+20*time.Millisecond)
				must.Between(t, tc.down, down, tc.down+250*time.Millisecond)
				must.Eq(t, index+1, c.node.AppliedIndex())
				must.Eq(t, core.HiveReady, c.status("h2"))
				must.Len(t, 1, c.q.workers())

				// A report, however late, undoes it. The line that stood was given up.
				h.hangUp(c.q)
				h.mustTell(t, c.q)
				time.Sleep(100 * time.Millisecond)
				must.Eq(t, core.HiveReady, c.status("h1"))
				must.Eq(t, 2, pick())
			})
		})
	}
}

// A hive that answered for a while and then does no longer is down soon after its last answer.
func TestSilenceAfterASign(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var until atomic.Int64
		c := newCluster(t, "", withPinger(func(ctx context.Context, hive string) error {
			if time.Now().UnixNano() < until.Load() {
				return nil
			}
			return noSign(ctx, hive)
		}))
		h := newSimHive("h1", 1)
		h.mustTell(t, c.q)
		c.eventually("it is registered", func() bool { return len(c.q.registry().Workers(nil)) == 1 })
		until.Store(time.Now().Add(4 * time.Second).UnixNano())
		h.hangUp(c.q)
		time.Sleep(4*time.Second + DownAfter - PingInterval - time.Millisecond)
		must.Eq(t, core.HiveSuspect, c.status("h1"))
		time.Sleep(300 * time.Millisecond)
		must.Eq(t, core.HiveDown, c.status("h1"))
	})
}

// lossy runs 50 hives for ten minutes, of whose reports and pings a part is lost, and gives how
// many hives were written as down.
func lossy(t *testing.T, reports, pings float64) (down int) {
	synctest.Test(t, func(t *testing.T) {
		// Which reports are lost does not depend on the order in which pings are sent.
		rng := rand.New(rand.NewPCG(25, 26))
		lost := func(part float64) bool { return rng.Float64() < part }
		var mu sync.Mutex // guards below
		pingRNG := rand.New(rand.NewPCG(27, 28))
		pingLost := func() bool { mu.Lock(); defer mu.Unlock(); return pingRNG.Float64() < pings }
		c := newCluster(t, "", withPinger(func(ctx context.Context, hive string) error {
			there, back := !pingLost(), !pingLost()
			if !there || !back {
				return noSign(ctx, hive)
			}
			time.Sleep(time.Millisecond)
			return nil
		}))
		var hives []*simHive
		for i := range 50 {
			h := newSimHive(fmt.Sprintf("h%02d", i), 2)
			hives = append(hives, h)
			h.mustTell(t, c.q)
		}
		c.eventually("all are registered", func() bool { return len(c.q.registry().Workers(nil)) == 100 })
		index := c.node.AppliedIndex()
		suspicions := 0
		for range 600 {
			time.Sleep(BeatInterval)
			for _, h := range hives {
				switch {
				case lost(reports):
				case lost(0.02):
					h.hangUp(c.q) // and is back with the next report
				default:
					_, _ = h.tell(t, c.q)
				}
			}
			c.q.mu.Lock()
			for _, p := range c.q.pulses {
				if p.suspect != "" {
					suspicions++
				}
			}
			c.q.mu.Unlock()
		}
		t.Logf("%d times a hive was seen suspect in 30000 looks", suspicions)
		must.Positive(t, suspicions)
		down = int(c.node.AppliedIndex() - index) //nolint:gosec // small
	})
	return down
}

func TestLossIsNotDeath(t *testing.T) {
	t.Parallel()
	must.Eq(t, 0, lossy(t, 0.3, 0.3))
}

// The test above can fail: without signs of life the same loss kills.
func TestLossWithoutSignsOfLife(t *testing.T) {
	t.Parallel()
	must.Positive(t, lossy(t, 0.3, 1))
}

// A hive that has started again is one; a second agent with its identity is refused as long as the
// first lives.
func TestIncarnations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", withPinger(noSign))
		first := newSimHive("h1", 2)
		first.mustTell(t, c.q)
		c.eventually("it is registered", func() bool { return len(c.q.registry().Workers(nil)) == 2 })
		index := c.node.AppliedIndex()

		// Two agents with one identity: whoever was first goes on, undisturbed.
		second := newSimHive("h1", 1)
		second.hive.Incarnation = 2
		refused := make(chan error)
		go func() {
			_, err := second.tell(t, c.q)
			refused <- err
		}()
		synctest.Wait()
		resp, err := c.q.answer(first.lines[c.q].line)
		must.NoError(t, err)
		must.Eq(t, 0, resp.GetNext().AsDuration()) // it is asked for a sign of life
		time.Sleep(50 * time.Millisecond)
		must.Eq(t, BeatInterval, first.mustTell(t, c.q))
		mustFail(t, <-refused, core.Conflict, "another agent has the same identity")
		must.Eq(t, index, c.node.AppliedIndex())
		must.Eq(t, core.HiveReady, c.status("h1"))

		// Where the first gives no sign, the second takes its place at once.
		began := time.Now()
		second.mustTell(t, c.q)
		must.Eq(t, incumbentWait, time.Since(began))
		time.Sleep(2 * writeInterval)
		must.Len(t, 1, c.q.workers())

		// The older start is not let in again, neither over its old line nor over a new one, nor
		// when the newer one has none.
		_, err = first.tell(t, c.q)
		must.Error(t, err)
		index = c.node.AppliedIndex()
		_, err = first.tell(t, c.q)
		mustFail(t, err, core.Conflict, "start 1", "start 2")
		second.hangUp(c.q)
		_, err = first.tell(t, c.q)
		mustFail(t, err, core.Conflict, "start 1", "start 2")
		must.Eq(t, index, c.node.AppliedIndex())
		must.Len(t, 1, c.q.workers())

		// After a crash the next start is let in at once, and what the crashed one had is gone.
		third := newSimHive("h1", 3)
		third.hive.Incarnation = 3
		began = time.Now()
		third.mustTell(t, c.q)
		must.Eq(t, 0, time.Since(began))
		time.Sleep(2 * writeInterval)
		must.Len(t, 3, c.q.workers())
		must.Eq(t, 3, c.q.registry().PeekHive(nil, "h1").Incarnation)

		// A line of the same start replaces the one before.
		l, err := c.q.openLine(t.Context(), third.hive)
		must.NoError(t, err)
		must.NoError(t, c.q.take(l, 1, third.report(time.Now()), false))
		_, over := c.q.answer(third.lines[c.q].line)
		must.Eq(t, core.Unavailable, core.KindOf(over))
		c.q.closeLine(third.lines[c.q].line) // says nothing of the hive
		must.Eq(t, core.HiveReady, c.status("h1"))
		must.Eq(t, 1, c.q.lines)
	})
}

// Ten thousand hives within a second, as after a power cut: all are in the registry within ten
// seconds, in few entries, and none is lost.
func TestThunderingHerd(t *testing.T) {
	t.Parallel()
	hives, workers := 10_000, 4
	if testing.Short() || raceDetector { // which makes it ten times as slow
		hives = 1000
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", withPinger(func(context.Context, string) error { return nil }), func(o *Options) { o.Logger = nil })
		index := c.node.AppliedIndex()
		began := time.Now()
		all := make([]*simHive, hives)
		due := make([]time.Time, hives)
		for i := range all {
			all[i] = newSimHive(fmt.Sprintf("h%05d", i), workers)
			due[i] = time.Now().Add(all[i].mustTell(t, c.q))
			if i%10 == 9 {
				time.Sleep(time.Millisecond)
			}
		}
		for {
			s := c.q.registry()
			if n := len(s.Hives(nil)); n == hives {
				break
			}
			must.Less(t, 10*time.Second, time.Since(began))
			time.Sleep(10 * time.Millisecond)
		}
		took, entries := time.Since(began), c.node.AppliedIndex()-index
		t.Logf("%d hives are registered after %s, with %d entries of the log", hives, took, entries)
		must.LessEq(t, uint64(200*took.Seconds()+5), entries)
		must.Len(t, hives*workers, c.q.registry().Workers(nil))

		// They report when they were told, and none is given up. A steady cluster writes nothing.
		index = c.node.AppliedIndex()
		for until := time.Now().Add(10 * time.Minute); time.Now().Before(until); {
			time.Sleep(time.Second)
			for i, h := range all {
				if !time.Now().Before(due[i].Add(-time.Second)) {
					due[i] = time.Now().Add(h.mustTell(t, c.q))
				}
			}
		}
		must.Eq(t, index, c.node.AppliedIndex())
		for _, h := range c.q.hives() {
			must.Eq(t, core.HiveReady, h.Status)
		}
	})
}

// Hives that drain get neither requests nor workers, and are no reason to wait.
func TestDrainingHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h1, h2 := c.newHive("h1"), c.newHive("h2")
		h1.addModel("m")
		h1.addModel("n")
		h1.addWorker("a", "m", core.WorkerReady)
		h1.addWorker("n1", "n", core.WorkerReady)
		h2.addModel("m")
		h2.addWorker("b", "m", core.WorkerReady)
		h1.keepBeating()
		h2.keepBeating()
		must.Eq(t, []string{"a", "b"}, c.mustPick("m"))
		_, err := c.node.Apply(t.Context(), fsm.SetHiveDraining("h1", true))
		must.NoError(t, err)
		must.Eq(t, []string{"b"}, c.mustPick("m"))
		must.Eq(t, []string{"w1"}, c.mustPick("n")) // started on the other hive
		must.Eq(t, 0, h1.submits.Load())
		must.Eq(t, 1, h2.submits.Load())
		// What the hive reports does not undo it.
		time.Sleep(5 * time.Second)
		must.True(t, c.q.registry().PeekHive(nil, "h1").Draining)
		_, err = c.node.Apply(t.Context(), fsm.SetHiveDraining("h1", false))
		must.NoError(t, err)
		must.Eq(t, []string{"a", "b"}, c.mustPick("m"))
		must.Eq(t, []string{"n1", "w1"}, c.mustPick("n"))

		// Where all drain nothing is started, and nobody waits.
		for _, id := range []string{"h1", "h2"} {
			_, err = c.node.Apply(t.Context(), fsm.SetHiveDraining(id, true))
			must.NoError(t, err)
		}
		began := time.Now()
		_, err = c.pick("m")
		mustFail(t, err, core.Unavailable, "name-h1 drains", "name-h2 drains")
		must.Eq(t, 0, time.Since(began))
		_, err = c.q.Submit(t.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "m"})
		mustFail(t, err, core.Unavailable, "name-h1 drains")
	})
}

// What hives must know of the cluster is in the first answer, and in another one only when it has
// changed.
func TestViewIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		must.Nil(t, h.mustBeat().GetCluster())
		v := &queenv1.ClusterView{Index: 1, Queens: []*queenv1.QueenAddress{{Id: "q1", RpcAddress: "a:1"}}}
		c.q.setView(v)
		synctest.Wait()
		told := func() *queenv1.ClusterView {
			h.line.mu.Lock()
			defer h.line.mu.Unlock()
			return h.line.answer.GetCluster()
		}
		must.Eq(t, "a:1", told().GetQueens()[0].GetRpcAddress()) // at once
		must.Nil(t, h.mustBeat().GetCluster())
		c.q.setView(&queenv1.ClusterView{Index: 7, Queens: v.GetQueens()})
		synctest.Wait()
		must.Nil(t, told()) // no news
		h.hangUp()
		must.Eq(t, 1, h.mustBeat().GetCluster().GetIndex())
	})
}
