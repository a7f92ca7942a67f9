package hive

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/operation"
)

func logs(events []core.Event) string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString(e.Message + "\n")
	}
	return b.String()
}

func TestModelDownload(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	byName := result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	must.Eq(t, "tiny", byName.ID)
	must.Eq(t, "fake:tiny.gguf", byName.Ref)
	must.Positive(t, byName.EstimateBytes)
	for _, ref := range []string{"fake:tiny.gguf", "tiny"} {
		j, events := r.follow(r.submit(core.Request{Operation: core.OpModelDownload, Model: ref}).ID)
		must.Eq(t, core.JobSucceeded, j.State)
		must.StrContains(t, logs(events), "there already")
	}
	m, err := operation.ModelGet.Ask(t.Context(), r, core.Request{Model: "tiny"})
	must.NoError(t, err)
	must.Len(t, 1, m.Files)
	must.Eq(t, byName.Digest, m.Digest)

	// A damaged model is shown, cannot be spawned, and is repaired by another download.
	blob := filepath.Join(r.dir, "store", "blobs", strings.Replace(m.Digest, ":", "-", 1))
	must.NoError(t, os.Chmod(blob, 0o600))
	must.NoError(t, os.Truncate(blob, 100))
	m, err = operation.ModelGet.Ask(t.Context(), r, core.Request{Model: "tiny"})
	must.NoError(t, err)
	must.NotEq(t, "", m.Damaged)
	f := r.failure(core.Request{Operation: core.OpWorkerSpawn, Model: "tiny"})
	must.Eq(t, core.Integrity, f.Kind)
	must.NotEq(t, "", f.Hint)
	again := result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	must.Eq(t, byName.Digest, again.Digest)
	must.Eq(t, "", again.Damaged)
}

func TestModelsNotFetchable(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	must.NoError(t, os.WriteFile(filepath.Join(r.dir, "catalog", "junk.gguf"), []byte("not a model"), 0o600))
	for name, c := range map[string]struct {
		model string
		kind  core.Kind
		hint  string
	}{
		"unknown name":      {"nothing", core.NotFound, ""},
		"part of a name":    {"tin", core.NotFound, "tiny"},
		"unknown reference": {"fake:nothing.gguf", core.NotFound, ""},
		"unknown source":    {"hf:org/repo", core.NotFound, "fake"},
		"out of the folder": {"fake:../config.hcl", core.Invalid, ""},
		"credentials":       {"fake:refused", core.Unauthenticated, "token"},
		"origin away":       {"fake:away", core.Unavailable, ""},
		"no model":          {"fake:junk.gguf", core.Integrity, ""},
	} {
		for _, op := range []core.Operation{core.OpModelDownload, core.OpWorkerSpawn} {
			f := r.failure(core.Request{Operation: op, Model: c.model})
			must.Eq(t, c.kind, f.Kind, must.Sprintf("%s: %s: %s", name, op, f.Message))
			must.StrContains(t, f.Hint, c.hint, must.Sprint(name))
		}
	}
	models, err := operation.ModelList.Ask(t.Context(), r, core.Request{})
	must.NoError(t, err)
	must.Len(t, 0, models)
	r.nothingLeft()
}

func TestSearchCatalog(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	items, err := operation.CatalogSearch.Ask(t.Context(), r, core.Request{Text: "tin", Kind: "model", Limit: 5})
	must.NoError(t, err)
	must.Len(t, 1, items)
	must.Eq(t, "fake:tiny.gguf", items[0].Ref)
}

