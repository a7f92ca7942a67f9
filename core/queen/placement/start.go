package placement

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/sched"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Jobs starts jobs on hives and follows them.
type Jobs interface {
	// SubmitTo starts a job on a hive.
	SubmitTo(ctx context.Context, hive string, r core.Request) (core.Job, error)
	Job(ctx context.Context, id string) (core.Job, error)
	Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error
}

// Starter starts workers for requests. It implements router.Starter, and is safe for concurrent
// use.
type Starter struct {
	*Placer
	jobs   Jobs
	minFSM func() uint32
	names  names
	seen   startMemory

	mu     sync.Mutex               // guards the starts in progress: below
	starts map[string]core.Job      // by model id: the worker_spawn that requests wait for
	stages map[string]core.Progress // by model id: their progress
	locks  map[string]chan struct{} // by model id: see lock
}

// NewStarter returns a starter that starts workers where the placer decides. minFSM returns the
// lowest state machine version among the queens that answer; 0: none answers.
func NewStarter(p *Placer, jobs Jobs, minFSM func() uint32) *Starter {
	return &Starter{Placer: p, jobs: jobs, minFSM: minFSM, starts: map[string]core.Job{}, stages: map[string]core.Progress{}, locks: map[string]chan struct{}{}, names: names{aliases: map[string]alias{}}}
}

// Canonical implements router.Starter.
func (s *Starter) Canonical(name string) string { return s.names.canonical(name, s.knowledge(name)) }

// knowledge returns the current state that determines what a name refers to.
func (s *Starter) knowledge(name string) knowledge {
	return knowledge{turn: s.liveness.StockTurn(), alias: s.Dealias(name)}
}

// Starting implements router.Starter.
func (s *Starter) Starting(model string) router.Start {
	if !s.starting(model) {
		return nil
	}
	return func(ctx context.Context, progress func(core.Progress)) (bool, error) {
		return s.start(ctx, knownModel{id: model, argument: model}, progress)
	}
}

// Resolve implements router.Starter. It also remembers the resolved name.
func (s *Starter) Resolve(ctx context.Context, name string) (string, router.Start, error) {
	known := s.knowledge(name) // taken before the look-up
	m, err := s.find(ctx, name)
	if err != nil {
		return "", nil, err
	}
	served := cmp.Or(s.servedAs(m), m.id)
	s.names.learn(name, served, known)
	return served, func(ctx context.Context, progress func(core.Progress)) (bool, error) {
		return s.start(ctx, m, progress)
	}, nil
}

// RegistrationPatience bounds the wait for the worker to be registered after worker_spawn has
// ended. Its hive beats at once, so the bound is generous.
const RegistrationPatience = 10 * time.Second

// maxClaims bounds how often one request decides where its model starts, when other queens decide
// it at the same time: the loser follows the winner's decision.
const maxClaims = 4

// errAlreadyThere reports that no start is needed.
var errAlreadyThere = errors.New("a worker is there already")

// start starts one worker with the model and returns once it is in the registry, in whatever state.
// All requests that wait for the same model follow one job. None of them owns it: the job is the
// hive's, and continues when they have all disconnected. started is false if no start was needed.
func (s *Starter) start(ctx context.Context, m knownModel, progress func(core.Progress)) (started bool, err error) {
	j, err := s.startJob(ctx, m)
	switch {
	case errors.Is(err, errAlreadyThere):
		return false, nil
	case err != nil:
		return false, err
	}
	progress(core.Progress{Phase: "start a worker with " + m.id})
	result, err := s.follow(ctx, j.ID, func(p core.Progress) {
		s.mu.Lock()
		if s.starts[m.id].ID == j.ID {
			s.stages[m.id] = p
		}
		s.mu.Unlock()
		progress(p)
	})
	if err == nil || ctx.Err() == nil {
		s.endStart(m.id, j.ID)
	}
	if err != nil {
		return false, startError(ctx, m.id, err)
	}
	return true, s.registered(ctx, result.Worker)
}

