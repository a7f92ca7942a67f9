package queen

import (
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
)

// Hives lists the hives of the registry, with last beat, free bytes and suspicion where this queen
// leads, then the machines known to this queen's machine that have no hive.
func (q *Queen) Hives(context.Context) ([]core.Hive, error) {
	hives := q.hives.List()
	if q.opts.Hosts == nil {
		return hives, nil
	}
	for _, x := range q.opts.Hosts() {
		if !slices.ContainsFunc(hives, func(h core.Hive) bool { return h.ID == x.Hive || h.Name == x.Name }) {
			hives = append(hives, core.Hive{Name: x.Name, Status: core.HiveConfigured, Devices: []core.Device{}, WorkerTypes: []string{}})
		}
	}
	return hives, nil
}

// Workers lists the active workers of the registry, with the load last reported to this queen.
func (q *Queen) Workers(context.Context) ([]core.Worker, error) { return q.hives.Workers(), nil }

// Models lists the models of all hives that answer, each once, and those that a request may fetch.
// Errors: Unavailable when no hive answers.
func (q *Queen) Models(ctx context.Context) ([]core.Model, error) {
	models, err := q.placer.Known(ctx)
	for i := range models {
		q.underWay(&models[i])
	}
	return models, err
}

// underWay marks a model whose first worker is starting, as far as this queen follows that start.
func (q *Queen) underWay(m *core.Model) {
	if m.State == core.ModelLoaded {
		return
	}
	if p, ok := q.starter.Progress(m.ID); ok {
		m.State = core.ModelLoading
		if p.Phase != "" {
			m.Progress = &p
		}
	}
}
