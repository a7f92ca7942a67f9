package queen

import (
	"context"
	"errors"
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

func (c *cluster) pick(model string) ([]core.Candidate, error) {
	return pick(c.t.Context(), c.q, inference.Query{RequestID: "r", Model: model})
}

// pick routes a query, releases the lease and returns the workers that could answer.
func pick(ctx context.Context, q *Queen, query inference.Query) ([]core.Candidate, error) {
	lease, err := q.Router.Route(ctx, query)
	if err != nil {
		return nil, err
	}
	lease.Release(inference.Outcome{})
	return lease.Ranked, nil
}

// ready returns the workers of exactly this model that can answer now, best first.
func (q *Queen) ready(model string) []core.Candidate {
	found, _ := pick(context.Background(), q, inference.Query{Model: model, Other: true})
	return found
}

// mustPick picks and returns the ids of the candidates.
func (c *cluster) mustPick(model string) []string {
	c.t.Helper()
	found, err := c.pick(model)
	must.NoError(c.t, err)
	var ids []string
	for _, f := range found {
		must.NotEq(c.t, "", f.Reason)
		must.Eq(c.t, core.WorkerReady, f.Worker.State)
		ids = append(ids, f.Worker.ID)
	}
	return ids
}

func TestPickServing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m", "alias")
		h.addWorker("w1", "m", core.WorkerReady)
		h.addWorker("w2", "m", core.WorkerReady)
		h.addWorker("w3", "m", core.WorkerRetiring)
		h.addWorker("w4", "m", core.WorkerFailed)
		h.addWorker("w5", "m", core.WorkerLoading)
		h.addWorker("w6", "other", core.WorkerReady)
		h.mustBeat()

		must.Eq(t, []string{"w1", "w2"}, c.mustPick("m"))
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("alias"))
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("file:/models/m.gguf"))
		must.Eq(t, 0, h.submits.Load())

		// The hive is asked for an alias once, not with every request.
		h.change(func(h *fakeHive) { h.mute = core.Errorf(core.Unavailable, "no answer") })
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("alias"))
		time.Sleep(placement.AliasTTL)
		h.mustBeat()
		_, err := c.pick("alias")
		mustFail(t, err, core.Unavailable)
		h.change(func(h *fakeHive) { h.mute = nil })

		// Running requests count until they end; reported ones count as well.
		w1, err := c.q.hives.Worker(t.Context(), "w1")
		must.NoError(t, err)
		lease, err := c.q.Router.Route(t.Context(), inference.Query{Model: "m"})
		must.NoError(t, err)
		must.Eq(t, "w1", lease.Worker.ID)
		must.Eq(t, []string{"w2", "w1"}, c.mustPick("m"))
		lease.Release(inference.Outcome{})
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("m"))
		must.Eq(t, 0, c.q.Router.InFlight())
		h.change(func(h *fakeHive) { h.workers[0].Load.Active = 1 })
		h.mustBeat()
		must.Eq(t, []string{"w2", "w1"}, c.mustPick("m"))

		// A worker that failed a request is avoided until its hive confirms it.
		h.change(func(h *fakeHive) { h.workers[0].Load.Active = 0 })
		h.mustBeat()
		c.q.liveness.Fail(w1)
		must.Eq(t, []string{"w2"}, c.mustPick("m"))
		h.mustBeat()
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("m"))

		// A report about an earlier start of the worker does not count.
		h.change(func(h *fakeHive) { h.workers[0].Nonce = "second start" })
		h.mustBeat()
		c.q.liveness.Fail(w1)
		must.Eq(t, []string{"w1", "w2"}, c.mustPick("m"))
		must.Eq(t, 0, c.q.liveness.Failed())
	})
}

