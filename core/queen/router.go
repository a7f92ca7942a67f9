package queen

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/sched"
)

const (
	// suspectPatience is how long a request waits for the hive of the only, avoided, workers to
	// confirm them or to tell that they are gone, before another worker is started. It covers a
	// line that broke and the time until a hive is known to be down.
	suspectPatience = 3 * time.Second
	// maxStarts bounds how often one request has a worker started that is gone again before it can
	// be used.
	maxStarts = 2
)

// Route implements inference.Router. While a worker serves the model it reads this queen's replica
// alone and asks nobody.
//
// Where none does, Route waits for a worker that is loading; it waits for the next report of the
// hives whose workers are all avoided; otherwise it has a worker started on the hive that the
// scheduler chooses, once per model however many requests wait. A start outlasts the requests that
// wait for it: the next one finds the worker.
//
// A model is known by its id, an alias, or the exact reference of a stored one, and by the bare
// name of a model of the builtin source. A reference to another source is not fetched for a
// request: that takes a model_download or worker_spawn.
//
// Errors: Invalid without a model; NotFound for an unknown model, with the nearest names;
// Unavailable or TooLarge when no worker can be had, with the reason per hive; Overloaded when the
// hive says so; Cancelled and DeadlineExceeded of ctx, and DeadlineExceeded after the query's
// patience.
func (q *Queen) Route(ctx context.Context, r inference.Query) (inference.Lease, error) {
	if r.Model == "" {
		return inference.Lease{}, core.Errorf(core.Invalid, "the request names no model").Hint(`Set "model" to one of those that GET /v1/models lists.`)
	}
	found, refused, waitFor := q.candidates(nil, r.Model, &r)
	if len(found) > 0 {
		return q.lease(found, refused), nil // the case of nearly every request
	}
	none := inference.Lease{Refused: refusals(refused)}
	if lack := lacking(refused); lack != "" && waitFor == waitNothing {
		return none, &inference.Unable{Model: r.Model, Need: lack}
	}
	if slices.ContainsFunc(refused, isBusy) {
		return none, &inference.Busy{Model: r.Model}
	}
	if r.Other {
		return none, core.Errorf(core.Unavailable, "no other worker with %s is ready: %s", r.Model, workerReasons(refused))
	}
	if r.Patience > 0 {
		limited, cancel := context.WithTimeout(ctx, r.Patience)
		defer cancel()
		ctx = limited
	}
	progress := r.Progress
	if progress == nil {
		progress = func(core.Progress) {}
	}
	progress(core.Progress{})
	found, refused, err := q.await(ctx, r.Model, r.Needs, progress)
	if err != nil {
		return none, err
	}
	return q.lease(found, refused), nil
}

