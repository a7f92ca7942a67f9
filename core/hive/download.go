package hive

import (
	"cmp"
	"context"
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

// ensureModel finds a model in the store, or brings it there, and returns the path of its GGUF
// file.
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

// refOf finds the reference of a bare name in the catalog sources. missing is the store's error for
// the name; it is returned, with what the sources have, when they do not know the name either.
func (h *Hive) refOf(ctx context.Context, name string, missing error) (string, error) {
	if missing == nil || core.KindOf(missing) == core.Integrity {
		missing = core.Errorf(core.NotFound, "find model: there is no model %q", name)
	}
	if len(h.catalogs.sources()) == 0 {
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
		return core.Model{}, core.Errorf(core.Invalid, "%s: it is no model but %s", "resolve "+ref, m.Kind)
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
	put, err := h.store.PutModel(ctx, spec, from, run.Progress)
	if err == nil {
		h.storeChanged(ctx)
	}
	return put, err
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
