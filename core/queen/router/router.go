// Package router chooses the worker for a request, based on the registry, the reports of hives, and
// the requests that this queen has sent.
package router

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/sched"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// SuspectPatience bounds the wait for news about workers when all of them are avoided, before
	// another one is started. It covers a broken link and the time until a hive is known to be
	// down.
	SuspectPatience = 3 * time.Second
	// MaxStarts bounds how often a worker is started for one request when it ends before it can be
	// used.
	MaxStarts = 2
)

// Registry is the part of the replicated registry that a Router needs.
type Registry interface {
	View() *state.Snapshot
}

// Liveness is this queen's knowledge about hives.
type Liveness interface {
	Hive(id string) *liveness.View
	// Stores reports whether a hive has reported a sound model with exactly this id.
	Stores(id string) bool
	// Changed returns a channel that is closed when a View changed in a relevant way.
	Changed() <-chan struct{}
	// Fail avoids a worker that failed a request until its hive confirms it.
	Fail(w core.Worker)
	// Nudge sends a hive the current use of its workers at once.
	Nudge(hive string)
}

// Start starts a worker, or follows a start in progress, and returns once the worker is in the
// registry. started is false if no start was needed.
type Start func(ctx context.Context, progress func(core.Progress)) (started bool, err error)

// Starter finds models that no worker serves, and starts workers with them.
type Starter interface {
	// Canonical returns the name under which workers serve a model, if it is known without asking a
	// hive; otherwise the name itself.
	Canonical(name string) string
	// Starting returns a function that follows the start of a worker with the model; nil: no start
	// is in progress.
	Starting(model string) Start
	// Resolve finds a model by the name that a client uses. It returns the name under which workers
	// serve it and a function that starts one. Errors: NotFound, Unavailable.
	Resolve(ctx context.Context, name string) (served string, start Start, err error)
}

// Options are the dependencies of a Router. All fields but Rand are required.
type Options struct {
	Registry Registry
	Liveness Liveness
	Starter  Starter
	Rand     func(n int) int // returns a number in [0, n); nil: math/rand
}

// Router implements inference.Router.
type Router struct {
	opts Options

	mu        sync.Mutex // guards below
	uses      uses
	busyUntil map[instance]time.Time // workers that currently refuse requests, and until when
	memory    memory
}

// New returns a router without any sent requests.
func New(o Options) *Router {
	if o.Rand == nil {
		o.Rand = rand.IntN
	}
	return &Router{opts: o, uses: uses{}, busyUntil: map[instance]time.Time{}, memory: newMemory(maxMarks)}
}

// Route implements inference.Router. While a worker serves the model it only reads this queen's
// replica and asks no other process.
//
// Otherwise, Route waits for a loading worker; it waits for the next report of the hives whose
// workers are all avoided; else it starts a worker on the hive that the scheduler chooses, once per
// model however many requests wait. A start outlasts the requests that wait for it: the next one
// finds the worker. A look does none of this, and does not count as use of a worker.
//
// A model is known by any of its names (see modelname.Resolve), and one of the builtin source by
// its bare name. A reference to another source is not fetched for a request: that takes a
// model_download or worker_spawn.
//
// Errors: Invalid without a model, and for an ambiguous name; NotFound for an unknown model, with
// the nearest names; Unavailable or TooLarge when no worker is available, with the reason per hive;
// Overloaded when the hive reports it; Cancelled and DeadlineExceeded of ctx, and DeadlineExceeded
// after the query's patience.
func (r *Router) Route(ctx context.Context, q inference.Query) (inference.Lease, error) {
	if q.Model == "" {
		return inference.Lease{}, core.Errorf(core.Invalid, "the request names no model").Hint(`Set "model" to one of those that GET /v1/models lists.`)
	}
	found, refused, waitFor := r.candidates(nil, q.Model, &q)
	if len(found) > 0 {
		return r.lease(found, refused, &q), nil // the common case
	}
	if len(refused) == 0 {
		// An id takes precedence over an alias, as in modelname.Resolve: the model may have been
		// added later.
		if a, ok := r.opts.Registry.View().Alias(nil, q.Model); ok && !r.opts.Liveness.Stores(q.Model) {
			q.Model = a.Model
			if found, refused, waitFor = r.candidates(nil, q.Model, &q); len(found) > 0 {
				return r.lease(found, refused, &q), nil
			}
		}
	}
	none := inference.Lease{Refused: refusals(refused)}
	if q.Look {
		return none, &inference.NotLoaded{Model: q.Model}
	}
	if lack := lacking(refused); lack != "" && waitFor == waitNothing {
		return none, &inference.Unable{Model: q.Model, Need: lack}
	}
	if slices.ContainsFunc(refused, isBusy) {
		return none, &inference.Busy{Model: q.Model}
	}
	if q.Other {
		return none, core.Errorf(core.Unavailable, "no other worker with %s is ready: %s", q.Model, workerReasons(refused))
	}
	if q.Patience > 0 {
		limited, cancel := context.WithTimeout(ctx, q.Patience)
		defer cancel()
		ctx = limited
	}
	progress := q.Progress
	if progress == nil {
		progress = func(core.Progress) {}
	}
	progress(core.Progress{})
	found, refused, err := r.await(ctx, q.Model, q.Terms, progress)
	if err != nil {
		return none, err
	}
	return r.lease(found, refused, &q), nil
}

