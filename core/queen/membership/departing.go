package membership

import (
	"time"

	"github.com/rbee-project/rbee/core/gossip"
)

// departingFor is how long a leaving node may stay in the registry before that is a problem: its
// certificate is revoked LeaveGrace after it left.
const departingFor = 3 * LeaveGrace

// departs records that a node leaves with this queen's help.
func (m *Members) departs(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.departing == nil {
		m.departing = map[string]time.Time{}
	}
	for other, at := range m.departing {
		if time.Since(at) > departingFor {
			delete(m.departing, other)
		}
	}
	m.departing[id] = time.Now()
}

// leaves returns the nodes about to leave the registry: this queen is removing them, or they left
// gossip.
func (m *Members) leaves() map[string]bool {
	out := map[string]bool{}
	if m.net != nil {
		for _, other := range m.net.Gossip.Members() {
			out[other.ID] = other.Status == gossip.Left
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, at := range m.departing {
		out[id] = out[id] || time.Since(at) < departingFor
	}
	return out
}
