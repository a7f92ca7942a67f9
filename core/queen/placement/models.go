// Package placement finds models in the hives' stores and the hive for a worker with one, and
// starts workers for requests.
package placement

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

const (
	// builtinSource is the catalog source whose models clients get by their bare name, fetched on
	// the first request: they are part of rbee. A model of any other source is fetched only on
	// explicit request (model_download, worker_spawn): a chat request must not be able to make a
	// hive download arbitrary files.
	builtinSource = "builtin:"
	kindModel     = "model"

	// AliasTTL is how long a resolved name is used without another look-up.
	AliasTTL     = 30 * time.Second
	maxAliases   = 1024
	searchLimit  = 20
	nearestLimit = 200
)

// knownModel is a model that can be started.
type knownModel struct {
	id            string            // id of the loaded model, unless the hive has another name for it
	argument      string            // worker_spawn argument, likewise
	stored        map[string]string // names at the hives that have it, by hive id
	offered       map[string]bool   // ids of the hives that can fetch it; set only if none has it
	sizeBytes     int64
	estimateBytes int64
}

// on returns the worker_spawn argument on a hive, and the name of the worker's model there; false:
// the hive cannot have a worker with the model.
func (m knownModel) on(hive string) (argument, served string, ok bool) {
	if name, ok := m.stored[hive]; ok {
		return name, name, true
	}
	return m.argument, m.id, m.offered == nil || m.offered[hive]
}

func (m knownModel) has(hive string) bool { return m.stored[hive] != "" }

// names returns the hives' names for the model, without duplicates.
func (m knownModel) names() []string {
	return hives.Unique(append(slices.Collect(maps.Values(m.stored)), m.id))
}

// modelsOf returns the stored models of every live hive, as its reports list them. A hive that
// reports no inventory is asked.
func (p *Placer) modelsOf(ctx context.Context) ([]hives.Answer[[]core.Model], []string, error) {
	told := func(v *liveness.View) ([]core.Model, bool) {
		if v.Inventory == nil {
			return nil, false
		}
		return v.Inventory.Models, true
	}
	return hives.AskAll(ctx, p.hives, hives.AskTimeout, told, hives.Asking(operation.ModelList, core.Request{}))
}

// searchBuiltin returns the offers of the builtin source of every live hive, as its reports list
// them; a hive that does not report them is asked. Only this source is searched: the model names of
// API clients must not leak to other origins.
func (p *Placer) searchBuiltin(ctx context.Context, text string, limit int) ([]hives.Answer[[]core.CatalogItem], []string, error) {
	told := func(v *liveness.View) ([]core.CatalogItem, bool) {
		if v.Inventory == nil || !v.Inventory.OffersKnown {
			return nil, false
		}
		return v.Inventory.Offers, true
	}
	search := core.Request{Text: text, Kind: kindModel, Limit: limit, Source: strings.TrimSuffix(builtinSource, ":")}
	return hives.AskAll(ctx, p.hives, hives.SearchTimeout, told, hives.Asking(operation.CatalogSearch, search))
}

// find looks up a model by the name that a client used: any name of a stored model or, if no hive
// has it, the bare name of a model of the builtin source. Errors: NotFound with the nearest names;
// Invalid for an ambiguous name; Unavailable when a hive that may have it did not answer.
func (p *Placer) find(ctx context.Context, name string) (knownModel, error) {
	lists, problems, err := p.modelsOf(ctx)
	if err != nil {
		return knownModel{}, err
	}
	aliases := p.aliases()
	if m, ok, err := stored(lists, name, aliases); ok || err != nil {
		return m, err
	}
	bare := p.Dealias(name)
	offers, more, err := p.searchBuiltin(ctx, bare, searchLimit)
	if err != nil && ctx.Err() != nil {
		return knownModel{}, err
	}
	problems = hives.Unique(append(problems, more...))
	if m, ok := offered(offers, bare); ok {
		return m, nil
	}
	for _, l := range lists {
		if id, ok, _ := modelname.Resolve(name, l.Value, aliases); ok { // no sound model was found
			m := l.Value[slices.IndexFunc(l.Value, func(m core.Model) bool { return m.ID == id })]
			return knownModel{}, core.Errorf(core.Unavailable, "model %q on hive %s is damaged: %s", name, l.Hive.Name, m.Damaged).Hint(
				"Download it again with a job model_download of %q.", cmp.Or(m.Ref, m.ID))
		}
	}
	if len(problems) > 0 {
		return knownModel{}, core.Errorf(core.Unavailable, "model %q is on no hive that answers; %s", name, strings.Join(problems, "; ")).Hint(
			"Look at `rbee status`, and try again when these hives are back.")
	}
	names := modelname.All(flat(lists), aliases)
	everything, _, _ := p.searchBuiltin(ctx, "", nearestLimit) // only for a hint
	for _, o := range append(offers, everything...) {
		for _, item := range o.Value {
			if strings.HasPrefix(item.Ref, builtinSource) {
				names = append(names, item.Name)
			}
		}
	}
	err = core.Errorf(core.NotFound, "there is no model %q", name)
	if strings.Contains(name, ":") || modelname.IsRepository(name) {
		return knownModel{}, core.WithHint(err, "%sA catalog reference is not fetched by a request for an answer: start it with `rbee worker spawn --model %s` first.",
			core.NearestHint(name, names), name)
	}
	return knownModel{}, core.WithHint(err, "%sSee all with `rbee model list`.", core.NearestHint(name, names))
}

