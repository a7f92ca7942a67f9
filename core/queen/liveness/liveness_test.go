package liveness_test

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
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/queen/liveness"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Five hours of three hives whose load changes all the time cause not one log entry.
func TestFiveHoursWriteNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t, withPinger(noSign))
		var hives []*simhive.Hive
		for i := range 3 {
			h := simhive.New(fmt.Sprintf("h%d", i), 4)
			hives = append(hives, h)
			h.MustTell(t, c.Monitor)
		}
		c.registered(12)
		index := c.registry.AppliedIndex()
		started := time.Now()
		for n := 0; time.Since(started) < 5*time.Hour; n++ {
			for i, h := range hives {
				h.Hive.Devices[0].FreeBytes = int64(n)
				h.Workers[n%4].Load = core.Load{Active: (n + i) % 5, Queued: n % 3, TokensPerSecond: float64(n), TokensTotal: int64(n), KVUsedTokens: n}
				must.Eq(t, liveness.ReportInterval, h.MustTell(t, c.Monitor))
			}
			time.Sleep(liveness.ReportInterval)
		}
		must.Eq(t, index, c.registry.AppliedIndex())
		must.Eq(t, core.HiveReady, c.status("h0"))
		// The next entry follows directly upon the last: raft itself wrote none in between either.
		_, err := c.registry.Apply(t.Context(), "", fsm.RemoveHive("nobody"))
		must.NoError(t, err)
		must.Eq(t, index+1, c.registry.AppliedIndex())
		_, load := c.Hive("h0").Avoid(&hives[0].Workers[1])
		must.Positive(t, load.TokensTotal)
	})
}

// The wall clock jumps by ten seconds every second and by an hour now and then: no hive is lost,
// and nothing is written.
func TestWallClockJumps(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]liveness.Pinger{"alone": nil, "with gossip": pinger(noSign)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var offset atomic.Int64
				c := newRig(t, func(o *liveness.Options) {
					o.Pinger = p
					o.Now = func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
				})
				var hives []*simhive.Hive
				for i := range 3 {
					h := simhive.New(fmt.Sprintf("h%d", i), 1)
					hives = append(hives, h)
					h.MustTell(t, c.Monitor)
				}
				c.registered(3)
				index := c.registry.AppliedIndex()
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
						h.MustTell(t, c.Monitor)
					}
					for range 10 {
						time.Sleep(liveness.ReportInterval / 10)
						for _, h := range hives {
							must.Eq(t, core.HiveReady, c.status(h.Hive.ID))
						}
					}
				}
				must.Eq(t, index, c.registry.AppliedIndex())
				must.Len(t, 3, c.workers())
				// A silent hive is noticed all the same.
				hives[0].HangUp(c.Monitor)
				time.Sleep(liveness.DownAlone + time.Second)
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
		pinger  pinger
		end     func(h *simhive.Hive, q *liveness.Monitor)
		suspect time.Duration // since the last report
		down    time.Duration // lower bound; the upper one is 250 ms more
	}{
		{"cable cut", noSign, func(*simhive.Hive, *liveness.Monitor) {}, liveness.ReportInterval + liveness.SuspectGrace, liveness.DownAfter},
		{"gossip knows nobody", func(context.Context, string) error { return errors.New("who?") }, func(*simhive.Hive, *liveness.Monitor) {}, liveness.ReportInterval + liveness.SuspectGrace, liveness.DownAfter},
		{"crash", noSign, func(h *simhive.Hive, q *liveness.Monitor) { h.HangUp(q) }, 0, liveness.DownAfter},
		{"stuck, but alive", alive, func(*simhive.Hive, *liveness.Monitor) {}, liveness.ReportInterval + liveness.SuspectGrace, liveness.ReportInterval + liveness.SuspectGrace + liveness.SilentAlive},
		{"link lost, but alive", alive, func(h *simhive.Hive, q *liveness.Monitor) { h.HangUp(q) }, 0, liveness.SilentAlive},
		{"shutting down", noSign, func(h *simhive.Hive, q *liveness.Monitor) {
			h.End(t, q)
		}, 0, liveness.DownAfter},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newRig(t, withPinger(tc.pinger))
				h, other := simhive.New("h1", 1), simhive.New("h2", 1)
				h.MustTell(t, c.Monitor)
				other.MustTell(t, c.Monitor)
				c.registered(2)
				index := c.registry.AppliedIndex()
				h.MustTell(t, c.Monitor)
				last := time.Now()
				tc.end(h, c.Monitor)
				pick := func() int { return c.usable("m0") }
				var suspect, down time.Duration
				for down == 0 && time.Since(last) < time.Minute {
					other.MustTell(t, c.Monitor)
					synctest.Wait()
					since := time.Since(last)
					if suspect == 0 && pick() == 1 {
						suspect = max(since, 1)
						must.Eq(t, core.HiveSuspect, c.status("h1"))
						must.Eq(t, index, c.registry.AppliedIndex()) // suspicion is in memory only
					}
					if c.status("h1") == core.HiveDown {
						down = since
					}
					time.Sleep(10 * time.Millisecond)
				}
				must.Between(t, tc.suspect, suspect, tc.suspect+20*time.Millisecond)
				must.Between(t, tc.down, down, tc.down+250*time.Millisecond)
				must.Eq(t, index+1, c.registry.AppliedIndex())
				must.Eq(t, core.HiveReady, c.status("h2"))
				must.Len(t, 1, c.workers())

				// A report, however late, undoes it. The previous link was ended.
				h.HangUp(c.Monitor)
				h.MustTell(t, c.Monitor)
				time.Sleep(100 * time.Millisecond)
				must.Eq(t, core.HiveReady, c.status("h1"))
				must.Eq(t, 2, pick())
			})
		})
	}
}

