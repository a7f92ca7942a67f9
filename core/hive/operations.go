package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// operations are the functions of the operations that a hive runs: one for each that
// core.Operations gives to hives.
func (h *Hive) operations() map[core.Operation]job.Func {
	return map[core.Operation]job.Func{
		core.OpWorkerDownload:      job.Typed(h.workerDownload),
		core.OpWorkerBuild:         job.Typed(h.workerBuild),
		core.OpWorkerBinaryDelete:  job.Typed(h.binaryDelete),
		core.OpWorkerSpawn:         job.Typed(h.spawn),
		core.OpWorkerProcessDelete: job.Typed(h.processDelete),
		core.OpModelDownload:       job.Typed(h.modelDownload),
		core.OpModelDelete:         job.Typed(h.modelDelete),
		core.OpStoreVerify:         job.Typed(h.storeVerify),
		core.OpStoreGC:             job.Typed(h.storeGC),
		core.OpActiveWorkerRetire:  job.Typed(h.activeRetire),
	}
}

// handle gives the operations to the jobs. Each waits until the workers of an earlier agent are
// taken over.
func (h *Hive) handle(jobs *job.Manager) {
	funcs := h.operations()
	for op, f := range funcs {
		funcs[op] = func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
			if err := h.settled(ctx); err != nil {
				return nil, err
			}
			return f(ctx, r, run)
		}
	}
	jobs.Handle(funcs)
}
