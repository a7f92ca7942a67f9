package queen

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/registry"
)

// statusJobs is how many ended jobs Status shows.
const statusJobs = 10

// Ready is nil when requests can be served: the registry is read, and a hive is ready, which on the
// leader means that it has reported. Among several queens one that has lost the leader goes on with
// what it knows.
func (q *Queen) Ready(context.Context) error {
	n := q.registry
	leading := q.registry.Leads()
	switch {
	case n.Leader() == "" && n.DiskProblem() != nil:
		return n.DiskProblem()
	case n.Leader() == "" && q.opts.Membership == nil:
		return core.Errorf(core.Unavailable, "the cluster has no leader").Hint("Wait for the election, or look at `rbee status` if it lasts.")
	case n.IsLeader() && !leading:
		return core.Errorf(core.Unavailable, "the registry is being read").Hint("Try again in a moment.")
	}
	live, refused := q.liveHives()
	if len(live) == 0 {
		return noHive(refused)
	}
	if leading && !slices.ContainsFunc(live, func(h core.Hive) bool { return q.liveness.Hive(h.ID).Report != nil }) {
		return core.Errorf(core.Unavailable, "no hive has reported yet").Hint("Wait a moment, or look at the log of the hives.")
	}
	return nil
}

// Status is the cluster on one screen. It answers with what it can get: what it cannot is in
// Problems.
func (q *Queen) Status(ctx context.Context) (core.Status, error) {
	s := core.Status{
		Version: q.opts.Version, Node: q.opts.ID, StartedAt: q.started, Leader: q.registry.Leader(), Index: q.registry.AppliedIndex(),
		Queens: []core.Queen{}, Hives: q.hives(), Workers: q.workers(), Models: []core.Model{}, Jobs: []core.Job{}, Problems: []string{},
	}
	if c, ok := q.registry.View().Cluster(nil); ok {
		s.Cluster = &c
	}
	var problems []string
	if err := q.registry.DiskProblem(); err != nil {
		problems = append(problems, fmt.Sprintf("the disk of queen %s takes no entries: %v", q.ownName(), err))
	}
	if s.Leader == "" {
		problems = append(problems, "the cluster has no leader: nothing in the registry can change")
	}
	if p := q.contactProblem(); p != "" {
		problems = append(problems, p)
	}
	if queens, err := q.Queens(ctx); err == nil {
		s.Queens = queens
		if q.opts.Membership != nil {
			registry := q.registry.View()
			problems = append(problems, q.membershipProblems(registry, queens)...)
			first, ending := q.certificates(registry)
			s.CertificatesEnd = first
			problems = append(problems, ending...)
		}
	} else {
		problems = append(problems, fmt.Sprintf("the queens are not known: %v", err))
	}
	for _, h := range s.Hives {
		if h.Status != core.HiveReady {
			problems = append(problems, fmt.Sprintf("hive %s is %s", h.Name, h.Status))
		}
		for _, d := range h.Devices {
			if d.Problem != "" {
				problems = append(problems, fmt.Sprintf("hive %s cannot use %s: %s", h.Name, d.ID, d.Problem))
			}
		}
	}
	for _, w := range s.Workers {
		if why, _ := q.liveness.Hive(w.Hive).Avoid(&w); why != "" {
			problems = append(problems, fmt.Sprintf("worker %s is avoided: %s", w.ID, why))
		}
		if w.State == core.WorkerFailed {
			problems = append(problems, fmt.Sprintf("worker %s could not load %s", w.ID, w.Model))
		}
	}
	if len(s.Hives) == 0 {
		problems = append(problems, "no hive has joined the cluster yet")
	} else {
		var silent, alsoSilent []string
		var wg sync.WaitGroup
		wg.Go(func() {
			var models []core.Model
			var err error
			if models, silent, err = q.allModels(ctx); err == nil {
				s.Models = models
			}
		})
		wg.Go(func() {
			var jobs []core.Job
			var err error
			if jobs, alsoSilent, err = q.allJobs(ctx); err == nil {
				s.Jobs = latest(jobs)
			}
		})
		wg.Wait()
		if ctx.Err() != nil {
			return core.Status{}, core.FromContext(ctx)
		}
		for _, p := range append(silent, alsoSilent...) {
			if !strings.HasSuffix(p, " is down") && !strings.HasSuffix(p, " is silent") { // said above
				problems = append(problems, p)
			}
		}
	}
	for _, m := range s.Models {
		if m.Damaged != "" {
			problems = append(problems, fmt.Sprintf("model %s is damaged: %s", m.ID, m.Damaged))
		}
	}
	for _, p := range problems {
		if !slices.Contains(s.Problems, p) {
			s.Problems = append(s.Problems, p)
		}
	}
	return s, nil
}

// latest keeps the running jobs and the newest ended ones of a list sorted newest first.
func latest(jobs []core.Job) []core.Job {
	ended := 0
	return slices.DeleteFunc(jobs, func(j core.Job) bool {
		if j.State != core.JobRunning {
			ended++
		}
		return j.State != core.JobRunning && ended > statusJobs
	})
}

