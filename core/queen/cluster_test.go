package queen

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/setting"
)

func TestReady(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir)
		mustFail(t, c.q.Ready(t.Context()), core.Unavailable, "no hive has joined")
		h := c.newHive("h1")
		h.addWorker("w1", "m", core.WorkerReady)
		h.mustBeat()
		must.NoError(t, c.q.Ready(t.Context()))
		time.Sleep(liveness.ReportInterval + liveness.SuspectGrace + time.Second)
		mustFail(t, c.q.Ready(t.Context()), core.Unavailable, "name-h1 is silent")
		h.mustBeat()
		must.NoError(t, c.q.Ready(t.Context()))
		c.stop()

		// After a restart the registry is complete, but the hive must report first.
		c = newCluster(t, dir)
		must.Len(t, 1, c.q.hives.Workers())
		mustFail(t, c.q.Ready(t.Context()), core.Unavailable, "no hive has reported yet")
		h = c.newHive("h1")
		h.change(func(h *fakeHive) { h.hive.Incarnation = 2 })
		h.mustBeat()
		must.NoError(t, c.q.Ready(t.Context()))
		must.Len(t, 0, c.q.hives.Workers())

		c.q.liveness.StepDown()
		mustFail(t, c.q.Ready(t.Context()), core.Unavailable, "still loading")
	})
}

func TestNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		_, err := c.q.hives.Named(t.Context(), core.LocalHive)
		mustFail(t, err, core.NotFound, "no hive of its own")
		h1, h2, h3 := c.newHive("h1"), c.newHive("h2"), c.newHive("h3")
		_, err = c.q.hives.Named(t.Context(), core.LocalHive)
		mustFail(t, err, core.NotFound, "not joined yet")
		h2.change(func(h *fakeHive) { h.hive.Name = "twin" })
		h3.change(func(h *fakeHive) { h.hive.Name = "twin" })
		h1.addWorker("abc", "m", core.WorkerReady)
		h1.addWorker("abcd", "m", core.WorkerReady)
		h1.addWorker("xyz", "m", core.WorkerReady)
		for _, h := range []*fakeHive{h1, h2, h3} {
			h.mustBeat()
		}
		for name, id := range map[string]string{"h1": "h1", "name-h1": "h1", core.LocalHive: "h1", "h3": "h3"} {
			h, err := c.q.hives.Named(t.Context(), name)
			must.NoError(t, err)
			must.Eq(t, id, h.ID)
		}
		_, err = c.q.hives.Named(t.Context(), "twin")
		mustFail(t, err, core.Conflict, "h2, h3")
		for _, name := range []string{"", "h4", "../h1"} {
			_, err = c.q.hives.Named(t.Context(), name)
			mustFail(t, err, core.NotFound)
		}
		_, err = operation.ModelGet.Ask(t.Context(), c.q, core.Request{Hive: "h4", Model: "m"})
		mustFail(t, err, core.NotFound)
		_, err = operation.WorkerProcessGet.Ask(t.Context(), c.q, core.Request{Hive: "../h1", PID: 1})
		mustFail(t, err, core.NotFound)
		_, err = operation.WorkerProcessGet.Ask(t.Context(), c.q, core.Request{PID: 1})
		mustFail(t, err, core.Invalid, `needs "hive"`)

		for prefix, id := range map[string]string{"abc": "abc", "abcd": "abcd", "x": "xyz", "xyz": "xyz"} {
			w, err := c.q.hives.Worker(t.Context(), prefix)
			must.NoError(t, err)
			must.Eq(t, id, w.ID)
		}
		_, err = c.q.hives.Worker(t.Context(), "ab")
		mustFail(t, err, core.Conflict, "abc or abcd")
		_, err = c.q.hives.Worker(t.Context(), "xyy")
		mustFail(t, err, core.NotFound, `"xyz"`)
		_, err = c.q.hives.Worker(t.Context(), "")
		mustFail(t, err, core.NotFound)
	})
}

