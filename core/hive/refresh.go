package hive

import (
	"context"
	"fmt"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// refreshFlush is how long an answer waits for the queens to have what was found.
const refreshFlush = 3 * time.Second

// refreshCapabilities looks again at the devices of every worker type, and answers when the queens
// know, or have not heard in time.
func (h *Hive) refreshCapabilities(ctx context.Context, _ core.Request) (core.RefreshResult, error) {
	var found core.RefreshResult
	found.Before, found.WorkerTypesBefore = h.devicesNow(ctx)
	h.discover()
	for _, t := range h.typeList() {
		if err := h.lookAgain(ctx, t); err != nil {
			return core.RefreshResult{}, err
		}
	}
	found.After, found.WorkerTypesAfter = h.devicesNow(ctx)
	wake(h.engineNews)
	h.typesChanged()
	limited, cancel := context.WithTimeout(ctx, refreshFlush)
	defer cancel()
	if err := h.beat.flush(limited); err != nil && ctx.Err() == nil {
		h.log.Warn("the queens do not know yet what the refresh found", "error", err)
	}
	return found, nil
}

func (h *Hive) devicesNow(ctx context.Context) ([]core.Device, []string) {
	var free int64
	if m, err := hostinfo.ReadMemory(ctx); err == nil {
		free = m.AvailableBytes
	}
	return h.devices(free)
}

// lookAgain probes a worker type anew: by one of its workers, which sees what is free, else by a
// short-lived process, with the engine if one is installed. Errors: only ctx's.
func (h *Hive) lookAgain(ctx context.Context, t *workerType) error {
	for _, w := range h.all() {
		if w.handle.Attachment.Type == t.name() {
			h.refresh(ctx, w)
			return ctx.Err()
		}
	}
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-ctx.Done():
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	var exe, engine string
	if x, e, release, err := h.holdBinary(ctx, t.name()); err == nil {
		exe, engine = x, e
		defer release()
	}
	found, err := h.fingerprint(ctx, t.spec, exe, engine)
	if ctx.Err() != nil {
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	if err != nil {
		h.log.Warn("a worker type cannot be probed", "plugin", t.name(), "error", err)
		found.seen.Problem = err.Error()
	}
	t.noteDevices(found.seen)
	return nil
}

// TakeWorkersAlong has the workers end with Run, whatever the options say: the machine leaves its
// cluster.
func (h *Hive) TakeWorkersAlong() { h.takeAlong.Store(true) }
