package queen

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/queen/dispatch"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

// Reported inventories answer queries: neither an unknown model nor the list of models costs a call
// to any hive.
func TestInventoryAsksNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		a, b := c.newHive("h1"), c.newHive("h2")
		for _, h := range []*fakeHive{a, b} {
			h.tells = true
			h.items = []core.CatalogItem{{Ref: "builtin:rbee-tiny", Name: "rbee-tiny", Kind: "model"}}
		}
		a.addModel("m", "nick")
		b.addModel("m")
		b.addModel("other")
		defer a.keepBeating()()
		defer b.keepBeating()()

		models, err := c.q.Models(t.Context())
		must.NoError(t, err)
		must.Len(t, 3, models)
		must.EqOp(t, core.ModelOffered, models[2].State) // rbee-tiny, which no hive has fetched
		must.Eq(t, []string{"h1", "h2"}, models[0].Hives)
		must.Eq(t, []string{"nick"}, models[0].Aliases)
		_, err = pick(t.Context(), c.q, inference.Query{Model: "rbee-tinny"})
		mustFail(t, err, core.NotFound, `there is no model "rbee-tinny"`, `"rbee-tiny"`)
		_, err = pick(t.Context(), c.q, inference.Query{Model: "hf:who/ever"})
		mustFail(t, err, core.NotFound, "is not fetched by a request")
		must.Zero(t, c.calls.Load())

		// A pull or a deletion is known with the next report.
		a.addModel("new")
		a.mustBeat()
		b.change(func(h *fakeHive) { h.models = h.models[:1] })
		b.mustBeat()
		models, err = c.q.Models(t.Context())
		must.NoError(t, err)
		must.Eq(t, []string{"m", "new"}, []string{models[0].ID, models[1].ID})
		must.Zero(t, c.calls.Load())

		// An existing model is started under any of its names: the only calls are those of the job.
		_, err = pick(t.Context(), c.q, inference.Query{Model: "nick"})
		must.NoError(t, err)
		must.Eq(t, 1, a.submits.Load()+b.submits.Load())
	})
}

// A hive that does not report its inventory is asked, as before, and so is one that stopped
// reporting it.
func TestInventoryOlderHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		telling, older := c.newHive("h1"), c.newHive("h2")
		telling.tells = true
		telling.addModel("m")
		older.addModel("old")
		defer older.keepBeating()()
		telling.mustBeat()
		ids := func() (ids []string) {
			models, err := c.q.Models(t.Context())
			must.NoError(t, err)
			for _, m := range models {
				ids = append(ids, m.ID)
			}
			return ids
		}
		must.Eq(t, []string{"m", "old"}, ids())
		must.Eq(t, 1, c.calls.Load())

		// The hive restarts with a version that reports no inventory.
		telling.hangUp()
		telling.change(func(h *fakeHive) { h.hive.Incarnation++; h.tells = false; h.models = nil })
		defer telling.keepBeating()()
		must.Eq(t, []string{"old"}, ids())
		must.Eq(t, 3, c.calls.Load())
	})
}

// A silent hive may have a model that no other hive has: the model is not unknown.
func TestInventorySilentHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		a, b := c.newHive("h1"), c.newHive("h2")
		a.tells, b.tells = true, true
		b.addModel("m")
		defer a.keepBeating()()
		b.mustBeat()
		time.Sleep(liveness.ReportInterval + 2*liveness.SuspectGrace)
		_, err := pick(t.Context(), c.q, inference.Query{Model: "m"})
		mustFail(t, err, core.Unavailable, "hive name-h2 is silent")
		models, err := c.q.Models(t.Context())
		must.NoError(t, err)
		must.SliceEmpty(t, models)
		must.Zero(t, c.calls.Load())
	})
}

// A request that is sent for the first time goes straight to a hive. For one that may be a repeat,
// all owners are asked first.
func TestSubmitFirstAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		a, b := c.newHive("h1"), c.newHive("h2")
		for _, h := range []*fakeHive{a, b} {
			h.tells = true
			h.run = func(context.Context, core.Request, *job.Run) (any, error) { return core.Model{}, nil }
			defer h.keepBeating()()
		}
		r := core.Request{Operation: core.OpModelDownload, Model: "builtin:m", RequestID: "one"}
		first, err := c.q.Jobs.Submit(t.Context(), r, true)
		must.NoError(t, err)
		must.Eq(t, 1, c.calls.Load()) // only the submission

		// Another queen receives it again.
		other := dispatch.New(dispatch.Options{Registry: c.q.Registry, Hives: c.q.hives, Members: c.q.Members, Placer: c.q.placer, ID: "q2"})
		again, err := other.Submit(t.Context(), r, false)
		must.NoError(t, err)
		must.Eq(t, first.ID, again.ID)
		must.Eq(t, 4, c.calls.Load()) // two owners asked, and the submission
	})
}