// A hive that answers pings for a while and then stops is down soon after its last answer.
func TestSilenceAfterASign(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var until atomic.Int64
		c := newRig(t, withPinger(func(ctx context.Context, hive string) error {
			if time.Now().UnixNano() < until.Load() {
				return nil
			}
			return noSign(ctx, hive)
		}))
		h := simhive.New("h1", 1)
		h.MustTell(t, c.Monitor)
		c.registered(1)
		until.Store(time.Now().Add(4 * time.Second).UnixNano())
		h.HangUp(c.Monitor)
		time.Sleep(4*time.Second + liveness.DownAfter - liveness.PingInterval - time.Millisecond)
		must.Eq(t, core.HiveSuspect, c.status("h1"))
		time.Sleep(300 * time.Millisecond)
		must.Eq(t, core.HiveDown, c.status("h1"))
	})
}

// lossy runs 50 hives for ten minutes while a share of reports and pings is lost, and returns how
// many hives were written as down.
func lossy(t *testing.T, reports, pings float64) (down int) {
	synctest.Test(t, func(t *testing.T) {
		// The choice of lost reports does not depend on the order of pings.
		rng := rand.New(rand.NewPCG(25, 26))
		lost := func(part float64) bool { return rng.Float64() < part }
		var mu sync.Mutex // guards below
		pingRNG := rand.New(rand.NewPCG(27, 28))
		pingLost := func() bool { mu.Lock(); defer mu.Unlock(); return pingRNG.Float64() < pings }
		c := newRig(t, withPinger(func(ctx context.Context, hive string) error {
			there, back := !pingLost(), !pingLost()
			if !there || !back {
				return noSign(ctx, hive)
			}
			time.Sleep(time.Millisecond)
			return nil
		}))
		var hives []*simhive.Hive
		for i := range 50 {
			h := simhive.New(fmt.Sprintf("h%02d", i), 2)
			hives = append(hives, h)
			h.MustTell(t, c.Monitor)
		}
		c.registered(100)
		index := c.registry.AppliedIndex()
		suspicions := 0
		for range 600 {
			time.Sleep(liveness.ReportInterval)
			for _, h := range hives {
				switch {
				case lost(reports):
				case lost(0.02):
					h.HangUp(c.Monitor) // the link is replaced with the next report
				default:
					_, _ = h.Tell(t, c.Monitor)
				}
			}
			for _, h := range hives {
				if c.Hive(h.Hive.ID).Suspect != "" {
					suspicions++
				}
			}
		}
		t.Logf("%d times a hive was seen suspect in 30000 looks", suspicions)
		must.Positive(t, suspicions)
		down = int(c.registry.AppliedIndex() - index) //nolint:gosec // small
	})
	return down
}

func TestLossIsNotDeath(t *testing.T) {
	t.Parallel()
	must.Eq(t, 0, lossy(t, 0.3, 0.3))
}

// The test above can fail: without signs of life, the same loss takes hives down.
func TestLossWithoutSignsOfLife(t *testing.T) {
	t.Parallel()
	must.Positive(t, lossy(t, 0.3, 1))
}

