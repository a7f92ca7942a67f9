package hive

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Models by name are those of worker types whose server finds them itself, such as vLLM or a remote
// server. The hive has no files of them, so they have no digest.

// isByName reports whether a model has no files here.
func isByName(m core.Model) bool { return m.Digest == "" }

// validName reports whether a model may have this name.
func validName(name string) bool {
	return name != "" && len(name) <= sdkworker.MaxModelBytes && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// offered returns the well-formed names of models that a type offers to serve, without duplicates.
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

// modelFiles lists what a worker is to load. The first of several parts stands for all: the others
// lie beside it.
func modelFiles(path string) []sdkworker.ModelFile {
	if path == "" {
		return nil
	}
	return []sdkworker.ModelFile{{Path: path, Role: sdkworker.RoleModel}}
}

// byName knows the models that have no files here.
type byName struct {
	types  *typeSet
	roster *roster
}

// namedModels returns the models without files that this hive can start, or runs.
func (bn *byName) namedModels() []core.Model {
	var names []string
	for _, v := range bn.types.views() {
		if v.usable() {
			names = append(names, v.Models...)
		}
	}
	for _, w := range bn.roster.all() {
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

// withNamed adds the models without files to those of the store, which take precedence where names
// clash.
func (bn *byName) withNamed(list []core.Model) []core.Model {
	for _, m := range bn.namedModels() {
		if !slices.ContainsFunc(list, func(have core.Model) bool { return have.ID == m.ID || slices.Contains(have.Aliases, m.ID) }) {
			list = append(list, m)
		}
	}
	return list
}