func TestPickUnknownModel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		_, err := c.pick("")
		mustFail(t, err, core.Invalid)
		_, err = c.pick("m")
		mustFail(t, err, core.Unavailable, "no hive has joined")

		h := c.newHive("h1")
		h.addModel("qwen3-0.6b", "qwen")
		h.change(func(h *fakeHive) {
			h.items = []core.CatalogItem{
				{Ref: "builtin:rbee-tiny", Kind: "model", Name: "rbee-tiny"},
				{Ref: "huggingface:org/secret", Kind: "model", Name: "secret"},
				{Ref: "builtin:engine", Kind: "engine", Name: "engine"},
			}
		})
		h.mustBeat()
		for _, tc := range []struct {
			model string
			says  []string
		}{
			{"rbee-tin", []string{`there is no model "rbee-tin"`, `"rbee-tiny"`}},
			{"Qwen3", []string{`"qwen3-0.6b"`}},
			{"completely else", []string{"rbee model list"}},
			{"secret", []string{"there is no model"}},                     // not of the builtin source: a request does not fetch it
			{"engine", []string{"there is no model"}},                     // not a model
			{"builtin:rbee-tiny", []string{"is not fetched", "rbee-t"}},   // a reference to something that is not stored
			{"huggingface:org/secret", []string{"rbee worker spawn"}},     //
			{"../../etc/passwd", []string{`no model "../../etc/passwd"`}}, //
		} {
			_, err := c.pick(tc.model)
			mustFail(t, err, core.NotFound, tc.says...)
		}
		must.Eq(t, 0, h.submits.Load())

		// If a hive cannot be asked, the model may still exist.
		h.change(func(h *fakeHive) { h.mute = errors.New("oops") })
		_, err = c.pick("nothing")
		must.Error(t, err)
		must.NotEq(t, core.NotFound, core.KindOf(err))
		other := c.newHive("h2")
		other.mustBeat()
		_, err = c.pick("nothing")
		mustFail(t, err, core.Unavailable, "name-h1", "oops")

		other.change(func(h *fakeHive) { h.models = []core.Model{{ID: "broken", Ref: "file:/b", Damaged: "digest is wrong"}} })
		_, err = c.pick("broken")
		mustFail(t, err, core.Unavailable, "digest is wrong", "file:/b")
	})
}

// The only worker is avoided: its hive's next report decides.
func TestPickWaitsForSuspects(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		news  func(h *fakeHive) // 500 ms later
		want  string
		ran   int32
		after time.Duration // at the latest
	}{
		{"confirmed", func(h *fakeHive) { h.mustBeat() }, "a", 0, 501 * time.Millisecond},
		{"dead", func(h *fakeHive) { h.removeWorker("a"); h.mustBeat() }, "w1", 1, 1501*time.Millisecond + 5*time.Millisecond},
		{"no word of it", func(*fakeHive) {}, "w1", 1, router.SuspectPatience + 1001*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "")
				h := c.newHive("h1")
				h.addModel("m")
				other := c.newHive("h2")
				other.addModel("m")
				a := h.addWorker("a", "m", core.WorkerReady)
				h.mustBeat()
				other.keepBeating()
				start := time.Now()
				c.q.liveness.Fail(a)
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					time.Sleep(500 * time.Millisecond)
					tc.news(h)
				})
				must.Eq(t, tc.want, c.mustPick("m")[0])
				must.Eq(t, tc.ran, h.ran.Load()+other.ran.Load())
				must.LessEq(t, tc.after, time.Since(start))
				if tc.name != "no word of it" {
					wg.Wait()
					other.mustBeat()
					must.Eq(t, 0, c.q.liveness.Failed()) // nothing is kept about workers that have ended
				}
			})
		})
	}
}

// The only worker is retiring: a new one is started beside it.
func TestPickBesideRetiring(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m")
		h.addWorker("a", "m", core.WorkerReady)
		h.run = func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
			if r.Operation == core.OpActiveWorkerRetire {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return h.spawn(ctx, r, run)
		}
		h.keepBeating()
		_, err := c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: "a"}, false)
		must.NoError(t, err)
		synctest.Wait() // that job is the first
		must.Eq(t, []string{"w2"}, c.mustPick("m"))
	})
}

