package placement

import (
	"context"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/sched"
)

// Options are the dependencies of a Placer. All fields but Logger are required.
type Options struct {
	Registry *registry.Registry
	Hives    *hives.Hives
	Liveness interface {
		Hive(id string) *liveness.View
		StockTurn() uint64
	}
	Logger hclog.Logger // nil: no log
}

// Placer finds models and chooses hives for them. It is stateless and safe for concurrent use.
type Placer struct {
	registry *registry.Registry
	hives    *hives.Hives
	liveness interface {
		Hive(id string) *liveness.View
		StockTurn() uint64
	}
	log hclog.Logger
}

// NewPlacer returns a placer.
func NewPlacer(o Options) *Placer {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return &Placer{registry: o.Registry, hives: o.Hives, liveness: o.Liveness, log: o.Logger}
}

// place chooses the hive for a worker with the model. Errors: TooLarge, Unavailable, both with the
// reason per hive.
func (p *Placer) place(d sched.Demand, m knownModel, among []core.Hive, refused []sched.Refusal) (string, error) {
	d.MinBytes, d.EstimateBytes = m.sizeBytes, m.estimateBytes
	perHive := map[string]int{}
	idle, busy := map[string]map[string]int64{}, map[string]map[string]int64{}
	for _, w := range p.registry.View().Workers(nil) {
		perHive[w.Hive]++
		told := p.liveness.Hive(w.Hive).Report
		if told == nil {
			continue
		}
		said := told.Find(w.ID, w.Nonce)
		if said == nil || said.Load.Pinned || w.Model == m.id || !said.Load.Unloads && !d.OnRequest {
			continue // it frees no memory for others
		}
		into := idle
		if w.State != core.WorkerReady || said.Load.Active+said.Load.Queued > 0 {
			into = busy
		}
		if into[w.Hive] == nil {
			into[w.Hive] = map[string]int64{}
		}
		into[w.Hive][w.Device] += said.Load.MemoryBytes
	}
	rooms := make([]sched.Room, 0, len(among))
	for _, h := range among {
		if m.offered != nil && !m.offered[h.ID] {
			refused = append(refused, sched.Refusal{Name: h.Name, Reason: "does not have the model and cannot fetch it"})
			continue
		}
		rooms = append(rooms, sched.Room{Hive: h, HasModel: m.has(h.ID), Workers: perHive[h.ID], Idle: idle[h.ID], Busy: busy[h.ID]})
	}
	chosen, more, ok := sched.Place(d, rooms)
	if ok {
		p.log.Debug("placed a worker", "hive", chosen.Hive, "model", d.Model, "reason", chosen.Reason)
		return chosen.Hive, nil
	}
	refused = append(refused, more...)
	for _, r := range more {
		if r.MissingBytes > 0 {
			return "", core.Errorf(core.TooLarge, "no hive has room for a worker with %s: %s", d.Model, hives.Reasons(refused)).Hint(
				"Retire a worker that is not needed (`rbee ps`, `rbee worker retire`), or use a smaller model.")
		}
	}
	return "", core.Errorf(core.Unavailable, "no hive can run a worker with %s: %s", d.Model, hives.Reasons(refused)).Hint(
		"Look at `rbee status`, and at `rbee plugin list` on the hives.")
}

// Spawn chooses the hive for a worker_spawn without one, and returns the name of the model there.
// Only the hive can judge what the request needs beyond the model's own size.
func (p *Placer) Spawn(ctx context.Context, r core.Request, live []core.Hive) (hive, model string, err error) {
	if len(live) == 1 && !live[0].Draining {
		return live[0].ID, r.Model, nil // it reports the reason better itself
	}
	lists, _, err := p.modelsOf(ctx)
	if err != nil {
		return "", "", err
	}
	m, ok, err := stored(lists, r.Model, p.aliases())
	if err != nil {
		return "", "", err
	}
	if !ok {
		m = knownModel{id: r.Model, argument: r.Model}
	}
	_, refused := p.hives.Live()
	typ, _, _ := strings.Cut(r.Type, "@")
	hive, err = p.place(sched.Demand{Model: r.Model, Type: typ, Device: r.Device}, m, live, refused)
	model, _, _ = m.on(hive)
	return hive, model, err
}

// ReplicaContext returns the default positions per slot of another worker with the model: those of
// its oldest worker, so that all handle long prompts alike. 0: it has no workers.
func (p *Placer) ReplicaContext(ctx context.Context, model string) int {
	names := []string{model}
	if lists, _, err := p.modelsOf(ctx); err == nil {
		if m, ok, _ := stored(lists, model, p.aliases()); ok {
			names = m.names()
		}
	}
	var first *core.Worker
	for _, name := range names {
		for _, w := range p.registry.View().WorkersOfModel(nil, name) {
			serves := w.State == core.WorkerReady || w.State == core.WorkerLoading
			if serves && w.ContextTokens > 0 && (first == nil || w.CreateIndex < first.CreateIndex) {
				first = &w
			}
		}
	}
	if first == nil {
		return 0
	}
	return first.ContextTokens
}

// Download chooses the hive for a model_download without one: a hive that has the model, otherwise
// the one on which a worker with it would be placed.
func (p *Placer) Download(ctx context.Context, r core.Request, live []core.Hive) (string, error) {
	if len(live) == 1 {
		return live[0].ID, nil
	}
	lists, _, err := p.modelsOf(ctx)
	if err != nil {
		return "", err
	}
	m, ok, _ := stored(lists, r.Model, p.aliases()) // an ambiguous name may still be fetched as another model
	for _, h := range live {
		if ok && m.has(h.ID) {
			return h.ID, nil
		}
	}
	_, refused := p.hives.Live()
	return p.place(sched.Demand{Model: r.Model}, knownModel{id: r.Model}, live, refused)
}
