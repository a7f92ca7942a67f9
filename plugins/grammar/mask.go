package grammar

import (
	"slices"
	"unicode/utf8"
)

// maskKey names a thread as far as its mask depends on it.
type maskKey struct {
	thread
	more *many
	text string
}

// Mask sets in dst the bits of the tokens that may come next, including those that end the text,
// and clears all others. dst has MaskLen words. Mask returns ErrExhausted, and clears dst, when the
// tokens cannot be found within the bounds of the grammar: what the caller would sample then is
// not known to be valid. The state of the matcher does not change.
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
	if err != nil {
		clear(dst)
	}
	return err
}

// maskInto sets the tokens that any thread allows. Threads within rules are taken together: after
// a character there are others, which only together come back to where they began.
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

// mask returns the tokens whose bytes may come next in one thread, or in more. The caller must not change it.
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
	counts [256]int32 // of complete characters, or -1 where the position knows its bounds
	start  *config    // of a mask within a string
	byName bool       // what follows a name depends on which it is
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
		switch {
		case l.keep:
			w.walk(w.v.trie, &start)
			return
		case l.mode != mChar || w.g.set.nodes[q].kind != kRepeat:
			w.walkCounted(w.v.trie, &start)
			return
		}
		t.leaf = w.g.leaf(leafKey{kind: l.kind, q: q}) // a run of characters
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

// walkFrom does so for the nodes from i up to end.
func (w *walker) walkFrom(t *trie, i, end int, start *config) {
	if start.more == nil && !start.leaf.keep {
		w.walkLeaves(t, i, end, start)
		return
	}
	w.walkStates(t, i, end, start)
}

// walkLeaves walks where nothing is remembered: as long as a token of JSON goes on, its position
// is all there is.
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

// run is a part of an expression that goes on with any number of characters of a class.
type run struct {
	class  []runeRange
	lo, hi int  // how many characters may and must still come; hi < 0: any number
	loop   bool // every one of them leads back to where it began; else the expression is a repeat
}

// runOf returns how q goes on with many characters of a class, if it does.
func (s *rxSet) runOf(q rx) (run, bool) {
	if n := &s.nodes[q]; n.kind == kRepeat && s.nodes[n.a].kind == kClass {
		return run{class: s.nodes[n.a].class, lo: int(n.min), hi: int(n.max)}, true
	}
	var class []runeRange
	e := s.edges(q)
	for i, next := range e.next {
		if next == q {
			hi := rune(maxRune)
			if i+1 < len(e.from) {
				hi = e.from[i+1] - 1
			}
			class = append(class, runeRange{e.from[i], hi})
		}
	}
	if len(class) == 0 || !s.alive(q) {
		return run{}, false
	}
	return run{class: normalize(class), hi: rxUnbounded, loop: true}, true
}

// inString computes the mask within a string with what the vocabulary knows about runs of
// characters. It reports false where that does not apply.
func (w *walker) inString(start *config) bool {
	set := w.g.set
	l := start.leaf
	w.start = start
	w.byName = l.kind == lKey && slices.ContainsFunc(start.stk.tops, func(x top) bool { return !x.f.key.obj.simple })
	raw, needed := l.kind == lText, l.keep
	if r, ok := set.runOf(l.q); ok {
		runs := w.v.runsOf(r.class, raw, needed || !r.loop)
		if runs == nil {
			return false
		}
		w.free(runs, start, 0, r)
		return true
	}
	// After the first character, most texts may lead to such a run.
	e := set.edges(l.q)
	for _, q := range slices.Backward(e.next) {
		if q == rxNone || q == rxEmpty || !set.alive(q) {
			continue
		}
		r, ok := set.runOf(q)
		if !ok || len(r.class) == 1 && r.class[0].hi-r.class[0].lo < 8 {
			continue
		}
		runs := w.v.runsOf(r.class, raw, needed)
		if runs == nil {
			return false
		}
		rest := w.g.leaf(leafKey{kind: l.kind, keep: l.keep, q: q})
		state := config{thread: thread{rest, start.stk}, text: w.filler(start, r.class, 1)}
		w.free(runs, &state, 1, r)
		w.differ(runs, start, rest, r.loop || r.lo == 0 && r.hi < 0)
		return true
	}
	return false
}