func TestModels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		_, err := c.q.Models(t.Context())
		mustFail(t, err, core.Unavailable)
		h1, h2 := c.newHive("h1"), c.newHive("h2")
		h1.change(func(h *fakeHive) {
			h.models = []core.Model{
				{ID: "both", Aliases: []string{"b"}, Digest: "sha256:1", SizeBytes: 5, LoadedBy: []string{"w1"}},
				{ID: "half", Damaged: "digest is wrong"},
				{ID: "mine"},
			}
		})
		h2.change(func(h *fakeHive) {
			h.models = []core.Model{{ID: "both", Aliases: []string{"a", "b"}, Digest: "sha256:1", SizeBytes: 5}, {ID: "half", SizeBytes: 9}}
		})
		h1.addWorker("w1", "both", core.WorkerReady)
		h2.addWorker("w2", "both", core.WorkerLoading)
		h2.addWorker("w3", "served by no file", core.WorkerReady)
		h1.mustBeat()
		h2.mustBeat()
		models, err := c.q.Models(t.Context())
		must.NoError(t, err)
		must.Eq(t, []core.Model{
			{ID: "both", Aliases: []string{"a", "b"}, Digest: "sha256:1", SizeBytes: 5, Hives: []string{"h1", "h2"}, LoadedBy: []string{"w1", "w2"}, State: core.ModelLoaded, LoadedContextTokens: 512},
			{ID: "half", Aliases: []string{}, SizeBytes: 9, Hives: []string{"h1", "h2"}, LoadedBy: []string{}, State: core.ModelAvailable},
			{ID: "mine", Aliases: []string{}, Hives: []string{"h1"}, LoadedBy: []string{}, State: core.ModelAvailable},
		}, models)

		models, err = operation.ModelList.Ask(t.Context(), c.q, core.Request{Hive: "name-h1"})
		must.NoError(t, err)
		must.Len(t, 3, models)
		must.Eq(t, []string{"h1"}, models[0].Hives)
		m, err := operation.ModelGet.Ask(t.Context(), c.q, core.Request{Hive: "h2", Model: "half"})
		must.NoError(t, err)
		must.Eq(t, []string{"h2"}, m.Hives)
		_, err = operation.ModelGet.Ask(t.Context(), c.q, core.Request{Hive: "h2", Model: "mine"})
		mustFail(t, err, core.NotFound, "Try another.")

		// A silent hive does not hide the others.
		h2.change(func(h *fakeHive) { h.mute = errors.New("oops") })
		models, err = c.q.Models(t.Context())
		must.NoError(t, err)
		must.Len(t, 3, models)
		must.Eq(t, []string{"h1"}, models[0].Hives)
	})
}

func TestAskAHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		_, err := c.q.Models(t.Context())
		mustFail(t, err, core.Unavailable)
		h := c.newHive("h1")
		h.change(func(h *fakeHive) {
			h.processes = []core.Process{{PID: 7, WorkerID: "w1"}}
			h.binaries = []core.WorkerBinary{{ID: "cpu@1", InUseBy: []string{"w1"}, Devices: []core.Device{}}}
			h.items = []core.CatalogItem{{Ref: "builtin:m", Kind: "model", Name: "m"}}
		})
		h.mustBeat()
		ps, err := operation.WorkerProcessList.Ask(t.Context(), c.q, core.Request{Hive: core.LocalHive})
		must.NoError(t, err)
		must.Eq(t, []core.Process{{PID: 7, WorkerID: "w1"}}, ps)
		bs, err := operation.WorkerBinaryList.Ask(t.Context(), c.q, core.Request{Hive: "h1"})
		must.NoError(t, err)
		must.Eq(t, h.binaries, bs)
		for _, name := range []string{"h1", core.LocalHive} {
			items, err := operation.CatalogSearch.Ask(t.Context(), c.q, core.Request{Hive: name, Text: "m", Kind: "model", Limit: 5})
			must.NoError(t, err)
			must.Eq(t, h.items, items)
		}
		// An operation that the hive does not support is reported as such, with a hint.
		_, err = operation.WorkerProcessGet.Ask(t.Context(), c.q, core.Request{Hive: "h1", PID: 8})
		mustFail(t, err, core.Unsupported, "same version")
		_, err = operation.WorkerBinaryGet.Ask(t.Context(), c.q, core.Request{Hive: "h1", Binary: "cpu"})
		mustFail(t, err, core.Unsupported)

		time.Sleep(time.Minute)
		_, err = operation.WorkerProcessList.Ask(t.Context(), c.q, core.Request{Hive: "h1"})
		mustFail(t, err, core.Unavailable, "is down")

		// It is in the registry but unreachable.
		lost := c.newHive("h2")
		lost.mustBeat()
		c.mu.Lock()
		delete(c.hives, "h2")
		c.mu.Unlock()
		_, err = operation.WorkerProcessList.Ask(t.Context(), c.q, core.Request{Hive: "h2"})
		mustFail(t, err, core.Unavailable, "no way to hive h2")
		lost.close()
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		s, err := c.q.Status(t.Context())
		must.NoError(t, err)
		must.Eq(t, []string{"no hive has joined the cluster yet"}, s.Problems)
		text, err := json.Marshal(s)
		must.NoError(t, err)
		must.StrNotContains(t, string(text), "null")

		must.SliceEmpty(t, s.Settings)
		set, err := c.q.Registry.Set(t.Context(), setting.SwapWait.Name, "3s")
		must.NoError(t, err)

		h1, h2 := c.newHive("h1"), c.newHive("h2")
		h1.addModel("m")
		h1.addWorker("w1", "m", core.WorkerReady)
		h1.addWorker("w2", "m", core.WorkerFailed)
		h2.change(func(h *fakeHive) { h.hive.Devices[0].Problem = "on fire" })
		h2.mustBeat()
		time.Sleep(liveness.ReportInterval + liveness.SuspectGrace + time.Second)
		h1.mustBeat()
		for range statusJobs + 5 {
			_, err := c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, Hive: "h1", Model: "m"}, false)
			must.NoError(t, err)
		}
		time.Sleep(2 * time.Second)
		h1.change(func(h *fakeHive) { h.workers = h.workers[:2] })
		h1.mustBeat()
		w1, err := c.q.hives.Worker(t.Context(), "w1")
		must.NoError(t, err)
		c.q.liveness.Fail(w1)
		s, err = c.q.Status(t.Context())
		must.NoError(t, err)
		must.Eq(t, "q1", s.Node)
		must.Eq(t, "q1", s.Leader)
		must.Eq(t, "1.2.3", s.Version)
		must.Eq(t, c.node.AppliedIndex(), s.Index)
		must.Len(t, 1, s.Queens)
		must.True(t, s.Queens[0].Leader && s.Queens[0].Voter)
		must.Len(t, 2, s.Hives)
		must.Len(t, 2, s.Workers)
		must.Len(t, 1, s.Models)
		must.Eq(t, []core.Setting{set}, s.Settings)
		must.Len(t, statusJobs, s.Jobs)
		must.Eq(t, []string{
			"hive name-h2 is suspect",
			"hive name-h2 cannot use cpu: on fire",
			"worker w1 is avoided: it failed a request a moment ago",
			"worker w2 could not load m",
		}, s.Problems)

		h1.change(func(h *fakeHive) { h.mute = errors.New("oops") })
		s, err = c.q.Status(t.Context())
		must.NoError(t, err)
		must.SliceContains(t, s.Problems, "hive name-h1: oops")
	})
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"rbee-tiny", "qwen3-0.6b", "qwen3-8b", "qwen3-14b", "llama", ""}
	for want, says := range map[string]string{
		"rbee-tini":           `The nearest name is "rbee-tiny". `,
		"RBEE-TINY":           `The nearest name is "rbee-tiny". `,
		"qwen3":               `The nearest names are "qwen3-0.6b", "qwen3-14b", "qwen3-8b". `,
		"qwen3-8":             `The nearest name is "qwen3-8b". `,
		"something different": "",
		"":                    "",
	} {
		must.Eq(t, says, core.NearestHint(want, names), must.Sprint(want))
	}
	must.Eq(t, "", core.NearestHint("x", nil))
}
