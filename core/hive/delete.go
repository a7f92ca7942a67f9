package hive

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// modelDelete removes a model from the store. Errors: NotFound; InUse, naming the workers, for one
// that is loaded or about to be.
func (h *Hive) modelDelete(ctx context.Context, r core.Request, run *job.Run) (core.ModelDeleteResult, error) {
	m, err := h.model(r.Model)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	done, err := h.beginDelete(m.ID)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	defer done()
	result, err := h.store.DeleteModel(m.ID, r.DryRun)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	if !r.DryRun {
		h.storeChanged(ctx)
		h.forgetStates(m.Digest)
		h.log.Info("model deleted", "model", m.ID)
		if len(result.Files) < len(m.Files) {
			run.Log("%d of its %d files stay: other models need them", len(m.Files)-len(result.Files), len(m.Files))
		}
	}
	return result, nil
}

// beginDelete has nobody load a model until done is called, unless somebody does already.
func (h *Hive) beginDelete(id string) (done func(), err error) {
	const what = "delete model"
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deleting[id] != nil {
		return nil, core.Errorf(core.Conflict, "%s: %s is being deleted already", what, id).Hint("Look at `rbee job list`.")
	}
	var users []string
	for _, w := range h.workers {
		if w.handle.Model == id {
			users = append(users, w.id())
		}
	}
	slices.Sort(users)
	switch {
	case len(users) > 0:
		return nil, core.Errorf(core.InUse, "%s: %s is loaded by %s", what, id, strings.Join(users, ", ")).Hint(
			"Retire them first: `rbee worker retire %s`.", strings.Join(users, " "))
	case h.loads[id] > 0:
		return nil, core.Errorf(core.InUse, "%s: a worker is about to load %s", what, id).Hint("Cancel the job that starts it (`rbee job list`), or wait for it and retire the worker.")
	}
	over := make(chan struct{})
	h.deleting[id] = over
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.deleting, id)
		close(over)
	}, nil
}

// takeModel is ensureModel for a worker that is about to load the model: it cannot be deleted until
// release is called.
func (h *Hive) takeModel(ctx context.Context, name string, run *job.Run) (m core.Model, path string, release func(), err error) {
	for {
		if m, _, err = h.ensureModel(ctx, name, run); err != nil {
			return m, "", nil, err
		}
		if release, err = h.holdModel(ctx, m.ID); err != nil {
			return m, "", nil, err
		}
		if err = h.store.CheckModel(ctx, m.ID, run.Progress); err == nil {
			m, path, err = h.store.Model(m.ID)
		}
		if err == nil {
			return m, path, release, nil
		}
		release()
		if core.KindOf(err) == core.Integrity {
			h.storeChanged(ctx) // it is found to be damaged
		}
		if core.KindOf(err) != core.NotFound {
			return m, "", nil, err
		}
		// Deleted in this very moment: it is brought again.
	}
}

// holdModel keeps a model from being deleted until release is called. Errors: only ctx's.
func (h *Hive) holdModel(ctx context.Context, id string) (release func(), err error) {
	for {
		h.mu.Lock()
		over := h.deleting[id]
		if over == nil {
			h.loads[id]++
			h.mu.Unlock()
			return func() {
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.loads[id]--; h.loads[id] == 0 {
					delete(h.loads, id)
				}
			}, nil
		}
		h.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the end of a deletion: %w", core.FromContext(ctx))
		}
	}
}
