package grammar

import "slices"

// maskKey names a state as far as a mask depends on it.
type maskKey struct {
	t    thread
	more *many
	text string
	keep bool
}

// Mask sets in dst the bits of the tokens that may come next, those that end the text among
// them, and clears all others. dst has MaskLen words.
func (m *Matcher) Mask(dst []uint64) {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.ended {
		clear(dst)
		return
	}
	copy(dst, m.g.mask(m.v, &m.at))
	if m.g.final(&m.at) {
		for _, id := range m.v.eos {
			if id >= 0 && id < len(m.v.tokens) {
				dst[id/64] |= 1 << (id % 64)
			}
		}
	}
}

// mask returns the tokens whose bytes may come next. The caller must not change it.
func (g *Grammar) mask(v *Vocabulary, c *config) []uint64 {
	key := maskKey{t: c.thread, more: c.more}
	var one [1]thread
	for _, t := range c.list(&one) {
		key.keep = key.keep || t.leaf.keep
	}
	if key.keep {
		key.text = string(c.text)
	}
	if mask := g.masks[key]; mask != nil && g.maskVocab == v {
		return mask
	}
	w := walker{g: g, v: v, mask: make([]uint64, v.words)}
	w.run(c)
	if g.maskVocab == v {
		g.charge(8*v.words + 100)
		g.relieve()
		g.masks[key] = w.mask
	}
	return w.mask
}

// walker computes one mask.
type walker struct {
	g    *Grammar
	v    *Vocabulary
	mask []uint64
	path [256]config
}

func (w *walker) set(ids []int32) {
	for _, id := range ids {
		w.mask[id/64] |= 1 << (id % 64)
	}
}

func (w *walker) run(c *config) {
	start := *c
	start.text = slices.Clone(start.text)
	w.walk(w.v.trie, &start)
}

// walk sets the tokens of t that may come after start.
func (w *walker) walk(t *trie, start *config) {
	for i := 0; i < len(t.bytes); {
		d := int(t.depth[i])
		from := start
		if d > 0 {
			from = &w.path[d-1]
		}
		to := &w.path[d]
		*to = w.g.step(from, t.bytes[i])
		if to.dead() {
			i = int(t.skip[i])
			continue
		}
		if k := t.tok[i]; k >= 0 {
			w.set(t.tokens[k])
		}
		i++
	}
}