// Hives lists the hives of the registry, with last beat, free bytes and suspicion where this queen
// leads, then the machines that this queen's machine knows and that have no hive.
func (q *Queen) Hives(context.Context) ([]core.Hive, error) {
	hives := q.hives()
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

func (q *Queen) hives() []core.Hive {
	hives := q.registry.View().Hives(nil)
	for i := range hives {
		q.liveness.Hive(hives[i].ID).AddTo(&hives[i])
	}
	return hives
}

// hiveNamed finds a hive by id, unique name, or core.LocalHive. Errors: NotFound; Conflict when
// several have the name.
func (q *Queen) hiveNamed(ctx context.Context, name string) (core.Hive, error) {
	return registry.LookUp(ctx, q.registry, func() (core.Hive, error) { return q.knownHive(name) })
}

func (q *Queen) knownHive(name string) (core.Hive, error) {
	hives := q.hives()
	byID := func(id string) (core.Hive, bool) {
		i := slices.IndexFunc(hives, func(h core.Hive) bool { return h.ID == id })
		if id == "" || i < 0 {
			return core.Hive{}, false
		}
		return hives[i], true
	}
	if name == core.LocalHive {
		if h, ok := byID(q.opts.LocalHive()); ok {
			return h, nil
		}
		if q.opts.LocalHive() != "" {
			return core.Hive{}, core.Errorf(core.NotFound, "the hive of queen %s has not joined yet", q.opts.ID).Hint("Try again in a moment, or look at the log of the agent.")
		}
	}
	if h, ok := byID(name); ok {
		return h, nil
	}
	var named, names []string
	for _, h := range hives {
		if h.Name == name {
			named = append(named, h.ID)
		}
		names = append(names, h.ID, h.Name)
	}
	switch {
	case len(named) == 1:
		h, _ := byID(named[0])
		return h, nil
	case len(named) > 1:
		return core.Hive{}, core.Errorf(core.Conflict, "%d hives are named %q", len(named), name).Hint("Use an id: %s.", strings.Join(named, ", "))
	case name == core.LocalHive:
		return core.Hive{}, core.Errorf(core.NotFound, "queen %s has no hive of its own", q.opts.ID).Hint("Name one of these: %s.", cmp.Or(strings.Join(unique(names), ", "), "none has joined yet"))
	}
	return core.Hive{}, core.Errorf(core.NotFound, "there is no hive %q", name).Hint("%sSee all with `rbee status`.", nearest(name, names))
}

// liveHive is hiveNamed for a hive that is about to be asked. Errors also: Unavailable when it is
// down.
func (q *Queen) liveHive(ctx context.Context, name string) (core.Hive, error) {
	h, err := q.hiveNamed(ctx, name)
	if err == nil && h.Status == core.HiveDown {
		err = core.Errorf(core.Unavailable, "hive %s is down", h.Name).Hint("Start its agent again, and look at `rbee status`.")
	}
	return h, err
}

// Workers lists the active workers of the registry, with their load where this queen leads.
func (q *Queen) Workers(context.Context) ([]core.Worker, error) { return q.workers(), nil }

func (q *Queen) workers() []core.Worker {
	workers := q.registry.View().Workers(nil)
	for i := range workers {
		workers[i] = q.loaded(workers[i])
	}
	return workers
}

// Worker finds an active worker by its id or a unique prefix of it. Errors: NotFound; Conflict when
// several begin with the prefix.
func (q *Queen) Worker(ctx context.Context, id string) (core.Worker, error) {
	return registry.LookUp(ctx, q.registry, func() (core.Worker, error) { return q.knownWorker("", id) })
}

// knownWorker finds a worker by its id or a unique prefix of it. Where several hives have a worker
// with the id it is the one of the hive; an empty hive is any.
func (q *Queen) knownWorker(hive, id string) (core.Worker, error) {
	registry := q.registry.View()
	switch same := registry.WorkersWithID(nil, id); {
	case len(same) == 1:
		return q.loaded(same[0]), nil
	case len(same) > 1:
		var hives []string
		for _, w := range same {
			if w.Hive == hive {
				return q.loaded(w), nil
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
		return q.loaded(found[0]), nil
	case 0:
		var ids []string
		for _, w := range registry.Workers(nil) {
			ids = append(ids, w.ID)
		}
		return core.Worker{}, core.Errorf(core.NotFound, "there is no active worker %q", id).Hint("%sSee all with `rbee ps`.", nearest(id, ids))
	}
	var ids []string
	for _, w := range found {
		ids = append(ids, w.ID)
	}
	return core.Worker{}, core.Errorf(core.Conflict, "%d workers have an id that begins with %q", len(found), id).Hint("It may be %s: write more of the id.", strings.Join(ids, " or "))
}

// askNamed has one hive answer an operation, the hive that the request names as in hiveNamed.
func askNamed(ctx context.Context, q *Queen, s operation.Spec, r core.Request) (core.Hive, any, error) {
	h, err := q.liveHive(ctx, r.Hive)
	if err != nil {
		return h, nil, err
	}
	patience := askTimeout
	if s.Slow {
		patience = searchTimeout
	}
	v, err := askWithin(ctx, q, h.ID, patience, func(ctx context.Context, c hiveConn) (any, error) { return ask(ctx, c, s, r) })
	return h, v, err
}

// loaded adds to a registered worker the load that this queen has heard of.
func (q *Queen) loaded(w core.Worker) core.Worker {
	_, w.Load = q.liveness.Hive(w.Hive).Avoid(&w)
	return w
}
