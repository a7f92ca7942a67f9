package hive

import (
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// processList returns the hive's process table, from the operating system, ordered by pid.
func (sv *supervisor) processList(ctx context.Context, _ core.Request) ([]core.Process, error) {
	out := []core.Process{}
	for _, w := range sv.roster.all() {
		u, err := hostinfo.ReadUsage(ctx, w.identity())
		if core.KindOf(err) == core.NotFound {
			continue // it has just exited
		}
		if err != nil {
			return nil, err
		}
		out = append(out, w.process(u))
	}
	slices.SortFunc(out, func(a, b core.Process) int { return a.PID - b.PID })
	return out, nil
}

// processGet returns one worker process with its details. Errors: NotFound if this hive has no
// worker process with that pid.
func (sv *supervisor) processGet(ctx context.Context, r core.Request) (core.Process, error) {
	w, gone, err := sv.roster.findProcess(r.PID)
	if err != nil {
		return core.Process{}, err
	}
	if w == nil {
		return core.Process{}, core.Errorf(core.NotFound, "find worker process: process %d of worker %s has ended: %s", r.PID, gone.WorkerID, gone.How)
	}
	d, err := hostinfo.ReadDetails(ctx, w.identity())
	if err != nil {
		return core.Process{}, err
	}
	p := w.process(d.Usage)
	p.CommandLine, p.Children, p.Sockets = d.CommandLine, d.Children, d.Sockets
	p.Log, err = tailFile(sv.disk.logFile(w.id()), tailLines)
	return p, err
}

func (w *worker) process(u hostinfo.Usage) core.Process {
	return core.Process{
		PID: w.pid(), WorkerID: w.id(), Type: w.handle.Attachment.Type, Model: w.handle.Model, Device: w.handle.Device, State: w.stateNow(),
		MemoryBytes: u.MemoryBytes, CPUPercent: u.CPUPercent, StartedAt: u.StartedAt,
	}
}