// startJob returns the running worker_spawn for the model, or submits one.
//
// All queens start the same one: the registry records for each model on which hive it was last
// started, and with which request ID, which makes it one job whichever queen submits it. A queen
// that finds that decision stale replaces it, and only one of several concurrent attempts succeeds.
// The decision outlives the queen that made it.
func (s *Starter) startJob(ctx context.Context, m knownModel) (core.Job, error) {
	unlock, err := s.lock(ctx, m.id)
	if err != nil {
		return core.Job{}, err
	}
	defer unlock()
	s.mu.Lock()
	j, ok := s.starts[m.id]
	s.mu.Unlock()
	if ok {
		// It may have ended while no request followed it.
		if now, err := s.jobs.Job(ctx, j.ID); err == nil && now.State == core.JobRunning {
			return now, nil
		}
		s.endStart(m.id, j.ID)
	}
	for range maxClaims {
		if s.servedAs(m) != "" {
			return core.Job{}, errAlreadyThere // another request's worker was registered while this one waited
		}
		j, err = s.claimStart(ctx, m)
		if err == nil {
			break
		}
		if core.KindOf(err) != core.Conflict {
			return core.Job{}, err
		}
		if err := s.registry.CatchUp(ctx); err != nil { // with the queen that made the decision
			return core.Job{}, startError(ctx, m.id, err)
		}
	}
	if err != nil {
		return core.Job{}, startError(ctx, m.id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts[m.id] = j
	return j, nil
}

// claimStart returns the job of the last decision on where the model starts, while that may still
// yield a worker; otherwise it decides anew, preferring another hive. Errors: Conflict when another
// queen decided meanwhile.
func (s *Starter) claimStart(ctx context.Context, m knownModel) (core.Job, error) {
	live, refused := s.hives.Live()
	live = slices.DeleteFunc(live, func(h core.Hive) bool {
		if s.liveness.Hive(h.ID).LinkedSoon() {
			return false
		}
		// This queen could not send requests there: the next request would start another worker.
		refused = append(refused, sched.Refusal{Name: h.Name, Reason: liveness.NoLink})
		return true
	})
	last, _ := s.registry.View().Start(nil, m.id)
	if isLive := slices.ContainsFunc(live, func(h core.Hive) bool { return h.ID == last.Hive }); isLive && !last.Registered {
		j, err := s.submitStart(ctx, m, last)
		reporting := err == nil && j.State == core.JobSucceeded && s.seen.endedFor(m.id, last.Request) < RegistrationPatience
		if err == nil && j.State == core.JobRunning || reporting || ctx.Err() != nil {
			return j, err
		}
		s.seen.fail(m.id, last.Hive)
	}
	hive, err := s.placeStart(m, live, refused)
	if err != nil {
		return core.Job{}, err
	}
	_, served, _ := m.on(hive)
	next := state.Start{Model: m.id, Hive: hive, Served: served, Request: "start-" + rand.Text()}
	claim := fsm.ClaimStart(next, last.Request)
	if lowest := s.minFSM(); lowest == 0 || lowest >= fsm.Required(claim) {
		if err := s.registry.Write(ctx, "start "+m.id, claim); core.KindOf(err) == core.Conflict {
			return core.Job{}, err
		} else if err != nil {
			return core.Job{}, startError(ctx, m.id, err)
		}
	} // otherwise each queen decides on its own until all are upgraded
	j, err := s.submitStart(ctx, m, next)
	if err != nil {
		s.seen.fail(m.id, hive)
		return j, err
	}
	s.log.Info("starting a worker for a request", "model", m.id, "hive", hive, "job", j.ID)
	return j, nil
}

// placeStart chooses the hive where the model starts: one that has not recently failed to start it,
// unless there is no other.
func (s *Starter) placeStart(m knownModel, live []core.Hive, refused []sched.Refusal) (string, error) {
	fresh := slices.DeleteFunc(slices.Clone(live), func(h core.Hive) bool { return s.seen.rests(m.id, h.ID) })
	if len(fresh) > 0 && len(fresh) < len(live) {
		if hive, err := s.place(sched.Demand{Model: m.id, OnRequest: true}, m, fresh, slices.Clone(refused)); err == nil {
			return hive, nil
		}
	}
	return s.place(sched.Demand{Model: m.id, OnRequest: true}, m, live, refused)
}

// submitStart submits the worker_spawn of a decision, or returns the job if it already exists.
func (s *Starter) submitStart(ctx context.Context, m knownModel, at state.Start) (core.Job, error) {
	argument, _, _ := m.on(at.Hive)
	r := core.Request{Operation: core.OpWorkerSpawn, Model: argument, RequestID: at.Request, KeepAlive: core.KeepAliveDefault}
	j, err := s.jobs.SubmitTo(ctx, at.Hive, r)
	if err != nil {
		return core.Job{}, startError(ctx, m.id, err)
	}
	return j, nil
}

// servedAs returns the name under which a worker that this queen can use has the model, ready or
// loading; empty: none.
func (s *Starter) servedAs(m knownModel) string {
	draining := map[string]bool{}
	for _, h := range s.registry.View().Hives(nil) {
		draining[h.ID] = h.Draining
	}
	for _, name := range m.names() {
		for _, w := range s.registry.View().WorkersOfModel(nil, name) {
			if why, _ := s.liveness.Hive(w.Hive).Avoid(&w); why == "" && !draining[w.Hive] && (w.State == core.WorkerReady || w.State == core.WorkerLoading) {
				return name
			}
		}
	}
	return ""
}

// starting reports whether this queen knows a job that starts a worker with the model.
func (s *Starter) starting(model string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.starts[model]
	return ok
}

// Progress returns the progress of starting a worker with the model, if requests of this queen wait
// for it. It is empty until the hive has reported any; false: no start is in progress.
func (s *Starter) Progress(model string) (core.Progress, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.starts[model]
	return s.stages[model], ok
}

// UnderWay returns the number of models whose start this queen knows of.
func (s *Starter) UnderWay() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.starts)
}

