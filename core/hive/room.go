package hive

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
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

// rooms gives out the memory of devices to loads, in turns.
type rooms struct {
	settings *settings
	roster   *roster

	mu       sync.Mutex             // guards below
	reserved map[string]reservation // by worker id: what loading workers are about to take
	waiters  []*waiter              // loads that wait for room, in their order
	released uint64                 // counts the ends of reservations
}

func newRooms(s *settings, r *roster) *rooms {
	return &rooms{settings: s, roster: r, reserved: map[string]reservation{}}
}

// room returns what a device has left for a further worker.
func (rs *rooms) room(d core.Device) memory {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.roomLocked(d, rs.roster.byID())
}

// turns returns the count of reservations that have ended, for take.
func (rs *rooms) turns() uint64 {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.released
}

// take reserves room for a load, or has it wait in its turn. Where another load ended since turns
// returned so many, ok is false: what it took may or may not be in the devices as they were
// reported, which must be looked at again. Errors: TooLarge.
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

// roomLocked returns what a device has left for a further worker: what is free and nobody is about
// to take. Of main memory it is also no more than what the workers leave of the whole, or of the
// hive's limit: the operating system counts a mapped model file as free memory.
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

// residentsLocked returns the workers on a device, for a load of a model. Whoever starts a worker
// by hand takes the room of those that unload by themselves; a request also takes that of workers
// that were started by hand, last. A load that has no worker yet is one that loads.
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

// site is what a load does next.
type site struct {
	device core.Device
	size   fit
	turn   sched.Turn // the load waits, where there is no size
	found  bool
}

// siteLocked chooses a device on which the worker fits whole; where there is none, workers that are
// to make room for it; where that is in vain, a smaller context. Errors: TooLarge.
func (rs *rooms) siteLocked(devices []core.Device, wait *waiter, model string, onRequest bool, s sizes) (site, error) {
	workers := rs.roster.byID() // all that follows is about the same workers
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
	if problem == nil { // others wait, and this one can never follow them
		_, problem = s.choose(rooms[order[0]])
	}
	return site{}, problem
}

// headLocked reports whether a load may take room on a device now: nobody waits there, or it is the
// first that does.
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
