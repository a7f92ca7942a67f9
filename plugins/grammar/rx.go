package grammar

import (
	"encoding/binary"
	"slices"
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

type rxNode struct {
	kind     rxKind
	nullable bool
	boolean  bool // contains an And or a Not, so it is not obvious whether it matches anything
	a, b     rx
	min, max int32
	kids     []rx
	class    []runeRange
	edges    *rxEdges
	live     int8 // 0 unknown, 1 matches something, -1 matches nothing
}

// rxSet interns expressions. It is not safe for concurrent use.
type rxSet struct {
	nodes   []rxNode
	index   map[string]rx
	buf     []byte
	trees   map[string]rx // of literalTree
	spreads map[rx]int32
	opens   map[rx]bool // see open
	work    int         // steps left; below zero the set is exhausted
	bytes   int         // memory in use, approximately
	limit   int         // bound of bytes; beyond it the set is exhausted
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

// dropLonger drops, of alternatives a{i}.* and a{k}.*, the one that requires more. Otherwise a
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
