package queen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/placement"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Twenty clients ask for a model that no worker serves: one worker is started, every client gets
// its progress, and clients that leave stop nothing.
func TestPickStartsOneWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.change(func(h *fakeHive) {
			h.items = []core.CatalogItem{{Ref: "builtin:rbee-tiny", Kind: "model", Name: "rbee-tiny", SizeBytes: 1000}}
		})
		h.keepBeating()

		var wg sync.WaitGroup
		var mu sync.Mutex
		phases := map[int][]string{}
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() {
				defer cancel()
				found, err := pick(ctx, c.q, inference.Query{Model: "rbee-tiny", Progress: func(p core.Progress) {
					mu.Lock()
					defer mu.Unlock()
					phases[i] = append(phases[i], p.Phase)
				}})
				if i < 5 {
					must.Error(t, err)
					must.Eq(t, core.Cancelled, core.KindOf(err))
					return
				}
				must.NoError(t, err)
				must.Eq(t, "w1", found[0].Worker.ID)
			})
			if i < 5 { // including the first one, whose request started the job
				wg.Go(func() {
					time.Sleep(500 * time.Millisecond)
					cancel()
				})
			}
		}
		wg.Wait()
		must.Eq(t, 1, h.ran.Load())
		reqs := h.submitted()
		must.Len(t, 1, reqs)
		must.Eq(t, core.OpWorkerSpawn, reqs[0].Operation)
		must.Eq(t, "builtin:rbee-tiny", reqs[0].Model)
		must.Eq(t, "h1", reqs[0].Hive)
		must.NotEq(t, "", reqs[0].RequestID)
		for i := range 20 {
			must.SliceContains(t, phases[i], "load rbee-tiny", must.Sprintf("client %d: %q", i, phases[i]))
		}
		must.Zero(t, c.q.starter.UnderWay())
		must.Eq(t, []string{"w1"}, c.mustPick("rbee-tiny"))
		must.Eq(t, 1, h.ran.Load())
	})
}

// All clients leave: the worker starts nevertheless, and the next client finds it.
func TestStartOutlivesItsClients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m")
		h.keepBeating()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := pick(ctx, c.q, inference.Query{Model: "m"})
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))

		// The next client joins the start while the worker loads.
		must.Eq(t, []string{"w1"}, c.mustPick("m"))

		// Once that worker has ended, a client that finds the old job does not mistake it for a
		// start.
		h.removeWorker("w1")
		h.mustBeat()
		ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = pick(ctx, c.q, inference.Query{Model: "m"})
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		time.Sleep(5 * time.Second)
		h.removeWorker("w2")
		h.mustBeat()
		must.Eq(t, 1, c.q.starter.UnderWay())
		must.Eq(t, []string{"w3"}, c.mustPick("m"))
		must.Eq(t, 3, h.ran.Load())
	})
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		err  error
		kind core.Kind
		says []string
	}{
		{"too large", core.Errorf(core.TooLarge, "load: cpu lacks 12 bytes").Hint("Use a smaller one."), core.TooLarge, []string{"lacks 12 bytes", "Use a smaller one."}},
		{"the engine's message", errors.New("tensor 'x' has wrong shape"), core.Unavailable, []string{"tensor 'x' has wrong shape", "rbee worker spawn"}},
		{"not the client's fault", core.Errorf(core.NotFound, "no worker type"), core.Unavailable, []string{"no worker type"}},
		{"damaged", core.Errorf(core.Integrity, "digest is wrong"), core.Unavailable, []string{"digest is wrong"}},
		{"cancelled by somebody", context.Canceled, core.Unavailable, []string{"start a worker with m"}},
		{"overloaded", core.Errorf(core.Overloaded, "too many"), core.Overloaded, []string{"too many"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "")
				h := c.newHive("h1")
				h.addModel("m")
				h.run = func(context.Context, core.Request, *job.Run) (any, error) {
					time.Sleep(time.Second)
					return nil, tc.err
				}
				h.keepBeating()
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						_, err := c.pick("m")
						mustFail(t, err, tc.kind, tc.says...)
					})
				}
				wg.Wait()
				must.Eq(t, 1, h.ran.Load())

				// The next request retries.
				h.change(func(h *fakeHive) { h.run = nil })
				must.Eq(t, []string{"w2"}, c.mustPick("m"))
			})
		})
	}
}

func TestPickNoRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.change(func(h *fakeHive) {
			h.models = []core.Model{{ID: "big", SizeBytes: 1<<29 + 7}, {ID: "long", SizeBytes: 100, EstimateBytes: 1 << 40}}
		})
		h.mustBeat()
		_, err := c.pick("big")
		mustFail(t, err, core.TooLarge, "hive name-h1 cpu lacks 7 bytes")
		must.Eq(t, 0, h.submits.Load())
		must.Eq(t, []string{"w1"}, c.mustPick("long")) // with a shorter context

		h.change(func(h *fakeHive) { h.hive.WorkerTypes, h.workers = nil, nil })
		h.mustBeat()
		_, err = c.pick("long")
		mustFail(t, err, core.Unavailable, "hive name-h1 has no worker type")

		time.Sleep(time.Minute)
		_, err = c.pick("long")
		mustFail(t, err, core.Unavailable, "name-h1 is down")
	})
}

// A hive that has the model is preferred, and a silent hive is not asked.
func TestStartChoosesHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h1, h2, h3 := c.newHive("h1"), c.newHive("h2"), c.newHive("h3")
		h2.addModel("m")
		h3.addModel("m")
		h3.mustBeat()
		time.Sleep(liveness.ReportInterval + liveness.SuspectGrace + time.Second)
		h1.keepBeating()
		h2.keepBeating()
		must.Eq(t, []string{"w1"}, c.mustPick("m"))
		must.Eq(t, 0, h1.submits.Load())
		must.Eq(t, 1, h2.submits.Load())
		must.Eq(t, 0, h3.submits.Load())
	})
}

// A worker started by other means is waited for, and if it fails, another one is started.
func TestPickWaitsForLoading(t *testing.T) {
	t.Parallel()
	for _, state := range []core.WorkerState{core.WorkerReady, core.WorkerFailed} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "")
				h := c.newHive("h1")
				h.addModel("m")
				h.addWorker("a", "m", core.WorkerLoading)
				h.keepBeating()
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					time.Sleep(3 * time.Minute)
					h.change(func(h *fakeHive) { h.workers[0].State = state })
					h.mustBeat()
				})
				if state == core.WorkerReady {
					must.Eq(t, []string{"a"}, c.mustPick("m"))
					must.Eq(t, 0, h.ran.Load())
				} else {
					must.Eq(t, []string{"w1"}, c.mustPick("m"))
				}
				must.Eq(t, 0, c.q.starter.UnderWay())
			})
		})
	}
}

// Workers that die at once do not keep a request waiting forever.
func TestPickGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m")
		h.keepBeating()
		h.run = func(ctx context.Context, _ core.Request, _ *job.Run) (any, error) {
			id := fmt.Sprintf("w%d", h.ran.Load())
			w := h.addWorker(id, "m", core.WorkerFailed)
			_, err := h.beat(ctx)
			return core.SpawnResult{Worker: w}, err
		}
		_, err := c.pick("m")
		mustFail(t, err, core.Unavailable, "worker w1 failed to load")
		must.Eq(t, router.MaxStarts, h.ran.Load())

		// A worker that is reported as started but never registered is an error as well, and soon.
		h.change(func(h *fakeHive) {
			h.workers = nil
			h.run = func(context.Context, core.Request, *job.Run) (any, error) {
				return core.SpawnResult{Worker: core.Worker{ID: "ghost", Hive: "h1"}}, nil
			}
		})
		h.mustBeat()
		start := time.Now()
		_, err = c.pick("m")
		mustFail(t, err, core.Unavailable, "ghost")
		must.LessEq(t, placement.RegistrationPatience+time.Second, time.Since(start))
	})
}

// A worker on a hive that only other queens reach is of no use here, nor would be a second one that
// this queen started there.
func TestNoStartOnUnlinkedHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		far := c.newHive("h2")
		far.addModel("m")
		_, err := c.node.Apply(t.Context(), fsm.SyncHive(core.Hive{ID: "h2", Name: "far", Incarnation: 1, Status: core.HiveReady}, []core.Worker{
			{ID: "w", Hive: "h2", Type: "cpu", Model: "m", Slots: 1, State: core.WorkerReady, Nonce: "n"},
		}))
		must.NoError(t, err)
		time.Sleep(liveness.LinkGrace - time.Second)
		c.q.liveness.TakeOver() // a new leader does not give it up yet
		time.Sleep(2 * time.Second)
		_, err = c.q.Router.Route(t.Context(), inference.Query{Model: "m"})
		must.Error(t, err)
		must.Eq(t, 0, far.submits.Load(), must.Sprint(err))
		must.StrContains(t, err.Error(), liveness.NoLink)
	})
}
