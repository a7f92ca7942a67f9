package grammar

// Memory returns the approximate memory of the grammar and its states, in bytes. Options.MaxMemory
// bounds it.
func (g *Grammar) Memory() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set.bytes
}
