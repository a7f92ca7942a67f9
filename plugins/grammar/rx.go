package grammar

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf8"
)

// rx is a regular expression over Unicode characters, as an index into the nodes of an rxSet.
// Equal expressions (up to the laws that the constructors apply) have equal indices.
type rx int32

const (
	rxNone  rx = iota // matches nothing
	rxEmpty           // matches the empty text
	rxAny             // matches any one character
	rxAll             // matches every text
)

type rxKind uint8

const (
	kNone rxKind = iota
	kEmpty
	kClass
	kConcat // a then b
	kAlt    // any of kids
	kAnd    // all of kids
	kNot    // not a
	kRepeat // a, min to max times
)

const (
	maxRune     = utf8.MaxRune
	rxUnbounded = -1
	maxRepeat   = 1 << 24
)

// runeRange is a range of characters with both ends.
type runeRange struct{ lo, hi rune }

type rxNode struct {
	kind     rxKind
	nullable bool
	boolean  bool // holds an And or a Not: whether it matches anything is not obvious
	a, b     rx
	min, max int32
	kids     []rx
	class    []runeRange
	edges    *rxEdges
	live     int8 // 0 unknown, 1 matches something, -1 matches nothing
}

// rxEdges are the derivatives of an expression: next[i] by the characters from from[i] up to
// from[i+1]. Surrogates belong to no character; they lie inside of any range.
type rxEdges struct {
	from []rune
	next []rx
}

func (e *rxEdges) by(r rune) rx { return e.next[e.index(r)] }

// index returns which of the ranges holds r.
func (e *rxEdges) index(r rune) int {
	i, found := slices.BinarySearch(e.from, r)
	if !found {
		i--
	}
	return i
}

// rxSet interns expressions. It is not safe for concurrent use.
type rxSet struct {
	nodes   []rxNode
	index   map[string]rx
	buf     []byte
	trees   map[string]rx // of literalTree
	spreads map[rx]int32
	opens   map[rx]bool // see open
	work    int         // steps that may still be taken; below zero the set is exhausted
	bytes   int         // of memory in use, roughly
	limit   int         // more of them exhaust the set
}

func newRxSet(work, limit int) *rxSet {
	s := &rxSet{index: map[string]rx{}, trees: map[string]rx{}, spreads: map[rx]int32{}, opens: map[rx]bool{}, work: work, limit: limit}
	s.nodes = append(s.nodes,
		rxNode{kind: kNone, live: -1},
		rxNode{kind: kEmpty, nullable: true, live: 1},
		rxNode{kind: kClass, class: []runeRange{{0, maxRune}}, live: 1},
		rxNode{kind: kRepeat, a: rxAny, max: rxUnbounded, nullable: true, live: 1})
	s.index[s.key(&s.nodes[rxAny])] = rxAny
	s.index[s.key(&s.nodes[rxAll])] = rxAll
	return s
}

func (s *rxSet) exhausted() bool { return s.work < 0 }

// charge counts bytes of memory.
func (s *rxSet) charge(bytes int) {
	if s.bytes += bytes; s.bytes > s.limit {
		s.work = -1
	}
}

func (s *rxSet) key(n *rxNode) string {
	b := s.buf[:0]
	b = append(b, byte(n.kind))
	switch n.kind {
	case kClass:
		for _, r := range n.class {
			b = binary.LittleEndian.AppendUint32(b, uint32(r.lo))
			b = binary.LittleEndian.AppendUint32(b, uint32(r.hi))
		}
	case kAlt, kAnd:
		for _, k := range n.kids {
			b = binary.LittleEndian.AppendUint32(b, uint32(k))
		}
	default:
		for _, v := range [...]int32{int32(n.a), int32(n.b), n.min, n.max} {
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		}
	}
	s.buf = b
	return string(b)
}

func (s *rxSet) intern(n rxNode) rx {
	k := s.key(&n)
	if id, ok := s.index[k]; ok {
		return id
	}
	s.work--
	if !n.boolean {
		n.live = 1
	}
	id := rx(len(s.nodes))
	s.nodes = append(s.nodes, n)
	s.index[k] = id
	s.charge(200 + len(k) + 4*len(n.kids) + 8*len(n.class))
	return id
}

func (s *rxSet) nullable(r rx) bool { return s.nodes[r].nullable }

// class returns the expression for one character of the ranges.
func (s *rxSet) class(ranges []runeRange) rx {
	ranges = normalize(ranges)
	if len(ranges) == 0 {
		return rxNone
	}
	return s.intern(rxNode{kind: kClass, class: ranges})
}