// inRules computes the mask of threads within rules. Where characters of a class lead back to the
// same threads, the vocabulary knows most of it.
func (w *walker) inRules(start *config) {
	class := w.g.loop(start)
	if len(class) == 0 || len(class) == 1 && class[0].hi-class[0].lo < 8 {
		w.walk(w.v.trie, start)
		return
	}
	v := w.v.runsOf(class, true, false)
	if v == nil {
		w.walk(w.v.trie, start)
		return
	}
	copy(w.mask, v.all)
	w.leave(v, start)
	w.walk(v.later, start)
}

const maxLoopParts = 300 // classes of characters that loop tries

// loop returns the characters that lead from threads within rules back to them.
func (g *Grammar) loop(start *config) []runeRange {
	from := []rune{0}
	for _, t := range start.more.threads {
		for _, r := range g.set.nodes[t.leaf.q].class {
			from = append(from, r.lo)
			if r.hi < maxRune {
				from = append(from, r.hi+1)
			}
		}
	}
	slices.Sort(from)
	if from = slices.Compact(from); len(from) > maxLoopParts {
		return nil
	}
	var out []runeRange
	for i, lo := range from {
		hi := rune(maxRune)
		if i+1 < len(from) {
			hi = from[i+1] - 1
		}
		at := lo
		if at >= 0xD800 && at <= 0xDFFF {
			at = 0xE000
		}
		if at > hi {
			continue
		}
		if to, ok := g.run(*start, utf8.AppendRune(nil, at)); ok && to.more == start.more && to.text == nil {
			out = append(out, runeRange{lo, hi})
		}
	}
	return normalize(out)
}

// filler returns a remembered text of start after n more characters of class that match nothing
// special.
func (w *walker) filler(start *config, class []runeRange, n int) []byte {
	if n == 0 || !start.leaf.keep {
		return start.text
	}
	var text []byte
	for range n {
		text = utf8.AppendRune(text, class[len(class)-1].hi)
	}
	// The same text for all positions keeps the number of states low; but it must be a name.
	for _, x := range start.stk.tops {
		if x.f.key.obj != nil && !w.g.set.match(w.g.object(x.f).freeQ, string(text)) {
			return append(slices.Clone(start.text), text...)
		}
	}
	return text
}

// free sets the tokens that may follow where, before characters ago, the run r began: state is
// that position.
func (w *walker) free(v *runs, state *config, before int, r run) {
	if r.hi < 0 || before+r.hi >= len(v.size)-1 {
		for i, x := range v.all {
			w.mask[i] |= x
		}
	} else {
		for _, ids := range v.size[:before+r.hi+1] {
			w.set(ids)
		}
	}
	if w.byName {
		if before == 0 {
			w.leave(v, state)
		}
		w.walk(v.leavers(w.v), w.start)
		return
	}
	if r.lo <= 1 && (r.hi < 0 || r.hi > w.v.longest) {
		next := *state
		if before == 0 {
			w.leave(v, state)
			next.text = w.filler(state, v.class, 1)
			if r.lo == 1 {
				next.leaf = w.repeat(state.leaf, v.class, 0, less(r.hi, 1))
			}
			w.walk(v.later, &next)
			return
		}
		if r.lo == 0 {
			w.walk(v.later, &next)
			return
		}
	}
	if before == 0 {
		w.leave(v, state)
	}
	for n := 1; n < len(v.exits); n++ {
		k := n - before
		if r.hi >= 0 && k > r.hi {
			break
		}
		next := config{thread: thread{stk: state.stk}, text: w.filler(state, v.class, k)}
		next.leaf = w.repeat(state.leaf, v.class, max(r.lo-k, 0), less(r.hi, k))
		w.walk(v.exit(w.v, n), &next)
	}
}

