package hive

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// refreshFlush is how long an answer waits until the queens know the result.
const refreshFlush = 3 * time.Second

// refreshCapabilities probes the devices of every worker type again, and answers when the queens
// know the result, or after refreshFlush.
func (h *Hive) refreshCapabilities(ctx context.Context, _ core.Request) (core.RefreshResult, error) {
	var found core.RefreshResult
	found.Before, found.WorkerTypesBefore = h.types.devicesNow(ctx)
	h.discover()
	for _, t := range h.types.all() {
		if err := h.types.lookAgain(ctx, t); err != nil {
			return core.RefreshResult{}, err
		}
	}
	found.After, found.WorkerTypesAfter = h.types.devicesNow(ctx)
	wake(h.types.engineNews)
	h.types.changed()
	limited, cancel := context.WithTimeout(ctx, refreshFlush)
	defer cancel()
	if err := h.beat.flush(limited); err != nil && ctx.Err() == nil {
		h.log.Warn("the queens do not know yet what the refresh found", "error", err)
	}
	return found, nil
}

func (ts *typeSet) devicesNow(ctx context.Context) ([]core.Device, []string) {
	var free int64
	if m, err := hostinfo.ReadMemory(ctx); err == nil {
		free = m.AvailableBytes
	}
	return ts.devices(free)
}

// TakeWorkersAlong makes the workers end with Run, whatever the options: the machine leaves its
// cluster.
func (h *Hive) TakeWorkersAlong() { h.takeAlong.Store(true) }
