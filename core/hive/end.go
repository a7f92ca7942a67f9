package hive

import (
	"cmp"
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/job"
)

const (
	// defaultRetireGrace is how long the running requests of a retired worker may take to finish.
	defaultRetireGrace = 10 * time.Minute
	// lastWait is the time between the last means of ending a worker: Stop, SIGTERM, SIGKILL.
	lastWait = 300 * time.Millisecond
	// tellTimeout is how long the result of an operation waits until a queen knows it.
	tellTimeout = 2 * time.Second
)

// processDelete ends a worker process: it drains it, stops it, and signals it if that does not
// help. If the job is cancelled, the process still ends.
func (sv *supervisor) processDelete(ctx context.Context, r core.Request, run *job.Run) (core.ExitResult, error) {
	w, gone, err := sv.roster.findProcess(r.PID)
	if err != nil {
		return core.ExitResult{}, err
	}
	return sv.endAndTell(ctx, w, gone, ending{grace: cmp.Or(time.Duration(r.Grace), sv.settings.defaults.Load().StopGrace), now: r.Now, keep: r.KeepState}, run)
}

// activeRetire retires a worker and returns when it has ended. If the job is cancelled, the
// retirement continues.
func (sv *supervisor) activeRetire(ctx context.Context, r core.Request, run *job.Run) (core.ExitResult, error) {
	w, gone, err := sv.roster.findWorker(r.Worker)
	if err != nil {
		return core.ExitResult{}, err
	}
	return sv.endAndTell(ctx, w, gone, ending{grace: cmp.Or(time.Duration(r.Grace), defaultRetireGrace), keep: r.KeepState}, run)
}

// retire begins the end of a worker that the queens want retired. Repeating it does nothing.
func (sv *supervisor) retire(id string) {
	w, ok := sv.roster.worker(id)
	if !ok {
		return
	}
	if err := sv.endWorker(w, ending{grace: defaultRetireGrace}); err != nil {
		sv.log.Debug("retire a worker", "worker", id, "error", err) // the hive ends: a queen asks the next agent again
	}
}

// endAndTell ends a worker, or if w is nil reports its recorded exit, and returns when nothing of
// it is left and a queen knows.
func (sv *supervisor) endAndTell(ctx context.Context, w *worker, gone exit, e ending, run *job.Run) (core.ExitResult, error) {
	if w == nil {
		run.Log("worker %s, process %d, has ended already", gone.WorkerID, gone.Process.PID)
		return core.ExitResult{WorkerID: gone.WorkerID, PID: gone.Process.PID, AlreadyGone: true, Exit: gone.How}, nil
	}
	if err := sv.endWorker(w, e); err != nil {
		return core.ExitResult{}, err
	}
	if e.now {
		run.Log("worker %s ends, and its running requests with it", w.id())
	} else {
		run.Log("worker %s takes no new request; running ones may go on for %s", w.id(), e.grace)
	}
	select {
	case <-w.gone:
	case <-ctx.Done():
		return core.ExitResult{}, fmt.Errorf("%s: %w", "end worker "+w.id(), core.FromContext(ctx))
	}
	if !isDone(w.proc.Done()) {
		return core.ExitResult{}, core.Errorf(core.Unavailable, "%s: the hive is shutting down", "end worker "+w.id())
	}
	sv.tell(ctx)
	w.mu.Lock()
	forced := w.forced
	w.mu.Unlock()
	return core.ExitResult{WorkerID: w.id(), PID: w.pid(), Forced: forced, Exit: w.proc.Exit()}, nil
}

// ending is how a worker is to end.
type ending struct {
	grace time.Duration // how long running requests, or with now the process, may take
	now   bool          // running requests are cut
	keep  bool          // what it has read of conversations is kept for the next worker with the model
}

