package queen

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/sched"
)

const (
	// builtinSource is the catalog source whose models a client gets by their bare name, fetched
	// when they are first asked for: they are part of rbee. A model of any other source is fetched
	// only when somebody says so (model_download, worker_spawn): a chat request must not be able to
	// make a hive download whatever it names.
	builtinSource = "builtin:"
	kindModel     = "model"

	aliasTTL     = 30 * time.Second
	maxAliases   = 1024
	searchLimit  = 20
	nearestLimit = 200
)

// alias is another name of a model, learned from a hive.
type alias struct {
	id    string
	until time.Time
}

// canonical gives the model id for a name as far as it is known without asking a hive; otherwise
// the name itself.
func (q *Queen) canonical(name string) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a, ok := q.aliases[name]; ok && time.Now().Before(a.until) {
		return a.id
	}
	return name
}

func (q *Queen) learnAlias(name, id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.aliases) >= maxAliases {
		clear(q.aliases)
	}
	q.aliases[name] = alias{id: id, until: time.Now().Add(aliasTTL)}
}

// knownModel is a model that can be started.
type knownModel struct {
	id            string            // of the model once it is loaded, where the hive has no other name for it
	argument      string            // for worker_spawn, likewise
	stored        map[string]string // what the hives that have it call it, by hive id
	offered       map[string]bool   // ids of the hives that can fetch it; only where none has it
	sizeBytes     int64
	estimateBytes int64
}

// on returns what worker_spawn is told on a hive, and what the worker's model is called there;
// false: the hive can have no worker with the model.
func (m knownModel) on(hive string) (argument, served string, ok bool) {
	if name, ok := m.stored[hive]; ok {
		return name, name, true
	}
	return m.argument, m.id, m.offered == nil || m.offered[hive]
}

func (m knownModel) has(hive string) bool { return m.stored[hive] != "" }

// names returns what the hives call the model, each name once.
func (m knownModel) names() []string {
	return unique(append(slices.Collect(maps.Values(m.stored)), m.id))
}

// modelsOf asks every live hive for its store.
func (q *Queen) modelsOf(ctx context.Context) ([]answered[[]core.Model], []string, error) {
	return askAll(ctx, q, askTimeout, asking(operation.ModelList, core.Request{}))
}

// searchBuiltin asks every live hive what its builtin source offers. What a client of the API calls
// a model is nothing to tell other origins.
func (q *Queen) searchBuiltin(ctx context.Context, text string, limit int) ([]answered[[]core.CatalogItem], []string, error) {
	return askAll(ctx, q, searchTimeout, asking(operation.CatalogSearch, core.Request{Text: text, Kind: kindModel, Limit: limit, Source: strings.TrimSuffix(builtinSource, ":")}))
}

// find looks a model up by the name a client used: an id, else an alias, else the exact reference
// of a stored model; and where no hive has it, the bare name of a model of the builtin source.
// Errors: NotFound with the nearest names; Unavailable when a hive that may have it did not answer.
func (q *Queen) find(ctx context.Context, name string) (knownModel, error) {
	lists, problems, err := q.modelsOf(ctx)
	if err != nil {
		return knownModel{}, err
	}
	if m, ok := stored(lists, name); ok {
		return m, nil
	}
	offers, more, err := q.searchBuiltin(ctx, name, searchLimit)
	if err != nil && ctx.Err() != nil {
		return knownModel{}, err
	}
	problems = unique(append(problems, more...))
	if m, ok := offered(offers, name); ok {
		return m, nil
	}
	for _, l := range lists {
		for _, m := range l.answer {
			if m.Damaged != "" && (m.ID == name || slices.Contains(m.Aliases, name) || m.Ref == name) {
				return knownModel{}, core.Errorf(core.Unavailable, "model %q on hive %s is damaged: %s", name, l.hive.Name, m.Damaged).Hint(
					"Download it again with a job model_download of %q.", cmp.Or(m.Ref, m.ID))
			}
		}
	}
	if len(problems) > 0 {
		return knownModel{}, core.Errorf(core.Unavailable, "model %q is on no hive that answers; %s", name, strings.Join(problems, "; ")).Hint(
			"Look at `rbee status`, and try again when these hives are back.")
	}
	var names []string
	for _, l := range lists {
		for _, m := range l.answer {
			names = append(append(names, m.ID), m.Aliases...)
		}
	}
	everything, _, _ := q.searchBuiltin(ctx, "", nearestLimit) // only for a hint
	for _, o := range append(offers, everything...) {
		for _, item := range o.answer {
			if strings.HasPrefix(item.Ref, builtinSource) {
				names = append(names, item.Name)
			}
		}
	}
	err = core.Errorf(core.NotFound, "there is no model %q", name)
	if strings.Contains(name, ":") {
		return knownModel{}, core.WithHint(err, "%sA catalog reference is not fetched by a request for an answer: start it with `rbee worker spawn --model %s` first.",
			nearest(name, names), name)
	}
	return knownModel{}, core.WithHint(err, "%sSee all with `rbee model list`.", nearest(name, names))
}