// A restarted hive is the same hive; a second agent with its identity is refused as long as the
// first is alive.
func TestIncarnations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t, withPinger(noSign))
		first := simhive.New("h1", 2)
		first.MustTell(t, c.Monitor)
		c.registered(2)
		index := c.registry.AppliedIndex()

		// Two agents with one identity: the first continues undisturbed.
		second := simhive.New("h1", 1)
		second.Hive.Incarnation = 2
		refused := make(chan error)
		go func() {
			_, err := second.Tell(t, c.Monitor)
			refused <- err
		}()
		synctest.Wait()
		resp, err := first.Link(c.Monitor).Answer()
		must.NoError(t, err)
		must.Eq(t, 0, resp.GetNext().AsDuration()) // it is asked for a sign of life
		time.Sleep(50 * time.Millisecond)
		must.Eq(t, liveness.ReportInterval, first.MustTell(t, c.Monitor))
		mustFail(t, <-refused, core.Conflict, "another agent has the same identity")
		must.Eq(t, index, c.registry.AppliedIndex())
		must.Eq(t, core.HiveReady, c.status("h1"))

		// If the first gives no sign of life, the second replaces it at once.
		began := time.Now()
		second.MustTell(t, c.Monitor)
		must.Eq(t, liveness.IncumbentWait, time.Since(began))
		time.Sleep(2 * liveness.WriteInterval)
		must.Len(t, 1, c.workers())

		// The older start is not admitted again, neither over its old link nor over a new one, even
		// while the newer one has none.
		_, err = first.Tell(t, c.Monitor)
		must.Error(t, err)
		index = c.registry.AppliedIndex()
		_, err = first.Tell(t, c.Monitor)
		mustFail(t, err, core.Conflict, "start 1", "start 2")
		second.HangUp(c.Monitor)
		_, err = first.Tell(t, c.Monitor)
		mustFail(t, err, core.Conflict, "start 1", "start 2")
		must.Eq(t, index, c.registry.AppliedIndex())
		must.Len(t, 1, c.workers())

		// After a crash the next start is admitted at once, and the crashed one's workers are
		// removed.
		third := simhive.New("h1", 3)
		third.Hive.Incarnation = 3
		began = time.Now()
		third.MustTell(t, c.Monitor)
		must.Eq(t, 0, time.Since(began))
		time.Sleep(2 * liveness.WriteInterval)
		must.Len(t, 3, c.workers())
		must.Eq(t, 3, c.registry.View().PeekHive(nil, "h1").Incarnation)

		// A new link of the same start replaces the previous one.
		l, err := c.Open(t.Context(), third.Hive)
		must.NoError(t, err)
		must.NoError(t, l.Take(1, third.Report(), false))
		_, over := third.Link(c.Monitor).Answer()
		must.Eq(t, core.Unavailable, core.KindOf(over))
		third.HangUp(c.Monitor) // does not affect the hive
		must.Eq(t, core.HiveReady, c.status("h1"))
		must.Eq(t, 1, c.Links())
	})
}

// Ten thousand hives within a second, as after a power cut: all are registered within ten seconds,
// in few entries, and none is lost.
func TestThunderingHerd(t *testing.T) {
	t.Parallel()
	hives, workers := 10_000, 4
	if testing.Short() || raceDetector { // the race detector makes it ten times as slow
		hives = 1000
	}
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t, withPinger(func(context.Context, string) error { return nil }), func(o *liveness.Options) { o.Logger = nil })
		index := c.registry.AppliedIndex()
		began := time.Now()
		all := make([]*simhive.Hive, hives)
		due := make([]time.Time, hives)
		for i := range all {
			all[i] = simhive.New(fmt.Sprintf("h%05d", i), workers)
			due[i] = time.Now().Add(all[i].MustTell(t, c.Monitor))
			if i%10 == 9 {
				time.Sleep(time.Millisecond)
			}
		}
		for {
			s := c.registry.View()
			if n := len(s.Hives(nil)); n == hives {
				break
			}
			must.Less(t, 10*time.Second, time.Since(began))
			time.Sleep(10 * time.Millisecond)
		}
		took, entries := time.Since(began), c.registry.AppliedIndex()-index
		t.Logf("%d hives are registered after %s, with %d entries of the log", hives, took, entries)
		must.LessEq(t, uint64(200*took.Seconds()+5), entries)
		must.Len(t, hives*workers, c.registry.View().Workers(nil))

		// They report when asked, and none is dropped. A steady cluster writes nothing.
		index = c.registry.AppliedIndex()
		for until := time.Now().Add(10 * time.Minute); time.Now().Before(until); {
			time.Sleep(time.Second)
			for i, h := range all {
				if !time.Now().Before(due[i].Add(-time.Second)) {
					due[i] = time.Now().Add(h.MustTell(t, c.Monitor))
				}
			}
		}
		must.Eq(t, index, c.registry.AppliedIndex())
		for _, h := range c.hives() {
			must.Eq(t, core.HiveReady, h.Status)
		}
	})
}

