package gossip

// Expect says which nodes are the cluster's: they have a place in the pool however many others
// there are. It replaces what was said before.
func (p *Pool) Expect(ids []string) {
	expected := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		expected[id] = struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = expected
}

// full reports whether there is no place for an unknown node: maxMembers nodes that nobody expects
// are there. The caller holds p.mu.
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
