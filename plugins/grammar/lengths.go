package grammar

import "slices"

// lengths bounds the number of characters of a string. Keeping it separate from the string's
// pattern avoids multiplying the pattern's states.
type lengths struct {
	lo, hi int32 // hi < 0: unbounded
}

var anyLength = lengths{hi: rxUnbounded}

func (n lengths) any() bool { return n.lo <= 0 && n.hi < 0 }

func (n lengths) empty() bool { return n.hi >= 0 && n.hi < n.lo }

func (n lengths) intersect(o lengths) lengths {
	n.lo = max(n.lo, o.lo)
	if n.hi < 0 || o.hi >= 0 && o.hi < n.hi {
		n.hi = o.hi
	}
	return n
}

// minus returns the bounds left after k characters.
func (n lengths) minus(k int32) lengths {
	n.lo = max(n.lo-k, 0)
	if n.hi >= 0 {
		n.hi = max(n.hi-k, 0)
	}
	return n
}

const (
	maxReach    = 1000   // expressions that spread explores
	reachWork   = 10_000 // and the work that it may use
	manyRepeats = 16     // minimum count of a repetition that split treats as a length
)

// split returns an expression and lengths that together match the same texts as r. It finds the
// lengths in repetitions of characters between parts of constant length.
func (s *rxSet) split(r rx) (rx, lengths) {
	n := s.nodes[r]
	if n.kind == kAnd {
		all := anyLength
		kids := slices.Clone(n.kids)
		for i, k := range kids {
			q, of := s.split(k)
			kids[i], all = q, all.intersect(of)
		}
		return s.and(kids...), all
	}
	parts := s.parts(r)
	at, fixed := -1, int32(0)
	for i, p := range parts {
		if k, ok := s.constant(p); ok {
			fixed += k
		} else if at < 0 {
			at = i
		} else {
			return r, anyLength
		}
	}
	if at < 0 || fixed > maxRepeat {
		return r, anyLength
	}
	n = s.nodes[parts[at]]
	if n.kind != kRepeat || s.nodes[n.a].kind != kClass || n.min < manyRepeats && n.max < manyRepeats {
		return r, anyLength
	}
	of := lengths{n.min + fixed, n.max}
	if n.max != rxUnbounded {
		of.hi += fixed
	}
	parts[at] = s.repeat(n.a, 0, rxUnbounded)
	out := rxEmpty
	for _, p := range slices.Backward(parts) {
		out = s.concat(p, out)
	}
	return out, of
}

// parts returns the expressions whose concatenation is r.
func (s *rxSet) parts(r rx) []rx {
	var out []rx
	for s.nodes[r].kind == kConcat {
		out = append(out, s.nodes[r].a)
		r = s.nodes[r].b
	}
	return append(out, r)
}

// constant returns the length of the texts that r matches, if they obviously all have the same one.
func (s *rxSet) constant(r rx) (int32, bool) {
	switch n := &s.nodes[r]; n.kind {
	case kEmpty:
		return 0, true
	case kClass:
		return 1, true
	case kRepeat:
		return n.min, n.min == n.max && s.nodes[n.a].kind == kClass
	case kAlt:
		k, ok := s.constant(n.kids[0])
		for _, kid := range n.kids[1:] {
			x, also := s.constant(kid)
			ok = ok && also && x == k
		}
		return k, ok
	case kConcat:
		total := int32(0)
		for _, p := range s.parts(r) {
			k, ok := s.constant(p)
			if !ok {
				return 0, false
			}
			total += k
		}
		return total, true
	}
	return 0, false
}

// bounded returns an expression for the texts of r whose length is within n.
func (s *rxSet) bounded(r rx, n lengths) rx {
	if n.any() {
		return r
	}
	if n.empty() {
		return rxNone
	}
	if x := &s.nodes[r]; x.kind == kRepeat && x.min == 0 && x.max == rxUnbounded && s.nodes[x.a].kind == kClass {
		return s.repeat(x.a, max(n.lo, 0), n.hi)
	}
	return s.and(r, s.repeat(rxAny, max(n.lo, 0), n.hi))
}