// lease counts a request at the first of the workers.
func (q *Queen) lease(found []core.Candidate, refused []sched.Refusal) inference.Lease {
	w := found[0].Worker
	end := q.begin(instanceOf(&w))
	signs := func() inference.Signs { return q.signs(w.Hive, w.ID, w.Nonce) }
	return inference.NewLease(found, refusals(refused), signs, func(o inference.Outcome) {
		end()
		if o.Busy > 0 {
			q.busy(instanceOf(&w), o.Busy)
		}
		if o.Failed {
			q.liveness.Fail(w)
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

// await waits until the model has workers that are ready, and has one started where it must.
func (q *Queen) await(ctx context.Context, model string, needs []string, progress func(core.Progress)) ([]core.Candidate, []sched.Refusal, error) {
	id := model
	var patientUntil time.Time // with avoided workers; zero: not waited for yet
	for starts := 0; ; {
		ws := watchSet{q.liveness.Changed(): {}}
		found, refused, waitFor := q.candidates(ws, id, &inference.Query{Needs: needs})
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
			if canonical := q.canonical(id); canonical != id {
				id = canonical
				continue
			}
		}
		switch {
		case waitFor == waitLoading && q.starting(id):
			// The job that loads it tells more than the registry.
			if _, err := q.start(ctx, knownModel{id: id, argument: id}, progress); err != nil {
				return nil, nil, err
			}
			continue
		case waitFor == waitLoading:
			progress(core.Progress{Phase: "wait for a worker with " + id + " that is loading"})
			if err := wait(ctx, ws); err != nil {
				return nil, nil, ctxError(ctx, refused)
			}
			continue
		case waitFor == waitSuspect && (patientUntil.IsZero() || time.Now().Before(patientUntil)):
			if patientUntil.IsZero() {
				patientUntil = time.Now().Add(suspectPatience)
				progress(core.Progress{Phase: "wait for news of the workers with " + id})
			}
			_ = waitUntil(ctx, ws, patientUntil) // the next turn sees what it was
			if ctx.Err() != nil {
				return nil, nil, ctxError(ctx, refused)
			}
			continue
		}
		m, err := q.find(ctx, model)
		if err != nil {
			return nil, nil, err
		}
		if name := cmp.Or(q.servedAs(m), m.id); name != id {
			q.learnAlias(model, name)
			id = name
			continue
		}
		if starts == maxStarts {
			return nil, nil, core.Errorf(core.Unavailable, "workers with %s start but are gone again at once: %s", id, workerReasons(refused)).Hint(
				"Look at the log of the hive, and try again.")
		}
		started, err := q.start(ctx, m, progress)
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

// candidates picks among the workers of exactly this model but those that the
// query excludes. ws, unless it is nil,
// collects the channels that are closed when the answer may change.
func (q *Queen) candidates(ws watchSet, id string, query *inference.Query) ([]core.Candidate, []sched.Refusal, waitReason) {
	wait := waitNothing
	var few [8]sched.Prospect // most models have no more workers
	prospects := few[:0]
	registry := q.registry.View()
	q.mu.Lock()
	registry.EachRoute(ws, id, func(w *core.Worker, h *core.Hive) bool {
		if excluded(query, w) {
			return true
		}
		p := q.prospectLocked(w)
		switch {
		case h == nil || h.Status == core.HiveDown:
			p.Suspect = cmp.Or(p.Suspect, "its hive is down")
		case h.Draining:
			p.Draining = true
		}
		p.Lacks = w.Capabilities.Lacks(query.Needs)
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
	q.mu.Unlock()
	if len(prospects) == 0 {
		return nil, nil, waitNothing
	}
	found, refused := sched.PickWorker(id, prospects, q.opts.Rand)
	return found, refused, wait
}

func excluded(q *inference.Query, w *core.Worker) bool {
	return q.ContextOver > 0 && w.ContextTokens <= q.ContextOver ||
		slices.ContainsFunc(q.Tried, func(t core.Worker) bool { return instanceOf(&t) == instanceOf(w) })
}

// prospect adds to a registered worker what this queen alone knows.
func (q *Queen) prospect(w *core.Worker) sched.Prospect {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.prospectLocked(w)
}

func (q *Queen) prospectLocked(w *core.Worker) sched.Prospect {
	p := sched.Prospect{Worker: w}
	p.Suspect, p.Load = q.liveness.Hive(w.Hive).Avoid(w)
	if len(q.inFlight) > 0 {
		p.InFlight = q.inFlight[instanceOf(w)]
	}
	if until, ok := q.busyUntil[instanceOf(w)]; ok {
		p.Busy = until.After(time.Now())
	}
	return p
}

// loaded adds to a registered worker the load that this queen has heard of.
func (q *Queen) loaded(w core.Worker) core.Worker {
	w.Load = q.prospect(&w).Load
	return w
}

// signs returns what is known of a worker's life from the reports of its hive.
func (q *Queen) signs(hive, id, nonce string) inference.Signs {
	seen := q.liveness.Hive(hive)
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

// busy notes that a worker takes no request for a while, by its own word.
func (q *Queen) busy(w instance, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for n, until := range q.busyUntil { // few
		if !until.After(now) {
			delete(q.busyUntil, n)
		}
	}
	q.busyUntil[w] = now.Add(d)
}

// instance tells one start of a worker from all others. The nonce alone would not: a hive can
// report that of another's worker.
type instance struct{ hive, nonce string }

func instanceOf(w *core.Worker) instance { return instance{w.Hive, w.Nonce} }

// begin counts a request that is sent to a worker until end is called, once.
func (q *Queen) begin(w instance) (end func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inFlight[w]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.inFlight[w]--; q.inFlight[w] == 0 {
			delete(q.inFlight, w)
		}
	}
}

// ctxError is the end of a caller's patience, with what it waited for.
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