// stored finds a model in the hives' stores. An id on any hive comes before an alias on any, and
// that before a reference. Models of the same files are one model: it has the first of their ids,
// whichever was asked for, and workers with any of them serve it.
func stored(lists []answered[[]core.Model], name string) (knownModel, bool) {
	for _, is := range []func(core.Model) bool{
		func(m core.Model) bool { return m.ID == name },
		func(m core.Model) bool { return slices.Contains(m.Aliases, name) },
		func(m core.Model) bool { return m.Ref == name },
	} {
		id := ""
		for _, l := range lists {
			for _, m := range l.answer {
				if m.Damaged == "" && is(m) && (id == "" || m.ID < id) {
					id = m.ID
				}
			}
		}
		if id == "" {
			continue
		}
		files := map[string]bool{}
		for _, l := range lists {
			for _, m := range l.answer {
				if m.ID == id && m.Damaged == "" && m.Digest != "" {
					files[fileDigests(m)] = true
				}
			}
		}
		k := knownModel{id: id, argument: id, stored: map[string]string{}}
		for _, l := range lists {
			for _, m := range l.answer {
				if m.Damaged == "" && (m.ID == id || files[fileDigests(m)]) {
					k.id = min(k.id, m.ID)
					if have, ok := k.stored[l.hive.ID]; !ok || have != id && (m.ID == id || m.ID < have) {
						k.stored[l.hive.ID] = m.ID
					}
					k.sizeBytes, k.estimateBytes = max(k.sizeBytes, m.SizeBytes), max(k.estimateBytes, m.EstimateBytes)
				}
			}
		}
		k.argument = k.id
		if len(files) == 0 { // it has no files: only where it is offered can it be started
			k.offered = map[string]bool{}
			for hive := range k.stored {
				k.offered[hive] = true
			}
		}
		return k, true
	}
	return knownModel{}, false
}

// fileDigests identifies a model by its files, in their order.
func fileDigests(m core.Model) string {
	all := []string{m.Digest}
	for _, f := range m.Files {
		all = append(all, f.Digest)
	}
	return strings.Join(all, " ")
}

// offered finds a model of the builtin source by its bare name.
func offered(offers []answered[[]core.CatalogItem], name string) (knownModel, bool) {
	k := knownModel{id: name, offered: map[string]bool{}}
	for _, o := range offers {
		for _, item := range o.answer {
			if item.Name == name && item.Kind == kindModel && strings.HasPrefix(item.Ref, builtinSource) && (k.argument == "" || k.argument == item.Ref) {
				k.argument = item.Ref
				k.offered[o.hive.ID] = true
				k.sizeBytes = max(k.sizeBytes, item.SizeBytes)
			}
		}
	}
	return k, k.argument != ""
}

