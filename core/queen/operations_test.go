package queen

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/hives"
)

// Every operation in the table has a function, and every function is in the table.
func TestQueenOperationFunctions(t *testing.T) {
	t.Parallel()
	q := &Queen{}
	q.reads = q.readFuncs()
	have := q.operations()
	for _, s := range operation.All() {
		if s.Runs == operation.RunsOnQueen {
			must.MapContainsKey(t, have, s.Name)
			delete(have, s.Name)
		}
	}
	must.MapEmpty(t, have)
}

// withJobs gives the queen of a cluster a job manager.
func withJobs(o *Options) { o.Jobs = job.New(job.Options{Owner: o.ID}) }

// ended waits for the end of a job.
func (c *cluster) ended(j core.Job, err error) core.Job {
	c.t.Helper()
	must.NoError(c.t, err)
	must.NoError(c.t, c.q.Jobs.Events(c.t.Context(), j.ID, 0, func(core.Event) error { return nil }))
	j, err = c.q.Jobs.Job(c.t.Context(), j.ID)
	must.NoError(c.t, err)
	return j
}

// A read-only operation returns the same result as a job and as a plain query.
func TestReadsAsJobs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", withJobs)
		h := c.newHive("h1")
		h.models = []core.Model{{ID: "m", Aliases: []string{"em"}}}
		h.processes = []core.Process{{PID: 7}}
		h.addWorker("w1", "m", core.WorkerReady)
		h.mustBeat()
		for _, r := range []core.Request{
			{Operation: core.OpWorkerBinaryList, Hive: "h1"},
			{Operation: core.OpWorkerProcessList, Hive: "name-h1"},
			{Operation: core.OpModelList},
			{Operation: core.OpModelList, Hive: "h1"},
			{Operation: core.OpModelGet, Hive: "h1", Model: "m"},
			{Operation: core.OpHiveList},
			{Operation: core.OpHiveGet, Hive: "localhost"},
			{Operation: core.OpActiveWorkerList},
			{Operation: core.OpActiveWorkerGet, Worker: "w"},
		} {
			j := c.ended(c.q.Jobs.Submit(t.Context(), r, false))
			must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%s: %+v", r.Operation, j.Error))
			must.Eq(t, "q1", j.Hive)
			v, err := c.q.Answer(t.Context(), r)
			must.NoError(t, err)
			b, err := json.Marshal(v)
			must.NoError(t, err)
			must.Eq(t, string(b), string(j.Result), must.Sprint(r.Operation))
		}

		j := c.ended(c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelGet, Model: "em"}, false))
		must.StrContains(t, string(j.Result), `"id":"m"`)
		j = c.ended(c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelGet, Model: "emm"}, false))
		must.Eq(t, core.NotFound, j.Error.Kind)
		must.StrContains(t, j.Error.Hint, `"em"`)
		j = c.ended(c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpHiveGet, Hive: "nobody"}, false))
		must.Eq(t, core.JobFailed, j.State)
		must.Eq(t, core.NotFound, j.Error.Kind)

		// The queen's jobs are among all jobs, and a repeated request is one job.
		r := core.Request{Operation: core.OpStatus, RequestID: "once"}
		first, again := c.ended(c.q.Jobs.Submit(t.Context(), r, false)), c.ended(c.q.Jobs.Submit(t.Context(), r, false))
		must.Eq(t, first.ID, again.ID)
		jobs, err := c.q.Jobs.Jobs(t.Context())
		must.NoError(t, err)
		must.Len(t, 13, jobs)
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpStatus, Hive: "h1"}, false)
		mustFail(t, err, core.Invalid, `no field "hive"`)
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpHiveGet}, false)
		mustFail(t, err, core.Invalid, `needs "hive"`)
	})
}

// A request that is sent again to another queen, which knows nothing of the first attempt, is not
// started on another hive.
func TestRequestRepeatedAtOtherQueen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		a, b := c.newHive("h1"), c.newHive("h2")
		a.models, b.models = []core.Model{{ID: "m"}}, []core.Model{{ID: "m"}}
		a.mustBeat()
		b.mustBeat()
		r := core.Request{Operation: core.OpWorkerSpawn, Model: "m", RequestID: "once"}
		// The first queen started it on h2.
		first := b.jobs.Start(r.Operation, r.RequestID, func(_ context.Context, _ *job.Run) (any, error) { return core.SpawnResult{}, nil })
		again, err := c.q.Jobs.Submit(t.Context(), r, false)
		must.NoError(t, err)
		must.Eq(t, first.ID, again.ID)
		must.Zero(t, a.submits.Load())
	})
}

// A hive whose search is slow because a catalog source is silent is still asked for a model from
// another source.
func TestSearchTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.items = []core.CatalogItem{{Ref: "builtin:m", Name: "m", Kind: "model"}}
		h.searching = hives.AskTimeout + 2*time.Second
		h.mustBeat()
		defer h.keepBeating()()
		items, err := operation.CatalogSearch.Ask(t.Context(), c.q, core.Request{Hive: "h1", Text: "m", Kind: "model", Limit: 10})
		must.NoError(t, err)
		must.Len(t, 1, items)
		_, err = pick(t.Context(), c.q, inference.Query{Model: "m"})
		must.NoError(t, err)
	})
}
