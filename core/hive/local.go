package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// Processes is the hive's process table, from the operating system, ordered by pid. Errors:
// Unavailable, ctx's.
func (h *Hive) Processes(ctx context.Context) ([]core.Process, error) { return h.processes(ctx) }

// Process is one worker process with its details. Errors: NotFound for a pid that is no worker of
// this hive.
func (h *Hive) Process(ctx context.Context, pid int) (core.Process, error) {
	return h.process(ctx, pid)
}

// Binaries lists the worker binaries, damaged ones included, without their files.
func (h *Hive) Binaries(ctx context.Context) ([]core.WorkerBinary, error) {
	if err := h.settled(ctx); err != nil {
		return nil, err
	}
	list, err := h.store.Binaries()
	if err != nil {
		return nil, err
	}
	out := make([]core.WorkerBinary, 0, len(list))
	for _, b := range list {
		b.Files = nil
		out = append(out, h.withUsers(b))
	}
	return out, nil
}

// Binary is one worker binary by "<type>@<version>", or "<type>" for its newest. Errors: NotFound.
func (h *Hive) Binary(ctx context.Context, id string) (core.WorkerBinary, error) {
	if err := h.settled(ctx); err != nil {
		return core.WorkerBinary{}, err
	}
	b, err := h.store.Binary(id)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return h.withUsers(b), nil
}
