package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// modelDelete removes a model from the store. Errors: NotFound; InUse, naming the workers, for one
// that is loaded or about to be.
func (ms *models) modelDelete(ctx context.Context, r core.Request, run *job.Run) (core.ModelDeleteResult, error) {
	m, err := ms.model(r.Model)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	done, err := ms.claims.beginDelete(m.ID)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	defer done()
	result, err := ms.store.DeleteModel(m.ID, r.DryRun)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	if !r.DryRun {
		ms.stock.storeChanged(ctx)
		ms.states.forget(m.Digest)
		ms.log.Info("model deleted", "model", m.ID)
		if len(result.Files) < len(m.Files) {
			run.Log("%d of its %d files stay: other models need them", len(m.Files)-len(result.Files), len(m.Files))
		}
	}
	return result, nil
}

// takeModel is ensureModel for a worker that is about to load the model: it cannot be deleted until
// release is called.
func (ms *models) takeModel(ctx context.Context, name string, run *job.Run) (m core.Model, path string, release func(), err error) {
	for {
		if m, _, err = ms.ensureModel(ctx, name, run); err != nil {
			return m, "", nil, err
		}
		if release, err = ms.claims.holdModel(ctx, m.ID); err != nil {
			return m, "", nil, err
		}
		if err = ms.store.CheckModel(ctx, m.ID, run.Progress); err == nil {
			m, path, err = ms.store.Model(m.ID)
		}
		if err == nil {
			return m, path, release, nil
		}
		release()
		if core.KindOf(err) == core.Integrity {
			ms.stock.storeChanged(ctx) // it was found damaged
		}
		if core.KindOf(err) != core.NotFound {
			return m, "", nil, err
		}
		// It was deleted in this very moment: fetch it again.
	}
}
