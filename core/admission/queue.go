// Package admission decides which requests wait, for how long, and which are repeated: bounded
// queues, a retry budget, and a list of requests that killed workers.
//
// Its types do no I/O and read no clock: times are arguments. They are not safe for concurrent use.
package admission

import (
	"slices"
	"time"
)

// Queue is a bounded line of requests that wait for the same thing, such as a free slot of one
// model. It is first in, first out. A later order by key belongs into Head.
type Queue[V any] struct {
	limit   int // of tickets
	tickets []*Ticket[V]
}

// Ticket is a place in a Queue.
type Ticket[V any] struct {
	Key      string // who waits: the id of a token; empty: unknown
	Deadline time.Time
	Value    V
}

// NewQueue returns a Queue for at most limit tickets.
func NewQueue[V any](limit int) *Queue[V] { return &Queue[V]{limit: limit} }

// Join appends a ticket and reports whether there was room.
func (q *Queue[V]) Join(t *Ticket[V]) bool {
	if len(q.tickets) >= q.limit {
		return false
	}
	q.tickets = append(q.tickets, t)
	return true
}

// Leave removes a ticket. A ticket that is not in the queue changes nothing.
func (q *Queue[V]) Leave(t *Ticket[V]) {
	if i := slices.Index(q.tickets, t); i >= 0 {
		q.tickets = slices.Delete(q.tickets, i, i+1)
	}
}

// Head returns the ticket whose turn it is; nil: none waits.
func (q *Queue[V]) Head() *Ticket[V] {
	if len(q.tickets) == 0 {
		return nil
	}
	return q.tickets[0]
}

// Len returns the number of tickets.
func (q *Queue[V]) Len() int { return len(q.tickets) }

const (
	leastRetry = time.Second
	mostRetry  = time.Minute
)

// RetryAfter returns when to send a request again where waiting ones are before it, running ones
// are answered at once, and each takes about service. It is a whole number of seconds from 1 to 60.
func RetryAfter(waiting, running int, service time.Duration) time.Duration {
	d := time.Duration(waiting+1) * service / time.Duration(max(running, 1))
	return min(max(d.Round(time.Second), leastRetry), mostRetry)
}