// normalize sorts ranges and joins those that touch. No range begins or ends among the
// surrogates, which are not characters, so that equal classes look equal.
func normalize(ranges []runeRange) []runeRange {
	out := make([]runeRange, 0, len(ranges))
	for _, r := range ranges {
		if r.lo >= 0xD800 && r.lo <= 0xDFFF {
			r.lo = 0xE000
		}
		if r.hi >= 0xD800 && r.hi <= 0xDFFF {
			r.hi = 0xD7FF
		}
		if r.lo <= r.hi {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b runeRange) int { return int(a.lo - b.lo) })
	n := 0
	for _, r := range out {
		if n > 0 && (r.lo <= out[n-1].hi+1 || out[n-1].hi == 0xD7FF && r.lo == 0xE000) {
			out[n-1].hi = max(out[n-1].hi, r.hi)
			continue
		}
		out[n] = r
		n++
	}
	return out[:n]
}

// complement returns the characters outside of normalized ranges.
func complement(ranges []runeRange) []runeRange {
	var out []runeRange
	next := rune(0)
	for _, r := range ranges {
		if r.lo > next {
			out = append(out, runeRange{next, r.lo - 1})
		}
		next = r.hi + 1
	}
	if next <= maxRune {
		out = append(out, runeRange{next, maxRune})
	}
	return normalize(out)
}

func intersect(a, b []runeRange) []runeRange {
	var out []runeRange
	for i, j := 0, 0; i < len(a) && j < len(b); {
		lo, hi := max(a[i].lo, b[j].lo), min(a[i].hi, b[j].hi)
		if lo <= hi {
			out = append(out, runeRange{lo, hi})
		}
		if a[i].hi < b[j].hi {
			i++
		} else {
			j++
		}
	}
	return normalize(out)
}

func (s *rxSet) concat(a, b rx) rx {
	switch {
	case a == rxNone || b == rxNone:
		return rxNone
	case a == rxEmpty:
		return b
	case b == rxEmpty:
		return a
	case a == rxAll && b == rxAll:
		return rxAll
	}
	if n := &s.nodes[a]; n.kind == kConcat {
		x, y := n.a, n.b
		return s.concat(x, s.concat(y, b))
	}
	if a == rxAll && s.nodes[b].kind == kConcat && s.nodes[b].a == rxAll {
		return b
	}
	na, nb := &s.nodes[a], &s.nodes[b]
	return s.intern(rxNode{kind: kConcat, a: a, b: b, nullable: na.nullable && nb.nullable, boolean: na.boolean || nb.boolean})
}

func (s *rxSet) alt(list ...rx) rx {
	kids := make([]rx, 0, len(list))
	var class []runeRange
	for _, k := range list {
		n := &s.nodes[k]
		switch {
		case k == rxAll:
			return rxAll
		case k == rxNone:
		case n.kind == kAlt:
			for _, x := range n.kids {
				if s.nodes[x].kind == kClass {
					class = append(class, s.nodes[x].class...)
				} else {
					kids = append(kids, x)
				}
			}
		case n.kind == kClass:
			class = append(class, n.class...)
		default:
			kids = append(kids, k)
		}
	}
	if class != nil {
		kids = append(kids, s.class(class))
	}
	slices.Sort(kids)
	kids = s.dropLonger(slices.Compact(kids))
	switch len(kids) {
	case 0:
		return rxNone
	case 1:
		return kids[0]
	}
	out := rxNode{kind: kAlt, kids: kids}
	for _, k := range kids {
		out.nullable = out.nullable || s.nodes[k].nullable
		out.boolean = out.boolean || s.nodes[k].boolean
	}
	if len(kids) == 2 && kids[0] == rxEmpty { // ε | a{1,n} is a{0,n}
		if n := s.nodes[kids[1]]; n.nullable {
			return kids[1]
		} else if n.kind == kRepeat && n.min == 1 {
			return s.repeat(n.a, 0, n.max)
		}
	}
	return s.intern(out)
}

// dropLonger drops of alternatives a{i}.* and a{k}.* the one that asks for more. Without that, a
// search for a{k} anywhere has as many alternatives as characters of it may have been read.
func (s *rxSet) dropLonger(kids []rx) []rx {
	times := func(k rx) (of rx, least int32, ok bool) {
		n := &s.nodes[k]
		if n.kind != kConcat || n.b != rxAll {
			return 0, 0, false
		}
		if r := &s.nodes[n.a]; r.kind == kRepeat {
			return r.a, r.min, true
		}
		return n.a, 1, true
	}
	if len(kids) > maxAlike {
		return kids
	}
	return slices.DeleteFunc(kids, func(k rx) bool {
		of, least, ok := times(k)
		return ok && slices.ContainsFunc(kids, func(other rx) bool {
			x, fewer, ok := times(other)
			return ok && x == of && fewer < least
		})
	})
}

