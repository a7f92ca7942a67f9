package gossip

// Expect sets the IDs of the cluster's own nodes: the pool accepts them even when it is full. It
// replaces the earlier set.
func (p *Pool) Expect(ids []string) {
	expected := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		expected[id] = struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = expected
}

// full reports whether the pool has no room for an unknown node: it already holds maxMembers
// unexpected ones. The caller holds p.mu.
func (p *Pool) full(id string) bool {
	if len(p.members) < maxMembers {
		return false
	}
	if _, ok := p.expected[id]; ok {
		return false
	}
	strangers := len(p.members)
	for known := range p.expected {
		if _, ok := p.members[known]; ok {
			strangers--
		}
	}
	return strangers >= maxMembers
}