// lease counts a request at the first of the workers until it is released.
func (r *Router) lease(found []core.Candidate, refused []sched.Refusal, q *inference.Query) inference.Lease {
	w := found[0].Worker
	end := r.begin(&w, q)
	signs := func() inference.Signs { return r.signs(w.Hive, w.ID, w.Nonce) }
	return inference.NewLease(found, refusals(refused), signs, func(o inference.Outcome) {
		end()
		if o.Busy > 0 {
			r.busy(instanceOf(&w), o.Busy)
		}
		if o.Failed {
			r.opts.Liveness.Fail(w)
		}
	})
}

func isBusy(r sched.Refusal) bool { return r.Busy }

// lacking returns the capability missing from an otherwise suitable worker; empty: none.
func lacking(refused []sched.Refusal) string {
	for _, r := range refused {
		if r.Lacks != "" {
			return r.Lacks
		}
	}
	return ""
}

func refusals(refused []sched.Refusal) []core.RouteRefusal {
	if len(refused) == 0 {
		return nil
	}
	why := make([]core.RouteRefusal, 0, len(refused))
	for _, r := range refused {
		why = append(why, core.RouteRefusal{Worker: r.Name, Reason: r.Reason})
	}
	return why
}

// await waits until the model has ready workers, and starts one if none is on its way.
func (r *Router) await(ctx context.Context, model string, terms inference.Terms, progress func(core.Progress)) ([]core.Candidate, []sched.Refusal, error) {
	id := model
	var patientUntil time.Time // for avoided workers; zero: not waited for yet
	for starts := 0; ; {
		ws := registry.WatchSet{r.opts.Liveness.Changed(): {}}
		found, refused, waitFor := r.candidates(ws, id, &inference.Query{Terms: terms})
		if len(found) > 0 {
			return found, refused, nil
		}
		if slices.ContainsFunc(refused, isBusy) {
			return nil, nil, &inference.Busy{Model: id}
		}
		if lack := lacking(refused); lack != "" && waitFor == waitNothing {
			return nil, nil, &inference.Unable{Model: id, Need: lack}
		}
		if id == model {
			if canonical := r.opts.Starter.Canonical(id); canonical != id {
				id = canonical
				continue
			}
		}
		switch {
		case waitFor == waitLoading:
			if follow := r.opts.Starter.Starting(id); follow != nil {
				// The job that loads it reports more than the registry.
				if _, err := follow(ctx, progress); err != nil {
					return nil, nil, err
				}
				continue
			}
			progress(core.Progress{Phase: "wait for a worker with " + id + " that is loading"})
			if err := registry.Wait(ctx, ws); err != nil {
				return nil, nil, ctxError(ctx, refused)
			}
			continue
		case waitFor == waitSuspect && (patientUntil.IsZero() || time.Now().Before(patientUntil)):
			if patientUntil.IsZero() {
				patientUntil = time.Now().Add(SuspectPatience)
				progress(core.Progress{Phase: "wait for news of the workers with " + id})
			}
			_ = registry.WaitUntil(ctx, ws, patientUntil) // the next iteration checks what changed
			if ctx.Err() != nil {
				return nil, nil, ctxError(ctx, refused)
			}
			continue
		}
		served, start, err := r.opts.Starter.Resolve(ctx, model)
		if err != nil {
			return nil, nil, err
		}
		if served != id {
			id = served
			continue
		}
		if starts == MaxStarts {
			return nil, nil, core.Errorf(core.Unavailable, "workers with %s exit right after they start: %s", id, workerReasons(refused)).Hint(
				"Look at the log of the hive, and try again.")
		}
		started, err := start(ctx, progress)
		if err != nil {
			return nil, nil, err
		}
		if started {
			starts++
		}
	}
}

// waitReason is what to wait for when no worker can be used.
type waitReason int

const (
	waitNothing waitReason = iota
	waitLoading            // a worker that is loading
	waitSuspect            // avoided workers that may recover
)