func (s *rxSet) and(list ...rx) rx {
	kids := make([]rx, 0, len(list))
	for _, k := range list {
		switch n := &s.nodes[k]; {
		case k == rxNone:
			return rxNone
		case k == rxAll:
		case n.kind == kAnd:
			kids = append(kids, n.kids...)
		default:
			kids = append(kids, k)
		}
	}
	slices.Sort(kids)
	kids = slices.Compact(kids)
	if len(kids) == 0 {
		return rxAll
	}
	if kids[0] == rxEmpty {
		for _, k := range kids {
			if !s.nodes[k].nullable {
				return rxNone
			}
		}
		return rxEmpty
	}
	var class []runeRange
	n := 0
	for _, k := range kids {
		if s.nodes[k].kind != kClass {
			kids[n] = k
			n++
		} else if class == nil {
			class = s.nodes[k].class
		} else if class = intersect(class, s.nodes[k].class); len(class) == 0 {
			return rxNone
		}
	}
	kids = kids[:n]
	if class != nil {
		kids = append(kids, s.class(class))
		slices.Sort(kids)
	}
	if len(kids) == 1 {
		return kids[0]
	}
	out := rxNode{kind: kAnd, kids: kids, nullable: true, boolean: true}
	for _, k := range kids {
		out.nullable = out.nullable && s.nodes[k].nullable
	}
	return s.intern(out)
}

func (s *rxSet) not(a rx) rx {
	switch n := &s.nodes[a]; {
	case a == rxNone:
		return rxAll
	case a == rxAll:
		return rxNone
	case n.kind == kNot:
		return n.a
	default:
		return s.intern(rxNode{kind: kNot, a: a, nullable: !n.nullable, boolean: true})
	}
}

// repeat returns a, at least lo and at most hi times (rxUnbounded: any number).
func (s *rxSet) repeat(a rx, lo, hi int32) rx {
	switch {
	case hi == 0 || a == rxEmpty:
		return rxEmpty
	case a == rxNone:
		if lo == 0 {
			return rxEmpty
		}
		return rxNone
	case lo == 1 && hi == 1:
		return a
	case a == rxAll:
		return rxAll
	}
	n := &s.nodes[a]
	if n.kind == kRepeat && n.min <= 1 && n.max == rxUnbounded { // (x*){…} is x*
		if n.min == 0 || lo == 0 {
			return s.repeat(n.a, 0, rxUnbounded)
		}
	}
	if n.nullable {
		lo = 0
	}
	return s.intern(rxNode{kind: kRepeat, a: a, min: lo, max: hi, nullable: lo == 0, boolean: n.boolean})
}

// literal returns the expression for exactly text.
func (s *rxSet) literal(text string) rx { return s.literals([]string{text}) }

// literals returns the expression for any of the texts, as a tree by their characters.
func (s *rxSet) literals(texts []string) rx {
	sorted := slices.Clone(texts)
	if len(texts) == 0 {
		return rxNone
	}
	slices.Sort(sorted)
	return s.literalTree(slices.Compact(sorted), 0)
}

