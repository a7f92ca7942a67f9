package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
)

// operations returns the functions of the operations that a hive runs as jobs.
func (h *Hive) operations() job.Funcs {
	funcs := job.Funcs{}
	job.Does(funcs, operation.WorkerDownload, h.binaries.workerDownload)
	job.Does(funcs, operation.WorkerBuild, h.builds.workerBuild)
	job.Does(funcs, operation.WorkerUpgrade, h.spawner.workerUpgrade)
	job.Does(funcs, operation.WorkerBinaryDelete, h.binaries.binaryDelete)
	job.Does(funcs, operation.WorkerSpawn, h.spawner.spawn)
	job.Does(funcs, operation.WorkerProcessDelete, h.workers.processDelete)
	job.Does(funcs, operation.ModelDownload, h.models.modelDownload)
	job.Does(funcs, operation.ModelDelete, h.models.modelDelete)
	job.Does(funcs, operation.StoreVerify, h.models.storeVerify)
	job.Does(funcs, operation.StoreGC, h.models.storeGC)
	job.Does(funcs, operation.ActiveWorkerRetire, h.workers.activeRetire)
	return funcs
}

// readFuncs returns the functions of the operations that a hive answers without a job.
func (h *Hive) readFuncs() operation.Answers {
	a := operation.Answers{}
	operation.Answer(a, operation.WorkerBinaryList, h.binaries.binaryList)
	operation.Answer(a, operation.WorkerBinaryGet, h.binaries.binaryGet)
	operation.Answer(a, operation.WorkerProcessList, h.workers.processList)
	operation.Answer(a, operation.WorkerProcessGet, h.workers.processGet)
	operation.Answer(a, operation.ModelList, h.models.modelList)
	operation.Answer(a, operation.ModelGet, h.models.modelGet)
	operation.Answer(a, operation.CatalogSearch, h.catalogSearch)
	operation.Answer(a, operation.HiveRefreshCapabilities, h.refreshCapabilities)
	return a
}

// handle registers the operations with the jobs. Each waits until the workers of an earlier agent
// are adopted.
func (h *Hive) handle(jobs *job.Manager) {
	funcs := h.operations()
	for op, f := range funcs {
		funcs[op] = func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
			if err := h.life.settled(ctx); err != nil {
				return nil, err
			}
			return f(ctx, r, run)
		}
	}
	jobs.Handle(funcs)
}

// Answer implements operation.Answerer: it checks a request that came from a queen or from this
// machine, waits until the workers of an earlier agent are adopted, and answers for this hive,
// whichever hive the request names.
func (h *Hive) Answer(ctx context.Context, r core.Request) (any, error) {
	answer, ok := h.reads[r.Operation]
	if !ok {
		return nil, operation.Unsupported(h.opts.ID, h.opts.Version, r.Operation)
	}
	if err := operation.Check(r); err != nil {
		return nil, err
	}
	if err := h.life.settled(ctx); err != nil {
		return nil, err
	}
	return answer(ctx, r)
}
