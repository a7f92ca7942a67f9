package hives

import (
	"context"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
)

// Workers lists the active workers of the registry, with the load last reported to this queen.
func (h *Hives) Workers() []core.Worker {
	workers := h.opts.Registry.View().Workers(nil)
	for i := range workers {
		workers[i] = h.loaded(workers[i])
	}
	return workers
}

// Worker finds an active worker by its id or a unique prefix of it. Errors: NotFound; Conflict when
// several match the prefix.
func (h *Hives) Worker(ctx context.Context, id string) (core.Worker, error) {
	return registry.LookUp(ctx, h.opts.Registry, func() (core.Worker, error) { return h.KnownWorker("", id) })
}

// KnownWorker finds a worker by its id or a unique prefix of it. If several hives have a worker
// with the id, the hive decides; an empty hive matches any.
func (h *Hives) KnownWorker(hive, id string) (core.Worker, error) {
	registry := h.opts.Registry.View()
	switch same := registry.WorkersWithID(nil, id); {
	case len(same) == 1:
		return h.loaded(same[0]), nil
	case len(same) > 1:
		var hives []string
		for _, w := range same {
			if w.Hive == hive {
				return h.loaded(w), nil
			}
			hives = append(hives, w.Hive)
		}
		return core.Worker{}, core.Errorf(core.Conflict, "%d hives have a worker %s", len(same), id).Hint(
			"Name the hive: it may be %s. Worker ids are random, so that one of the hives copied it.", strings.Join(hives, " or "))
	}
	var found []core.Worker
	if id != "" {
		found = registry.WorkersWithPrefix(nil, id)
	}
	switch len(found) {
	case 1:
		return h.loaded(found[0]), nil
	case 0:
		var ids []string
		for _, w := range registry.Workers(nil) {
			ids = append(ids, w.ID)
		}
		return core.Worker{}, core.Errorf(core.NotFound, "there is no active worker %q", id).Hint("%sSee all with `rbee ps`.", core.NearestHint(id, ids))
	}
	var ids []string
	for _, w := range found {
		ids = append(ids, w.ID)
	}
	return core.Worker{}, core.Errorf(core.Conflict, "%d workers have an id that begins with %q", len(found), id).Hint("It may be %s: write more of the id.", strings.Join(ids, " or "))
}

// loaded adds the load last reported to this queen to a registered worker.
func (h *Hives) loaded(w core.Worker) core.Worker {
	_, w.Load = h.opts.Liveness.Hive(w.Hive).Avoid(&w)
	return w
}
