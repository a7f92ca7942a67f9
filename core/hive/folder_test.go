package hive

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// folderPlugin makes a plugin folder with a worker type that is a folder: a script that starts the
// executable beside it.
func folderPlugin(t *testing.T) (dir string) {
	t.Helper()
	fakes, err := pluginDir()
	must.NoError(t, err)
	dir = shortDir(t)
	must.NoError(t, os.Chmod(dir, 0o755))
	plugin := filepath.Join(dir, "rbee-worker-fold")
	must.NoError(t, os.MkdirAll(filepath.Join(plugin, "lib"), 0o755))
	for name, text := range map[string]string{
		"rbee-worker-fold": "#!/bin/sh\nhere=$(dirname \"$0\")\n. \"$here/lib/settings.sh\"\nexec \"$here/lib/$PROGRAM\"\n",
		"lib/settings.sh":  "PROGRAM=rbee-worker-fold\n",
	} {
		must.NoError(t, os.WriteFile(filepath.Join(plugin, name), []byte(text), 0o644))
	}
	must.NoError(t, os.Chmod(filepath.Join(plugin, "rbee-worker-fold"), 0o755))
	must.NoError(t, copyFile(filepath.Join(fakes, "rbee-worker-fake"), filepath.Join(plugin, "lib", "rbee-worker-fold")))
	must.NoError(t, os.Chmod(filepath.Join(plugin, "lib", "rbee-worker-fold"), 0o755))
	return dir
}

// A plugin that is a folder is installed, verified, replaced and removed as one.
func TestPluginFolder(t *testing.T) {
	t.Parallel()
	dir := folderPlugin(t)
	settings := filepath.Join(dir, "rbee-worker-fold", "lib", "settings.sh")
	r := run(t, setup{change: func(o *Options) {
		catalogs := pluginhost.New(pluginhost.Options{PluginDir: dir, RunDir: filepath.Join(o.DataDir, "run"), Logger: coretest.Logger(t)})
		spec, err := catalogs.DefaultSpec(sdk.KindWorker, "fold")
		must.NoError(t, err)
		must.Eq(t, filepath.Join(dir, "rbee-worker-fold"), spec.Folder)
		o.WorkerSpecs = []pluginhost.Spec{spec}
	}})
	result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	first := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fold"})
	must.Eq(t, "", first.Problem)
	must.Eq(t, "", first.Damaged)
	var names []string
	for _, f := range first.Files {
		names = append(names, f.Path)
	}
	must.SliceContainsAll(t, names, []string{"rbee-worker-fold", "lib/rbee-worker-fold", "lib/settings.sh"})

	j, events := r.follow(r.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "fold", Model: "tiny"}).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v\n%s", j.Error, logs(events)))
	text, err := r.ask(t.Context(), r.queen.workers()[0].ID, "one two")
	must.NoError(t, err)
	must.StrContains(t, text, "one two")

	// A file beside the executable is code as well: if it is changed in the installed copy, the
	// copy is not launched.
	copied := filepath.Join(r.dir, "store", "workers", "fold", first.Version, "lib", "settings.sh")
	was, err := os.ReadFile(copied)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(copied, []byte("PROGRAM=rbee-worker-evil\n"), 0o644))
	j, _ = r.follow(r.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "fold", Model: "tiny"}).ID)
	must.Eq(t, core.JobFailed, j.State)
	must.Eq(t, core.Integrity, j.Error.Kind)
	must.NoError(t, os.WriteFile(copied, was, 0o644))
	must.NoError(t, os.Chmod(copied, 0o755))
	damaged, err := r.hive.claims.store.Binary(first.ID)
	must.NoError(t, err)
	must.StrContains(t, damaged.Damaged, "lib/settings.sh has mode")
	must.NoError(t, os.Chmod(copied, 0o644))

	// Changed in the plugin folder, it is other code with its own id.
	must.NoError(t, os.WriteFile(settings, []byte("PROGRAM=rbee-worker-fold # changed\n"), 0o644))
	second := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fold"})
	must.NotEq(t, first.Digest, second.Digest)
	must.NotEq(t, first.ID, second.ID)

	result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerBinaryDelete, Binary: second.ID})
	_, err = os.Stat(filepath.Join(r.dir, "store", "workers", "fold", second.Version))
	must.ErrorIs(t, err, os.ErrNotExist)
}
