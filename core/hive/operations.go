package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// operation does what a request asks for and returns its result.
type operation func(ctx context.Context, r core.Request, run *job.Run) (any, error)

// operations are the functions of the operations that a hive runs: one for each that core.Operations gives to hives.
func (h *Hive) operations() map[core.Operation]operation {
	return map[core.Operation]operation{
		core.OpWorkerDownload:      typed(h.workerDownload),
		core.OpWorkerSpawn:         typed(h.spawn),
		core.OpWorkerProcessDelete: typed(h.processDelete),
		core.OpModelDownload:       typed(h.modelDownload),
		core.OpModelDelete:         typed(h.modelDelete),
		core.OpActiveWorkerRetire:  typed(h.activeRetire),
	}
}

// typed is a function with a result of its own type as an operation, whose result is nil with an error.
func typed[T any](f func(ctx context.Context, r core.Request, run *job.Run) (T, error)) operation {
	return func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
		v, err := f(ctx, r, run)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// knows says whether this hive runs an operation. Errors: Unsupported: a queen may be newer than the hive.
func (h *Hive) knows(op core.Operation) error {
	if _, ok := h.operations()[op]; ok {
		return nil
	}
	return core.WithHint(core.Errorf("", core.Unsupported, "hive %s, which runs rbee %s, does not know the operation %q", h.opts.Name, h.opts.Version, op),
		"Install the same version of rbee on the hive as on the queens.")
}

// submit starts a judged request as a job.
func (h *Hive) submit(r core.Request) core.Job {
	return h.jobs.Start(r.Operation, r.RequestID, func(ctx context.Context, run *job.Run) (any, error) {
		if err := h.knows(r.Operation); err != nil {
			return nil, err
		}
		if err := h.settled(ctx); err != nil {
			return nil, err
		}
		return h.operations()[r.Operation](ctx, r, run)
	})
}
