package gateway

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	maxRoutes        = 1024 // requests that are remembered
	maxRouteWorkers  = 8192 // starts of workers whose requests are counted
	maxRouteFailures = 8    // that are remembered of one of them
	maxRouteRefusals = 32
)

// routeMemory remembers how the latest requests were routed, and counts what each worker was sent. It is bounded, and safe for concurrent use.
type routeMemory struct {
	mu      sync.Mutex // guards below, and the fields of all routed
	ring    []*routed
	next    int // of ring to be overwritten, once that is full
	byID    map[string]*routed
	workers map[string]*routeCount // by nonce
}

// routed is one request of the memory.
type routed struct {
	record     core.RouteRecord
	candidates []core.Candidate
}

type routeCount struct {
	core.WorkerRoutes
	last time.Time
}

func newRouteMemory() *routeMemory {
	return &routeMemory{byID: map[string]*routed{}, workers: map[string]*routeCount{}}
}

// begin takes in a request. A later one with the same id takes its place.
func (m *routeMemory) begin(r core.RouteRecord) *routed {
	r.State = core.RouteRunning
	e := &routed{record: r}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ring) < maxRoutes {
		m.ring = append(m.ring, e)
	} else {
		old := m.ring[m.next]
		if m.byID[old.record.RequestID] == old {
			delete(m.byID, old.record.RequestID)
		}
		m.ring[m.next] = e
		m.next = (m.next + 1) % maxRoutes
	}
	m.byID[r.RequestID] = e
	return e
}

// picked notes which workers could answer and which could not.
func (m *routeMemory) picked(e *routed, found []core.Candidate, refused []core.RouteRefusal, waited time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.candidates, e.record.Refused, e.record.Waited = found, refused[:min(len(refused), maxRouteRefusals)], core.Duration(waited)
	if len(found) > 0 {
		e.record.Model = found[0].Worker.Model
	}
}

// asked notes that a worker was asked; problem is empty where it answered.
func (m *routeMemory) asked(e *routed, w core.Worker, began, now time.Time, problem core.Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.record.Attempts = append(e.record.Attempts, core.RouteAttempt{Worker: w.ID, Hive: w.Hive, Took: core.Duration(now.Sub(began)), Problem: problem})
	c := m.workers[w.Nonce]
	if c == nil {
		if len(m.workers) >= maxRouteWorkers {
			m.forgetLocked()
		}
		c = &routeCount{}
		m.workers[w.Nonce] = c
	}
	c.last = now
	c.Requests++
	if problem == "" || problem == core.Cancelled { // the client's own doing
		return
	}
	c.Failures++
	c.Recent = append([]core.RouteFailure{{At: now, RequestID: e.record.RequestID, Problem: problem}}, c.Recent[:min(len(c.Recent), maxRouteFailures-1)]...)
}

// forgetLocked drops the half of the counts that were not changed for longest.
func (m *routeMemory) forgetLocked() {
	times := make([]time.Time, 0, len(m.workers))
	for _, c := range m.workers {
		times = append(times, c.last)
	}
	slices.SortFunc(times, time.Time.Compare)
	for nonce, c := range m.workers {
		if !c.last.After(times[len(times)/2]) {
			delete(m.workers, nonce)
		}
	}
}

// end notes how the request ended.
func (m *routeMemory) end(e *routed, status int, problem core.Kind, firstToken time.Duration, events int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &e.record
	r.State, r.Status, r.Problem, r.Events = core.RouteAnswered, status, problem, events
	if problem != "" {
		r.State = core.RouteFailed
	}
	r.FirstToken, r.Took = core.Duration(firstToken), core.Duration(now.Sub(r.At))
}

func (e *routed) viewLocked() core.RouteRecord {
	r := e.record
	r.Refused = append([]core.RouteRefusal{}, r.Refused...)
	r.Attempts = append([]core.RouteAttempt{}, r.Attempts...)
	r.Candidates = make([]core.RouteCandidate, 0, len(e.candidates))
	for _, c := range e.candidates {
		w := c.Worker
		r.Candidates = append(r.Candidates, core.RouteCandidate{
			Worker: w.ID, Hive: w.Hive, Device: w.Device, Reason: c.Reason, Active: w.Load.Active, Queued: w.Load.Queued, Slots: w.Slots,
		})
	}
	return r
}

func (m *routeMemory) find(id string) (core.RouteRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.byID[id]
	if !ok {
		return core.RouteRecord{}, false
	}
	return e.viewLocked(), true
}

// latest are the newest requests, newest first.
func (m *routeMemory) latest(limit int) []core.RouteRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []core.RouteRecord{}
	for i := range len(m.ring) {
		if len(out) == limit {
			break
		}
		at := m.next - 1 - i // once the ring is full, next is the oldest
		out = append(out, m.ring[(at+2*len(m.ring))%len(m.ring)].viewLocked())
	}
	return out
}

// worker is what one start of a worker was sent.
func (m *routeMemory) worker(nonce string) core.WorkerRoutes {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.workers[nonce]
	if c == nil {
		return core.WorkerRoutes{Recent: []core.RouteFailure{}}
	}
	out := c.WorkerRoutes
	out.Recent = append([]core.RouteFailure{}, out.Recent...)
	return out
}

func (g *Gateway) worker(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Worker(r.Context(), r.PathValue("id"))
	return answerOne(w, core.WorkerDetails{Worker: v, Routes: g.memory.worker(v.Nonce)}, err)
}

func (g *Gateway) routeOf(w *response, r *http.Request) error {
	id := r.PathValue("id")
	v, ok := g.memory.find(id)
	if !ok {
		return core.WithHint(core.Errorf("", core.NotFound, "this queen remembers no request %q", clip(id, 100)),
			"A queen remembers the latest %d requests that it took itself; ids are in the header x-request-id, GET /v1/requests lists the latest.", maxRoutes)
	}
	return writeJSON(w, http.StatusOK, v)
}

func (g *Gateway) routesLatest(w *response, r *http.Request) error {
	limit := 0
	if s := r.URL.Query().Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxRoutes {
			return core.Errorf("", core.Invalid, "limit must be a number from 1 to %d", maxRoutes)
		}
	}
	return answerList(w, g.memory.latest(cmp.Or(limit, 20)), nil)
}