// countable reports whether the lengths n can be counted separately from r: r must match a text of
// such a length, now and after any character that it allows next.
func (s *rxSet) countable(r rx, n lengths) bool {
	spread := s.spread(r)
	return spread >= 0 && !n.empty() && (n.hi < 0 || n.hi > spread)
}

// spread returns a number such that every expression reachable from r matches texts of every length
// from that number on; -1 if none exists or it is unknown.
func (s *rxSet) spread(r rx) int32 {
	if k, ok := s.spreads[r]; ok {
		return k
	}
	whole := s.work
	s.work = min(whole, reachWork)
	list, before, loops := s.explore(r)
	known := !s.exhausted()
	s.work += whole - min(whole, reachWork)
	if !known || list == nil {
		if known || whole > reachWork {
			s.spreads[r] = -1
		}
		return -1
	}
	// Find how many characters are left at least, and from which number on any number can be left:
	// the latter begins where an expression leads back to itself.
	var ends []int32
	for i, x := range list {
		if s.nullable(x) {
			ends = append(ends, int32(i))
		}
	}
	least := distances(before, ends, make([]int32, len(list)))
	slices.SortFunc(loops, func(a, b int32) int { return int(least[a] - least[b]) })
	out := int32(0)
	for _, k := range distances(before, loops, least) {
		if k < 0 {
			s.spreads[r] = -1
			return -1
		}
		out = max(out, k)
	}
	for _, x := range list { // for the others it is an upper bound, which suffices
		if _, ok := s.spreads[x]; !ok {
			s.spreads[x] = out
		}
	}
	return out
}

// explore returns the expressions reachable from r, the predecessors of each, and which ones lead
// to themselves. It returns none when there are too many.
func (s *rxSet) explore(r rx) (list []rx, before [][]int32, loops []int32) {
	index := map[rx]int32{r: 0}
	list, before = []rx{r}, [][]int32{nil}
	for i := 0; i < len(list) && !s.exhausted(); i++ {
		for _, next := range s.edges(list[i]).next {
			if next == rxNone || !s.alive(next) {
				continue
			}
			j, ok := index[next]
			if !ok {
				if len(list) == maxReach {
					return nil, nil, nil
				}
				j = int32(len(list))
				index[next] = j
				list, before = append(list, next), append(before, nil)
			}
			if int(j) == i {
				loops = append(loops, j)
			} else {
				before[j] = append(before[j], int32(i))
			}
		}
	}
	return list, before, loops
}

// distances returns for every node the minimum, over weighted nodes reachable from it, of the
// weight plus the number of steps. The weighted nodes must be sorted by weight. Nodes that reach
// none get -1.
func distances(before [][]int32, weighted []int32, weights []int32) []int32 {
	out := make([]int32, len(before))
	for i := range out {
		out[i] = -1
	}
	var queue []int32
	for k := int32(0); len(queue) > 0 || len(weighted) > 0; k++ {
		if len(queue) == 0 {
			k = weights[weighted[0]]
		}
		var next []int32
		visit := func(i int32) {
			if out[i] < 0 {
				out[i] = k
				next = append(next, before[i]...)
			}
		}
		for _, i := range queue {
			visit(i)
		}
		for len(weighted) > 0 && weights[weighted[0]] <= k {
			visit(weighted[0])
			weighted = weighted[1:]
		}
		queue = next
	}
	return out
}

// countedKey identifies a position in a string whose length is counted separately from its
// expression.
type countedKey struct {
	base *leaf
	left lengths
}

