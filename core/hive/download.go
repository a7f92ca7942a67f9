package hive

import (
	"cmp"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// modelDownload brings a model into the store.
func (h *Hive) modelDownload(ctx context.Context, r core.Request, run *job.Run) (core.Model, error) {
	ref := r.Model
	have, _, err := h.store.Model(ref)
	if err == nil && !strings.Contains(ref, ":") {
		run.Log("model %s is there already", have.ID)
		return have, nil
	}
	if err != nil && core.KindOf(err) != core.NotFound && core.KindOf(err) != core.Integrity {
		return core.Model{}, err
	}
	if !strings.Contains(ref, ":") {
		if ref, err = h.refOf(ctx, ref, err); err != nil {
			return core.Model{}, err
		}
	}
	m, err := h.fetchModel(ctx, ref, run)
	if err != nil && have.ID != "" && core.KindOf(err) == core.Unavailable {
		run.Log("%s cannot be asked, so the model that is there is taken: %v", ref, err)
		return have, nil
	}
	return m, err
}

// ensureModel finds a model in the store, or brings it there, and returns the path of its GGUF file.
func (h *Hive) ensureModel(ctx context.Context, name string, run *job.Run) (core.Model, string, error) {
	m, path, err := h.store.Model(name)
	if core.KindOf(err) != core.NotFound {
		return m, path, err // also nil
	}
	ref := name
	if !strings.Contains(name, ":") {
		if ref, err = h.refOf(ctx, name, err); err != nil {
			return core.Model{}, "", err
		}
	}
	if m, err = h.fetchModel(ctx, ref, run); err != nil {
		return core.Model{}, "", err
	}
	return h.store.Model(m.ID)
}

// refOf finds the reference of a bare name in the catalog sources. missing is the store's error for the name; it is returned, with what
// the sources have, when they do not know the name either.
func (h *Hive) refOf(ctx context.Context, name string, missing error) (string, error) {
	if missing == nil || core.KindOf(missing) == core.Integrity {
		missing = core.Errorf("find model", core.NotFound, "there is no model %q", name)
	}
	if len(h.catalogs.list) == 0 {
		return "", missing
	}
	ref, near, err := h.catalogs.findModel(ctx, name)
	switch {
	case err != nil:
		return "", err
	case ref != "":
		return ref, nil
	case len(near) > 0:
		return "", core.WithHint(missing, "The catalog sources offer: %s.", strings.Join(near[:min(len(near), 5)], ", "))
	case core.HintOf(missing) == "":
		return "", core.WithHint(missing, "%s", h.catalogs.hint())
	}
	return "", missing
}

// fetchModel resolves a reference and puts its files into the store.
func (h *Hive) fetchModel(ctx context.Context, ref string, run *job.Run) (core.Model, error) {
	source, _, err := h.catalogs.split(ref)
	if err != nil {
		return core.Model{}, err
	}
	m, err := h.catalogs.resolve(ctx, ref)
	if err != nil {
		return core.Model{}, err
	}
	if m.Kind != "" && m.Kind != catalog.KindModel {
		return core.Model{}, core.Errorf("resolve "+ref, core.Invalid, "it is no model but %s", m.Kind)
	}
	for _, note := range m.Notes {
		run.Log("%s", note)
	}
	exact := source.ref(m.Ref)
	spec := store.ModelSpec{ID: modelID(cmp.Or(m.Name, m.Ref)), Ref: exact, License: m.License, Files: fileSpecs(m)}
	if have, _, err := h.store.Model(spec.ID); err == nil && have.Ref == exact {
		run.Log("model %s is there already", have.ID)
	}
	from, done := h.share(ctx, source, h.catalogs.supply(exact, m, run.Log), run)
	defer done()
	return h.store.PutModel(ctx, spec, from, run.Progress)
}

func fileSpecs(m catalog.Manifest) []store.FileSpec {
	out := make([]store.FileSpec, 0, len(m.Files))
	for _, f := range m.Files {
		out = append(out, store.FileSpec{Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest, Locator: f.Locator, Ref: cmp.Or(f.Ref, m.Ref)})
	}
	return out
}

// modelID makes a name of a source fit for the store: what it does not allow becomes a dash.
func modelID(name string) string {
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, name)
	id = strings.TrimLeft(id, "._-")
	return cmp.Or(id[:min(len(id), 128)], "model")
}

// workerDownload installs a worker type: the plugin, and the engine that it needs.
func (h *Hive) workerDownload(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	t, err := h.workerType(r.Type)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return h.install(ctx, t, r.From, r.Force, run)
}

// ensureBinary returns the worker binary of a type for this version of its plugin, and installs it where it is missing or damaged.
func (h *Hive) ensureBinary(ctx context.Context, t *workerType, run *job.Run) (core.WorkerBinary, error) {
	return h.install(ctx, t, "", false, run)
}

