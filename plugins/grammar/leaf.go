package grammar

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// leafKind is the kind of input expected at a position within a document.
type leafKind uint8

const (
	lValue   leafKind = iota // a value of node
	lString                  // the rest of a string
	lKey                     // the rest of a property's name
	lNumber                  // the rest of a number
	lLiteral                 // the rest of null, true or false
	lObject                  // a name or }, after {
	lName                    // a name, after a comma
	lColon                   // a colon, then a value of node
	lArray                   // a value or ], after [
	lAfter                   // what follows a value
	lText                    // the rest of a text that is not JSON
	lRule                    // a character of q, then the state rule of a GBNF grammar
	lEnd                     // nothing
)

// leaf is a position within a token of JSON, interned: the part of a state that does not depend on
// the enclosing values.
type leaf struct {
	id    int
	kind  leafKind
	mode  uint8
	keep  bool // its text is recorded
	q     rx
	aux   uint64
	node  *node
	used  *usedList
	rule  *ruleState
	nums  []numAt
	word  string
	final bool // a number, or a text, may end here

	base *leaf // if not nil, the same position without length bounds
	left lengths

	class *[256]uint8
	to    []*leaf
	leads *[0xF5 - 0xC2]*leaf // where the first bytes of characters lead, as far as computed
	way   uint8               // see oneWay
	one   byte

	loop   *branches // the cache of loopOf for the characters that lead back here; nil: none
	loopOf *Vocabulary
}

// numAt is a position within a number of one machine.
type numAt struct {
	m     *numMachine
	state string
}

// structural marks a byte that leaves the token of JSON, lead the first byte of a non-ASCII
// character, nowhere the first byte of one that is not allowed.
var (
	structural = &leaf{id: -1}
	lead       = &leaf{id: -2}
	nowhere    = &leaf{id: -3}
)

type leafKey struct {
	kind leafKind
	mode uint8
	keep bool
	q    rx
	aux  uint64
	node *node
	used *usedList
	rule *ruleState
	text string
}

func (g *Grammar) leaf(k leafKey) *leaf {
	if l := g.leaves[k]; l != nil {
		return l
	}
	l := &leaf{id: g.nextID(), kind: k.kind, mode: k.mode, keep: k.keep, q: k.q, aux: k.aux, node: k.node, used: k.used, rule: k.rule}
	switch k.kind {
	case lLiteral:
		l.word = k.text
	case lEnd:
		l.final = true
	case lText:
		l.final = k.mode == mChar && g.set.nullable(k.q)
	}
	g.leaves[k] = l
	g.charge(256)
	return l
}

func (g *Grammar) numberLeaf(nums []numAt, keep bool) *leaf {
	if len(nums) == 0 {
		return nil
	}
	b := g.buf[:0]
	for _, n := range nums {
		b = binary.AppendUvarint(b, uint64(n.m.id))
		b = binary.AppendUvarint(b, uint64(len(n.state)))
		b = append(b, n.state...)
	}
	g.buf = b
	k := leafKey{kind: lNumber, keep: keep, text: string(b)}
	if l := g.leaves[k]; l != nil {
		return l
	}
	l := g.leaf(k)
	l.nums = nums
	for _, n := range nums {
		l.final = l.final || n.m.isFinal(n.state)
	}
	return l
}

// next returns the position after b within the same token: nil when b is not allowed, structural
// when the token ends before or with b.
func (g *Grammar) next(l *leaf, b byte) *leaf {
	if l.base != nil {
		return g.nextCounted(l, b)
	}
	if l.class == nil {
		g.fill(l)
	}
	if to := l.to[l.class[b]]; to != lead {
		return to
	}
	return g.lead(l, b)
}

// fill computes where every byte leads.
func (g *Grammar) fill(l *leaf) {
	row := new([256]*leaf)
	g.set.work -= 3
	switch l.kind {
	case lValue:
		g.fillValue(l, row)
	case lString, lKey:
		g.fillString(l, row)
	case lText, lRule:
		g.fillText(l, row)
	case lNumber:
		g.fillNumber(l, row)
	case lLiteral:
		if len(l.word) == 1 {
			row[l.word[0]] = structural
		} else {
			row[l.word[0]] = g.leaf(leafKey{kind: lLiteral, keep: l.keep, text: l.word[1:]})
		}
	case lObject:
		g.fillSpace(l, row)
		row['"'], row['}'] = structural, structural
	case lName:
		g.fillSpace(l, row)
		row['"'] = structural
	case lColon:
		g.fillSpace(l, row)
		row[':'] = g.leaf(leafKey{kind: lValue, node: l.node, keep: l.keep, used: l.used})
	case lArray:
		for i := range row {
			row[i] = structural
		}
		g.fillSpace(l, row)
	case lAfter:
		g.fillSpace(l, row)
		row[','], row['}'], row[']'] = structural, structural, structural
	}
	var class [256]uint8
	l.to = append(l.to[:0], row[0])
	c := 0
	for b, t := range row {
		if t != l.to[c] {
			if c = slices.Index(l.to, t); c < 0 {
				c = len(l.to)
				l.to = append(l.to, t)
			}
		}
		class[b] = uint8(c)
	}
	shared := g.classes[class]
	if shared == nil {
		shared = &class
		g.classes[class] = shared
		g.charge(512)
	}
	l.class = shared
	g.charge(8 * len(l.to))
}

