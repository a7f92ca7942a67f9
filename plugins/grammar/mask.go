package grammar

import "slices"

// maskKey identifies a thread as far as its mask depends on it.
type maskKey struct {
	thread
	more *many
	text string
}

// Mask sets in dst the bits of the tokens that may come next, including those that end the text,
// and clears all others. dst has MaskLen words. Mask returns ErrExhausted, and clears dst, when the
// tokens cannot be determined within the bounds of the grammar: any token sampled then might be
// invalid. It returns ErrNoToken when there are none. The state of the matcher does not change.
// After the token that ends a text the mask is empty.
func (m *Matcher) Mask(dst []uint64) error {
	clear(dst)
	if m.ended {
		return nil
	}
	if err := m.begin(maskWork); err != nil {
		m.g.mu.Unlock()
		return err
	}
	m.maskInto(dst)
	err := m.end()
	switch {
	case err != nil:
		clear(dst)
	case !slices.ContainsFunc(dst, func(w uint64) bool { return w != 0 }):
		err = ErrNoToken
	}
	return err
}

// maskInto sets the tokens that any thread allows. Threads within rules are handled together: after
// a character there are others, and only together they return to where they began.
func (m *Matcher) maskInto(dst []uint64) {
	var one [1]thread
	var rules []thread
	add := func(mask []uint64) {
		for j, w := range mask {
			dst[j] |= w
		}
	}
	for _, t := range m.at.list(&one) {
		if t.leaf.kind == lRule {
			rules = append(rules, t)
		} else {
			add(m.g.mask(m.v, t, nil, m.at.text))
		}
	}
	if rules != nil {
		c := m.g.collect(rules, nil)
		add(m.g.mask(m.v, thread{}, c.more, nil))
	}
	if m.g.final(&m.at) {
		for _, id := range m.v.eos {
			if id >= 0 && id < len(m.v.tokens) {
				dst[id/64] |= 1 << (id % 64)
			}
		}
	}
}

// mask returns the tokens whose bytes may come next in t or in the threads of more. The caller must
// not modify the result.
func (g *Grammar) mask(v *Vocabulary, t thread, more *many, text []byte) []uint64 {
	if t.leaf != nil && t.leaf.base != nil {
		t.leaf = g.rounded(v, t.leaf)
	}
	key := maskKey{thread: t, more: more}
	if more == nil && t.leaf.keep {
		key.text = string(text)
	}
	if mask := g.masks[key]; mask != nil && g.maskVocab == v {
		return mask
	}
	w := &g.walker
	w.g, w.v, w.mask = g, v, make([]uint64, v.words)
	if more != nil {
		w.inRules(&config{more: more})
	} else {
		w.run(t, text)
	}
	mask := w.mask
	w.mask = nil
	if g.maskVocab == v && !g.set.exhausted() {
		if g.maskBytes > g.opts.maxMemory()/3 {
			g.dropMasks()
		}
		g.charge(8*v.words + 200)
		g.maskBytes += 8*v.words + 200
		g.masks[key] = mask
	}
	return mask
}

// walker computes one mask.
type walker struct {
	g    *Grammar
	v    *Vocabulary
	mask []uint64
	path [256]config

	leaves [256]*leaf
	bytes  [256]byte
	counts [256]int32 // of complete characters, or -1 where the position has its own bounds
	start  *config    // of a mask within a string
	byName bool       // the continuation after a name depends on the name
}

func (w *walker) set(ids []int32) {
	for _, id := range ids {
		w.mask[id/64] |= 1 << (id % 64)
	}
}

func (w *walker) unset(ids []int32) {
	for _, id := range ids {
		w.mask[id/64] &^= 1 << (id % 64)
	}
}

func (w *walker) run(t thread, text []byte) {
	start := config{thread: t, text: slices.Clone(text)}
	if l := t.leaf; l.base != nil {
		q := w.g.set.bounded(l.q, l.left)
		if l.mode != mChar || w.g.set.nodes[q].kind != kRepeat {
			w.walkCounted(w.v.trie, &start)
			return
		}
		t.leaf = w.g.leaf(leafKey{kind: l.kind, keep: l.keep, q: q}) // a run of characters
		start.thread = t
	}
	l := t.leaf
	if (l.kind == lString || l.kind == lKey || l.kind == lText) && l.mode == mChar && w.inString(&start) {
		if l.keep {
			w.checkHazards(&start)
		}
		return
	}
	w.walk(w.v.trie, &start)
}

// walk sets the tokens of t that may come after start.
func (w *walker) walk(t *trie, start *config) {
	w.walkFrom(t, 0, len(t.bytes), start)
}

// walkFrom is walk for the nodes from i up to end.
func (w *walker) walkFrom(t *trie, i, end int, start *config) {
	if start.more == nil && !start.leaf.keep {
		w.walkLeaves(t, i, end, start)
		return
	}
	w.walkStates(t, i, end, start)
}

// walkLeaves walks where no text is recorded: within a token of JSON, the position is the whole
// state.
func (w *walker) walkLeaves(t *trie, i, end int, start *config) {
	for i < end {
		d := int(t.depth[i])
		from := start.leaf
		if d > 0 {
			from = w.leaves[d-1]
		}
		to := w.g.next(from, t.bytes[i])
		switch to {
		case nil:
			i = int(t.skip[i])
			continue
		case structural:
			next := int(t.skip[i])
			if d == 0 {
				w.walkStates(t, i, next, start)
			} else {
				w.path[d-1] = config{thread: thread{from, start.stk}}
				w.walkStates(t, i, next, start)
			}
			i = next
			continue
		}
		if t == w.v.trie && w.branch(i, to, start.stk) {
			i = int(t.skip[i])
			continue
		}
		w.leaves[d] = to
		if k := t.tok[i]; k >= 0 {
			w.set(t.tokens[k])
		}
		i++
	}
}

func (w *walker) walkStates(t *trie, i, end int, start *config) {
	for i < end {
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