// The hives' view of the cluster is in the first answer, and in later ones only when it has
// changed.
func TestViewSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t)
		h := simhive.New("h1", 0)
		told := func() *queenv1.ClusterView {
			h.MustTell(t, c.Monitor)
			h.HangUp(c.Monitor)
			l, err := c.Open(t.Context(), h.Hive)
			must.NoError(t, err)
			defer l.Close()
			must.NoError(t, l.Take(1, h.Report(), false))
			first, err := l.Answer()
			must.NoError(t, err)
			second, err := l.Answer()
			must.NoError(t, err)
			must.Nil(t, second.GetCluster()) // unchanged
			return first.GetCluster()
		}
		must.Nil(t, told())
		v := &queenv1.ClusterView{Index: 1, Queens: []*queenv1.QueenAddress{{Id: "q1", RpcAddress: "a:1"}}}
		c.SetView(v)
		must.Eq(t, "a:1", told().GetQueens()[0].GetRpcAddress())
		c.SetView(&queenv1.ClusterView{Index: 7, Queens: v.GetQueens()})
		must.Eq(t, 1, told().GetIndex()) // the index alone is no change

		// An open link receives changes.
		h.MustTell(t, c.Monitor)
		c.SetView(&queenv1.ClusterView{Index: 8, Revoked: []string{"x"}})
		resp, err := h.Link(c.Monitor).Answer()
		must.NoError(t, err)
		must.Eq(t, []string{"x"}, resp.GetCluster().GetRevoked())
	})
}

// A View that a reader holds stays unchanged, whatever happens to the hive; each change publishes a
// new View before waiters are notified.
func TestViewIsImmutable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t)
		h := simhive.New("h1", 2)
		unheard := c.Hive("h1")
		must.True(t, unheard.LinkedSoon())
		changed := c.Changed()
		h.MustTell(t, c.Monitor)
		<-changed
		first := c.Hive("h1")
		must.True(t, first.Hears())
		must.Nil(t, unheard.Report)

		// A worker that failed a request is avoided until the next report lists it.
		c.registered(2)
		changed = c.Changed()
		c.Fail(h.Workers[0])
		<-changed
		failed := c.Hive("h1")
		why, _ := failed.Avoid(&h.Workers[0])
		must.StrContains(t, why, "failed a request")
		why, _ = failed.Avoid(&h.Workers[1])
		must.Eq(t, "", why)
		why, _ = first.Avoid(&h.Workers[0])
		must.Eq(t, "", why)
		resp, err := h.Link(c.Monitor).Answer()
		must.NoError(t, err)
		must.Eq(t, 0, resp.GetNext().AsDuration()) // its hive is asked to report at once
		changed = c.Changed()
		h.MustTell(t, c.Monitor)
		<-changed
		why, _ = c.Hive("h1").Avoid(&h.Workers[0])
		must.Eq(t, "", why)

		// Neither another start of the worker nor a removed worker is the one that failed.
		other := h.Workers[0]
		other.Nonce = "another"
		c.Fail(other)
		why, _ = c.Hive("h1").Avoid(&h.Workers[0])
		must.Eq(t, "", why)

		// The link breaks.
		changed = c.Changed()
		h.HangUp(c.Monitor)
		<-changed
		must.False(t, c.Hive("h1").Hears())
		must.Eq(t, "the link to its hive broke", c.Hive("h1").Suspect)
		must.True(t, first.Hears())

		// Workers of a hive that never had a link are not avoided until LinkGrace has passed.
		w := core.Worker{ID: "w", Hive: "h9", Nonce: "n"}
		time.Sleep(liveness.LinkGrace + time.Second)
		why, _ = c.Hive("h9").Avoid(&w)
		must.Eq(t, "its hive has no link to this queen", why)
	})
}

// A hive that is down for long is forgotten, in the registry and here.
func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t)
		h := simhive.New("h1", 1)
		h.MustTell(t, c.Monitor)
		c.registered(1)
		c.Fail(h.Workers[0])
		h.HangUp(c.Monitor)
		time.Sleep(liveness.ForgetAfter - time.Second)
		must.Eq(t, core.HiveDown, c.status("h1"))
		must.Eq(t, 1, c.Peers())
		time.Sleep(liveness.DownAlone + time.Minute)
		must.Len(t, 0, c.hives())
		must.Eq(t, 0, c.Peers())
		must.Eq(t, 0, c.Failed())
		must.Nil(t, c.Hive("h1").Report)
	})
}
