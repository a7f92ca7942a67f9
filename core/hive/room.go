package hive

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

// roomPoll is the interval at which a load that waits for room checks again.
const roomPoll = 250 * time.Millisecond

// reservation is memory that a loading worker is about to take.
type reservation struct {
	device    string
	bytes     int64
	model     string
	keepAlive string // as in the handle
	pinned    bool
}

// waiter is a load that waits for room on a device. Loads take turns in order of arrival.
type waiter struct {
	device string    // empty: not waiting
	since  time.Time // start of the wait
}

// rooms allocates the memory of devices to loads, in turns.
type rooms struct {
	settings *settings
	roster   *roster

	mu       sync.Mutex             // guards below
	reserved map[string]reservation // by worker id: memory that loading workers are about to take
	waiters  []*waiter              // loads that wait for room, in order
	released uint64                 // number of reservations that have ended
}

func newRooms(s *settings, r *roster) *rooms {
	return &rooms{settings: s, roster: r, reserved: map[string]reservation{}}
}

// room returns what a device has left for another worker.
func (rs *rooms) room(d core.Device) memory {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.roomLocked(d, rs.roster.byID())
}

// turns returns the number of reservations that have ended, for take.
func (rs *rooms) turns() uint64 {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.released
}

// take reserves room for a load, or queues it. If another load ended after turns returned that
// number, ok is false: the reported devices may or may not include its memory, so probe them again.
// Errors: TooLarge.
func (rs *rooms) take(id string, turns uint64, devices []core.Device, wait *waiter, s sizes, want reservation) (at site, ok bool, err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.released != turns {
		return site{}, false, nil
	}
	at, err = rs.siteLocked(devices, wait, want.model, want.keepAlive == core.KeepAliveDefault, s)
	switch {
	case err != nil:
	case at.found:
		want.device, want.bytes = at.device.ID, at.size.EstimateBytes
		rs.reserved[id] = want
	case wait.device == "":
		wait.device, wait.since = at.device.ID, time.Now()
		rs.waiters = append(rs.waiters, wait)
	}
	return at, true, err
}

// roomLocked returns what a device has left for another worker: what is free and not reserved. For
// main memory it is also bounded by what the workers leave of the total, or of the hive's limit, as
// the operating system counts a mapped model file as free memory.
func (rs *rooms) roomLocked(d core.Device, workers map[string]*worker) memory {
	loading, held := int64(0), int64(0)
	for id, r := range rs.reserved {
		if r.device != d.ID {
			continue
		}
		loading += r.bytes
		if _, ok := workers[id]; !ok {
			held += r.bytes
		}
	}
	for _, w := range workers {
		if w.handle.Device == d.ID {
			held += w.handle.MemoryBytes
		}
	}
	m := memory{Device: d.ID, FreeBytes: max(d.FreeBytes-loading, 0), TotalBytes: d.TotalBytes, Known: d.TotalBytes > 0}
	if d.Kind != kindCPU {
		return m
	}
	limit := rs.settings.defaults.Load().MemoryLimit
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

// residentsLocked returns the workers on a device, for a load of a model. A spawn by hand takes the
// room of workers that unload by themselves; a request takes, as a last choice, that of workers
// that were started by hand. A load without a worker yet is listed as loading.
func (rs *rooms) residentsLocked(workers map[string]*worker, device, model string, onRequest bool) []sched.Resident {
	keepAlive := rs.settings.rules().keepAlive
	var list []sched.Resident
	for _, w := range workers {
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
	for id, l := range rs.reserved {
		if _, ok := workers[id]; ok || l.device != device {
			continue
		}
		stays := (&tenancy{}).keep(l.keepAlive, keepAlive) < 0
		list = append(list, sched.Resident{
			Worker: id, Model: l.model, Bytes: l.bytes, Stays: stays, Busy: true, Fixed: l.pinned || l.model == model || stays && !onRequest,
		})
	}
	return list
}

// site is the next step of a load.
type site struct {
	device core.Device
	size   fit
	turn   sched.Turn // the load waits, if there is no size
	found  bool
}

// siteLocked chooses a device on which the worker fits whole; failing that, workers that are to
// make room for it; failing that, a smaller context. Errors: TooLarge.
func (rs *rooms) siteLocked(devices []core.Device, wait *waiter, model string, onRequest bool, s sizes) (site, error) {
	workers := rs.roster.byID() // one snapshot for all that follows
	rooms := make([]memory, len(devices))
	order := make([]int, len(devices))
	for i, d := range devices {
		rooms[i], order[i] = rs.roomLocked(d, workers), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rooms[b].FreeBytes, rooms[a].FreeBytes) })
	fits := func(m memory, need int64) bool { return !m.Known || need == 0 || need <= m.FreeBytes }
	for _, i := range order {
		if fits(rooms[i], s.whole) && rs.headLocked(wait, devices[i].ID) {
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
			if rs.headLocked(wait, d.ID) {
				waited := time.Duration(0)
				if wait.device != "" {
					waited = time.Since(wait.since)
				}
				t = rs.settings.rules().swap.Turn(need-rooms[i].FreeBytes, waited, rs.residentsLocked(workers, d.ID, model, onRequest))
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
		if !rs.headLocked(wait, devices[i].ID) {
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
	if problem == nil { // others wait, and this one could never follow them
		_, problem = s.choose(rooms[order[0]])
	}
	return site{}, problem
}

// headLocked reports whether a load may take room on a device now: no load waits there, or it is
// the first that does.
func (rs *rooms) headLocked(wait *waiter, device string) bool {
	for _, w := range rs.waiters {
		if w.device == device {
			return w == wait
		}
	}
	return true
}

func (rs *rooms) leave(wait *waiter) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.waiters = slices.DeleteFunc(rs.waiters, func(w *waiter) bool { return w == wait })
}

func (rs *rooms) unreserve(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.released++
	delete(rs.reserved, id)
}
