// Package admission decides which requests are admitted, which wait, for how long and in which
// order, and which are retried. It has limits per key, bounded queues with fair shares, a retry
// budget, and a list of requests that killed workers.
//
// Its types do no I/O and read no clock: times are arguments. They are not safe for concurrent use.
package admission

import (
	"slices"
	"time"
)

const (
	// quantum is what a key with weight 1 may use in its turn, in units of cost: tokens.
	quantum = 64
	// maxCost bounds the cost of one ticket and the debt of one key.
	maxCost = 1 << 20
	// NormalWeight is the weight of a key with normal priority.
	NormalWeight = 4
	// AgeAfter is how long a ticket of a lower-weight key waits until the key gets NormalWeight.
	AgeAfter = 30 * time.Second
)

// Queue is a bounded line of requests that wait for the same resource, such as a free slot of one
// model. The keys take turns by deficit round robin: over time each waiting key gets a share of the
// costs in proportion to its weight, however many tickets it has. The tickets of one key are served
// first in, first out.
type Queue[V any] struct {
	limit int // tickets
	count int
	ring  []*share[V] // shares of the waiting keys, in the order of their turns
	at    int         // index in ring of the share whose turn it is
	began bool        // the turn has begun and its quantum was added
	head  *Ticket[V]  // chosen ticket; nil: not yet chosen
	debts map[string]int64
}

// share is the part of a queue that belongs to one key.
type share[V any] struct {
	key     string
	weight  int64
	credit  int64 // cost that it may still use
	tickets []*Ticket[V]
}

// Ticket is a place in a Queue.
type Ticket[V any] struct {
	Key      string // token id of the waiting client; empty: unknown
	Weight   int64  // weight of the key; 0: NormalWeight
	Cost     int64  // estimate in tokens
	Since    time.Time
	Deadline time.Time
	Value    V
	// Evicted reports that the ticket made room for another key's.
	Evicted bool
}

// NewQueue returns a Queue that holds at most limit tickets.
func NewQueue[V any](limit int) *Queue[V] {
	return &Queue[V]{limit: limit, debts: map[string]int64{}}
}

// Join appends a ticket and reports whether there was room. In a full queue, a key that has fewer
// tickets than another one evicts the latest ticket of the key with the most, which is returned.
func (q *Queue[V]) Join(t *Ticket[V]) (evicted *Ticket[V], ok bool) {
	t.Cost = min(max(t.Cost, 1), maxCost)
	s := q.share(t.Key)
	if q.count >= q.limit {
		most := q.longest()
		if most == nil || s != nil && len(most.tickets) <= len(s.tickets)+1 || s == nil && len(most.tickets) <= 1 {
			return nil, false
		}
		evicted = most.tickets[len(most.tickets)-1]
		evicted.Evicted = true
		q.Leave(evicted)
	}
	if s == nil {
		s = &share[V]{key: t.Key, credit: -q.debts[t.Key]}
		delete(q.debts, t.Key)
		// Behind all others: its turn comes last in the round.
		q.ring = slices.Insert(q.ring, q.at, s)
		if len(q.ring) > 1 {
			q.at++
		}
	}
	s.weight = t.Weight
	if s.weight == 0 {
		s.weight = NormalWeight
	}
	s.tickets = append(s.tickets, t)
	q.count++
	return evicted, true
}

func (q *Queue[V]) share(key string) *share[V] {
	for _, s := range q.ring {
		if s.key == key {
			return s
		}
	}
	return nil
}

func (q *Queue[V]) longest() (most *share[V]) {
	for _, s := range q.ring {
		if most == nil || len(s.tickets) > len(most.tickets) {
			most = s
		}
	}
	return most
}

// Leave removes a ticket that stops waiting without being served. It ignores a ticket that is not
// in the queue.
func (q *Queue[V]) Leave(t *Ticket[V]) { q.remove(t, 0) }

// Serve removes a ticket that is being served and charges its key.
func (q *Queue[V]) Serve(t *Ticket[V]) { q.remove(t, t.Cost) }

func (q *Queue[V]) remove(t *Ticket[V], cost int64) {
	n := slices.IndexFunc(q.ring, func(s *share[V]) bool { return s.key == t.Key })
	if n < 0 {
		return
	}
	s := q.ring[n]
	i := slices.Index(s.tickets, t)
	if i < 0 {
		return
	}
	s.tickets = slices.Delete(s.tickets, i, i+1)
	s.credit -= cost
	q.count--
	if q.head == t {
		q.head = nil
	}
	if len(s.tickets) > 0 {
		return
	}
	q.owe(s.key, -s.credit) // credit expires once nothing waits
	q.ring = slices.Delete(q.ring, n, n+1)
	switch {
	case n < q.at:
		q.at--
	case n == q.at:
		q.began = false
	}
	if q.at >= len(q.ring) {
		q.at = 0
	}
}

// owe records the debt of a key that has no waiting ticket.
func (q *Queue[V]) owe(key string, debt int64) {
	if debt <= 0 {
		return
	}
	if len(q.debts) >= max(q.limit, 1) {
		clear(q.debts)
	}
	q.debts[key] = min(debt, maxCost)
}

// Correct adjusts the charge of a key when a served request cost more, or less, than its ticket
// estimated.
func (q *Queue[V]) Correct(key string, more int64) {
	more = min(max(more, -maxCost), maxCost)
	if s := q.share(key); s != nil {
		s.credit = max(s.credit-more, -maxCost)
		return
	}
	q.owe(key, q.debts[key]+more)
}

// weightAt returns the weight of a share, raised by the age of its tickets.
func (s *share[V]) weightAt(now time.Time) int64 {
	if s.weight < NormalWeight && now.Sub(s.tickets[0].Since) >= AgeAfter {
		return NormalWeight
	}
	return s.weight
}

// Head returns the ticket whose turn it is; it stays the head until it is removed. nil: the queue
// is empty.
func (q *Queue[V]) Head(now time.Time) *Ticket[V] {
	if q.head != nil || len(q.ring) == 0 {
		return q.head
	}
	// Skip whole rounds in which no ticket could be served.
	rounds := int64(maxCost)
	for _, s := range q.ring {
		lacks, gets := s.tickets[0].Cost-s.credit, quantum*s.weightAt(now)
		rounds = min(rounds, max(0, (lacks+gets-1)/gets))
	}
	for _, s := range q.ring {
		s.credit += max(0, rounds-1) * quantum * s.weightAt(now)
	}
	for {
		s := q.ring[q.at]
		if !q.began {
			q.began = true
			s.credit += quantum * s.weightAt(now)
		}
		if s.credit >= s.tickets[0].Cost {
			q.head = s.tickets[0]
			return q.head
		}
		q.began = false
		q.at = (q.at + 1) % len(q.ring)
	}
}

// Len returns the number of tickets.
func (q *Queue[V]) Len() int { return q.count }

const (
	leastRetry = time.Second
	mostRetry  = time.Minute
)

// RetryAfter returns when to retry a request that has waiting requests ahead of it, when running
// requests are served at once and each takes about service. It is a whole number of seconds from 1
// to 60.
func RetryAfter(waiting, running int, service time.Duration) time.Duration {
	d := time.Duration(waiting+1) * service / time.Duration(max(running, 1))
	return min(max(d.Round(time.Second), leastRetry), mostRetry)
}
