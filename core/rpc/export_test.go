package rpc

// ConnectWorker is what a queen calls on a connection to a hive.
var ConnectWorker = connectWorker

// Held returns how many connections the Mux tracks, in each of its tables.
func (m *Mux) Held() (half, guests, open, counts int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.half.order.Len() + len(m.half.hosts), m.guests.order.Len() + len(m.guests.hosts), len(m.open), len(m.counts)
}

// Held returns how many connections for data and files, and how many sessions, the Pool keeps.
func (p *Pool) Held() (data, sessions int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.data), len(p.sessions)
}

// Held returns how many connections the RaftStream has dialled and not yet closed.
func (s *RaftStream) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}
