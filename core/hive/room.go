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

// roomPoll is between two looks of a load that waits for room.
const roomPoll = 250 * time.Millisecond

// reservation is memory that a loading worker is about to take.
type reservation struct {
	device    string
	bytes     int64
	model     string
	keepAlive string // as in the handle
	pinned    bool
}

// waiter is a load that waits for room on a device. Loads take their turns in the order in which
// they came.
type waiter struct {
	device string    // empty: it does not wait
	since  time.Time // it waits
}

// roomLocked returns what a device has left for a further worker: what is free and nobody is about
// to take. Of main memory it is also no more than what the workers leave of the whole, or of the
// hive's limit: the operating system counts a mapped model file as free memory.
func (h *Hive) roomLocked(d core.Device) memory {
	loading, held := int64(0), int64(0)
	for id, r := range h.reserved {
		if r.device != d.ID {
			continue
		}
		loading += r.bytes
		if _, ok := h.workers[id]; !ok {
			held += r.bytes
		}
	}
	for _, w := range h.workers {
		if w.handle.Device == d.ID {
			held += w.handle.MemoryBytes
		}
	}
	m := memory{Device: d.ID, FreeBytes: max(d.FreeBytes-loading, 0), TotalBytes: d.TotalBytes, Known: d.TotalBytes > 0}
	if d.Kind != kindCPU {
		return m
	}
	limit := int64(0)
	if d := h.defaults.Load(); d != nil { // a hive that is not complete yet has none
		limit = d.MemoryLimit
	}
	if limit > 0 && (!m.Known || limit < m.TotalBytes) {
		if !m.Known {
			m.FreeBytes = limit
		}
		m.TotalBytes, m.Known = limit, true
	}
	if m.Known {
		m.FreeBytes = min(m.FreeBytes, max(m.TotalBytes-held, 0))
	}
	return m
}

// residentsLocked returns the workers on a device, for a load of a model. Whoever starts a worker
// by hand takes the room of those that unload by themselves; a request also takes that of workers
// that were started by hand, last. A load that has no worker yet is one that loads.
func (h *Hive) residentsLocked(device, model string, onRequest bool) []sched.Resident {
	keepAlive := h.rules().keepAlive
	var list []sched.Resident
	for _, w := range h.workers {
		if w.handle.Device != device {
			continue
		}
		w.mu.Lock()
		r := sched.Resident{
			Worker: w.id(), Model: w.handle.Model, Bytes: w.handle.MemoryBytes, Stays: w.tenancy.keep(w.handle.KeepAlive, keepAlive) < 0,
			Ending: w.state == core.WorkerRetiring || w.state == core.WorkerFailed, Busy: w.state == core.WorkerLoading || w.busyLocked(),
			Idle: time.Since(w.tenancy.used), LoadTook: w.loadTook, Share: w.tenancy.share,
		}
		if w.state == core.WorkerReady {
			r.Ready = max(time.Since(w.readyAt), 1)
		}
		w.mu.Unlock()
		r.Fixed = w.handle.Pinned || r.Model == model || r.Stays && !onRequest
		list = append(list, r)
	}
	for id, l := range h.reserved {
		if _, ok := h.workers[id]; ok || l.device != device {
			continue
		}
		stays := (&tenancy{}).keep(l.keepAlive, keepAlive) < 0
		list = append(list, sched.Resident{
			Worker: id, Model: l.model, Bytes: l.bytes, Stays: stays, Busy: true, Fixed: l.pinned || l.model == model || stays && !onRequest,
		})
	}
	return list
}

// sizes says how large a worker may be.
type sizes struct {
	whole, least int64                       // bytes with the context that is wanted, and with the least; 0: unknown
	choose       func(m memory) (fit, error) // the largest that fits
}

// site is what a load does next.
type site struct {
	device core.Device
	size   fit
	turn   sched.Turn // the load waits, where there is no size
	found  bool
}

// siteLocked chooses a device on which the worker fits whole; where there is none, workers that are
// to make room for it; where that is in vain, a smaller context. Errors: TooLarge.
func (h *Hive) siteLocked(devices []core.Device, wait *waiter, model string, onRequest bool, s sizes) (site, error) {
	rooms := make([]memory, len(devices))
	order := make([]int, len(devices))
	for i, d := range devices {
		rooms[i], order[i] = h.roomLocked(d), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rooms[b].FreeBytes, rooms[a].FreeBytes) })
	fits := func(m memory, need int64) bool { return !m.Known || need == 0 || need <= m.FreeBytes }
	for _, i := range order {
		if fits(rooms[i], s.whole) && h.headLocked(wait, devices[i].ID) {
			size, err := s.choose(rooms[i])
			return site{device: devices[i], size: size, found: true}, err
		}
	}
	turn := func(need int64) (best site, ok bool) {
		for _, i := range order {
			d := devices[i]
			if wait.device != "" && wait.device != d.ID {
				continue
			}
			t := sched.Turn{Wait: roomPoll, For: "another model, which waits for room as well"}
			if h.headLocked(wait, d.ID) {
				waited := time.Duration(0)
				if wait.device != "" {
					waited = time.Since(wait.since)
				}
				t = h.rules().swap.Turn(need-rooms[i].FreeBytes, waited, h.residentsLocked(d.ID, model, onRequest))
			}
			if !t.Never() && (!ok || len(best.turn.Unload) == 0 && len(t.Unload) > 0) {
				best, ok = site{device: d, turn: t}, true
			}
		}
		return best, ok
	}
	if best, ok := turn(s.whole); ok {
		return best, nil
	}
	var problem error
	for _, i := range order {
		if !h.headLocked(wait, devices[i].ID) {
			continue
		}
		size, err := s.choose(rooms[i])
		if err == nil {
			return site{device: devices[i], size: size, found: true}, nil
		}
		problem = cmp.Or(problem, err)
	}
	if best, ok := turn(s.least); ok {
		return best, nil
	}
	if problem == nil { // others wait, and this one can never follow them
		_, problem = s.choose(rooms[order[0]])
	}
	return site{}, problem
}