func (g *Grammar) fillSpace(l *leaf, row *[256]*leaf) {
	if g.opts.Whitespace != Compact {
		row[' '], row['\t'], row['\n'], row['\r'] = l, l, l, l
	}
}

func (g *Grammar) fillValue(l *leaf, row *[256]*leaf) {
	g.fillSpace(l, row)
	n := l.node
	literals := n.literals
	q := n.str
	for u := l.used; u != nil; u = u.prev {
		switch u.text {
		case "null":
			literals &^= tNull
		case "true":
			literals &^= tTrue
		case "false":
			literals &^= tFalse
		default:
			if u.text[0] == '"' {
				q = g.set.and(q, g.set.not(g.set.literal(u.text[1:])))
			}
		}
	}
	for _, x := range []struct {
		t    typeSet
		text string
	}{{tNull, "null"}, {tTrue, "true"}, {tFalse, "false"}} {
		if literals&x.t != 0 {
			row[x.text[0]] = g.leaf(leafKey{kind: lLiteral, keep: l.keep, text: x.text[1:]})
		}
	}
	if q != rxNone && (!n.length.any() || g.set.alive(q)) {
		row['"'] = g.counted(g.leaf(leafKey{kind: lString, keep: l.keep, q: q}), n.length)
	}
	for _, b := range []byte("-0123456789") {
		var nums []numAt
		for _, m := range n.nums {
			m = g.without(m, l.used)
			if m == nil {
				continue
			}
			if s := m.next(m.start(), b); s != "" {
				nums = append(nums, numAt{m, s})
			}
		}
		if len(nums) > 0 {
			row[b] = g.numberLeaf(nums, l.keep)
		}
	}
	if g.opens(l, true) {
		row['{'] = structural
	}
	if g.opens(l, false) {
		row['['] = structural
	}
}

// without returns m restricted to unused numbers.
func (g *Grammar) without(m *numMachine, used *usedList) *numMachine {
	spec := *m.spec
	spec.except = append([]decimal{}, spec.except...)
	n := len(spec.except)
	for u := used; u != nil; u = u.prev {
		if u.text[0] == '-' || u.text[0] >= '0' && u.text[0] <= '9' {
			if d, err := parseDecimal(u.text); err == nil {
				spec.except = append(spec.except, d)
			}
		}
	}
	if len(spec.except) == n {
		return m
	}
	out, err := g.c.machine(&spec)
	if err != nil {
		return nil
	}
	return out
}

func (g *Grammar) fillNumber(l *leaf, row *[256]*leaf) {
	if l.final {
		for b := range row {
			row[b] = structural
		}
	}
	for _, b := range []byte(numberBytes) {
		var nums []numAt
		for _, n := range l.nums {
			if s := n.m.next(n.state, b); s != "" {
				nums = append(nums, numAt{n.m, s})
			}
		}
		row[b] = g.numberLeaf(nums, l.keep)
	}
}

// remember appends to a recorded text what the byte b, read between l and to, adds.
func remember(text []byte, l, to *leaf, b byte) []byte {
	switch l.kind {
	case lValue:
		if to.kind == lNumber || to.kind == lLiteral {
			return append(text[:0:0], b)
		}
		return nil
	case lNumber, lLiteral:
		return append(text, b)
	case lString, lKey:
	default:
		return text
	}
	switch l.mode {
	case mChar:
		if b == '\\' {
			return text
		}
		return append(text, b)
	case mUTF8:
		return append(text, b)
	case mEscape:
		if r, ok := shortEscape(b); ok {
			return utf8.AppendRune(text, r)
		}
	case mHex:
		if to.mode == mChar {
			return utf8.AppendRune(text, rune(l.aux>>3)<<4|hexValue(b))
		}
	case mLowHex:
		if to.mode == mChar {
			low := rune(l.aux>>20)<<4 | hexValue(b)
			return utf8.AppendRune(text, 0x10000+(rune(l.aux&0xFFFF)-0xD800)<<10+low-0xDC00)
		}
	}
	return text
}
