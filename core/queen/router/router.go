// Package router chooses the worker that answers a request: out of what the registry and the
// reports of hives say, and of the requests that this queen has sent.
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
	// SuspectPatience bounds the wait for news of the only workers where all of them are avoided,
	// before another one is started. It covers a link that broke and the time until a hive is known
	// to be down.
	SuspectPatience = 3 * time.Second
	// MaxStarts bounds how often one request has a worker started that is gone again before it can
	// be used.
	MaxStarts = 2
)

// Registry is the replicated registry, as far as a Router needs it.
type Registry interface {
	View() *state.Snapshot
}

// Liveness is what this queen hears of hives.
type Liveness interface {
	Hive(id string) *liveness.View
	// Stores reports whether a hive says that it has a sound model of this very id.
	Stores(id string) bool
	// Changed returns a channel that is closed when a View changed in a way that may matter.
	Changed() <-chan struct{}
	// Fail avoids a worker that failed a request until its hive confirms it.
	Fail(w core.Worker)
	// Nudge has a hive told at once what its workers are used for.
	Nudge(hive string)
}

// Start has a worker started, or follows a start under way, and returns once the worker is in the
// registry. started is false where there was nothing to start.
type Start func(ctx context.Context, progress func(core.Progress)) (started bool, err error)

// Starter finds models that no worker serves, and has workers with them started.
type Starter interface {
	// Canonical returns the name that workers serve a model under, as far as that is known without
	// asking a hive; otherwise the name itself.
	Canonical(name string) string
	// Starting returns how to follow the start of a worker with the model; nil: none is under way.
	Starting(model string) Start
	// Resolve finds a model by the name that a client uses. It returns the name that workers serve
	// it under and how to start one. Errors: NotFound, Unavailable.
	Resolve(ctx context.Context, name string) (served string, start Start, err error)
}

// Options say what a Router works with. All fields but Rand are required.
type Options struct {
	Registry Registry
	Liveness Liveness
	Starter  Starter
	Rand     func(n int) int // a number in [0, n); nil: math/rand
}

// Router implements inference.Router.
type Router struct {
	opts Options

	mu        sync.Mutex // guards below
	uses      uses
	busyUntil map[instance]time.Time // workers that said that they take no request now
	memory    memory
}

// New returns a router that has sent no request.
func New(o Options) *Router {
	if o.Rand == nil {
		o.Rand = rand.IntN
	}
	return &Router{opts: o, uses: uses{}, busyUntil: map[instance]time.Time{}, memory: newMemory(maxMarks)}
}

// Route implements inference.Router. While a worker serves the model it reads this queen's replica
// alone and asks nobody.
//
// Where none does, Route waits for a worker that is loading; it waits for the next report of the
// hives whose workers are all avoided; otherwise it has a worker started on the hive that the
// scheduler chooses, once per model however many requests wait. A start outlasts the requests that
// wait for it: the next one finds the worker. A look does none of that, and is no use of a worker.
//
// A model is known by any of its names (see modelname.Resolve), and one of the builtin source by
// its bare name. A reference to another source is not fetched for a request: that takes a
// model_download or worker_spawn.
//
// Errors: Invalid without a model, and for a name of several models; NotFound for an unknown model,
// with the nearest names; Unavailable or TooLarge when no worker can be had, with the reason per
// hive; Overloaded when the hive says so; Cancelled and DeadlineExceeded of ctx, and
// DeadlineExceeded after the query's patience.
func (r *Router) Route(ctx context.Context, q inference.Query) (inference.Lease, error) {
	if q.Model == "" {
		return inference.Lease{}, core.Errorf(core.Invalid, "the request names no model").Hint(`Set "model" to one of those that GET /v1/models lists.`)
	}
	found, refused, waitFor := r.candidates(nil, q.Model, &q)
	if len(found) > 0 {
		return r.lease(found, refused, &q), nil // the case of nearly every request
	}
	if len(refused) == 0 {
		// An id comes before an alias, as modelname.Resolve has it: the model may have come later.
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

// lacking returns what a worker lacks that could answer otherwise; empty: there is none.
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

// await waits until the model has workers that are ready, and has one started where none is on its
// way.
func (r *Router) await(ctx context.Context, model string, terms inference.Terms, progress func(core.Progress)) ([]core.Candidate, []sched.Refusal, error) {
	id := model
	var patientUntil time.Time // with avoided workers; zero: not waited for yet
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
				// The job that loads it tells more than the registry.
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
			_ = registry.WaitUntil(ctx, ws, patientUntil) // the next turn sees what it was
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
			return nil, nil, core.Errorf(core.Unavailable, "workers with %s start but are gone again at once: %s", id, workerReasons(refused)).Hint(
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

// waitReason says what is worth waiting for where no worker can be used.
type waitReason int

const (
	waitNothing waitReason = iota
	waitLoading            // a worker that is on its way
	waitSuspect            // workers that are avoided and may come back
)

// candidates picks among the workers of exactly this model but those that the query excludes. ws,
// unless it is nil, collects the channels that are closed when the answer may change.
func (r *Router) candidates(ws registry.WatchSet, id string, query *inference.Query) ([]core.Candidate, []sched.Refusal, waitReason) {
	wait := waitNothing
	var few [8]sched.Prospect // most models have no more workers
	prospects := few[:0]
	view := r.opts.Registry.View()
	r.mu.Lock()
	have := r.memory.have(query.Prefix)
	view.EachRoute(ws, id, func(w *core.Worker, h *core.Hive) bool {
		if excluded(query, w) {
			return true
		}
		p := r.prospectLocked(w)
		if query.Look { // it waits for no slot
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

// prospectLocked adds to a registered worker what this queen alone knows.
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

// signs returns what is known of a worker's life from the reports of its hive.
func (r *Router) signs(hive, id, nonce string) inference.Signs {
	seen := r.opts.Liveness.Hive(hive)
	if seen.Report == nil {
		return inference.Signs{} // nothing is known, nothing is held against it
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

// busy gives a worker no request for a while, by its own word.
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

// instance tells one start of a worker from all others. The nonce alone would not: a hive can
// report that of another's worker.
type instance struct{ hive, nonce string }

func instanceOf(w *core.Worker) instance { return instance{w.Hive, w.Nonce} }

// begin counts a request that is sent to a worker until end is called, once. A request that says
// how long the worker is to be kept has its hive told of its end at once.
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

// InFlight returns how many requests this queen has sent to workers and not yet ended.
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

// ctxError returns the end of a caller's patience, with what it waited for.
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
