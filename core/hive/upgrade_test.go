package hive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// upgradeRig is a hive with two workers of a type that is a folder, whose plugin is changed by
// writing its settings.sh.
func upgradeRig(t *testing.T) (r *rig, settings string, ids []string) {
	t.Helper()
	dir := folderPlugin(t)
	r = run(t, setup{change: func(o *Options) {
		host := pluginhost.New(pluginhost.Options{PluginDir: dir, RunDir: filepath.Join(o.DataDir, "run"), Logger: coretest.Logger(t)})
		spec, err := host.DefaultSpec(sdk.KindWorker, "fold")
		must.NoError(t, err)
		o.WorkerSpecs = []pluginhost.Spec{spec}
	}})
	for range 2 {
		w := result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: "fold", Model: "tiny", Slots: 3, ContextTokens: 64, Pin: true})
		ids = append(ids, w.Worker.ID)
	}
	slices.Sort(ids)
	return r, filepath.Join(dir, "rbee-worker-fold", "lib", "settings.sh"), ids
}

// serving returns the ids of the serving workers, each of which must answer.
func (r *rig) serving() []string {
	r.t.Helper()
	var ids []string
	for _, w := range r.hive.roster.all() {
		if w.stateNow() != core.WorkerReady {
			continue
		}
		text, err := r.ask(r.t.Context(), w.id(), "one two")
		must.NoError(r.t, err)
		must.StrContains(r.t, text, "one two")
		ids = append(ids, w.id())
	}
	return ids
}

// Workers of an earlier plugin are replaced by workers of the current one, with the same size.
func TestUpgradeReplacesWorkers(t *testing.T) {
	t.Parallel()
	r, settings, old := upgradeRig(t)
	upgrade := core.Request{Operation: core.OpWorkerUpgrade, Type: "fold"}
	nothing := result1[core.UpgradeResult](r, upgrade)
	must.SliceEmpty(t, nothing.Replaced)
	must.Eq(t, old, r.serving())

	must.NoError(t, os.WriteFile(settings, []byte("PROGRAM=rbee-worker-fold # 2\n"), 0o644))
	done := result1[core.UpgradeResult](r, upgrade)
	must.NotEq(t, nothing.Binary, done.Binary)
	must.Len(t, 2, done.Replaced)
	var now []string
	for i, x := range done.Replaced {
		must.Eq(t, old[i], x.Old)
		must.Eq(t, "tiny", x.Model)
		now = append(now, x.New)
		w, ok := r.hive.roster.worker(x.New)
		must.True(t, ok)
		must.Eq(t, done.Binary, w.handle.Binary)
		must.Eq(t, 3, w.handle.Slots)
		must.Eq(t, 64, w.handle.ContextTokens)
		must.True(t, w.handle.Pinned)
	}
	slices.Sort(now)
	must.Eq(t, now, r.serving())
	must.Eq(t, core.NotFound, r.failure(core.Request{Operation: core.OpWorkerUpgrade, Type: "none"}).Kind)
}

// One new worker that fails to start rolls everything back: the other new workers end, the old ones
// served throughout, and nothing of the new plugin is left in the store.
func TestUpgradeRollsBack(t *testing.T) {
	t.Parallel()
	r, settings, old := upgradeRig(t)
	mark := filepath.Join(t.TempDir(), "one")
	must.NoError(t, os.WriteFile(settings, fmt.Appendf(nil, `PROGRAM=rbee-worker-fold
if [ -n "$RBEE_WORKER_NONCE" ]; then # a worker, and no probe
  if [ -e %q ]; then echo "no device today" >&2; exit 7; fi
  : > %q
fi
`, mark, mark), 0o644))
	f := r.failure(core.Request{Operation: core.OpWorkerUpgrade, Type: "fold"})
	must.StrContains(t, f.Message, "upgrade worker type fold: ")
	must.StrContains(t, f.Message, "no device today")
	must.StrContains(t, f.Hint, "The workers of before go on.")
	_, err := os.Stat(mark) // one of two was started
	must.NoError(t, err)
	must.Eq(t, old, r.serving())
	must.Len(t, 2, r.hive.roster.all())
	binaries, err := r.hive.claims.store.Binaries()
	must.NoError(t, err)
	must.Len(t, 1, binaries)
}