// endWorker begins the end of a worker, or hurries one under way. It does not wait. Errors:
// Unavailable when the hive ends.
func (sv *supervisor) endWorker(w *worker, e ending) error {
	by := time.Now().Add(e.grace)
	w.mu.Lock()
	first, loading := w.endBy.IsZero(), w.state == core.WorkerLoading
	if first || by.Before(w.endBy) || e.now {
		w.now = w.now || e.now
		if first || by.Before(w.endBy) {
			w.endBy = by
		}
		select {
		case w.sooner <- struct{}{}:
		default:
		}
	}
	w.asked = true
	w.keep = e.keep && (first || w.keep) // retiring for good takes precedence
	w.mu.Unlock()
	if !first {
		return nil
	}
	if w.setState(core.WorkerRetiring) {
		sv.beat.bump()
	}
	sv.log.Info("worker retires", "worker", w.id(), "model", w.handle.Model, "pid", w.pid())
	return sv.life.task(func(ctx context.Context) {
		err := error(nil)
		if !loading && !w.cutNow() { // a load has nothing to drain
			err = sv.drain(ctx, w)
		}
		if err == nil {
			err = sv.stop(ctx, w)
		}
		if err != nil && ctx.Err() == nil {
			sv.log.Error("end a worker", "worker", w.id(), "pid", w.pid(), "error", err)
		}
	})
}

// drain returns when the worker is idle, its time is over or it has exited. Errors: only ctx's.
func (sv *supervisor) drain(ctx context.Context, w *worker) error {
	draining, cancel := context.WithCancel(ctx)
	defer cancel()
	drained := make(chan error, 1)
	if err := sv.life.task(func(context.Context) { drained <- w.proc.Drain(draining) }); err != nil {
		return err
	}
	timer := time.NewTimer(time.Until(w.deadline()))
	defer timer.Stop()
	for {
		select {
		case err := <-drained:
			if err != nil && !isDone(w.proc.Done()) {
				sv.log.Warn("a worker does not drain", "worker", w.id(), "error", err)
				return nil
			}
			return ctx.Err() // the worker's data socket closes only when finished responses are flushed
		case <-w.sooner:
			if w.cutNow() {
				return nil
			}
			timer.Reset(time.Until(w.deadline()))
		case <-timer.C:
			sv.log.Warn("the running requests of a worker took too long and are cut", "worker", w.id())
			w.force()
			return nil
		case <-w.proc.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stop ends the process: by asking, by SIGTERM, by SIGKILL, the signals to its whole group. Errors:
// Internal, ctx's.
func (sv *supervisor) stop(ctx context.Context, w *worker) error {
	if isDone(w.proc.Done()) {
		return nil
	}
	left := max(min(time.Until(w.deadline()), sv.settings.defaults.Load().StopGrace), lastWait)
	stopping, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	patience := left / 2
	if w.cutNow() {
		patience = 0
	}
	err := sv.life.task(func(context.Context) {
		if _, err := w.proc.Stop(stopping, patience); err != nil && !isDone(w.proc.Done()) {
			sv.log.Warn("a worker does not stop", "worker", w.id(), "error", err)
		}
	})
	if err != nil {
		return err
	}
	select {
	case <-w.proc.Done():
		return nil
	case <-stopping.Done():
	}
	w.force()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := sv.signal(w, sig); err != nil {
			return err
		}
		select {
		case <-w.proc.Done():
			return nil
		case <-time.After(lastWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil // killed, but the operating system takes its time; the supervisor waits for it
}

// signal sends a signal to the process group of a worker, if it is still the same process.
func (sv *supervisor) signal(w *worker, sig syscall.Signal) error {
	p, err := hostinfo.Open(w.identity(), w.handle.Attachment.User)
	if err == nil {
		err = p.SignalGroup(sig)
		if core.KindOf(err) == core.Forbidden { // it does not lead its group: signal it alone
			err = p.Signal(sig)
		}
		if closeErr := p.Close(); closeErr != nil {
			sv.log.Warn("let go of a process", "pid", w.pid(), "error", closeErr)
		}
	}
	if core.KindOf(err) == core.NotFound {
		return nil
	}
	return err
}

// tell waits briefly until a queen knows the state: an operation on a hive succeeds even without a
// queen.
func (sv *supervisor) tell(ctx context.Context) {
	if sv.beat.queens == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := sv.beat.flush(ctx); err != nil {
		sv.log.Warn("no queen knows the new state yet", "error", err)
	}
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