// flat returns the sound models of all hives.
func flat(lists []hives.Answer[[]core.Model]) []core.Model {
	var all []core.Model
	for _, l := range lists {
		for _, m := range l.Value {
			if m.Damaged == "" {
				all = append(all, m)
			}
		}
	}
	return all
}

// stored finds a model in the hives' stores, by the rules of modelname.Resolve over all of them.
// Models with the same files count as one model, under the first of their ids, whichever id was
// requested. Workers that serve any of these ids serve the model. Errors: Invalid for an ambiguous
// name.
func stored(lists []hives.Answer[[]core.Model], name string, aliases []core.Alias) (knownModel, bool, error) {
	id, ok, err := modelname.Resolve(name, flat(lists), aliases)
	if !ok {
		return knownModel{}, false, err
	}
	files := map[string]bool{}
	ref := ""
	for _, l := range lists {
		for _, m := range l.Value {
			if m.ID == id && m.Damaged == "" && m.Digest != "" {
				files[fileDigests(m)] = true
				ref = cmp.Or(ref, m.Ref)
			}
		}
	}
	k := knownModel{id: id, stored: map[string]string{}}
	for _, l := range lists {
		for _, m := range l.Value {
			if m.Damaged == "" && (m.ID == id || files[fileDigests(m)]) {
				k.id = min(k.id, m.ID)
				if have, ok := k.stored[l.Hive.ID]; !ok || have != id && (m.ID == id || m.ID < have) {
					k.stored[l.Hive.ID] = m.ID
				}
				k.sizeBytes, k.estimateBytes = max(k.sizeBytes, m.SizeBytes), max(k.estimateBytes, m.EstimateBytes)
			}
		}
	}
	k.argument = k.id
	if _, hub := modelname.Repository(id); ref != "" && k.id == id && (hub || modelname.Clean(modelname.Origin(ref)) == id) {
		k.argument = ref // a hive that fetches it will use the same name
	}
	if len(files) == 0 { // without files it can be started only where it is offered
		k.offered = map[string]bool{}
		for hive := range k.stored {
			k.offered[hive] = true
		}
	}
	return k, true, nil
}

// fileDigests returns a string that identifies a model by its files, in order.
func fileDigests(m core.Model) string {
	all := []string{m.Digest}
	for _, f := range m.Files {
		all = append(all, f.Digest)
	}
	return strings.Join(all, " ")
}

// offered finds a model of the builtin source by its bare name.
func offered(offers []hives.Answer[[]core.CatalogItem], name string) (knownModel, bool) {
	for _, equal := range []func(a, b string) bool{func(a, b string) bool { return a == b }, strings.EqualFold} {
		k := knownModel{offered: map[string]bool{}}
		for _, o := range offers {
			for _, item := range o.Value {
				if equal(item.Name, name) && item.Kind == kindModel && strings.HasPrefix(item.Ref, builtinSource) && (k.argument == "" || k.argument == item.Ref) {
					k.id, k.argument = item.Name, item.Ref
					k.offered[o.Hive.ID] = true
					k.sizeBytes = max(k.sizeBytes, item.SizeBytes)
				}
			}
		}
		if k.argument != "" {
			return k, true
		}
	}
	return knownModel{}, false
}

func (p *Placer) aliases() []core.Alias { return p.registry.View().Aliases(nil) }

// Dealias returns the id of the model that an alias stands for, or the name itself if it is not an
// alias.
func (p *Placer) Dealias(name string) string {
	if a, ok := p.registry.View().Alias(nil, name); ok {
		return a.Model
	}
	for _, a := range p.aliases() {
		if strings.EqualFold(a.Name, name) {
			return a.Model
		}
	}
	return name
}

// Target returns the id of the model that a name refers to, including those of the builtin source.
// Errors: those of find.
func (p *Placer) Target(ctx context.Context, name string) (string, error) {
	m, err := p.find(ctx, name)
	return m.id, err
}

