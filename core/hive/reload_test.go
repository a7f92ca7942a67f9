package hive

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// late returns the spec of a copy of the fake worker under another name.
func late(t *testing.T, o *Options, name string) pluginhost.Spec {
	t.Helper()
	plugins, err := pluginDir()
	must.NoError(t, err)
	exe := filepath.Join(shortDir(t), "rbee-worker-"+name)
	must.NoError(t, copyFile(filepath.Join(plugins, "rbee-worker-fake"), exe))
	must.NoError(t, os.Chmod(exe, 0o700))
	spec, err := o.Plugins.FileSpec(sdk.KindWorker, name, exe)
	must.NoError(t, err)
	return spec
}

func TestNewPluginIsFound(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(*rig){
		"spawn": func(r *rig) { r.spawn("late") },
		"download": func(r *rig) {
			result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "late"})
		},
		"refresh": func(r *rig) {
			found, err := operation.HiveRefreshCapabilities.Ask(t.Context(), r, core.Request{})
			must.NoError(t, err)
			must.SliceContains(t, found.WorkerTypesAfter, "late")
			must.SliceNotContains(t, found.WorkerTypesBefore, "late")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			use(run(t, setup{alone: true, change: func(o *Options) {
				workers, catalogs := append([]pluginhost.Spec{late(t, o, "late")}, o.WorkerSpecs...), o.CatalogSpecs
				o.Discover = func() ([]pluginhost.Spec, []pluginhost.Spec, error) { return workers, catalogs, nil }
			}}))
		})
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	var other pluginhost.Spec
	var catalogs []pluginhost.Spec
	r := run(t, setup{alone: true, change: func(o *Options) { other, catalogs = late(t, o, "late"), o.CatalogSpecs }})
	spawn := func(typ string) core.SpawnResult {
		return result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: typ, Model: "tiny"})
	}
	before := spawn("fake")
	must.Eq(t, defaultSlots, before.Worker.Slots)
	must.NoError(t, r.hive.Reload(Defaults{Slots: 2, StopGrace: time.Second}, []pluginhost.Spec{other}, catalogs))
	after := spawn("late")
	must.Eq(t, 2, after.Worker.Slots)
	must.Eq(t, core.NotFound, r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny"}).Kind)
	text, err := r.ask(t.Context(), before.Worker.ID, "still here")
	must.NoError(t, err)
	must.StrContains(t, text, "still here")

	must.NoError(t, r.hive.Reload(Defaults{}, []pluginhost.Spec{other}, nil))
	must.Eq(t, core.NotFound, r.failure(core.Request{Operation: core.OpModelDownload, Model: "fake:tiny2"}).Kind)
	must.Eq(t, defaultSlots, spawn("late").Worker.Slots)
}