func (s *rxSet) literalTree(sorted []string, at int) (out rx) {
	// A single text is folded from its end, so that a long one needs no deep recursion.
	if len(sorted) == 1 {
		out := rxEmpty
		for rest := sorted[0][at:]; rest != ""; {
			r, n := utf8.DecodeLastRuneInString(rest)
			rest = rest[:len(rest)-n]
			out = s.concat(s.class([]runeRange{{r, r}}), out)
		}
		return out
	}
	if n := commonPrefix(sorted, at); n > at {
		out := s.literalTree(sorted, n)
		for rest := sorted[0][at:n]; rest != ""; {
			r, k := utf8.DecodeLastRuneInString(rest)
			rest = rest[:len(rest)-k]
			out = s.concat(s.class([]runeRange{{r, r}}), out)
		}
		return out
	}
	var kids []rx
	var key string
	if len(sorted) > 2 {
		key = strings.Join(sorted, "\xff")[at:]
		if r, ok := s.trees[key]; ok {
			return r
		}
		defer func() { s.trees[key] = out }()
	}
	for i := 0; i < len(sorted); {
		if len(sorted[i]) == at {
			kids = append(kids, rxEmpty)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(sorted[i][at:])
		j := i + 1
		for j < len(sorted) && len(sorted[j]) >= at+n && sorted[j][at:at+n] == sorted[i][at:at+n] {
			j++
		}
		kids = append(kids, s.concat(s.class([]runeRange{{r, r}}), s.literalTree(sorted[i:j], at+n)))
		i = j
	}
	return s.alt(kids...)
}

// commonPrefix returns the end of the longest whole-character prefix that all sorted texts share.
func commonPrefix(sorted []string, at int) int {
	a, b := sorted[0], sorted[len(sorted)-1]
	n := at
	for n < len(a) && n < len(b) {
		r, k := utf8.DecodeRuneInString(a[n:])
		if q, _ := utf8.DecodeRuneInString(b[n:]); q != r {
			break
		}
		n += k
	}
	return n
}

// derive returns what must follow after the character c.
func (s *rxSet) derive(r rx, c rune) rx {
	s.work--
	n := s.nodes[r] // a copy: the slice grows below
	switch n.kind {
	case kClass:
		if inClass(n.class, c) {
			return rxEmpty
		}
		return rxNone
	case kConcat:
		left := s.concat(s.derive(n.a, c), n.b)
		if s.nodes[n.a].nullable {
			return s.alt(left, s.derive(n.b, c))
		}
		return left
	case kAlt:
		kids := make([]rx, 0, len(n.kids))
		for _, k := range n.kids {
			if d := s.derive(k, c); d != rxNone {
				kids = append(kids, d)
			}
		}
		return s.alt(kids...)
	case kAnd:
		kids := make([]rx, len(n.kids))
		for i, k := range n.kids {
			if kids[i] = s.derive(k, c); kids[i] == rxNone {
				return rxNone
			}
		}
		return s.and(kids...)
	case kNot:
		return s.not(s.derive(n.a, c))
	case kRepeat:
		d := s.derive(n.a, c)
		if d == rxNone {
			return rxNone
		}
		lo, hi := max(n.min-1, 0), n.max
		if hi != rxUnbounded {
			hi--
		}
		return s.concat(d, s.repeat(n.a, lo, hi))
	}
	return rxNone
}

// breaks are the first characters of the ranges over which a derivative is constant, and the
// classes that decide it.
type breaks struct {
	at      map[rune]struct{}
	classes []rx
}

// breaks collects those of r.
func (s *rxSet) breaks(r rx, out *breaks) {
	n := &s.nodes[r]
	switch n.kind {
	case kClass:
		if len(out.classes) <= maxAlike {
			if slices.Contains(out.classes, r) {
				return
			}
			out.classes = append(out.classes, r)
		}
		for _, x := range n.class {
			out.at[x.lo] = struct{}{}
			switch {
			case x.hi == 0xD7FF:
				out.at[0xE000] = struct{}{}
			case x.hi < maxRune:
				out.at[x.hi+1] = struct{}{}
			}
		}
	case kConcat:
		s.breaks(n.a, out)
		if s.nodes[n.a].nullable {
			s.breaks(n.b, out)
		}
	case kAlt, kAnd:
		for _, k := range n.kids {
			s.breaks(k, out)
		}
	case kNot, kRepeat:
		s.breaks(n.a, out)
	}
}

// maxAlike bounds what is compared with each other: the classes that decide a derivative, and the
// alternatives of which one may hold another.
const maxAlike = 64

// edges returns the derivatives of r by every character. Characters that belong to the same classes
// have the same one: \s alone has ten ranges.
func (s *rxSet) edges(r rx) *rxEdges {
	if e := s.nodes[r].edges; e != nil {
		return e
	}
	b := breaks{at: map[rune]struct{}{0: {}}}
	s.breaks(r, &b)
	from := make([]rune, 0, len(b.at))
	for c := range b.at {
		from = append(from, c)
	}
	slices.Sort(from)
	s.work -= len(from) / 4
	e := &rxEdges{}
	known := map[uint64]rx{}
	for _, c := range from {
		var d rx
		if len(b.classes) > maxAlike {
			d = s.derive(r, c)
		} else {
			in := s.membership(b.classes, c)
			var ok bool
			if d, ok = known[in]; !ok {
				d = s.derive(r, c)
				known[in] = d
			}
		}
		if k := len(e.next); k > 0 && e.next[k-1] == d {
			continue
		}
		e.from = append(e.from, c)
		e.next = append(e.next, d)
	}
	s.nodes[r].edges = e
	s.charge(64 + 16*len(e.from))
	return e
}

// membership returns to which of the classes c belongs, a bit for each.
func (s *rxSet) membership(classes []rx, c rune) uint64 {
	var in uint64
	for i, k := range classes {
		if inClass(s.nodes[k].class, c) {
			in |= 1 << i
		}
	}
	return in
}

func inClass(class []runeRange, c rune) bool {
	i, found := slices.BinarySearchFunc(class, c, func(x runeRange, c rune) int { return int(x.lo - c) })
	return found || i > 0 && class[i-1].hi >= c
}

// alive reports whether r matches any text. It reports false when the work is exhausted.
func (s *rxSet) alive(r rx) bool {
	if l := s.nodes[r].live; l != 0 {
		return l > 0
	}
	// A depth-first search for an expression that is live already or matches the empty text.
	type step struct {
		at   rx
		next int
	}
	seen := map[rx]bool{r: true}
	path := []step{{at: r}}
	for len(path) > 0 {
		if s.exhausted() {
			return false
		}
		top := &path[len(path)-1]
		if n := &s.nodes[top.at]; n.nullable || n.live > 0 {
			for _, p := range path {
				s.nodes[p.at].live = 1
			}
			return true
		}
		e := s.edges(top.at)
		if top.next == len(e.next) {
			path = path[:len(path)-1]
			continue
		}
		d := e.next[top.next]
		top.next++
		if !seen[d] && s.nodes[d].live >= 0 {
			seen[d] = true
			path = append(path, step{at: d})
		}
	}
	for d := range seen { // everything reachable was seen, and nothing of it matches
		s.nodes[d].live = -1
	}
	return false
}

// free reports whether every character leads from r to one and the same live expression.
func (s *rxSet) free(r rx) bool {
	if r == rxAll {
		return true
	}
	e := s.edges(r)
	return len(e.next) == 1 && s.alive(e.next[0])
}

// open reports whether no character leads to a dead end, neither from r nor from anything that it
// leads to: a text that must hold something somewhere. It reports false where it cannot tell.
func (s *rxSet) open(r rx) bool {
	if ok, known := s.opens[r]; known {
		return ok
	}
	whole := s.work
	s.work = min(whole, reachWork)
	ok := s.searchOpen(r)
	known := !s.exhausted()
	s.work += whole - min(whole, reachWork)
	if !known {
		ok = false
		if whole > reachWork {
			s.opens[r] = false
		}
	}
	return ok
}

// searchOpen searches depth first for a dead end. All expressions on the way to one lead to it.
func (s *rxSet) searchOpen(r rx) bool {
	type step struct {
		at   rx
		next int
	}
	seen := map[rx]bool{r: true}
	path := []step{{at: r}}
	for len(path) > 0 && !s.exhausted() {
		top := &path[len(path)-1]
		e := s.edges(top.at)
		if top.next == len(e.next) {
			path = path[:len(path)-1]
			continue
		}
		next := e.next[top.next]
		top.next++
		ok, known := s.opens[next]
		if known && ok || seen[next] {
			continue
		}
		if known || next == rxNone || !s.alive(next) {
			for _, x := range path {
				s.opens[x.at] = false
			}
			return false
		}
		seen[next] = true
		path = append(path, step{at: next})
	}
	for x := range seen {
		if len(path) == 0 {
			s.opens[x] = true
		}
	}
	return len(path) == 0
}

// count returns how many texts r matches, if they are fewer than enough.
func (s *rxSet) count(r rx, enough int) (int, bool) {
	if r == rxNone {
		return 0, true
	}
	count := 0
	type step struct {
		at  rx
		len int
	}
	queue := []step{{r, 0}}
	for i := 0; i < len(queue); i++ {
		if count >= enough || len(queue) > 1<<12 || queue[i].len > 1<<10 || s.exhausted() {
			return 0, false
		}
		if s.nullable(queue[i].at) {
			count++
		}
		e := s.edges(queue[i].at)
		for k, next := range e.next {
			if next == rxNone || !s.alive(next) {
				continue
			}
			if hi := k + 1; hi == len(e.from) || e.from[hi]-e.from[k] > 16 {
				return 0, false // many
			}
			for range e.from[k+1] - e.from[k] {
				queue = append(queue, step{next, queue[i].len + 1})
			}
		}
	}
	return count, true
}

// match reports whether r matches text as a whole.
func (s *rxSet) match(r rx, text string) bool {
	for _, c := range text {
		if r = s.edges(r).by(c); r == rxNone {
			return false
		}
	}
	return s.nodes[r].nullable
}