// place chooses the hive for a worker with the model. Errors: TooLarge, Unavailable, both with the
// reason per hive.
func (q *Queen) place(d sched.Demand, m knownModel, hives []core.Hive, refused []sched.Refusal) (string, error) {
	d.MinBytes, d.EstimateBytes = m.sizeBytes, m.estimateBytes
	perHive := map[string]int{}
	for _, w := range q.registry.View().Workers(nil) {
		perHive[w.Hive]++
	}
	rooms := make([]sched.Room, 0, len(hives))
	for _, h := range hives {
		if m.offered != nil && !m.offered[h.ID] {
			refused = append(refused, sched.Refusal{Name: h.Name, Reason: "does not have the model and cannot fetch it"})
			continue
		}
		rooms = append(rooms, sched.Room{Hive: h, HasModel: m.has(h.ID), Workers: perHive[h.ID]})
	}
	p, more, ok := sched.Place(d, rooms)
	if ok {
		q.log.Debug("placed a worker", "hive", p.Hive, "model", d.Model, "reason", p.Reason)
		return p.Hive, nil
	}
	refused = append(refused, more...)
	for _, r := range more {
		if r.MissingBytes > 0 {
			return "", core.Errorf(core.TooLarge, "no hive has room for a worker with %s: %s", d.Model, reasons(refused)).Hint(
				"Retire a worker that is not needed (`rbee ps`, `rbee worker retire`), or use a smaller model.")
		}
	}
	return "", core.Errorf(core.Unavailable, "no hive can run a worker with %s: %s", d.Model, reasons(refused)).Hint(
		"Look at `rbee status`, and at `rbee plugin list` on the hives.")
}

// placeSpawn chooses the hive for a worker_spawn that names none. Only the hive can judge what the
// request asks beyond the model's own size.
func (q *Queen) placeSpawn(ctx context.Context, r core.Request, live []core.Hive) (string, error) {
	if len(live) == 1 && !live[0].Draining {
		return live[0].ID, nil // it says better itself why it cannot
	}
	lists, _, err := q.modelsOf(ctx)
	if err != nil {
		return "", err
	}
	m, ok := stored(lists, r.Model)
	if !ok {
		m = knownModel{id: r.Model}
	}
	_, refused := q.liveHives()
	typ, _, _ := strings.Cut(r.Type, "@")
	return q.place(sched.Demand{Model: r.Model, Type: typ, Device: r.Device}, m, live, refused)
}

// placeDownload chooses the hive for a model_download that names none: one that has the model, else
// the one on which a worker with it would be placed.
func (q *Queen) placeDownload(ctx context.Context, r core.Request, live []core.Hive) (string, error) {
	if len(live) == 1 {
		return live[0].ID, nil
	}
	lists, _, err := q.modelsOf(ctx)
	if err != nil {
		return "", err
	}
	m, ok := stored(lists, r.Model)
	for _, h := range live {
		if ok && m.has(h.ID) {
			return h.ID, nil
		}
	}
	_, refused := q.liveHives()
	return q.place(sched.Demand{Model: r.Model}, knownModel{id: r.Model}, live, refused)
}

// Models lists the models of all hives that answer, each once. Errors: Unavailable when no hive
// answers.
func (q *Queen) Models(ctx context.Context) ([]core.Model, error) {
	models, _, err := q.allModels(ctx)
	return models, err
}

// allModels also says which hives did not answer.
func (q *Queen) allModels(ctx context.Context) ([]core.Model, []string, error) {
	lists, problems, err := q.modelsOf(ctx)
	if err != nil {
		return nil, problems, err
	}
	merged := map[string]*core.Model{}
	for _, l := range lists {
		for _, m := range l.answer {
			seen, ok := merged[m.ID]
			switch {
			case !ok:
				m.Hives = []string{l.hive.ID}
				merged[m.ID] = &m
				continue
			case seen.Damaged != "" && m.Damaged == "":
				// A whole copy describes the model better than a damaged one.
				m.Hives, m.LoadedBy, m.Aliases = seen.Hives, append(m.LoadedBy, seen.LoadedBy...), append(m.Aliases, seen.Aliases...)
				*seen = m
			default:
				seen.LoadedBy, seen.Aliases = append(seen.LoadedBy, m.LoadedBy...), append(seen.Aliases, m.Aliases...)
			}
			seen.Hives = append(seen.Hives, l.hive.ID)
		}
	}
	for _, w := range q.registry.View().Workers(nil) {
		if m, ok := merged[w.Model]; ok {
			m.LoadedBy = append(m.LoadedBy, w.ID)
			if w.State == core.WorkerReady {
				m.Capabilities = m.Capabilities.With(w.Capabilities)
			}
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

// listed is unique that is [] in JSON.
func listed(names []string) []string {
	if names = unique(names); names == nil {
		return []string{}
	}
	return names
}