// install puts the worker binary of a type into the store unless it is there, and probes it.
func (h *Hive) install(ctx context.Context, t *workerType, from string, force bool, run *job.Run) (core.WorkerBinary, error) {
	if err := h.probe(ctx, t); err != nil {
		return core.WorkerBinary{}, err
	}
	info, seen, _ := t.known()
	if seen.Problem != "" {
		return core.WorkerBinary{}, unsupported("install worker type", t.name(), seen.Problem)
	}
	spec := store.BinarySpec{
		Type: t.name(), Version: cmp.Or(info.Version, "0"), Executable: t.spec.Executable, Source: "local", Force: force,
		EngineName: info.Engine.Name, EngineVersion: info.Engine.Version, Prefix: info.Engine.Prefix, Links: info.Engine.Links,
	}
	ref := info.Engine.Ref
	if from != "" {
		if info.Engine.Name == "" {
			return core.WorkerBinary{}, core.Errorf("install worker type", core.Invalid, "worker type %s needs no engine, so there is nothing to take from %s", t.name(), from)
		}
		if _, _, err := h.catalogs.split(from); err != nil {
			return core.WorkerBinary{}, err
		}
		ref = from
	}
	if ref != info.Engine.Ref {
		// Another build of the engine is another binary; its version tells them apart.
		m, err := h.catalogs.resolve(ctx, ref)
		if err != nil {
			return core.WorkerBinary{}, err
		}
		spec.EngineVersion = cmp.Or(m.Version, spec.EngineVersion)
	}
	if !force {
		if have, err := h.sound(spec, t); err == nil {
			run.Log("worker binary %s is there already", have.ID)
			return have, nil
		} else if core.KindOf(err) == core.Conflict {
			run.Log("worker binary %s is renewed: %v", spec.ID(), err)
		}
	}
	var supply store.Supply
	if spec.EngineName != "" {
		m, err := h.catalogs.resolve(ctx, ref)
		if err != nil {
			return core.WorkerBinary{}, err
		}
		source, _, err := h.catalogs.split(ref)
		if err != nil {
			return core.WorkerBinary{}, err
		}
		spec.Source = source.ref(m.Ref)
		spec.Engine = new(fileSpecs(m)[0])
		supply = h.catalogs.supply(spec.Source, m, run.Log)
		run.Log("fetching %s %s for worker type %s from %s", spec.EngineName, spec.EngineVersion, t.name(), spec.Source)
	}
	b, err := h.store.PutBinary(ctx, spec, supply, run.Progress)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	h.removeSuperseded()
	return h.probeBinary(ctx, t, b, run)
}

// sound finds the binary that spec would make. Errors: NotFound, Integrity, Conflict when it was made of another plugin executable.
func (h *Hive) sound(spec store.BinarySpec, t *workerType) (core.WorkerBinary, error) {
	b, err := h.store.Binary(spec.ID())
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if b.Damaged != "" {
		return core.WorkerBinary{}, core.Errorf("find worker binary", core.Integrity, "%s is damaged: %s", b.ID, b.Damaged)
	}
	digest, err := t.digest()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if b.Digest != digest {
		return core.WorkerBinary{}, core.Errorf("", core.Conflict, "the plugin %s was replaced since it was installed", t.name())
	}
	return b, nil
}

// probeBinary runs an installed binary once, with its engine, and keeps what it found.
func (h *Hive) probeBinary(ctx context.Context, t *workerType, b core.WorkerBinary, run *job.Run) (core.WorkerBinary, error) {
	exe, engine, err := h.store.BinaryPaths(b.ID)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	info, f, schema, err := h.fingerprint(ctx, t.spec, exe, engine)
	switch core.KindOf(err) {
	case core.Cancelled, core.DeadlineExceeded, core.Unavailable:
		return core.WorkerBinary{}, err // says nothing about the binary
	}
	problem := f.Problem
	if err != nil {
		problem = err.Error()
	}
	if problem != "" {
		run.Log("worker binary %s cannot be used here: %s", b.ID, problem)
	}
	for _, w := range f.Warnings {
		run.Log("worker binary %s: %s", b.ID, w)
	}
	probe := store.Probe{Devices: devicesOf(f), Problem: problem, Warnings: f.Warnings}
	for _, c := range f.Checks {
		probe.Checks = append(probe.Checks, core.Check{Name: c.Name, Passed: c.Passed, Detail: c.Detail})
	}
	if text, err := json.Marshal(schema); err == nil { // a default that is no JSON is the plugin's fault; the schema is only shown
		probe.Schema = text
	}
	if err := h.store.SetProbe(b.ID, probe); err != nil {
		return core.WorkerBinary{}, err
	}
	if problem == "" && info.Name != "" {
		t.note(info, f) // with its engine the plugin may see more than without
		h.beat.bump()
	}
	return h.store.Binary(b.ID)
}

// removeSuperseded removes the installed files that a renewal has replaced and that no worker runs from.
func (h *Hive) removeSuperseded() {
	if err := h.store.RemoveSuperseded(h.folderInUse); err != nil {
		h.log.Warn("remove superseded worker binaries", "error", err)
	}
}

// hold keeps the folder of an executable from being removed until release is called.
func (h *Hive) hold(exe string) (release func()) {
	folder := filepath.Dir(exe)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.launches[folder]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.launches[folder]--; h.launches[folder] == 0 {
			delete(h.launches, folder)
		}
	}
}
