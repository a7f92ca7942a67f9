// Package admission decides which requests are let in, which wait, for how long and in which
// order, and which are repeated: limits of keys, bounded queues with fair shares, a retry budget,
// and a list of requests that killed workers.
//
// Its types do no I/O and read no clock: times are arguments. They are not safe for concurrent use.
package admission

import (
	"slices"
	"time"
)

const (
	// quantum is what a key with the weight 1 may take in its turn, in the unit of costs: tokens.
	quantum = 64
	// maxCost bounds the cost of one ticket and the debt of one key.
	maxCost = 1 << 20
	// NormalWeight is the weight of a key that is neither preferred nor put off.
	NormalWeight = 4
	// AgeAfter is how long a ticket of a key with less weight waits until the key has
	// NormalWeight.
	AgeAfter = 30 * time.Second
)

// Queue is a bounded line of requests that wait for the same thing, such as a free slot of one
// model. The keys take turns by deficit round robin: over time each one that waits gets a part of
// the costs in proportion to its weight, however many tickets it has. Those of one key are first
// in, first out.
type Queue[V any] struct {
	limit int // of tickets
	count int
	ring  []*share[V] // of the keys that wait, in the order of their turns
	at    int         // whose turn it is
	began bool        // the turn, with a quantum
	head  *Ticket[V]  // chosen; nil: not yet
	debts map[string]int64
}

// share is what one key has in a queue.
type share[V any] struct {
	key     string
	weight  int64
	credit  int64 // what it may take
	tickets []*Ticket[V]
}

// Ticket is a place in a Queue.
type Ticket[V any] struct {
	Key      string // who waits: the id of a token; empty: unknown
	Weight   int64  // of the key; 0: NormalWeight
	Cost     int64  // about, in tokens
	Since    time.Time
	Deadline time.Time
	Value    V
	// Evicted says that it had to make room for another key's.
	Evicted bool
}

// NewQueue returns a Queue for at most limit tickets.
func NewQueue[V any](limit int) *Queue[V] {
	return &Queue[V]{limit: limit, debts: map[string]int64{}}
}

// Join appends a ticket and reports whether there was room. In a full queue a key that has fewer
// tickets than another one replaces the latest ticket of the key with most, which is returned.
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
		// Behind all others: its turn is the last of the round.
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

// Leave removes a ticket that waits no longer and gets nothing. A ticket that is not in the queue
// changes nothing.
func (q *Queue[V]) Leave(t *Ticket[V]) { q.remove(t, 0) }

// Serve removes a ticket that gets what it waited for. Its key pays for it.
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
	q.owe(s.key, -s.credit) // what it may still take is not kept: it waits for nothing
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

// owe remembers the debt of a key that does not wait.
func (q *Queue[V]) owe(key string, debt int64) {
	if debt <= 0 {
		return
	}
	if len(q.debts) >= max(q.limit, 1) {
		clear(q.debts)
	}
	q.debts[key] = min(debt, maxCost)
}

// Correct says that what a key was served cost more than its ticket said, or less.
func (q *Queue[V]) Correct(key string, more int64) {
	more = min(max(more, -maxCost), maxCost)
	if s := q.share(key); s != nil {
		s.credit = max(s.credit-more, -maxCost)
		return
	}
	q.owe(key, q.debts[key]+more)
}

// weightAt is the weight of a share with its age.
func (s *share[V]) weightAt(now time.Time) int64 {
	if s.weight < NormalWeight && now.Sub(s.tickets[0].Since) >= AgeAfter {
		return NormalWeight
	}
	return s.weight
}

// Head returns the ticket whose turn it is, which it stays until it is removed; nil: none waits.
func (q *Queue[V]) Head(now time.Time) *Ticket[V] {
	if q.head != nil || len(q.ring) == 0 {
		return q.head
	}
	// Whole rounds in which nobody could be served are not walked.
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

// RetryAfter returns when to send a request again where waiting ones are before it, running ones
// are answered at once, and each takes about service. It is a whole number of seconds from 1 to 60.
func RetryAfter(waiting, running int, service time.Duration) time.Duration {
	d := time.Duration(waiting+1) * service / time.Duration(max(running, 1))
	return min(max(d.Round(time.Second), leastRetry), mostRetry)
}
