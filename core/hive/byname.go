package hive

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Models by name: those of worker types whose server finds them itself, such as vLLM or a server
// elsewhere. The hive has no files of them, so that they have no digest.

// namesEvery is how often such a type is asked again which models it offers.
const namesEvery = 30 * time.Second

// isByName reports whether a model has no files here.
func isByName(m core.Model) bool { return m.Digest == "" }

// validName reports whether a model may be called so.
func validName(name string) bool {
	return name != "" && len(name) <= sdkworker.MaxModelBytes && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// offered returns the well-formed names of models that a type says it can serve, each once.
func offered(f sdkworker.Fingerprint) []string {
	if !f.ByName || f.Problem != "" {
		return nil
	}
	var names []string
	for _, name := range f.Models[:min(len(f.Models), sdkworker.MaxModels)] {
		if validName(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// typeThatOffers returns the worker type that offers a model by its name, where the store has no
// model of that name; empty: there is none. Errors: only ctx's.
func (h *Hive) typeThatOffers(ctx context.Context, name, device string) (string, error) {
	if _, _, err := h.store.Model(name); core.KindOf(err) != core.NotFound {
		return "", nil
	}
	if err := h.probed(ctx); err != nil {
		return "", err
	}
	for _, v := range h.typeViews() {
		if v.usable() && slices.Contains(v.Models, name) && (device == "" || v.has(device)) {
			return v.Name, nil
		}
	}
	return "", nil
}

// modelFor returns the model for a worker of a type, and its path. For a type that serves models by
// name the name is all there is; otherwise see takeModel.
func (h *Hive) modelFor(ctx context.Context, t *workerType, name string, run *job.Run) (m core.Model, path string, release func(), err error) {
	if _, f, _ := t.known(); !f.ByName {
		return h.takeModel(ctx, name, run)
	}
	if !validName(name) {
		return m, "", nil, core.Errorf(core.Invalid, "spawn worker: %q cannot name a model", name).Hint("Write at most %d bytes without white space.", sdkworker.MaxModelBytes)
	}
	return core.Model{ID: name}, "", func() {}, nil
}

// modelFiles lists what a worker is to load. The first of several parts stands for all: the others
// are beside it.
func modelFiles(path string) []sdkworker.ModelFile {
	if path == "" {
		return nil
	}
	return []sdkworker.ModelFile{{Path: path, Role: sdkworker.RoleModel}}
}

// namedModels are the models without files that can be started here, or run.
func (h *Hive) namedModels() []core.Model {
	var names []string
	for _, v := range h.typeViews() {
		if v.usable() {
			names = append(names, v.Models...)
		}
	}
	for _, w := range h.all() {
		if w.handle.ModelDigest == "" {
			names = append(names, w.handle.Model)
		}
	}
	slices.Sort(names)
	out := make([]core.Model, 0, len(names))
	for _, name := range slices.Compact(names) {
		out = append(out, core.Model{ID: name, Aliases: []string{}})
	}
	return out
}

// withNamed adds the models without files to those of the store, which come first where a name is
// both.
func (h *Hive) withNamed(list []core.Model) []core.Model {
	for _, m := range h.namedModels() {
		if !slices.ContainsFunc(list, func(have core.Model) bool { return have.ID == m.ID || slices.Contains(have.Aliases, m.ID) }) {
			list = append(list, m)
		}
	}
	return list
}

// renewNames asks the types that serve models by name which they offer, one look at a time, until
// ctx ends.
func (h *Hive) renewNames(ctx context.Context) {
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, t := range h.typeList() {
			if _, f, found := t.known(); !found || !f.ByName {
				continue
			}
			found, err := h.fingerprint(ctx, t.spec, "", "")
			if err != nil {
				h.log.Warn("look at the models of a worker type", "plugin", t.name(), "error", err)
				continue
			}
			t.noteDevices(found.seen)
		}
	}
}
