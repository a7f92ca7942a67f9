package hive

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/sched"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// sizes computes how large a worker may be.
type sizes struct {
	whole, least int64                       // bytes with the wanted context, and with the least; 0: unknown
	choose       func(m memory) (fit, error) // returns the largest that fits
}

// fit chooses the device and size of a worker, and reserves its memory until release is called. If
// it does not fit, it waits for workers to make room; see sched.Swap.
func (sp *spawner) fit(ctx context.Context, r core.Request, id string, p workerProcess, model core.Model, run *job.Run) (hd handle, release func(), err error) {
	slots := cmp.Or(r.Slots, sp.settings.defaults.Load().Slots)
	var s sizes
	wait := &waiter{}
	defer sp.rooms.leave(wait)
	said := ""
	for {
		turns := sp.rooms.turns()
		f, err := probeFor(ctx, p)
		if err != nil {
			return handle{}, nil, err
		}
		devices, err := devicesFor(f, r.Device)
		if err != nil {
			return handle{}, nil, err
		}
		if s.choose == nil {
			for _, w := range f.Warnings {
				run.Log("%s", w)
			}
			if s, err = sp.sizesOf(r, model, slots, sp.besideOf(f)); err != nil {
				return handle{}, nil, err
			}
		}
		at, ok, err := sp.rooms.take(id, turns, devices, wait, s, reservation{model: model.ID, keepAlive: r.KeepAlive, pinned: r.Pin})
		if err != nil {
			return handle{}, nil, err
		}
		if !ok {
			continue
		}
		if at.found {
			hd := handle{
				Format: handleFormat, Attachment: p.Attachment(), Model: model.ID, ModelDigest: model.Digest, Device: at.device.ID, Slots: slots,
				ContextTokens: at.size.ContextTokens, MemoryBytes: at.size.EstimateBytes, Threads: cmp.Or(r.Threads, sp.settings.defaults.Load().Threads), CreatedAt: sp.now(),
			}
			return hd, func() { sp.rooms.unreserve(id) }, nil
		}
		if phase := "wait for room on " + at.device.ID + ": " + at.turn.For; phase != said {
			said = phase
			run.Progress(core.Progress{Phase: phase})
		}
		if err := sp.makeRoom(ctx, at.turn, model.ID, run); err != nil {
			return handle{}, nil, err
		}
	}
}

// makeRoom ends workers to make room for a load, and returns when another attempt is worthwhile.
// Errors: ctx's, Unavailable when the hive ends.
func (sp *spawner) makeRoom(ctx context.Context, turn sched.Turn, model string, run *job.Run) error {
	timer := time.NewTimer(min(max(turn.Wait, time.Millisecond), roomPoll))
	defer timer.Stop()
	var last *worker
	for _, r := range turn.Unload {
		w, ok := sp.roster.worker(r.Worker)
		if !ok {
			continue
		}
		if !r.Busy { // the last status may be outdated
			_ = sp.workers.poll(ctx, w)
			w.mu.Lock()
			busy := w.busyLocked()
			w.mu.Unlock()
			if busy {
				break
			}
		}
		sp.log.Info("unloads a worker to make room", "worker", w.id(), "model", w.handle.Model, "for", model, "busy", r.Busy)
		run.Log("worker %s with %s unloads to make room", w.id(), w.handle.Model)
		if err := sp.workers.endWorker(w, ending{grace: defaultRetireGrace, keep: true}); err != nil {
			return err
		}
		last = w
	}
	var gone chan struct{}
	if last != nil {
		gone = last.gone
	}
	select {
	case <-gone:
	case <-timer.C:
	case <-ctx.Done():
		return core.Prefix(core.FromContext(ctx), "wait for room")
	}
	return nil
}

// probeFor asks a worker process for its current fingerprint. Errors: Unsupported, and those of the
// process.
func probeFor(ctx context.Context, p workerProcess) (sdkworker.Fingerprint, error) {
	f, err := p.FingerprintOnce(ctx)
	if err != nil {
		return f, said("probe worker", err)
	}
	if f.Problem != "" {
		return f, unsupported("spawn worker", p.Attachment().Type, f.Problem)
	}
	return f, nil
}

// devicesFor returns the devices that a spawn may use: the one with the id, or all of the named
// kind. Errors: NotFound, Unsupported.
func devicesFor(f sdkworker.Fingerprint, want string) ([]core.Device, error) {
	all := devicesOf(f)
	best, err := chooseDevice(all, want)
	if err != nil {
		return nil, err
	}
	if best.ID == want {
		return []core.Device{best}, nil
	}
	return slices.DeleteFunc(all, func(d core.Device) bool { return d.Problem != "" || want != "" && d.Kind != want }), nil
}

// sizesOf returns how large a worker with a model may be, including what it loads beside it.
func (sp *spawner) sizesOf(r core.Request, model core.Model, slots int, extra beside) (sizes, error) {
	if isByName(model) { // its server knows better
		return sizes{choose: func(memory) (fit, error) { return fit{ContextTokens: r.ContextTokens}, nil }}, nil
	}
	want, replica := sp.settings.wantedContext(r.ContextTokens, model), false
	if want == 0 && r.ReplicaContext > 0 {
		want, replica = r.ReplicaContext, true
		if model.ContextTokens > 0 {
			want = min(want, model.ContextTokens)
		}
	}
	header, err := sp.store.Header(model.ID)
	if err != nil {
		return sizes{}, err
	}
	estimate := func(contextTokens int) int64 {
		return extra.add(header.EstimateBytes(slots, contextTokens), slots, contextTokens)
	}
	return sizes{
		whole: estimate(mostFit(want, model.ContextTokens)), least: estimate(leastFit(want, model.ContextTokens)),
		choose: func(m memory) (fit, error) {
			f, err := chooseFit(m, model.ID, slots, want, model.ContextTokens, estimate)
			if err != nil && replica {
				err = core.WithHint(err, "The model's other workers have %d tokens, and all of them are to answer alike. %s Or choose another context for this one: --context (context_tokens).",
					want, core.HintOf(err))
			}
			return f, err
		},
	}, nil
}
