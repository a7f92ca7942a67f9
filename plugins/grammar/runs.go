package grammar

import (
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// run is a part of an expression that continues with any number of characters of a class.
type run struct {
	class  []runeRange
	lo, hi int  // how many characters must and may still come; hi < 0: unbounded
	loop   bool // every one leads back to where it began; otherwise the expression is a repeat
}

// runOf returns the run of characters at q, if there is one.
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

// inString computes the mask within a string from the vocabulary's runs of characters. It reports
// false where that does not apply.
func (w *walker) inString(start *config) bool {
	set := w.g.set
	l := start.leaf
	w.start = start
	w.byName = l.keep && slices.ContainsFunc(start.stk.tops, func(x top) bool {
		return x.f.key.kept || l.kind == lKey && !x.f.key.obj.simple
	})
	raw, needed := l.kind == lText, l.keep
	r, ok := set.runOf(l.q)
	if full := ok && slices.Equal(r.class, anyChar); !full && !l.keep && set.open(l.q) {
		w.anywhere(start, raw)
		return true
	}
	if ok {
		runs := w.v.runsOf(r.class, raw, needed || !r.loop)
		if runs == nil {
			return false
		}
		w.free(runs, start, 0, r)
		return true
	}
	// Most characters may lead to such a run.
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

var anyChar = []runeRange{{0, maxRune}}

// anywhere sets the tokens that may come after start if any characters are allowed: only what
// leaves the string needs a walk.
func (w *walker) anywhere(start *config, raw bool) {
	every := w.v.runsOf(anyChar, raw, true)
	for i, x := range every.all {
		w.mask[i] |= x
	}
	w.leave(every, start)
	w.walk(every.leavers(w.v), start)
}

// inRules computes the mask of threads within rules. If characters of a class lead back to the same
// threads, most of it comes from the vocabulary's runs.
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

// filler returns the recorded text of start, extended by n characters of class that match nothing
// special.
func (w *walker) filler(start *config, class []runeRange, n int) []byte {
	if n == 0 || !start.leaf.keep {
		return start.text
	}
	var text []byte
	for range n {
		text = utf8.AppendRune(text, class[len(class)-1].hi)
	}
	// Using the same text for all positions keeps the number of states low; but it must be a
	// possible name.
	for _, x := range start.stk.tops {
		if x.f.key.obj != nil && !w.g.set.match(w.g.object(x.f).freeQ, string(text)) {
			return append(slices.Clone(start.text), text...)
		}
	}
	return text
}

// free sets the tokens that may follow in state, if the run r began before characters earlier.
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

// differ corrects the mask for the tokens that do not lead from start to rest at once. steady is
// whether every character of the class leads from rest back to it.
func (w *walker) differ(v *runs, start *config, rest *leaf, steady bool) {
	t := w.v.trie
	exact := 0 // nodes below this one follow a character outside the class
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

// checkHazards checks the tokens whose validity depends on more of the recorded text.
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

// runs holds the tokens of a vocabulary, sorted by how long they stay within a class of characters
// that need no escaping: in a JSON string or, if raw, in any text.
type runs struct {
	class []runeRange
	raw   bool
	ascii [utf8.RuneSelf]bool
	all   []uint64  // tokens that stay within the class
	size  [][]int32 // [n]: those with n characters
	later *trie     // the rest of tokens that begin within the class and leave it

	mu    sync.Mutex // guards below
	cuts  [][]int32  // [n]: nodes of the vocabulary's trie where tokens leave after n characters
	exits []*trie    // [n]: their rest; nil until needed
	whole *trie      // the complete tokens of cuts; nil until needed
}

// leavers returns the tokens that begin within the class and leave it.
func (r *runs) leavers(v *Vocabulary) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole == nil {
		r.whole = v.trie.through(slices.Concat(r.cuts...))
	}
	return r.whole
}

// exit returns the rest of the tokens that leave the class after n > 0 characters.
func (r *runs) exit(v *Vocabulary, n int) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exits[n] == nil {
		r.exits[n] = v.trie.merge(r.cuts[n])
	}
	return r.exits[n]
}

const (
	maxRuns  = 32
	maxAsked = 1000 // classes whose requests are counted
)

// runsOf returns the runs of a class. As sorting the tokens takes longer than one walk over them,
// the first request for a class returns nil, unless needed is set.
func (v *Vocabulary) runsOf(class []runeRange, raw, needed bool) *runs {
	if !raw && slices.Equal(class, anyChar) {
		return v.every
	}
	key := fmt.Sprint(class, raw)
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.runs[key]
	if r != nil {
		return r
	}
	if !needed && !v.asked[key] {
		if len(v.asked) >= maxAsked {
			clear(v.asked)
		}
		v.asked[key] = true
		return nil
	}
	if len(v.runs) >= maxRuns {
		for k := range v.runs {
			delete(v.runs, k)
			break
		}
	}
	r = v.newRuns(class, raw)
	v.runs[key] = r
	return r
}

// newRuns sorts the tokens of v by how far they stay within the class.
func (v *Vocabulary) newRuns(class []runeRange, raw bool) *runs {
	r := &runs{class: class, raw: raw, all: make([]uint64, v.words)}
	r.fillASCII()
	v.follow(r, 0, len(v.trie.bytes), r.stay, r.leave)
	r.exits = make([]*trie, len(r.cuts))
	r.later = v.trie.merge(slices.Concat(r.cuts...))
	return r
}

func (r *runs) fillASCII() {
	for b := range r.ascii {
		r.ascii[b] = (r.raw || b >= 0x20 && b != '"' && b != '\\') && r.contains(rune(b), rune(b))
	}
}

// follow walks over the nodes from begin to end of the trie of v, where a character begins, as long
// as they stay within the class of r. It calls stay with tokens within the class and their number
// of characters, and leave with nodes at which others leave it after that many characters. An
// incomplete character at the end of a token counts if the class contains all characters with its
// first byte.
func (v *Vocabulary) follow(r *runs, begin, end int, stay func(ids []int32, n int), leave func(node int32, n int)) {
	t := v.trie
	var path [256]byte
	var nodes [256]int32
	var chars, begins [256]int // complete characters, and where the next one begins
	last := int32(-1)          // node where tokens last left
	base := 0
	if begin < end {
		base = int(t.depth[begin])
	}
	for i := begin; i < end; {
		d, n, from := int(t.depth[i])-base, 0, 0
		if d > 0 {
			n, from = chars[d-1], begins[d-1]
		}
		path[d], nodes[d] = t.bytes[i], int32(i)
		fits := r.fits(path[from : d+1])
		inside := fits == fitsYes || fits == fitsYet && t.tok[i] >= 0 && r.contains(span(path[from]))
		if k := t.tok[i]; k >= 0 && inside {
			stay(t.tokens[k], n+1)
		}
		// All tokens that share the first byte of the character count as leaving: their rest is
		// followed byte by byte.
		if leaves := fits == fitsNot && (r.raw || path[from] >= 0x20) || fits == fitsYet && t.tok[i] >= 0 && !inside; leaves && nodes[from] != last {
			last = nodes[from]
			leave(last, n)
		}
		if fits == fitsNot || fits == fitsNever {
			i = int(t.skip[i])
			continue
		}
		if fits == fitsYes {
			n, from = n+1, d+1
		}
		chars[d], begins[d] = n, from
		i++
	}
}

type fit uint8

const (
	fitsNot   fit = iota // the character is outside the class
	fitsYes              // the character is in the class
	fitsYet              // the character is incomplete
	fitsNever            // not a character
)

// fits reports whether the character that begins with b belongs to the class.
func (r *runs) fits(b []byte) fit {
	if b[0] < utf8.RuneSelf {
		if r.ascii[b[0]] {
			return fitsYes
		}
		return fitsNot
	}
	c, n := utf8.DecodeRune(b)
	switch {
	case c == utf8.RuneError && n == 1 && utf8.FullRune(b):
		return fitsNever
	case c == utf8.RuneError && n == 1:
		return fitsYet
	case r.contains(c, c):
		return fitsYes
	}
	return fitsNot
}

// stay records tokens of n characters that stay within the class.
func (r *runs) stay(ids []int32, n int) {
	for len(r.size) <= n {
		r.size = append(r.size, nil)
	}
	r.size[n] = append(r.size[n], ids...)
	for _, id := range ids {
		r.all[id/64] |= 1 << (id % 64)
	}
}

// leave records a node at which tokens leave the class after n characters.
func (r *runs) leave(node int32, n int) {
	if n == 0 {
		return
	}
	for len(r.cuts) <= n {
		r.cuts = append(r.cuts, nil)
	}
	r.cuts[n] = append(r.cuts[n], node)
}

func (r *runs) contains(lo, hi rune) bool {
	i, found := slices.BinarySearchFunc(r.class, lo, func(x runeRange, c rune) int { return int(x.lo - c) })
	if !found {
		i--
	}
	return i >= 0 && r.class[i].hi >= hi
}
