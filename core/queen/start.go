package queen

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

// registrationPatience is how long after the end of worker_spawn the worker must be in the
// registry. Its hive beats at once, so it is a generous bound.
const registrationPatience = 10 * time.Second

// errAlreadyThere says that there is nothing to start.
var errAlreadyThere = errors.New("a worker is there already")

// start has one worker with the model started and returns when it is in the registry, whatever its
// state is then. All requests that wait for the same model follow one job. None of them owns it:
// the job is the hive's, and goes on when they are all gone. started is false when there was
// nothing to start.
func (q *Queen) start(ctx context.Context, m knownModel, progress func(core.Progress)) (started bool, err error) {
	j, err := q.startJob(ctx, m)
	switch {
	case errors.Is(err, errAlreadyThere):
		return false, nil
	case err != nil:
		return false, err
	}
	progress(core.Progress{Phase: "start a worker with " + m.id})
	result, err := q.follow(ctx, j.ID, progress)
	if err == nil || ctx.Err() == nil {
		q.endStart(m.id, j.ID)
	}
	if err != nil {
		return false, startError(ctx, m.id, err)
	}
	return true, q.registered(ctx, result.Worker)
}

// startJob gives the running worker_spawn for the model, or submits one.
func (q *Queen) startJob(ctx context.Context, m knownModel) (core.Job, error) {
	unlock, err := q.lock(ctx, "start/"+m.id)
	if err != nil {
		return core.Job{}, err
	}
	defer unlock()
	q.mu.Lock()
	j, ok := q.starts[m.id]
	q.mu.Unlock()
	if ok {
		// Nobody may have followed it to its end.
		if now, err := q.Job(ctx, j.ID); err == nil && now.State == core.JobRunning {
			return now, nil
		}
		q.endStart(m.id, j.ID)
	}
	if ws := q.registry().WorkersOfModel(nil, m.id); len(ws) > 0 {
		// While this request waited for the lock, another one's worker came.
		drains := map[string]bool{}
		for _, h := range q.registry().Hives(nil) {
			drains[h.ID] = h.Draining
		}
		for _, w := range ws {
			if p := q.prospect(&w); p.Suspect == "" && !drains[w.Hive] && (w.State == core.WorkerReady || w.State == core.WorkerLoading) {
				return core.Job{}, errAlreadyThere
			}
		}
	}
	live, refused := q.liveHives()
	live = slices.DeleteFunc(live, func(h core.Hive) bool {
		if q.linkedTo(h.ID) {
			return false
		}
		// This queen could not send a request there: the next request would start another worker.
		refused = append(refused, sched.Refusal{Name: h.Name, Reason: noLine})
		return true
	})
	hive, err := q.place(sched.Demand{Model: m.id}, m, live, refused)
	if err != nil {
		return core.Job{}, err
	}
	j, err = q.submit(ctx, hive, core.Request{Operation: core.OpWorkerSpawn, Model: m.argument, RequestID: "start-" + rand.Text()})
	if err != nil {
		return core.Job{}, startError(ctx, m.id, err)
	}
	q.log.Info("starting a worker for a request", "model", m.id, "hive", hive, "job", j.ID)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.starts[m.id] = j
	return j, nil
}

// starting tells whether this queen knows a job that starts a worker with the model.
func (q *Queen) starting(model string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.starts[model]
	return ok
}

// endStart forgets a start that has ended, unless it is another one already.
func (q *Queen) endStart(model, job string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.starts[model].ID == job {
		delete(q.starts, model)
	}
}

// follow passes the progress of a worker_spawn on and returns its result.
func (q *Queen) follow(ctx context.Context, id string, progress func(core.Progress)) (core.SpawnResult, error) {
	var result core.SpawnResult
	var failure error
	err := q.Events(ctx, id, 0, func(e core.Event) error {
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

// registered waits until the registry has had the worker.
func (q *Queen) registered(ctx context.Context, w core.Worker) error {
	until := time.Now().Add(registrationPatience)
	for {
		ws := watchSet{}
		if now, ok := q.registry().Worker(ws, w.Hive, w.ID); ok && now.State != core.WorkerLoading {
			return nil
		}
		if err := waitUntil(ctx, ws, until); err == nil {
			continue
		}
		if ctx.Err() != nil {
			return core.FromContext(ctx)
		}
		return core.Errorf(core.Unavailable, "worker %s was started on hive %s, but the hive has not reported it", w.ID, w.Hive).Hint(
			"Look at `rbee ps` and at the log of the hive, and try again.")
	}
}

// startError is a failed start as the failure of a request for an answer: the client's request was
// right, so that it is not Invalid, NotFound or Cancelled, whatever the job was.
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