// less returns hi - n, if hi is a bound.
func less(hi, n int) int {
	if hi < 0 {
		return hi
	}
	return hi - n
}

// repeat returns the position like l where lo to hi characters of class come next.
func (w *walker) repeat(l *leaf, class []runeRange, lo, hi int) *leaf {
	q := w.g.set.repeat(w.g.set.class(class), int32(lo), int32(hi))
	return w.g.leaf(leafKey{kind: l.kind, keep: l.keep, q: q})
}

// leave sets the tokens that may come after start and do not begin within the class of v.
func (w *walker) leave(v *runs, start *config) {
	t := w.v.trie
	for i := 0; i < len(t.bytes); {
		end := int(t.skip[i])
		b := t.bytes[i]
		inside := b < 0x80 && v.ascii[b]
		if b >= 0xC2 {
			inside = v.contains(span(b))
		}
		if !inside {
			w.walkFrom(t, i, end, start)
		}
		i = end
	}
}

// differ corrects the mask for the tokens that do not at once lead from start to rest. If steady,
// every character of the class leads from rest back to it.
func (w *walker) differ(v *runs, start *config, rest *leaf, steady bool) {
	t := w.v.trie
	exact := 0 // nodes below this one come after a character outside of the class
	for i := 0; i < len(t.bytes); {
		d := int(t.depth[i])
		from := start
		if d > 0 {
			from = &w.path[d-1]
		}
		to := &w.path[d]
		b := t.bytes[i]
		*to = w.g.step(from, b)
		end := int(t.skip[i])
		leads := b >= 0xC2 && w.leads(v, from, to, b, rest)
		if i >= exact && !leads && (b >= 0x80 || !v.ascii[b]) {
			exact = end
		}
		switch {
		case to.dead():
			for ; i < end; i++ {
				if k := t.tok[i]; k >= 0 {
					w.unset(t.tokens[k])
				}
			}
			continue
		case i >= exact && (d == 0 || steady) && (leads || to.leaf == rest && to.stk == start.stk):
			i = end
			continue
		}
		if k := t.tok[i]; k >= 0 {
			w.set(t.tokens[k])
		}
		i++
	}
}

// span returns the characters whose first byte is b.
func span(b byte) (lo, hi rune) {
	switch {
	case b < 0xE0:
		lo = rune(b&0x1F) << 6
		return lo, lo | 0x3F
	case b < 0xF0:
		lo = rune(b&0x0F) << 12
		return max(lo, 0x800), lo | 0xFFF
	}
	lo = rune(b&0x07) << 18
	return max(lo, 0x10000), min(lo|0x3FFFF, maxRune)
}

// leads reports whether the first byte b of a character leads to rest, whatever its other bytes.
func (w *walker) leads(v *runs, from, to *config, b byte, rest *leaf) bool {
	if to.leaf == nil || to.leaf.mode != mUTF8 || from.leaf == nil || from.leaf.mode != mChar {
		return false
	}
	lo, hi := span(b)
	if !v.contains(lo, hi) {
		return false
	}
	e := w.g.set.edges(from.leaf.q)
	i := e.index(lo)
	return e.next[i] == rest.q && (i+1 == len(e.from) || e.from[i+1] > hi)
}

// checkHazards settles the tokens of which more depends on the remembered text.
func (w *walker) checkHazards(start *config) {
	t := w.v.hazards
	for i := 0; i < len(t.bytes); {
		d := int(t.depth[i])
		from := start
		if d > 0 {
			from = &w.path[d-1]
		}
		to := &w.path[d]
		*to = w.g.step(from, t.bytes[i])
		if to.dead() {
			for end := int(t.skip[i]); i < end; i++ {
				if k := t.tok[i]; k >= 0 {
					w.unset(t.tokens[k])
				}
			}
			continue
		}
		if k := t.tok[i]; k >= 0 {
			w.set(t.tokens[k])
		}
		i++
	}
}