// A lease also lists the workers that cannot answer, and why.
func TestRouteTellsRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		a := h.addWorker("a", "m", core.WorkerReady)
		h.addWorker("b", "m", core.WorkerRetiring)
		h.addWorker("c", "m", core.WorkerLoading)
		h.mustBeat()
		lease, err := c.q.Router.Route(t.Context(), inference.Query{Model: "m"})
		must.NoError(t, err)
		must.Eq(t, "a", lease.Worker.ID)
		must.Len(t, 1, lease.Ranked)
		want := []core.RouteRefusal{{Worker: "b", Reason: "is retiring"}, {Worker: "c", Reason: "is still loading"}}
		must.Eq(t, want, lease.Refused)
		must.Eq(t, 1, c.q.Router.InFlight())
		lease.Release(inference.Outcome{})
		must.Eq(t, 0, c.q.Router.InFlight())

		// Route does not wait for another worker, nor choose the one already tried.
		lease, err = c.q.Router.Route(t.Context(), inference.Query{Model: "m", Tried: []core.Worker{a}, Other: true})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, want, lease.Refused)
		must.Eq(t, 0, c.q.Router.InFlight())
		h.addWorker("d", "m", core.WorkerReady)
		h.mustBeat()
		lease, err = c.q.Router.Route(t.Context(), inference.Query{Model: "m", Tried: []core.Worker{a}, Other: true})
		must.NoError(t, err)
		must.Eq(t, "d", lease.Worker.ID)
		lease.Release(inference.Outcome{Failed: true})
		must.Eq(t, []string{"a"}, c.mustPick("m"))
	})
}

// A request goes to workers that have the needed capabilities, or do not report any. If none does,
// it is refused at once: another worker of the same type could not answer either.
func TestRouteByCapability(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		a := h.addWorker("a", "m", core.WorkerReady)
		h.addWorker("retiring", "m", core.WorkerRetiring)
		h.change(func(h *fakeHive) { h.workers[0].Capabilities = "chat" })
		h.mustBeat()
		tools := inference.Query{Model: "m", Terms: inference.Terms{Needs: []string{"chat", "tools"}}}
		lease, err := c.q.Router.Route(t.Context(), tools)
		unable, ok := errors.AsType[*inference.Unable](err)
		must.True(t, ok, must.Sprint(err))
		must.Eq(t, inference.Unable{Model: "m", Need: "tools"}, *unable)
		must.SliceContains(t, lease.Refused, core.RouteRefusal{Worker: "a", Reason: "cannot do tools"})
		_, err = pick(t.Context(), c.q, inference.Query{Model: "m", Terms: inference.Terms{Needs: []string{"chat"}}})
		must.NoError(t, err)

		b := h.addWorker("b", "m", core.WorkerReady) // it reports no capabilities
		h.mustBeat()
		found, err := pick(t.Context(), c.q, tools)
		must.NoError(t, err)
		must.Len(t, 1, found)
		must.Eq(t, b.ID, found[0].Worker.ID)
		tools.Tried = []core.Worker{b, a}
		tools.Other = true
		_, err = c.q.Router.Route(t.Context(), tools)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, 0, c.q.Router.InFlight())
	})
}

// A worker gets at most as many requests as it has slots plus half as many waiting, and none while
// it refuses requests. Neither counts against it.
func TestRouteBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m", "alias")
		h.addWorker("a", "m", core.WorkerReady)
		h.keepBeating()
		route := func() (inference.Lease, error) {
			return c.q.Router.Route(t.Context(), inference.Query{Model: "alias", Patience: time.Minute})
		}
		var leases []inference.Lease
		for {
			lease, err := route()
			if err != nil {
				full, ok := errors.AsType[*inference.Busy](err)
				must.True(t, ok)
				must.Eq(t, "m", full.Model)
				break
			}
			leases = append(leases, lease)
		}
		w := leases[0].Worker
		must.Len(t, max(w.Slots, 1)+max(w.Slots/2, 1), leases)
		must.Eq(t, 0, h.submits.Load(), must.Sprint("no other worker is started"))
		for _, l := range leases {
			l.Release(inference.Outcome{})
		}
		lease, err := route()
		must.NoError(t, err)
		lease.Release(inference.Outcome{Busy: time.Second})
		_, err = route()
		_, ok := errors.AsType[*inference.Busy](err)
		must.True(t, ok)
		must.Eq(t, 0, c.q.liveness.Failed())
		time.Sleep(time.Second)
		lease, err = route()
		must.NoError(t, err)
		lease.Release(inference.Outcome{})
	})
}

