package grammar

// Memory returns roughly how many bytes the grammar and its states take. Options.MaxMemory bounds
// it.
func (g *Grammar) Memory() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set.bytes
}
