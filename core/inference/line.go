package inference

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
)

const (
	// headPoll is how often the first in line checks for a slot: one may become free without
	// notice, such as when another queen's request ends.
	headPoll = 100 * time.Millisecond
	// codeTimeout is the error code for a request that waited too long.
	codeTimeout = "queue_timeout"
	// leastRetry is the retry delay when the line is empty again.
	leastRetry = time.Second
)

// lines are the requests that wait for a free slot, in one line per model, whatever name they use
// for it. A line exists only while requests wait in it. The zero value is ready once limit is set.
type lines struct {
	limit int // of each line

	mu      sync.Mutex // guards below
	byName  map[string]*line
	names   map[string]string   // names of models with a line, mapped to the name of the line
	running map[string]*running // by core.Model.ID
}

// line is the queue of one model name.
type line struct {
	queue *admission.Queue[chan struct{}] // each ticket's channel holds one wake-up
	model string                          // core.Model.ID; empty until the router has returned it
}

// running is the running requests of one model.
type running struct {
	leases  int
	service time.Duration // duration of a lease, smoothed; 0: unknown
}

// waits reports whether any request waits for the model.
func (l *lines) waits(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lineLocked(name) != nil
}

func (l *lines) lineLocked(name string) *line {
	if known, ok := l.names[name]; ok {
		name = known
	}
	return l.byName[name]
}

// join appends a ticket to a model's line, which may evict a ticket of a key with more tickets. If
// the line is full, it returns the retry delay.
func (l *lines) join(name, model string, t *admission.Ticket[chan struct{}]) (retry time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := name
	if model != "" {
		at = model
	}
	if known, ok := l.names[name]; ok {
		at = known
	}
	q := l.byName[at]
	if q == nil {
		q = &line{queue: admission.NewQueue[chan struct{}](l.limit)}
	}
	if model != "" {
		q.model = model
	}
	evicted, ok := q.queue.Join(t)
	if !ok {
		return l.retryLocked(q), false
	}
	if evicted != nil {
		wake(evicted.Value)
	}
	if l.byName == nil {
		l.byName, l.names = map[string]*line{}, map[string]string{}
	}
	l.byName[at], l.names[name] = q, at
	return 0, true
}

// leave removes a ticket, served or abandoned, and wakes the one whose turn is next.
func (l *lines) leave(name string, t *admission.Ticket[chan struct{}], served bool) (retry time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.lineLocked(name)
	if q == nil {
		return leastRetry // it was evicted, and all others have left
	}
	if served {
		q.queue.Serve(t)
	} else {
		q.queue.Leave(t)
	}
	retry = l.retryLocked(q)
	if head := q.queue.Head(time.Now()); head != nil {
		wake(head.Value)
		return retry
	}
	for alias, at := range l.names {
		if l.byName[at] == q {
			delete(l.names, alias)
		}
	}
	for at, other := range l.byName {
		if other == q {
			delete(l.byName, at)
		}
	}
	return retry
}

// correct adjusts the charge of a key when a served request cost more, or less, than estimated.
func (l *lines) correct(name, key string, more int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.lineLocked(name); q != nil {
		q.queue.Correct(key, more)
	}
}

// waiting returns how many requests wait, by core.Model.ID.
func (l *lines) waiting() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]int{}
	for _, q := range l.byName {
		if q.model != "" {
			out[q.model] += q.queue.Len()
		}
	}
	return out
}

// head reports whether it is a ticket's turn, and whether it was evicted.
func (l *lines) head(name string, t *admission.Ticket[chan struct{}]) (turn, evicted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.Evicted {
		return false, true
	}
	return l.lineLocked(name).queue.Head(time.Now()) == t, false
}

// began counts a lease.
func (l *lines) began(model string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		l.running = map[string]*running{}
	}
	r := l.running[model]
	if r == nil {
		r = &running{}
		l.running[model] = r
	}
	r.leases++
}

// ended removes a lease that lasted took and wakes the request that waits for its slot.
func (l *lines) ended(model string, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.running[model]; r != nil {
		if r.service == 0 {
			r.service = took
		}
		r.service += (took - r.service) / 16
		if r.leases--; r.leases == 0 && len(l.byName) == 0 {
			delete(l.running, model)
		}
	}
	for _, q := range l.byName {
		if head := q.queue.Head(time.Now()); q.model == model && head != nil {
			wake(head.Value)
		}
	}
}

func (l *lines) retryLocked(q *line) time.Duration {
	r := running{}
	if now := l.running[q.model]; now != nil {
		r = *now
	}
	return admission.RetryAfter(q.queue.Len(), r.leases, r.service)
}

// wake puts a wake-up into a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// acquire returns a lease for the query. While every worker is busy it waits in line, until the
// call's queue deadline.
func (c *call) acquire(ctx context.Context, q Query) (Lease, error) {
	l, model := &c.s.lines, ""
	if q.Look || !l.waits(q.Model) { // otherwise those who wait go first
		lease, err := c.s.o.Router.Route(ctx, q)
		full, ok := errors.AsType[*Busy](err)
		if !ok {
			return lease, err
		}
		model = full.Model
	}
	c.s.meter.Waits()
	if q.Progress != nil {
		q.Progress(core.Progress{Phase: "wait for a free slot"})
	}
	if c.queueUntil.IsZero() {
		c.queueUntil = time.Now().Add(c.s.o.QueueTimeout)
	}
	_, cost := c.estimate()
	t := &admission.Ticket[chan struct{}]{Key: c.r.Key, Weight: c.r.Weight, Cost: cost, Since: time.Now(), Deadline: c.queueUntil, Value: make(chan struct{}, 1)}
	full := func(retry time.Duration) (Lease, error) {
		return Lease{}, overloaded(core.Overloaded, codeOverloaded, retry, "all workers of this model are busy and %d requests wait for them", l.limit)
	}
	if retry, ok := l.join(q.Model, model, t); !ok {
		return full(retry)
	}
	timeout := time.NewTimer(time.Until(t.Deadline))
	defer timeout.Stop()
	poll := time.NewTicker(headPoll)
	defer poll.Stop()
	for {
		expired := false
		select {
		case <-t.Value:
		case <-poll.C:
		case <-timeout.C:
			expired = true
		case <-ctx.Done():
			l.leave(q.Model, t, false)
			return Lease{}, core.FromContext(ctx)
		}
		if expired {
			return Lease{}, c.waited(l.leave(q.Model, t, false))
		}
		turn, evicted := l.head(q.Model, t)
		if evicted {
			return full(l.leave(q.Model, t, false))
		}
		if !turn {
			continue
		}
		lease, err := c.s.o.Router.Route(ctx, q)
		if _, ok := errors.AsType[*Busy](err); !ok {
			l.leave(q.Model, t, err == nil)
			if err == nil {
				c.queued, c.paid = q.Model, t.Cost
			}
			return lease, err
		}
	}
}

// waited returns the error for a request that waited until its queue deadline.
func (c *call) waited(retry time.Duration) error {
	return overloaded(core.DeadlineExceeded, codeTimeout, retry, "all workers of this model were busy for %s", c.s.o.QueueTimeout)
}

func overloaded(kind core.Kind, code string, retry time.Duration, format string, args ...any) error {
	return &OverloadError{Code: code, RetryAfter: retry, Err: core.Errorf(kind, format, args...).Hint(
		"Ask again after the time in Retry-After, or start another worker.")}
}