// candidates ranks the workers of exactly this model, except those that the query excludes. ws,
// unless it is nil, collects the channels that are closed when the answer may change.
func (r *Router) candidates(ws registry.WatchSet, id string, query *inference.Query) ([]core.Candidate, []sched.Refusal, waitReason) {
	wait := waitNothing
	var few [8]sched.Prospect // few models have more workers
	prospects := few[:0]
	view := r.opts.Registry.View()
	r.mu.Lock()
	have := r.memory.have(query.Prefix)
	view.EachRoute(ws, id, func(w *core.Worker, h *core.Hive) bool {
		if excluded(query, w) {
			return true
		}
		p := r.prospectLocked(w)
		if query.Look { // it needs no slot
			p.InFlight, p.Busy, p.Load = 0, false, core.Load{}
		}
		switch {
		case h == nil || h.Status == core.HiveDown:
			p.Suspect = cmp.Or(p.Suspect, "its hive is down")
		case h.Draining:
			p.Draining = true
		}
		p.Lacks = w.Capabilities.Lacks(query.Needs)
		if have != nil {
			p.Shared = have[r.memory.hash(w)]
		}
		switch {
		case p.Draining, p.Lacks != "":
		case w.State == core.WorkerLoading && p.Suspect == "":
			wait = waitLoading
		case w.State == core.WorkerReady && p.Suspect != "" && wait == waitNothing:
			wait = waitSuspect
		}
		prospects = append(prospects, p)
		return true
	})
	r.mu.Unlock()
	if len(prospects) == 0 {
		return nil, nil, waitNothing
	}
	found, refused := sched.PickWorker(id, prospects, r.opts.Rand)
	return found, refused, wait
}

func excluded(q *inference.Query, w *core.Worker) bool {
	return q.ContextOver > 0 && w.ContextTokens <= q.ContextOver ||
		slices.ContainsFunc(q.Tried, func(t core.Worker) bool { return instanceOf(&t) == instanceOf(w) })
}

// prospectLocked adds this queen's own knowledge to a registered worker.
func (r *Router) prospectLocked(w *core.Worker) sched.Prospect {
	p := sched.Prospect{Worker: w}
	p.Suspect, p.Load = r.opts.Liveness.Hive(w.Hive).Avoid(w)
	if len(r.uses) > 0 {
		p.InFlight = r.uses.inFlight(w)
	}
	if until, ok := r.busyUntil[instanceOf(w)]; ok {
		p.Busy = until.After(time.Now())
	}
	return p
}

// signs returns a worker's signs of life from the reports of its hive.
func (r *Router) signs(hive, id, nonce string) inference.Signs {
	seen := r.opts.Liveness.Hive(hive)
	if seen.Report == nil {
		return inference.Signs{} // nothing is known, so nothing counts against it
	}
	since := time.Since(seen.Heard)
	told := seen.Report.Find(id, nonce)
	if told == nil {
		return inference.Signs{Silence: since} // its end closes the connection
	}
	s := inference.Signs{Progress: told.Load.TokensTotal > 0 || told.Load.KVUsedTokens > 0, Silence: since + time.Duration(told.Load.Silence)}
	if told.Load.Stalled > 0 {
		s.Stalled = since + time.Duration(told.Load.Stalled)
	}
	return s
}

// busy gives a worker no requests for a while, as it asked.
func (r *Router) busy(w instance, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for n, until := range r.busyUntil { // few
		if !until.After(now) {
			delete(r.busyUntil, n)
		}
	}
	r.busyUntil[w] = now.Add(d)
}

// instance identifies one start of a worker. The nonce alone would not: a hive can report the nonce
// of another hive's worker.
type instance struct{ hive, nonce string }

func instanceOf(w *core.Worker) instance { return instance{w.Hive, w.Nonce} }

// begin counts a request to a worker until end is called, once. For a request with a keep-alive
// time, the hive learns of the end at once.
func (r *Router) begin(w *core.Worker, q *inference.Query) (end func()) {
	if q.Look {
		return func() {}
	}
	keepAlive := q.KeepAlive
	r.mu.Lock()
	r.memory.sent(q.Prefix, w)
	use := r.uses.begin(w, keepAlive, time.Now())
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		use.InFlight--
		use.Last = time.Now()
		r.mu.Unlock()
		if keepAlive != nil {
			r.opts.Liveness.Nudge(w.Hive)
		}
	}
}

// InFlight returns the number of requests that this queen has sent to workers and that have not
// ended.
func (r *Router) InFlight() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, of := range r.uses {
		for _, use := range of {
			n += use.InFlight
		}
	}
	return n
}

// ctxError returns the error of an ended wait, including what it waited for.
func ctxError(ctx context.Context, refused []sched.Refusal) error {
	err := ctx.Err()
	if len(refused) > 0 {
		err = fmt.Errorf("%w while waiting: %s", err, workerReasons(refused))
	}
	return core.WithKind(err, core.KindOf(ctx.Err()))
}

func workerReasons(refused []sched.Refusal) string {
	if len(refused) == 0 {
		return "no worker is left"
	}
	texts := make([]string, 0, len(refused))
	for _, r := range refused {
		texts = append(texts, "worker "+r.String())
	}
	return strings.Join(texts, ", ")
}
