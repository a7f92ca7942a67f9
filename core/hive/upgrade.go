package hive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// workerUpgrade installs the current plugin of a worker type, starts a new worker for each worker
// of an earlier one, and retires the old ones once all new ones serve. If one does not start, the
// new ones end, and the old workers continue unaffected: until then requests reach both.
func (sp *spawner) workerUpgrade(ctx context.Context, r core.Request, run *job.Run) (core.UpgradeResult, error) {
	what := "upgrade worker type " + r.Type
	t, err := sp.types.named(r.Type)
	if err != nil {
		return core.UpgradeResult{}, err
	}
	if !t.upgrading.TryLock() {
		return core.UpgradeResult{}, core.Errorf(core.Conflict, "%s: an upgrade of it is under way already", what)
	}
	defer t.upgrading.Unlock()
	before, err := sp.store.Binaries()
	if err != nil {
		return core.UpgradeResult{}, err
	}
	b, err := sp.binaries.install(ctx, t, wish{version: r.Version}, run)
	if err != nil {
		return core.UpgradeResult{}, err
	}
	fresh := !slices.ContainsFunc(before, func(o core.WorkerBinary) bool { return o.ID == b.ID })
	result := core.UpgradeResult{Type: t.name(), Binary: b.ID, Replaced: []core.Replacement{}}
	old, err := sp.outdated(t, b)
	if err != nil {
		return core.UpgradeResult{}, err
	}
	var started []*worker
	err = nil
	if b.Problem != "" {
		err = unsupported(what, t.name(), b.Problem)
	}
	for _, w := range old {
		if err != nil {
			break
		}
		var n *worker
		if n, err = sp.replacement(ctx, w, t, b, run); err == nil {
			started = append(started, n)
			result.Replaced = append(result.Replaced, core.Replacement{Old: w.id(), New: n.id(), Model: w.handle.Model})
		}
	}
	if err != nil {
		return core.UpgradeResult{}, sp.rollBack(ctx, what, err, started, b, fresh, run)
	}
	sp.workers.tell(ctx) // so that no queen routes to a retiring worker while it knows no other
	for i, w := range old {
		run.Log("worker %s takes the place of %s", result.Replaced[i].New, w.id())
		if err := sp.workers.endWorker(w, ending{grace: cmp.Or(time.Duration(r.Grace), defaultRetireGrace)}); err != nil {
			return core.UpgradeResult{}, err
		}
	}
	for _, w := range old {
		select {
		case <-w.gone:
		case <-ctx.Done():
			return core.UpgradeResult{}, fmt.Errorf("%s: %w", what, core.FromContext(ctx))
		}
	}
	sp.workers.tell(ctx)
	return result, nil
}

// outdated returns the workers of a type that serve or load, and run from files other than the
// binary's.
func (sp *spawner) outdated(t *workerType, b core.WorkerBinary) ([]*worker, error) {
	exe, _, err := sp.store.BinaryPaths(b.ID)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(sp.roster.all(), func(w *worker) bool {
		state := w.stateNow()
		return w.handle.Attachment.Type != t.name() || state != core.WorkerReady && state != core.WorkerLoading ||
			filepath.Dir(w.handle.Attachment.Executable) == filepath.Dir(exe)
	}), nil
}

// replacement starts a worker with the same parameters as another one.
func (sp *spawner) replacement(ctx context.Context, w *worker, t *workerType, b core.WorkerBinary, run *job.Run) (*worker, error) {
	model, path, release, err := sp.modelFor(ctx, t, w.handle.Model, run)
	if err != nil {
		return nil, err
	}
	defer release()
	return sp.load(ctx, core.Request{
		Operation: core.OpWorkerSpawn, Type: t.name(), Model: w.handle.Model, Device: w.handle.Device, Slots: w.handle.Slots,
		ContextTokens: w.handle.ContextTokens, Threads: w.handle.Threads, KeepAlive: w.handle.KeepAlive, Pin: w.handle.Pinned,
	}, t, b, model, path, run)
}

// rollBack ends what an upgrade has started, and removes what it has installed. It returns the
// error of the upgrade.
func (sp *spawner) rollBack(ctx context.Context, what string, cause error, started []*worker, b core.WorkerBinary, fresh bool, run *job.Run) error {
	run.Log("rolling back: %s", cause)
	// The rollback continues if the job was cancelled.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultRetireGrace)
	defer cancel()
	for _, w := range started {
		if err := sp.workers.endWorker(w, ending{grace: defaultRetireGrace}); err != nil {
			return errors.Join(cause, err)
		}
	}
	for _, w := range started {
		select {
		case <-w.gone:
		case <-ctx.Done():
		}
	}
	if fresh {
		if _, err := sp.binaries.binaryDelete(ctx, core.Request{Binary: b.ID}, run); err != nil {
			sp.log.Warn("remove the worker binary of an upgrade that failed", "binary", b.ID, "error", err)
		}
	}
	sp.workers.tell(ctx)
	err := core.Prefix(cause, what)
	hint := "The workers of before go on. Put the plugin of before back into the plugin folder, so that new workers are of it as well."
	if said := core.HintOf(cause); said != "" {
		hint = said + "\n" + hint
	}
	return core.WithHint(err, "%s", hint)
}
