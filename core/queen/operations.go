package queen

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/registry"
)

// Answer implements operation.Answerer for clients: it validates a request and answers it. Registry
// data is this queen's replica: call Sync first if it must be newer. Errors: also those of the
// operation.
func (q *Queen) Answer(ctx context.Context, r core.Request) (any, error) {
	if err := operation.Check(r); err != nil {
		return nil, err
	}
	answer, ok := q.reads[r.Operation]
	if !ok {
		return nil, core.Errorf(core.Unsupported, "%s is answered as a job only", r.Operation)
	}
	return answer(ctx, r)
}

// readFuncs returns the functions of the operations that a queen answers without a job, some of
// them by asking a hive.
func (q *Queen) readFuncs() operation.Answers {
	a := operation.Answers{}
	for _, s := range operation.All() {
		if s.AsksHive {
			a[s.Name] = func(ctx context.Context, r core.Request) (any, error) {
				_, v, err := hives.AskNamed(ctx, q.hives, s, r)
				return v, err
			}
		}
	}
	operation.Answer(a, operation.ModelList, q.modelList)
	operation.Answer(a, operation.ModelGet, q.modelGet)
	operation.Answer(a, operation.AliasList, q.aliasList)
	operation.Answer(a, operation.HiveList, func(ctx context.Context, _ core.Request) ([]core.Hive, error) { return q.Hives(ctx) })
	operation.Answer(a, operation.HiveGet, func(ctx context.Context, r core.Request) (core.Hive, error) { return q.hives.Named(ctx, r.Hive) })
	operation.Answer(a, operation.HiveStatus, q.hiveHealth)
	operation.Answer(a, operation.ActiveWorkerList, func(ctx context.Context, _ core.Request) ([]core.Worker, error) { return q.hives.Workers(), nil })
	operation.Answer(a, operation.ActiveWorkerGet, func(ctx context.Context, r core.Request) (core.Worker, error) { return q.hives.Worker(ctx, r.Worker) })
	operation.Answer(a, operation.SettingList, func(context.Context, core.Request) ([]core.Setting, error) { return q.Registry.Settings(), nil })
	operation.Answer(a, operation.DeploymentList, q.deploymentList)
	operation.Answer(a, operation.DeploymentGet, q.deploymentGet)
	operation.Answer(a, operation.Status, q.status)
	return a
}

// operations returns the functions of the operations that a queen runs as jobs on its own machine:
// those it answers, and infer.
func (q *Queen) operations() job.Funcs {
	funcs := job.Funcs{}
	for _, s := range operation.All() {
		if answer, ok := q.reads[s.Name]; ok {
			funcs[s.Name] = func(ctx context.Context, r core.Request, _ *job.Run) (any, error) {
				if s.Registry { // like a plain GET without ?consistency=
					if _, err := q.Registry.Sync(ctx, core.ConsistencyDefault); err != nil {
						return nil, err
					}
				}
				return answer(ctx, r)
			}
		}
	}
	job.Does(funcs, operation.Infer, q.infer)
	job.Does(funcs, operation.SettingSet, q.setSetting)
	job.Does(funcs, operation.AliasSet, q.aliasSet)
	job.Does(funcs, operation.AliasRemove, q.aliasRemove)
	job.Does(funcs, operation.DeploymentPlan, q.deploymentPlan)
	job.Does(funcs, operation.DeploymentApply, q.deploymentApply)
	job.Does(funcs, operation.DeploymentStop, q.deploymentStop)
	job.Does(funcs, operation.DeploymentRevert, q.deploymentRevert)
	return funcs
}

// status returns the status as a plain GET does: of the up-to-date registry or, if no leader
// answers in time, of this queen's replica.
func (q *Queen) status(ctx context.Context, _ core.Request) (core.Status, error) {
	limited, cancel := context.WithTimeout(ctx, registry.LookPatience)
	defer cancel()
	info, err := q.Registry.Sync(limited, core.ConsistencyDefault)
	if err != nil {
		info, err = q.Registry.Sync(ctx, core.ConsistencyStale)
	}
	if err != nil {
		return core.Status{}, err
	}
	s, err := q.Status(ctx)
	s.Read = info
	return s, err
}

// modelList returns the models of a hive, or of the whole cluster.
func (q *Queen) modelList(ctx context.Context, r core.Request) ([]core.Model, error) {
	if r.Hive == "" {
		return q.Models(ctx)
	}
	h, v, err := hives.AskNamed(ctx, q.hives, operation.ModelList.Spec, r)
	models, _ := v.([]core.Model)
	for i := range models {
		models[i].Hives = []string{h.ID}
	}
	return models, err
}

// modelGet returns a model of a hive, or of the first hive that has it.
func (q *Queen) modelGet(ctx context.Context, r core.Request) (core.Model, error) {
	if r.Hive != "" {
		r.Model = q.placer.Dealias(r.Model)
		h, v, err := hives.AskNamed(ctx, q.hives, operation.ModelGet.Spec, r)
		m, _ := v.(core.Model)
		if err == nil {
			m.Hives = []string{h.ID}
		}
		return m, err
	}
	m, err := q.placer.Model(ctx, r.Model)
	if err == nil {
		q.underWay(&m)
	}
	return m, err
}

// infer answers a prompt as a job. Its stages become progress events; the answer itself is the
// result, and nothing else.
func (q *Queen) infer(ctx context.Context, r core.Request, run *job.Run) (core.InferResult, error) {
	if q.opts.Infer == nil {
		return core.InferResult{}, core.Errorf(core.Unsupported, "this queen answers no prompts")
	}
	return q.opts.Infer(ctx, r, run.Progress, func(line string) { run.Log("%s", line) })
}

// setSetting sets a cluster setting, or resets it to its default.
func (q *Queen) setSetting(ctx context.Context, r core.Request, _ *job.Run) (core.Setting, error) {
	var (
		s   core.Setting
		err error
	)
	switch {
	case r.Unset && r.Value != "":
		return s, core.Errorf(core.Invalid, "a setting is set or unset, not both").Hint("Leave one of value and unset out.")
	case r.Unset:
		s, err = q.Registry.Reset(ctx, r.Setting)
	default:
		s, err = q.Registry.Set(ctx, r.Setting, r.Value)
	}
	if err == nil {
		q.log.Info("setting of the cluster changed", "setting", s.Name, "value", s.Value, "set", s.Set)
	}
	return s, err
}
