package queen

import (
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/registry"
)

// operations are the functions of the operations that a queen runs on its own machine: one for each
// that core.Operations gives to queens.
func (q *Queen) operations() map[core.Operation]job.Func {
	return map[core.Operation]job.Func{
		core.OpWorkerBinaryList: read(func(ctx context.Context, r core.Request) ([]core.WorkerBinary, error) { return q.Binaries(ctx, r.Hive) }),
		core.OpWorkerBinaryGet: read(func(ctx context.Context, r core.Request) (core.WorkerBinary, error) {
			return q.Binary(ctx, r.Hive, r.Binary)
		}),
		core.OpWorkerProcessList: read(func(ctx context.Context, r core.Request) ([]core.Process, error) { return q.Processes(ctx, r.Hive) }),
		core.OpWorkerProcessGet:  read(func(ctx context.Context, r core.Request) (core.Process, error) { return q.Process(ctx, r.Hive, r.PID) }),
		core.OpModelList:         read(q.modelList),
		core.OpModelGet:          read(q.modelGet),
		core.OpHiveList:          q.fresh(read(func(ctx context.Context, _ core.Request) ([]core.Hive, error) { return q.Hives(ctx) })),
		core.OpHiveGet:           q.fresh(read(func(ctx context.Context, r core.Request) (core.Hive, error) { return q.Hive(ctx, r.Hive) })),
		core.OpHiveStatus:        q.fresh(read(func(ctx context.Context, r core.Request) (core.HiveHealth, error) { return q.HiveHealth(ctx, r.Hive) })),
		core.OpHiveRefreshCapabilities: read(func(ctx context.Context, r core.Request) (core.RefreshResult, error) {
			return q.RefreshHive(ctx, r.Hive)
		}),
		core.OpActiveWorkerList: q.fresh(read(func(ctx context.Context, _ core.Request) ([]core.Worker, error) { return q.Workers(ctx) })),
		core.OpActiveWorkerGet:  q.fresh(read(func(ctx context.Context, r core.Request) (core.Worker, error) { return q.Worker(ctx, r.Worker) })),
		core.OpInfer:            job.Typed(q.infer),
		core.OpStatus:           read(q.status),
	}
}

// read is an operation that has nothing to tell before its result.
func read[T any](f func(ctx context.Context, r core.Request) (T, error)) job.Func {
	return job.Typed(func(ctx context.Context, r core.Request, _ *job.Run) (T, error) { return f(ctx, r) })
}

// fresh is an operation that reads the registry as it is known to be, as a plain GET does that does
// not ask for less.
func (q *Queen) fresh(f job.Func) job.Func {
	return func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
		if _, err := q.Sync(ctx, core.ConsistencyDefault); err != nil {
			return nil, err
		}
		return f(ctx, r, run)
	}
}

// status is the status as a plain GET gives it: of the registry as it is known to be, or, where no
// leader says so in time, as this queen knows it.
func (q *Queen) status(ctx context.Context, _ core.Request) (core.Status, error) {
	limited, cancel := context.WithTimeout(ctx, registry.LookPatience)
	defer cancel()
	info, err := q.Sync(limited, core.ConsistencyDefault)
	if err != nil {
		info, err = q.Sync(ctx, core.ConsistencyStale)
	}
	if err != nil {
		return core.Status{}, err
	}
	s, err := q.Status(ctx)
	s.Read = info
	return s, err
}

// modelList is the models of a hive, or of the whole cluster.
func (q *Queen) modelList(ctx context.Context, r core.Request) ([]core.Model, error) {
	if r.Hive == "" {
		return q.Models(ctx)
	}
	return q.HiveModels(ctx, r.Hive)
}

// modelGet is a model of a hive, or of the first hive that has it.
func (q *Queen) modelGet(ctx context.Context, r core.Request) (core.Model, error) {
	if r.Hive != "" {
		return q.HiveModel(ctx, r.Hive, r.Model)
	}
	models, err := q.Models(ctx)
	if err != nil {
		return core.Model{}, err
	}
	var names []string
	for _, m := range models {
		if m.ID == r.Model || slices.Contains(m.Aliases, r.Model) {
			return m, nil
		}
		names = append(append(names, m.ID), m.Aliases...)
	}
	return core.Model{}, core.Errorf(core.NotFound, "no hive has a model %q", r.Model).Hint("%sList the models to see what there is.", nearest(r.Model, names))
}
