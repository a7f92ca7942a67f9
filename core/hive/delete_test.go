package hive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/badgguf"
	"github.com/rbee-project/rbee/core/operation"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

func (r *rig) models() []string {
	r.t.Helper()
	models, err := operation.ModelList.Ask(r.t.Context(), r, core.Request{})
	must.NoError(r.t, err)
	out := []string{}
	for _, m := range models {
		out = append(out, m.ID)
	}
	return out
}

func TestModelDelete(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	m := result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	dry := result1[core.ModelDeleteResult](r, core.Request{Operation: core.OpModelDelete, Model: "tiny", DryRun: true})
	must.True(t, dry.DryRun)
	must.Eq(t, m.SizeBytes, dry.FreedBytes)
	must.Eq(t, []string{"tiny"}, r.models())

	// A loaded model stays, and the error names the workers.
	w := r.spawn("fake")
	f := r.failure(core.Request{Operation: core.OpModelDelete, Model: "fake:tiny.gguf"})
	must.Eq(t, core.InUse, f.Kind)
	must.StrContains(t, f.Message, w.Worker.ID)
	must.StrContains(t, f.Hint, "rbee worker retire "+w.Worker.ID)
	f = r.failure(core.Request{Operation: core.OpModelDelete, Model: "tiny", DryRun: true})
	must.Eq(t, core.InUse, f.Kind)
	must.Eq(t, []string{"tiny"}, r.models())
	result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})

	got := result1[core.ModelDeleteResult](r, core.Request{Operation: core.OpModelDelete, Model: "tiny"})
	must.Eq(t, core.ModelDeleteResult{Model: "tiny", FreedBytes: m.SizeBytes, Files: []core.File{{Path: "tiny.gguf", SizeBytes: m.SizeBytes, Digest: m.Digest}}}, got)
	must.Eq(t, []string{}, r.models())
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "blobs")))
	f = r.failure(core.Request{Operation: core.OpModelDelete, Model: "tiny"})
	must.Eq(t, core.NotFound, f.Kind)
}

func TestModelDeleteNeverLeavesTheStore(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	victim := filepath.Join(r.dir, "store", "victim.json")
	must.NoError(t, os.WriteFile(victim, []byte("{}"), 0o600))
	for _, name := range []string{"..", "../victim", "../../config.hcl", "/etc/passwd", "C:victim", "models/../victim", victim, "sha256:" + strings.Repeat("0", 64)} {
		f := r.failure(core.Request{Operation: core.OpModelDelete, Model: name})
		must.Eq(t, core.NotFound, f.Kind, must.Sprint(name))
	}
	_, err := os.Stat(victim)
	must.NoError(t, err)
	_, err = os.Stat(filepath.Join(r.dir, "config.hcl"))
	must.NoError(t, err)
}

func TestLoadingModelNotDeleted(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    load_time = "10m"
  }
}`})
	j := r.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "slow", Model: "tiny"})
	r.told(patience, count(1))
	f := r.failure(core.Request{Operation: core.OpModelDelete, Model: "tiny"})
	must.Eq(t, core.InUse, f.Kind)
	must.StrContains(t, f.Message, r.queen.workers()[0].ID)
	_, err := r.jobs.Cancel(t.Context(), &jobv1.CancelRequest{Id: j.ID})
	must.NoError(t, err)
	r.follow(j.ID)
	result1[core.ModelDeleteResult](r, core.Request{Operation: core.OpModelDelete, Model: "tiny"})

	// The same holds before a worker exists: a load in progress holds the model.
	release, err := r.hive.claims.holdModel(t.Context(), "tiny")
	must.NoError(t, err)
	_, err = r.hive.claims.beginDelete("tiny")
	must.Eq(t, core.InUse, core.KindOf(err))
	must.NotEq(t, "", core.HintOf(err))
	release()
	done, err := r.hive.claims.beginDelete("tiny")
	must.NoError(t, err)
	_, err = r.hive.claims.beginDelete("tiny")
	must.Eq(t, core.Conflict, core.KindOf(err))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.hive.claims.holdModel(ctx, "tiny")
	must.Eq(t, core.Cancelled, core.KindOf(err), must.Sprint("a spawn waits for the end of a deletion"))
	done()
}

// Spawns and deletions run at once: every spawn gets a whole model, and no model is deleted under a
// worker.
func TestSpawnAgainstDelete(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	r.spawn("fake") // installs everything
	var wg sync.WaitGroup
	failures := make([]string, 6)
	for i := range failures {
		wg.Go(func() {
			if i%2 == 0 {
				j := r.do(core.Request{Operation: core.OpModelDelete, Model: "tiny"})
				if j.State == core.JobFailed && j.Error.Kind != core.InUse && j.Error.Kind != core.NotFound && j.Error.Kind != core.Conflict {
					failures[i] = fmt.Sprint(j.Error)
				}
				return
			}
			j := r.do(core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny", Slots: 1, ContextTokens: 64})
			if j.State != core.JobSucceeded {
				failures[i] = fmt.Sprint(j.Error)
			}
		})
	}
	wg.Wait()
	must.Eq(t, make([]string, 6), failures)
	must.Eq(t, []string{"tiny"}, r.models(), must.Sprint("it is loaded"))
}

func TestSplitModelAndNotes(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	folder := filepath.Join(r.dir, "catalog", "split")
	must.NoError(t, os.Mkdir(folder, 0o700))
	for i, b := range badgguf.Split() {
		must.NoError(t, os.WriteFile(filepath.Join(folder, fmt.Sprintf("m-%d.gguf", i)), b, 0o600))
	}
	j, events := r.follow(r.submit(core.Request{Operation: core.OpModelDownload, Model: "fake:split"}).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v", j.Error))
	must.StrContains(t, logs(events), "split has 3 files") // the source's messages are logged
	result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "split", ContextTokens: 64})
	f := r.failure(core.Request{Operation: core.OpModelDelete, Model: "split"})
	must.Eq(t, core.InUse, f.Kind)
}

// Two downloads of one model share a transfer; each can be cancelled, and a cancelled one leaves
// nothing usable.
func TestModelDownloadCancel(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	a := r.submit(core.Request{Operation: core.OpModelDownload, Model: "fake:stuck"})
	b := r.submit(core.Request{Operation: core.OpModelDownload, Model: "fake:stuck"})
	must.NotEq(t, a.ID, b.ID)
	for _, id := range []string{a.ID, b.ID} {
		_, err := r.jobs.Cancel(t.Context(), &jobv1.CancelRequest{Id: id})
		must.NoError(t, err)
		j, _ := r.follow(id)
		must.Eq(t, core.JobCancelled, j.State)
	}
	must.Eq(t, []string{}, r.models())
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "blobs")))
}