func TestWorkerDownload(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "fake" {
  config {}
}
worker "other" {
  plugin = "rbee-worker-fake"
  config {
    problem = "There is no such device."
  }
}`})
	coretest.Eventually(t, patience, func() error { // a hive reports before its types are probed
		if types := r.queen.hive().WorkerTypes; !slices.Equal(types, []string{"fake"}) {
			return fmt.Errorf("told of %v", types)
		}
		return nil
	})
	b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	must.Eq(t, "fake@1.2.3", b.ID)
	must.Eq(t, "local", b.Source)
	must.Eq(t, "fake:0", b.Devices[0].ID)
	must.Eq(t, "", b.Problem)
	j, events := r.follow(r.submit(core.Request{Operation: core.OpWorkerDownload, Type: "fake"}).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrContains(t, logs(events), "there already")
	j, events = r.follow(r.submit(core.Request{Operation: core.OpWorkerDownload, Type: "fake", Force: true}).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrNotContains(t, logs(events), "there already")

	f := r.failure(core.Request{Operation: core.OpWorkerDownload, Type: "other"})
	must.Eq(t, core.Unsupported, f.Kind)
	must.StrContains(t, f.Message, "There is no such device.")
	f = r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "other", Model: "tiny"})
	must.Eq(t, core.Unsupported, f.Kind)
	must.StrContains(t, f.Message, "There is no such device.")
	f = r.failure(core.Request{Operation: core.OpWorkerDownload, Type: "cuda"})
	must.Eq(t, core.NotFound, f.Kind)
	must.StrContains(t, f.Hint, "fake, other")
	f = r.failure(core.Request{Operation: core.OpWorkerDownload, Type: "fake", From: "fake:engine.tgz"})
	must.Eq(t, core.Invalid, f.Kind)

	got, err := operation.WorkerBinaryGet.Ask(t.Context(), r, core.Request{Binary: "fake"})
	must.NoError(t, err)
	must.Eq(t, "fake@1.2.3", got.ID)
	must.Eq(t, []core.Check{{Name: "words", Passed: true, Detail: "the words of a prompt can be told apart"}}, got.Checks)
	must.StrContains(t, string(got.Schema), `"token_delay"`)
	must.False(t, got.ProbedAt.IsZero())
	must.Len(t, 1, got.Files)
	_, err = operation.WorkerBinaryGet.Ask(t.Context(), r, core.Request{Binary: "cuda"})
	must.Eq(t, core.NotFound, core.KindOf(err))
	r.spawn("") // chooses the type that works
	must.Eq(t, "fake", r.queen.workers()[0].Type)
}

func TestReplacedPluginIsInstalledAnew(t *testing.T) {
	t.Parallel()
	own := shortDir(t)
	exe := filepath.Join(own, "rbee-worker-fake")
	plugins, err := pluginDir()
	must.NoError(t, err)
	must.NoError(t, copyFile(filepath.Join(plugins, "rbee-worker-fake"), exe))
	must.NoError(t, os.Chmod(exe, 0o700))
	r := run(t, setup{change: func(o *Options) {
		for i := range o.WorkerSpecs {
			o.WorkerSpecs[i].Executable = exe
		}
	}})
	old := r.spawn("fake")
	before := r.binary()
	// A newer build of the same version, as developers produce all day.
	f, err := os.ReadFile(exe)
	must.NoError(t, err)
	must.NoError(t, os.Remove(exe))
	must.NoError(t, os.WriteFile(exe, append(f, 0), 0o700))
	r.spawn("fake")
	after := r.binary()
	must.NotEq(t, before.Digest, after.Digest)
	must.NotEq(t, before.Path, after.Path)
	// The first worker still runs from its own files.
	_, err = os.Stat(before.Path)
	must.NoError(t, err)
	text, err := r.ask(t.Context(), old.Worker.ID, "still here")
	must.NoError(t, err)
	must.StrContains(t, text, "still here")
}

// When another version of a plugin replaces it under a running agent, that version is installed
// under its own id, and the old id keeps its content.
func TestReplacedPluginKeepsIDs(t *testing.T) {
	t.Parallel()
	exe := filepath.Join(shortDir(t), "rbee-worker-fake")
	plugins, err := pluginDir()
	must.NoError(t, err)
	old, err := os.ReadFile(filepath.Join(plugins, "rbee-worker-fake"))
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(exe, old, 0o700))
	r := run(t, setup{alone: true, change: func(o *Options) {
		for i := range o.WorkerSpecs {
			o.WorkerSpecs[i].Executable = exe
		}
	}})
	before := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	must.Eq(t, "fake@1.2.3", before.ID)
	must.NoError(t, os.Remove(exe))
	must.NoError(t, os.WriteFile(exe, bytes.ReplaceAll(old, []byte("1.2.3"), []byte("1.2.4")), 0o700))
	after := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	must.Eq(t, "fake@1.2.4", after.ID)
	still, err := r.hive.claims.store.Binary(before.ID)
	must.NoError(t, err)
	must.Eq(t, before.Digest, still.Digest)
	must.Eq(t, before.Path, still.Path)
}

// Installed files that were changed on disk do not run.
func TestChangedFilesDoNotRun(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	exe := filepath.Join(b.Path, "rbee-worker-fake")
	text, err := os.ReadFile(exe)
	must.NoError(t, err)
	info, err := os.Stat(exe)
	must.NoError(t, err)
	text[len(text)-1] ^= 1
	must.NoError(t, os.WriteFile(exe, text, 0o755))
	must.NoError(t, os.Chtimes(exe, info.ModTime(), info.ModTime()))
	f := r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny"})
	must.Eq(t, core.Integrity, f.Kind)
	r.spawn("fake") // the damaged copy is replaced

	m, path, err := r.hive.claims.store.Model("tiny")
	must.NoError(t, err)
	text, err = os.ReadFile(path)
	must.NoError(t, err)
	text[len(text)-1] ^= 1
	must.NoError(t, os.WriteFile(path, text, 0o600))
	f = r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: m.ID})
	must.Eq(t, core.Integrity, f.Kind)
}

func TestBinaryCannotStart(t *testing.T) {
	t.Parallel()
	exe := filepath.Join(shortDir(t), "rbee-worker-fake")
	plugins, err := pluginDir()
	must.NoError(t, err)
	// It runs from where it is, and nowhere else, like a plugin that needs other files beside it.
	script := fmt.Sprintf("#!/bin/sh\ncase \"$0\" in %s) exec %s;; esac\nexit 3\n", exe, filepath.Join(plugins, "rbee-worker-fake"))
	must.NoError(t, os.WriteFile(exe, []byte(script), 0o700))
	r := run(t, setup{alone: true, change: func(o *Options) {
		for i := range o.WorkerSpecs {
			o.WorkerSpecs[i].Executable = exe
		}
	}})
	b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	must.NotEq(t, "", b.Problem)
	must.NotEq(t, "", r.binary().Problem)
	must.Eq(t, core.Unsupported, r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny"}).Kind)
}

func (r *rig) binary() core.WorkerBinary {
	r.t.Helper()
	b, err := r.hive.claims.store.Binary("fake")
	must.NoError(r.t, err)
	return b
}