// A request that was too long for a worker goes to one with a longer context, and starts none.
func TestRouteContextOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addModel("m")
		for id, context := range map[string]int{"short": 64, "long": 1024} {
			h.addWorker(id, "m", core.WorkerReady)
			h.change(func(h *fakeHive) { h.workers[len(h.workers)-1].ContextTokens = context })
		}
		h.keepBeating()
		must.Len(t, 2, c.mustPick("m"))
		found, err := pick(t.Context(), c.q, inference.Query{Model: "m", ContextOver: 64, Other: true})
		must.NoError(t, err)
		must.Len(t, 1, found)
		must.Eq(t, "long", found[0].Worker.ID)
		_, err = pick(t.Context(), c.q, inference.Query{Model: "m", ContextOver: 1024, Other: true})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, 0, h.submits.Load())
	})
}

// A worker that has not reported its state for a while gets no requests, whatever its hive reports,
// and its requests learn how long it has been silent.
func TestRouteAvoidsSilentWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		a := h.addWorker("a", "m", core.WorkerReady)
		b := h.addWorker("b", "m", core.WorkerReady)
		h.change(func(h *fakeHive) {
			h.workers[0].Load = core.Load{TokensTotal: 7, Active: 1, Stalled: core.Duration(time.Second)}
		})
		h.mustBeat()
		lease, err := c.q.Router.Route(t.Context(), inference.Query{Model: "m", Tried: []core.Worker{b}})
		must.NoError(t, err)
		must.Eq(t, "a", lease.Worker.ID)
		must.Eq(t, inference.Signs{Progress: true, Stalled: time.Second}, lease.Signs())
		lease.Release(inference.Outcome{})

		h.change(func(h *fakeHive) { h.workers[0].Load.Silence = core.Duration(liveness.SilentWorker) })
		h.mustBeat()
		must.Eq(t, []string{"b"}, c.mustPick("m"))
		must.Eq(t, inference.Signs{Progress: true, Stalled: time.Second, Silence: liveness.SilentWorker}, lease.Signs())
		got, err := c.q.hives.Worker(t.Context(), a.ID)
		must.NoError(t, err)
		must.Eq(t, liveness.SilentWorker, time.Since(got.Load.At), must.Sprint("when the worker was seen, not its hive"))
		lease, err = c.q.Router.Route(t.Context(), inference.Query{Model: "m"})
		must.NoError(t, err)
		must.StrContains(t, lease.Refused[0].Reason, "has not told its state for 3s")
		lease.Release(inference.Outcome{})

		h.change(func(h *fakeHive) { h.workers[0].Load.Silence = 0 })
		h.mustBeat()
		must.Len(t, 2, c.mustPick("m"))
	})
}

// Draining hives get neither requests nor workers, and are not waited for.
func TestDrainingHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h1, h2 := c.newHive("h1"), c.newHive("h2")
		h1.addModel("m")
		h1.addModel("n")
		h1.change(func(h *fakeHive) { h.models[1].Digest = "sha256:02" }) // it has files that others can fetch
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
		// The hive's reports do not undo it.
		time.Sleep(5 * time.Second)
		must.True(t, c.q.Registry.View().PeekHive(nil, "h1").Draining)
		_, err = c.node.Apply(t.Context(), fsm.SetHiveDraining("h1", false))
		must.NoError(t, err)
		must.Eq(t, []string{"a", "b"}, c.mustPick("m"))
		must.Eq(t, []string{"n1", "w1"}, c.mustPick("n"))

		// If all hives drain, nothing is started, and no request waits.
		for _, id := range []string{"h1", "h2"} {
			_, err = c.node.Apply(t.Context(), fsm.SetHiveDraining(id, true))
			must.NoError(t, err)
		}
		began := time.Now()
		_, err = c.pick("m")
		mustFail(t, err, core.Unavailable, "name-h1 drains", "name-h2 drains")
		must.Eq(t, 0, time.Since(began))
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "m"}, false)
		mustFail(t, err, core.Unavailable, "name-h1 drains")
	})
}
