package liveness

import "time"

// peer is what this queen knows of a hive beyond the registry. Monitor.mu guards its fields. Zero
// times do not come.
type peer struct {
	id     string
	link   *Link   // nil: none
	report *Report // the last one; nil: none yet
	heard  time.Time
	next   time.Duration // when it was told to report next
	// suspect is why the hive's workers are avoided; empty: they are not.
	suspect      string
	suspectSince time.Time
	suspectAt    time.Time
	forgetAt     time.Time

	// Only while leading.
	downAt     time.Time
	graceUntil time.Time // not down before
	answered   time.Time // the last ping
	unanswered int       // pings since
	dirty      bool      // its report is in the backlog
	writing    bool      // something of it is being written
	gone       bool      // it is in the backlog as down or, with forget, to be removed
	forget     bool

	wakeAt time.Time // when alarms have it looked at; not after due
	place  int       // in alarms; -1: not in them
}

// due returns the earliest time at which something happens to the hive; zero: never.
func (p *peer) due() time.Time {
	var next time.Time
	for _, at := range []time.Time{p.suspectAt, p.downAt, p.forgetAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// peerLocked returns what is known of a hive, and adds it where nothing is.
func (m *Monitor) peerLocked(id string) *peer {
	p, ok := m.peers[id]
	if !ok {
		p = &peer{id: id, place: -1}
		m.peers[id] = p
	}
	return p
}

// dropLocked forgets a hive that has no link.
func (m *Monitor) dropLocked(p *peer) {
	m.alarms.remove(p)
	m.stock.put(p.id, nil)
	delete(m.peers, p.id)
	delete(m.silent, p.id)
	m.failures.confirm(p.id, nil, true)
	m.publishLocked(p.id)
}