// Model returns a Known model by any of its names, even a damaged one. Errors: NotFound with the
// nearest names, Invalid for an ambiguous name.
func (p *Placer) Model(ctx context.Context, name string) (core.Model, error) {
	models, err := p.Known(ctx)
	if err != nil {
		return core.Model{}, err
	}
	aliases := p.aliases()
	id, ok, err := modelname.Resolve(name, models, aliases)
	if err != nil {
		return core.Model{}, err
	}
	if !ok {
		return core.Model{}, core.Errorf(core.NotFound, "no hive has a model %.200q", name).Hint(
			"%sList the models to see what there is.", core.NearestHint(name, modelname.All(models, aliases)))
	}
	return models[slices.IndexFunc(models, func(m core.Model) bool { return m.ID == id })], nil
}

// Models lists the models of all hives that answer, each once, and returns which hives did not.
// Errors: Unavailable when no hive answers.
func (p *Placer) Models(ctx context.Context) ([]core.Model, []string, error) {
	lists, problems, err := p.modelsOf(ctx)
	if err != nil {
		return nil, problems, err
	}
	merged := map[string]*core.Model{}
	for _, l := range lists {
		for _, m := range l.Value {
			seen, ok := merged[m.ID]
			switch {
			case !ok:
				m.Hives = []string{l.Hive.ID}
				merged[m.ID] = &m
				continue
			case seen.Damaged != "" && m.Damaged == "":
				// An intact copy describes the model better than a damaged one.
				m.Hives, m.LoadedBy, m.Aliases = seen.Hives, append(m.LoadedBy, seen.LoadedBy...), append(m.Aliases, seen.Aliases...)
				*seen = m
			default:
				seen.LoadedBy, seen.Aliases = append(seen.LoadedBy, m.LoadedBy...), append(seen.Aliases, m.Aliases...)
			}
			seen.Hives = append(seen.Hives, l.Hive.ID)
		}
	}
	for _, m := range merged {
		switch {
		case m.Damaged != "":
			m.State = core.ModelDamaged
		case m.Digest == "":
			m.State = core.ModelAvailable
		default:
			m.State = core.ModelStored
		}
	}
	for _, w := range p.registry.View().Workers(nil) {
		m, ok := merged[w.Model]
		if !ok {
			continue
		}
		m.LoadedBy = append(m.LoadedBy, w.ID)
		switch {
		case w.State == core.WorkerReady:
			m.State = core.ModelLoaded
			m.Capabilities = m.Capabilities.With(w.Capabilities)
			if m.LoadedContextTokens == 0 || w.ContextTokens < m.LoadedContextTokens {
				m.LoadedContextTokens = w.ContextTokens
			}
		case w.State == core.WorkerLoading && m.State != core.ModelLoaded:
			m.State = core.ModelLoading
		}
	}
	models := make([]core.Model, 0, len(merged))
	for _, id := range slices.Sorted(maps.Keys(merged)) {
		m := *merged[id]
		m.Hives, m.LoadedBy, m.Aliases = listed(m.Hives), listed(m.LoadedBy), listed(m.Aliases)
		models = append(models, m)
	}
	return models, problems, nil
}

// Known lists the models of all hives that answer, as Models does, and those that a request may
// fetch, including their aliases. Errors: those of Models.
func (p *Placer) Known(ctx context.Context) ([]core.Model, error) {
	models, _, err := p.Models(ctx)
	if err != nil {
		return nil, err
	}
	live, _ := p.hives.Live()
	for _, h := range live {
		v := p.liveness.Hive(h.ID)
		if v.Inventory == nil || !v.Inventory.OffersKnown {
			continue // not worth a query: the next report will list it
		}
		for _, o := range v.Inventory.Offers {
			there := func(m core.Model) bool { return m.ID == o.Name || m.Ref == o.Ref }
			if o.Kind == kindModel && strings.HasPrefix(o.Ref, builtinSource) && !slices.ContainsFunc(models, there) {
				models = append(models, core.Model{
					ID: o.Name, Aliases: []string{}, Ref: o.Ref, SizeBytes: o.SizeBytes, License: o.License, Hives: []string{}, LoadedBy: []string{}, State: core.ModelOffered,
				})
			}
		}
	}
	slices.SortFunc(models, func(a, b core.Model) int { return strings.Compare(a.ID, b.ID) })
	for _, a := range p.aliases() {
		if i := slices.IndexFunc(models, func(m core.Model) bool { return m.ID == a.Model }); i >= 0 {
			models[i].Aliases = listed(append(models[i].Aliases, a.Name))
		}
	}
	return models, nil
}

// listed is unique, but never nil, so that it is [] in JSON.
func listed(names []string) []string {
	if names = hives.Unique(names); names == nil {
		return []string{}
	}
	return names
}