// counted returns the position like base with the lengths n left, or nil if no string continues
// that way. At base a character begins, or n includes the one that has begun.
func (g *Grammar) counted(base *leaf, n lengths) *leaf {
	if n.any() {
		return base
	}
	if base.mode == mChar && !g.set.countable(base.q, n) {
		q := g.set.bounded(base.q, n)
		if q == rxNone || !g.set.alive(q) {
			return nil
		}
		return g.leaf(leafKey{kind: base.kind, keep: base.keep, q: q})
	}
	k := countedKey{base, n}
	if l := g.counts[k]; l != nil {
		return l
	}
	l := &leaf{id: g.nextID(), kind: base.kind, mode: base.mode, keep: base.keep, q: base.q, aux: base.aux, base: base, left: n}
	g.counts[k] = l
	g.charge(300)
	return l
}

// nextCounted is next for positions whose length is counted.
func (g *Grammar) nextCounted(l *leaf, b byte) *leaf {
	to := g.next(l.base, b)
	switch {
	case to == nil:
		return nil
	case to == structural:
		if l.left.lo > 0 {
			return nil
		}
		return structural
	case to.mode == mChar: // a character is complete
		return g.counted(to, l.left.minus(1))
	}
	return g.counted(to, l.left)
}

// rounded returns a position with the same mask as l that more positions share: it drops bounds
// that no token reaches.
func (g *Grammar) rounded(v *Vocabulary, l *leaf) *leaf {
	n := l.left
	n.lo = min(n.lo, int32(v.longest)+1)
	if spread := g.set.spread(l.q); spread >= 0 && n.hi-int32(v.longest) > spread {
		n.hi = rxUnbounded
	}
	if to := g.counted(l.base, n); to != nil {
		return to
	}
	return l
}

// walkCounted sets the tokens that may come after start while a length is counted. It walks over
// the positions without lengths, which all counts share.
func (w *walker) walkCounted(t *trie, start *config) {
	g, base, n := w.g, start.leaf.base, start.leaf.left
	for i := 0; i < len(t.bytes); {
		d := int(t.depth[i])
		from, count := base, int32(0)
		if d > 0 {
			from, count = w.leaves[d-1], w.counts[d-1]
		}
		to := g.next(from, t.bytes[i])
		if to == nil || to == structural && count >= 0 && count < n.lo {
			i = int(t.skip[i])
			continue
		}
		if to == structural {
			next := int(t.skip[i])
			after := config{thread: thread{from, start.stk}, text: w.textAt(start, d)}
			if d == 0 {
				w.walkStates(t, i, next, &after)
			} else {
				w.path[d-1] = after
				w.walkStates(t, i, next, start)
			}
			i = next
			continue
		}
		if count >= 0 && to.mode == mChar && t.levels != nil && !start.leaf.keep && g.unbounded(to.q, n.minus(count), int32(t.levels[i])+1) {
			next := int(t.skip[i])
			w.walkLeaves(t, i, next, &config{thread: thread{base, start.stk}})
			i = next
			continue
		}
		if count >= 0 && to.mode == mChar {
			count++
			if left := n.minus(count); n.hi >= 0 && !g.set.countable(to.q, left) {
				if to, count = g.counted(to, left), -1; to == nil {
					i = int(t.skip[i])
					continue
				}
			}
		}
		w.leaves[d], w.counts[d], w.bytes[d] = to, count, t.bytes[i]
		if k := t.tok[i]; k >= 0 {
			w.set(t.tokens[k])
		}
		i++
	}
}

// unbounded reports whether at most k more bytes cannot reach the bounds n of a string that
// continues with q.
func (g *Grammar) unbounded(q rx, n lengths, k int32) bool {
	if n.lo > 0 {
		return false
	}
	if n.hi < 0 {
		return true
	}
	spread := g.set.spread(q)
	return spread >= 0 && n.hi-k > spread
}

// textAt returns the recorded text after start and d more bytes.
func (w *walker) textAt(start *config, d int) []byte {
	if !start.leaf.keep {
		return nil
	}
	text := slices.Clone(start.text)
	from := start.leaf
	for i := range d {
		text = remember(text, from, w.leaves[i], w.bytes[i])
		from = w.leaves[i]
	}
	return text
}
