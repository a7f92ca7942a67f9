package queen

import (
	"time"

	"github.com/rbee-project/rbee/core/gossip"
)

// departingFor is how long a node that leaves may stay in the registry before that is a problem:
// its certificate is revoked leaveGrace after it went.
const departingFor = 3 * leaveGrace

// departs notes that a node leaves with this queen's help.
func (q *Queen) departs(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.departing == nil {
		q.departing = map[string]time.Time{}
	}
	for other, at := range q.departing {
		if time.Since(at) > departingFor {
			delete(q.departing, other)
		}
	}
	q.departing[id] = time.Now()
}

// leaves returns the nodes that are about to leave the registry: this queen takes them out, or they
// said goodbye to gossip.
func (q *Queen) leaves() map[string]bool {
	out := map[string]bool{}
	if m := q.opts.Membership; m != nil {
		for _, other := range m.Gossip.Members() {
			out[other.ID] = other.Status == gossip.Left
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, at := range q.departing {
		out[id] = out[id] || time.Since(at) < departingFor
	}
	return out
}
