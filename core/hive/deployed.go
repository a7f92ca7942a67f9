package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// replica returns the worker of a deployment's replica, if this hive has it: one that outlived the
// agent that started it is not started again. nil: there is none.
func (h *Hive) replica(label string) *worker {
	if label == "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.workers {
		if w.handle.Replica == label && !isDone(w.gone) {
			return w
		}
	}
	return nil
}

// sameReplica answers a spawn whose worker is there already; its hive reports how it goes on.
// Errors: Conflict where it ends.
func (h *Hive) sameReplica(ctx context.Context, w *worker) (core.SpawnResult, error) {
	switch w.stateNow() {
	case core.WorkerReady, core.WorkerLoading:
		h.tell(ctx)
		return core.SpawnResult{Worker: w.view(h.opts.ID, h.rules().keepAlive), PID: w.pid()}, nil
	}
	return core.SpawnResult{}, core.Errorf(core.Conflict, "worker %s, which is the replica %s, is ending", w.id(), w.handle.Replica).Hint("Start another one.")
}
