package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// sameReplica answers a spawn whose worker already exists; its hive reports its progress. Errors:
// Conflict where it is ending.
func (sp *spawner) sameReplica(ctx context.Context, w *worker) (core.SpawnResult, error) {
	switch w.stateNow() {
	case core.WorkerReady, core.WorkerLoading:
		sp.workers.tell(ctx)
		return core.SpawnResult{Worker: w.view(sp.hiveID, sp.settings.rules().keepAlive), PID: w.pid()}, nil
	}
	return core.SpawnResult{}, core.Errorf(core.Conflict, "worker %s, which is the replica %s, is ending", w.id(), w.handle.Replica).Hint("Start another one.")
}