// headLocked reports whether a load may take room on a device now: nobody waits there, or it is the
// first that does.
func (h *Hive) headLocked(wait *waiter, device string) bool {
	for _, w := range h.waiters {
		if w.device == device {
			return w == wait
		}
	}
	return true
}

// fit chooses the device and size of a worker, and reserves its memory until release is called.
// Where it does not fit it waits for workers to make room; see sched.Swap.
func (h *Hive) fit(ctx context.Context, r core.Request, id string, p workerProcess, model core.Model, run *job.Run) (hd handle, release func(), err error) {
	slots := cmp.Or(r.Slots, h.defaults.Load().Slots)
	var s sizes
	onRequest := r.KeepAlive == core.KeepAliveDefault
	wait := &waiter{}
	defer h.leave(wait)
	said := ""
	for {
		h.mu.Lock()
		released := h.released
		h.mu.Unlock()
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
			if s, err = h.sizesOf(r, model, slots, h.besideOf(f)); err != nil {
				return handle{}, nil, err
			}
		}
		h.mu.Lock()
		if h.released != released { // another load ended meanwhile: what it took may or may not be in the report
			h.mu.Unlock()
			continue
		}
		at, err := h.siteLocked(devices, wait, model.ID, onRequest, s)
		switch {
		case err != nil:
		case at.found:
			h.reserved[id] = reservation{at.device.ID, at.size.EstimateBytes, model.ID, r.KeepAlive, r.Pin}
		case wait.device == "":
			wait.device, wait.since = at.device.ID, time.Now()
			h.waiters = append(h.waiters, wait)
		}
		h.mu.Unlock()
		if err != nil {
			return handle{}, nil, err
		}
		if at.found {
			hd := handle{
				Format: handleFormat, Attachment: p.Attachment(), Model: model.ID, ModelDigest: model.Digest, Device: at.device.ID, Slots: slots,
				ContextTokens: at.size.ContextTokens, MemoryBytes: at.size.EstimateBytes, Threads: cmp.Or(r.Threads, h.defaults.Load().Threads), CreatedAt: h.now(),
			}
			return hd, func() { h.unreserve(id) }, nil
		}
		if phase := "wait for room on " + at.device.ID + ": " + at.turn.For; phase != said {
			said = phase
			run.Progress(core.Progress{Phase: phase})
		}
		if err := h.makeRoom(ctx, at.turn, model.ID, run); err != nil {
			return handle{}, nil, err
		}
	}
}

// makeRoom has workers go for a load, and returns when it is worth while to look again. Errors:
// ctx's, Unavailable when the hive ends.
func (h *Hive) makeRoom(ctx context.Context, turn sched.Turn, model string, run *job.Run) error {
	timer := time.NewTimer(min(max(turn.Wait, time.Millisecond), roomPoll))
	defer timer.Stop()
	var last *worker
	for _, r := range turn.Unload {
		w, ok := h.worker(r.Worker)
		if !ok {
			continue
		}
		if !r.Busy { // what its last look said may be old by now
			_ = h.poll(ctx, w)
			w.mu.Lock()
			busy := w.busyLocked()
			w.mu.Unlock()
			if busy {
				break
			}
		}
		h.log.Info("unloads a worker to make room", "worker", w.id(), "model", w.handle.Model, "for", model, "busy", r.Busy)
		run.Log("worker %s with %s unloads to make room", w.id(), w.handle.Model)
		if err := h.endWorker(w, ending{grace: defaultRetireGrace, keep: true}); err != nil {
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

func (h *Hive) leave(wait *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiters = slices.DeleteFunc(h.waiters, func(w *waiter) bool { return w == wait })
}

func (h *Hive) unreserve(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released++
	delete(h.reserved, id)
}

// probeFor asks a worker process what it finds now. Errors: Unsupported, and those of the process.
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

// devicesFor returns the devices that a spawn may use: the one that is named by id, or all of the
// named kind. Errors: NotFound, Unsupported.
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

// sizesOf returns how large a worker with a model may be, with what it loads beside it.
func (h *Hive) sizesOf(r core.Request, model core.Model, slots int, extra beside) (sizes, error) {
	if isByName(model) { // its server knows better
		return sizes{choose: func(memory) (fit, error) { return fit{ContextTokens: r.ContextTokens}, nil }}, nil
	}
	want, replica := h.wantedContext(r.ContextTokens, model), false
	if want == 0 && r.ReplicaContext > 0 {
		want, replica = r.ReplicaContext, true
		if model.ContextTokens > 0 {
			want = min(want, model.ContextTokens)
		}
	}
	header, err := h.store.Header(model.ID)
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
