package liveness

// What tests of this package need to know of it.
const (
	IncumbentWait = incumbentWait
	WriteInterval = writeInterval
)

// Peers returns how many hives the monitor keeps something of.
func (m *Monitor) Peers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.peers)
}

// Links returns how many links stand.
func (m *Monitor) Links() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.links
}

// Check is Report.check.
func (r *Report) Check() error { return r.check() }

// Registered is Report.registered, and has the report share the registry's memory where it is.
func (r *Report) Registered(registry Registry) bool {
	same, old := r.registered(registry.View())
	if same {
		r.share(registry.View(), old)
	}
	return same
}
