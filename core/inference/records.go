package inference

import (
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// MaxRecords bounds the requests that Records remembers.
	MaxRecords       = 1024
	maxRecordWorkers = 8192 // worker starts whose requests are counted
	maxFailures      = 8    // remembered failures of one worker
	maxRefusals      = 32   // remembered refusals of one request
	maxWaits         = 16   // remembered waits of one request
	maxWaitText      = 256  // bytes of one wait
)

// Records remembers how the latest requests were routed and counts what each worker was sent. It is
// bounded and safe for concurrent use.
type Records struct {
	mu      sync.Mutex // guards below, and the fields of every routed
	ring    []*routed
	next    int // index of the entry that a full ring overwrites next
	byID    map[string]*routed
	workers map[string]*routeCount // by nonce
}

// routed is one remembered request.
type routed struct {
	record     core.RouteRecord
	candidates []core.Candidate
}

type routeCount struct {
	core.WorkerRoutes
	last time.Time
}

func newRecords() *Records {
	return &Records{byID: map[string]*routed{}, workers: map[string]*routeCount{}}
}

// begin adds a request. It replaces an earlier one with the same id.
func (m *Records) begin(r core.RouteRecord) *routed {
	r.State = core.RouteRunning
	e := &routed{record: r}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ring) < MaxRecords {
		m.ring = append(m.ring, e)
	} else {
		old := m.ring[m.next]
		if m.byID[old.record.RequestID] == old {
			delete(m.byID, old.record.RequestID)
		}
		m.ring[m.next] = e
		m.next = (m.next + 1) % MaxRecords
	}
	m.byID[r.RequestID] = e
	return e
}

// picked records which workers could answer and which were refused.
func (m *Records) picked(e *routed, found []core.Candidate, refused []core.RouteRefusal, waited time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.candidates, e.record.Refused, e.record.Waited = found, refused[:min(len(refused), maxRefusals)], core.Duration(waited)
	if len(found) > 0 {
		e.record.Model = found[0].Worker.Model
	}
}

// waits records what the request waits for.
func (m *Records) waits(e *routed, phase string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	phase = clip(phase, maxWaitText)
	if w := e.record.WaitedFor; len(w) < maxWaits && !slices.Contains(w, phase) {
		e.record.WaitedFor = append(slices.Clip(w), phase)
	}
}

// asked records an attempt at a worker. problem is empty if the worker answered.
func (m *Records) asked(e *routed, w core.Worker, began, now time.Time, problem core.Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.record.Attempts = append(e.record.Attempts, core.RouteAttempt{Worker: w.ID, Hive: w.Hive, Took: core.Duration(now.Sub(began)), Problem: problem})
	c := m.workers[w.Nonce]
	if c == nil {
		if len(m.workers) >= maxRecordWorkers {
			m.forgetLocked()
		}
		c = &routeCount{}
		m.workers[w.Nonce] = c
	}
	c.last = now
	c.Requests++
	if problem == "" || problem == core.Cancelled || problem == core.Overloaded { // not a failure of the worker
		return
	}
	c.Failures++
	c.Recent = append([]core.RouteFailure{{At: now, RequestID: e.record.RequestID, Problem: problem}}, c.Recent[:min(len(c.Recent), maxFailures-1)]...)
}

// forgetLocked drops the half of the counts that changed least recently.
func (m *Records) forgetLocked() {
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

// end records how the request ended.
func (m *Records) end(e *routed, status int, problem core.Kind, firstToken time.Duration, events, tokens int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &e.record
	r.State, r.Status, r.Problem, r.Events, r.Tokens = core.RouteAnswered, status, problem, events, tokens
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

// Find returns the request with this id.
func (m *Records) Find(id string) (core.RouteRecord, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.byID[id]
	if !ok {
		return core.RouteRecord{}, false
	}
	return e.viewLocked(), true
}

// Latest returns the newest requests, at most limit, newest first.
func (m *Records) Latest(limit int) []core.RouteRecord {
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

// Worker returns the counts of requests sent to the worker with this nonce.
func (m *Records) Worker(nonce string) core.WorkerRoutes {
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
