package liveness

// Unexported constants that tests of this package need.
const (
	IncumbentWait = incumbentWait
	WriteInterval = writeInterval
)

// Peers returns the number of hives that the monitor tracks.
func (m *Monitor) Peers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.peers)
}

// Links returns the number of open links.
func (m *Monitor) Links() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.links
}

// Check is Report.check.
func (r *Report) Check() error { return r.check() }

// Registered is Report.registered; a registered report then shares the registry's memory.
func (r *Report) Registered(registry Registry) bool {
	same, old := r.registered(registry.View())
	if same {
		r.share(registry.View(), old)
	}
	return same
}
