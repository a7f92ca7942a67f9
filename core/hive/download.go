package hive

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// modelDownload downloads a model into the store.
func (ms *models) modelDownload(ctx context.Context, r core.Request, run *job.Run) (core.Model, error) {
	if r.Name != "" {
		if err := ms.checkName(r.Name); err != nil {
			return core.Model{}, err
		}
	}
	have, _, err := ms.store.Model(r.Model)
	ref, isRef := ms.catalogs.reference(r.Model)
	if err == nil && !isRef && (r.Name == "" || r.Name == have.ID) {
		run.Log("model %s is there already", have.ID)
		return have, nil
	}
	if err != nil && core.KindOf(err) != core.NotFound && core.KindOf(err) != core.Integrity && !isRef {
		return core.Model{}, err
	}
	if err == nil && !isRef {
		ref, isRef = have.Ref, have.Ref != "" // the model is to get another name
	}
	if !isRef {
		if ref, err = ms.refOf(ctx, r.Model, err); err != nil {
			return core.Model{}, err
		}
	}
	m, err := ms.fetchModel(ctx, ref, r.Name, run)
	if err != nil && have.ID != "" && core.KindOf(err) == core.Unavailable {
		run.Log("%s cannot be asked, so the model that is there is taken: %v", ref, err)
		return have, nil
	}
	return m, err
}

// ensureModel finds a model in the store, or fetches it, and returns the path of its GGUF file.
func (ms *models) ensureModel(ctx context.Context, name string, run *job.Run) (core.Model, string, error) {
	m, path, err := ms.store.Model(name)
	if core.KindOf(err) != core.NotFound {
		return m, path, err // err may be nil
	}
	ref, isRef := ms.catalogs.reference(name)
	if !isRef {
		if ref, err = ms.refOf(ctx, name, err); err != nil {
			return core.Model{}, "", err
		}
	}
	if m, err = ms.fetchModel(ctx, ref, "", run); err != nil {
		return core.Model{}, "", err
	}
	return ms.store.Model(m.ID)
}

// refOf finds the reference of a bare name in the catalog sources. missing is the store's error for
// the name; if the sources do not know the name either, it is returned, with what they offer.
func (ms *models) refOf(ctx context.Context, name string, missing error) (string, error) {
	if missing == nil || core.KindOf(missing) == core.Integrity {
		missing = core.Errorf(core.NotFound, "find model: there is no model %q", name)
	}
	if len(ms.catalogs.sources()) == 0 {
		return "", missing
	}
	if modelname.IsRepository(name) && ms.catalogs.has(hubSource) {
		return hubSource + ":" + name, nil
	}
	ref, near, err := ms.catalogs.findModel(ctx, name)
	switch {
	case err != nil:
		return "", err
	case ref != "":
		return ref, nil
	case len(near) > 0:
		return "", core.WithHint(missing, "The catalog sources offer: %s.", strings.Join(near[:min(len(near), 5)], ", "))
	case core.HintOf(missing) == "":
		return "", core.WithHint(missing, "%s", ms.catalogs.hint())
	}
	return "", missing
}

// checkName refuses an invalid name for a model, or one that would be taken for a catalog
// reference.
func (ms *models) checkName(name string) error {
	if err := modelname.Check(name, "a model's name"); err != nil {
		return err
	}
	if ref, isRef := ms.catalogs.reference(name); isRef {
		return core.Errorf(core.Invalid, "%q cannot be a model's name: it says where a model is fetched from, %s", name, ref).Hint("Choose a name without %q.", name[:strings.IndexAny(name, ":/")+1])
	}
	return nil
}

// fetchModel resolves a reference and puts its files into the store, under the name; empty: the id
// that the store already has for the reference, otherwise the one that the source proposes.
func (ms *models) fetchModel(ctx context.Context, ref, name string, run *job.Run) (core.Model, error) {
	source, _, err := ms.catalogs.split(ref)
	if err != nil {
		return core.Model{}, err
	}
	m, err := ms.catalogs.resolve(ctx, ref)
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
	spec := store.ModelSpec{Ref: exact, License: m.License, Files: fileSpecs(m)}
	models, err := ms.store.Models()
	if err != nil {
		return core.Model{}, err
	}
	spec.ID = cmp.Or(name, newModelID(models, exact, cmp.Or(m.Name, m.Ref), spec.Files))
	if slices.ContainsFunc(models, func(have core.Model) bool { return have.ID == spec.ID && have.Ref == exact && have.Damaged == "" }) {
		run.Log("model %s is there already", spec.ID)
	}
	from, done := ms.blobs.share(ctx, source, ms.catalogs.supply(exact, m, run.Log), run)
	defer done()
	put, err := ms.store.PutModel(ctx, spec, from, run.Progress)
	if err == nil {
		ms.stock.storeChanged(ctx)
	}
	return put, err
}

// newModelID returns the id of a model with the exact reference: the one that it already has; else
// the one that its source proposes; or, where another model has that one, an id that includes the
// source.
func newModelID(models []core.Model, exact, proposed string, files []store.FileSpec) string {
	if i := slices.IndexFunc(models, func(m core.Model) bool { return m.Ref == exact }); i >= 0 {
		return models[i].ID
	}
	id := modelname.Clean(proposed)
	other := func(m core.Model) bool {
		return strings.EqualFold(m.ID, id) && (len(files) == 0 || files[0].Digest == "" || files[0].Digest != m.Digest)
	}
	if !strings.Contains(id, "/") && slices.ContainsFunc(models, other) {
		return modelname.Clean(modelname.Origin(exact))
	}
	return id
}

func fileSpecs(m catalog.Manifest) []store.FileSpec {
	out := make([]store.FileSpec, 0, len(m.Files))
	for _, f := range m.Files {
		out = append(out, store.FileSpec{Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest, Locator: f.Locator, Ref: cmp.Or(f.Ref, m.Ref)})
	}
	return out
}
