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
	// headPoll is the time between two looks of the first in line: a slot also becomes free without
	// a word, such as when another queen's request ends.
	headPoll = 100 * time.Millisecond
	// codeTimeout is the code of the answer to a request that waited too long.
	codeTimeout = "queue_timeout"
)

// lines are the requests that wait for a free slot, a line for each name of a model. A line is
// there only while somebody waits in it. The zero value is ready but for limit.
type lines struct {
	limit int // of one line

	mu      sync.Mutex // guards below
	byName  map[string]*line
	running map[string]*running // by core.Model.ID
}

// line is the queue of one model name.
type line struct {
	queue *admission.Queue[chan struct{}] // a channel holds one wake-up
	model string                          // core.Model.ID; empty until the router has said it
}

// running is what runs of one model.
type running struct {
	leases  int
	service time.Duration // of a lease, smoothed; 0: unknown
}

// waits reports whether somebody waits for the model.
func (l *lines) waits(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName[name] != nil
}

// join appends a ticket, or returns when to come back where the line is full.
func (l *lines) join(name, model string, t *admission.Ticket[chan struct{}]) (retry time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.byName[name]
	if q == nil {
		q = &line{queue: admission.NewQueue[chan struct{}](l.limit)}
	}
	if model != "" {
		q.model = model
	}
	if !q.queue.Join(t) {
		return l.retryLocked(q), false
	}
	if l.byName == nil {
		l.byName = map[string]*line{}
	}
	l.byName[name] = q
	return 0, true
}

// leave removes a ticket and wakes the one whose turn it is then.
func (l *lines) leave(name string, t *admission.Ticket[chan struct{}]) (retry time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.byName[name]
	q.queue.Leave(t)
	retry = l.retryLocked(q)
	if head := q.queue.Head(); head != nil {
		wake(head.Value)
	} else {
		delete(l.byName, name)
	}
	return retry
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

func (l *lines) head(name string, t *admission.Ticket[chan struct{}]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName[name].queue.Head() == t
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

// ended forgets a lease that took so long and wakes whoever waits for its slot.
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
		if head := q.queue.Head(); q.model == model && head != nil {
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

// wake fills a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// acquire returns a lease for the query. While every worker is busy it waits in line, until the
// call's deadline for such waits.
func (c *call) acquire(ctx context.Context, q Query) (Lease, error) {
	l, model := &c.s.lines, ""
	if !l.waits(q.Model) { // else those who wait come first
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
	t := &admission.Ticket[chan struct{}]{Key: c.r.Key, Deadline: c.queueUntil, Value: make(chan struct{}, 1)}
	if retry, ok := l.join(q.Model, model, t); !ok {
		return Lease{}, overloaded(core.Overloaded, codeOverloaded, retry, "all workers of this model are busy and %d requests wait for them", l.limit)
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
			l.leave(q.Model, t)
			return Lease{}, core.FromContext(ctx)
		}
		if expired {
			retry := l.leave(q.Model, t)
			return Lease{}, c.waited(retry)
		}
		if !l.head(q.Model, t) {
			continue
		}
		lease, err := c.s.o.Router.Route(ctx, q)
		if _, ok := errors.AsType[*Busy](err); !ok {
			l.leave(q.Model, t)
			return lease, err
		}
	}
}

// waited is the error after the whole time for waits.
func (c *call) waited(retry time.Duration) error {
	return overloaded(core.DeadlineExceeded, codeTimeout, retry, "all workers of this model were busy for %s", c.s.o.QueueTimeout)
}

func overloaded(kind core.Kind, code string, retry time.Duration, format string, args ...any) error {
	return &OverloadError{Code: code, RetryAfter: retry, Err: core.Errorf(kind, format, args...).Hint(
		"Ask again after the time in Retry-After, or start another worker.")}
}
