package queen

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

const (
	// suspectPatience is how long a request waits for the hive of the only, avoided, workers to confirm them or to tell that they are gone, before another
	// worker is started. It covers a line that broke and the time until a hive is known to be down.
	suspectPatience = 3 * time.Second
	// maxStarts bounds how often one request has a worker started that is gone again before it can be used.
	maxStarts = 2
)

// Pick returns the workers that can answer, best first, with the reason for each. It reads this queen's replica alone and asks nobody while a
// worker serves the model.
//
// Where none does: a worker that is loading is waited for; workers that are all avoided are waited for until their hive's next beat; otherwise a
// worker is started on the hive that the scheduler chooses, once per model however many requests wait. progress, if not nil, is called from Pick's
// goroutine with how far that is. A started worker is not given up when the requests that wait for it are: the next one finds it.
//
// A model is known by its id, an alias, or the exact reference of a stored one, and by the bare name of a model of the builtin source. A reference to
// another source is not fetched for a request: that takes a model_download or worker_spawn.
//
// Errors: Invalid without a model; NotFound for an unknown model, with the nearest names; Unavailable or TooLarge when no worker can be had,
// with the reason per hive; Overloaded when the hive says so; Cancelled and DeadlineExceeded of ctx.
func (q *Queen) Pick(ctx context.Context, r core.RouteRequest, progress func(core.Progress)) ([]core.Candidate, error) {
	if r.Model == "" {
		return nil, core.WithHint(core.Errorf("", core.Invalid, "the request names no model"), `Set "model" to one of those that GET /v1/models lists.`)
	}
	if found := q.PickReady(r.Model); len(found) > 0 {
		return found, nil // what nearly every request finds, without watching anything
	}
	if progress == nil {
		progress = func(core.Progress) {}
	}
	id := r.Model
	var patientUntil time.Time // with avoided workers; zero: there was no need yet
	for starts := 0; ; {
		ws := watchSet{q.watch(): {}}
		found, refused, waitFor := q.candidates(ws, id)
		if len(found) > 0 {
			return found, nil
		}
		if id == r.Model {
			if canonical := q.canonical(id); canonical != id {
				id = canonical
				continue
			}
		}
		switch {
		case waitFor == waitLoading && q.starting(id):
			// The job that loads it tells more than the registry.
			if _, err := q.start(ctx, knownModel{id: id, argument: id}, progress); err != nil {
				return nil, err
			}
			continue
		case waitFor == waitLoading:
			progress(core.Progress{Phase: "wait for a worker with " + id + " that is loading"})
			if err := wait(ctx, ws); err != nil {
				return nil, ctxError(ctx, refused)
			}
			continue
		case waitFor == waitSuspect && (patientUntil.IsZero() || time.Now().Before(patientUntil)):
			if patientUntil.IsZero() {
				patientUntil = time.Now().Add(suspectPatience)
				progress(core.Progress{Phase: "wait for news of the workers with " + id})
			}
			_ = waitUntil(ctx, ws, patientUntil) // the next turn sees what it was
			if ctx.Err() != nil {
				return nil, ctxError(ctx, refused)
			}
			continue
		}
		m, err := q.find(ctx, r.Model)
		if err != nil {
			return nil, err
		}
		if m.id != id {
			q.learnAlias(r.Model, m.id)
			id = m.id
			continue
		}
		if starts == maxStarts {
			return nil, core.WithHint(core.Errorf("", core.Unavailable, "workers with %s start but are gone again at once: %s", id, workerReasons(refused)),
				"Look at the log of the hive, and try again.")
		}
		started, err := q.start(ctx, m, progress)
		if err != nil {
			return nil, err
		}
		if started {
			starts++
		}
	}
}

// PickReady returns what Pick finds without waiting or starting anything: the workers of exactly this model that can answer, best first; none: ask Pick.
func (q *Queen) PickReady(model string) []core.Candidate {
	found, _, _ := q.candidates(nil, model)
	return found
}

