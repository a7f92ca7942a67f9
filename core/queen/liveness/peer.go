package liveness

import "time"

// peer is what this queen knows about a hive beyond the registry. Monitor.mu guards its fields.
// Zero times mean never.
type peer struct {
	id     string
	link   *Link   // nil: no link
	report *Report // the latest report; nil: none yet
	heard  time.Time
	next   time.Duration // the interval it was last given
	// suspect is why the hive's workers are avoided; empty: they are not.
	suspect      string
	suspectSince time.Time
	suspectAt    time.Time
	forgetAt     time.Time

	// The fields below are used only while leading.
	downAt     time.Time
	graceUntil time.Time // not down before this time
	answered   time.Time // time of the last answered ping
	unanswered int       // pings since then
	dirty      bool      // its report is in the backlog
	writing    bool      // a change to it is being written
	gone       bool      // in the backlog as down or, with forget, for removal
	forget     bool

	wakeAt time.Time // when alarms checks it; not after due
	place  int       // index in alarms; -1: not in it
}

// due returns the next deadline of the hive; zero: none.
func (p *peer) due() time.Time {
	var next time.Time
	for _, at := range []time.Time{p.suspectAt, p.downAt, p.forgetAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// peerLocked returns the peer of a hive, adding it if needed.
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
