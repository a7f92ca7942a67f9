package queen

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// A hive that does not unload workers gets no keep_alive: it would refuse the request.
func TestKeepAliveOfOlderHives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.run = func(context.Context, core.Request, *job.Run) (any, error) { return core.SpawnResult{}, nil }
		h.addModel("m")
		for _, unloads := range []bool{false, true} {
			h.change(func(h *fakeHive) { h.unloads = unloads })
			h.mustBeat()
			_, err := c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "m", Hive: "h1", KeepAlive: core.KeepAliveDefault}, false)
			must.NoError(t, err)
			synctest.Wait()
			got := h.submitted()
			must.Eq(t, unloads, got[len(got)-1].KeepAlive == core.KeepAliveDefault)
		}
	})
}

// A further worker with a model gets the context of the first one, whatever the hives call it, so
// that all handle long prompts alike.
func TestReplicaContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		one, two := c.newHive("h1"), c.newHive("h2")
		for _, h := range []*fakeHive{one, two} {
			h.run = func(context.Context, core.Request, *job.Run) (any, error) { return core.SpawnResult{}, nil }
		}
		one.addModel("m")
		two.addModel("n", "other")
		two.change(func(h *fakeHive) { h.models[0].Digest = "sha256:m" })
		one.mustBeat()
		two.mustBeat()
		asked := func(r core.Request) int {
			t.Helper()
			r.Operation = core.OpWorkerSpawn
			_, err := c.q.Jobs.Submit(t.Context(), r, false)
			must.NoError(t, err)
			synctest.Wait()
			got := two.submitted()
			return got[len(got)-1].ReplicaContext
		}
		must.Eq(t, 0, asked(core.Request{Model: "n", Hive: "h2"})) // it is the first worker

		one.addWorker("w1", "m", core.WorkerLoading)
		one.mustBeat()
		one.addWorker("w0", "m", core.WorkerReady)
		one.change(func(h *fakeHive) { h.workers[1].ContextTokens = 64 }) // explicitly requested
		one.mustBeat()
		synctest.Wait()
		must.Eq(t, 512, asked(core.Request{Model: "n", Hive: "h2"}))
		must.Eq(t, 512, asked(core.Request{Model: "other", Hive: "h2"}))
		must.Eq(t, 0, asked(core.Request{Model: "n", Hive: "h2", ContextTokens: 128}))
		must.Eq(t, 512, asked(core.Request{Model: "n", Hive: "h2", ReplicaContext: 9}))

		one.change(func(h *fakeHive) { h.workers[0].State, h.workers[1].State = core.WorkerFailed, core.WorkerFailed })
		one.mustBeat()
		must.Eq(t, 0, asked(core.Request{Model: "n", Hive: "h2"}))
	})
}