// PickReadyWhy is PickReady with the model's workers that cannot answer now, and why.
func (q *Queen) PickReadyWhy(model string) ([]core.Candidate, []core.RouteRefusal) {
	found, refused, _ := q.candidates(nil, model)
	if len(refused) == 0 {
		return found, nil
	}
	why := make([]core.RouteRefusal, 0, len(refused))
	for _, r := range refused {
		why = append(why, core.RouteRefusal{Worker: r.Name, Reason: r.Reason})
	}
	return found, why
}

// waitReason says what is worth waiting for where no worker can be used.
type waitReason int

const (
	waitNothing waitReason = iota
	waitLoading            // a worker that is on its way
	waitSuspect            // workers that are avoided and may come back
)

// candidates picks among the workers of exactly this model. ws, unless it is nil, is told what is closed when the answer may change.
func (q *Queen) candidates(ws watchSet, id string) ([]core.Candidate, []sched.Refusal, waitReason) {
	wait := waitNothing
	var few [8]sched.Prospect // most models have no more workers
	prospects := few[:0]
	registry := q.registry()
	q.mu.Lock()
	registry.EachRoute(ws, id, func(w *core.Worker, h *core.Hive) bool {
		p := q.prospectLocked(w)
		switch {
		case h == nil || h.Status == core.HiveDown:
			p.Suspect = cmp.Or(p.Suspect, "its hive is down")
		case h.Draining:
			p.Draining = true
		}
		switch {
		case p.Draining:
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

// prospect adds to a registered worker what this queen alone knows.
func (q *Queen) prospect(w *core.Worker) sched.Prospect {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.prospectLocked(w)
}

func (q *Queen) prospectLocked(w *core.Worker) sched.Prospect {
	pulse := q.pulses[w.Hive]
	p := sched.Prospect{Worker: w, Suspect: q.avoidLocked(w.Nonce, pulse)}
	if len(q.inFlight) > 0 {
		p.InFlight = q.inFlight[w.Nonce]
	}
	if pulse == nil || pulse.report == nil {
		return p
	}
	if told := pulse.report.find(w.ID, w.Nonce); told != nil {
		p.Load = told.Load
	} else if p.Suspect == "" {
		p.Suspect = "its hive says no longer, or not yet, that it is there" // the registry follows
	}
	return p
}

// loaded adds to a registered worker the load that this queen has heard of.
func (q *Queen) loaded(w core.Worker) core.Worker {
	w.Load = q.prospect(&w).Load
	return w
}

// Failed avoids a worker that could not be reached or died under a request, until its hive's next beat still lists this very start of it. A process
// that has ended is reported by its hive at once, so what comes back is alive.
func (q *Queen) Failed(w core.Worker) {
	if now, ok := q.registry().Worker(nil, w.ID); !ok || now.Nonce != w.Nonce {
		return // gone already, and with it the reason to avoid it
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.suspects[w.Nonce]; ok {
		return
	}
	q.suspects[w.Nonce] = suspicion{hive: w.Hive, why: "it failed a request a moment ago"}
	if p, ok := q.pulses[w.Hive]; ok && p.line != nil { // what its hive says of it is wanted now
		p.line.hurry = true
		p.line.wakeUp()
	}
	q.changedLocked()
	q.log.Warn("worker failed a request, it is avoided until its hive confirms it", "worker", w.ID, "hive", w.Hive, "model", w.Model)
}

// Begin counts a request that is sent to a worker, until end is called. Calls of end after the first do nothing.
func (q *Queen) Begin(w core.Worker) (end func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inFlight[w.Nonce]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.inFlight[w.Nonce]--; q.inFlight[w.Nonce] == 0 {
			delete(q.inFlight, w.Nonce)
		}
	})
}

// ctxError is the end of a caller's patience, with what it waited for.
func ctxError(ctx context.Context, refused []sched.Refusal) error {
	err := ctx.Err()
	if len(refused) > 0 {
		err = fmt.Errorf("%w while waiting: %s", err, workerReasons(refused))
	}
	return core.E("", core.KindOf(ctx.Err()), err)
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