// endStart forgets a start that has ended, unless another one has replaced it.
func (s *Starter) endStart(model, job string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starts[model].ID == job {
		delete(s.starts, model)
		delete(s.stages, model)
	}
}

// follow passes on the progress of a worker_spawn and returns its result.
func (s *Starter) follow(ctx context.Context, id string, progress func(core.Progress)) (core.SpawnResult, error) {
	var result core.SpawnResult
	var failure error
	err := s.jobs.Events(ctx, id, 0, func(e core.Event) error {
		switch {
		case e.Kind == core.EventProgress && e.Progress != nil:
			progress(*e.Progress)
		case e.Kind == core.EventResult:
			return core.Wrap(json.Unmarshal(e.Result, &result), core.Internal, "read the result of job "+id)
		case e.Kind == core.EventEnd && e.State != core.JobSucceeded:
			failure = e.Error.Err()
			if failure == nil {
				failure = core.Errorf(core.Unavailable, "job %s ended as %s", id, e.State)
			}
		}
		return nil
	})
	if err == nil {
		err = failure
	}
	return result, err
}

// registered waits until the worker has appeared in the registry.
func (s *Starter) registered(ctx context.Context, w core.Worker) error {
	until := time.Now().Add(RegistrationPatience)
	for {
		ws := registry.WatchSet{}
		if now, ok := s.registry.View().Worker(ws, w.Hive, w.ID); ok && now.State != core.WorkerLoading {
			return nil
		}
		if err := registry.WaitUntil(ctx, ws, until); err == nil {
			continue
		}
		if ctx.Err() != nil {
			return core.FromContext(ctx)
		}
		return core.Errorf(core.Unavailable, "worker %s was started on hive %s, but the hive has not reported it", w.ID, w.Hive).Hint(
			"Look at `rbee ps` and at the log of the hive, and try again.")
	}
}

// startError converts a failed start to the error of an inference request: the client's request was
// valid, so the kind is never Invalid, NotFound or Cancelled, whatever the job's was.
func startError(ctx context.Context, model string, err error) error {
	if ctx.Err() != nil {
		return core.FromContext(ctx)
	}
	kind := core.KindOf(err)
	switch kind {
	case core.TooLarge, core.Overloaded, core.Unavailable:
	default:
		kind = core.Unavailable
	}
	hint := core.HintOf(err)
	err = core.Wrap(err, kind, "start a worker with "+model)
	if hint == "" {
		return core.WithHint(err, "Start it with `rbee worker spawn --model %s` to see every step.", model)
	}
	return err
}
