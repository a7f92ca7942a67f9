package grammar

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// leafKind is what a position within a document expects.
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

// Modes of a string: between characters, within one, or within an escape.
const (
	mChar   = iota
	mUTF8   // aux: bytes still to come, the least and the greatest character so far
	mEscape // after a backslash
	mHex    // aux: digits read, their value
	mLow    // after a high surrogate: the backslash of the low one; aux: the high one
	mLowU   // then its u
	mLowHex // then its digits
)

// leaf is a position within a token of JSON, interned: the part of a state that does not
// depend on what stands around the value.
type leaf struct {
	id    int
	kind  leafKind
	mode  uint8
	keep  bool // its text is remembered
	q     rx
	aux   uint64
	node  *node
	used  *usedList
	rule  *ruleState
	nums  []numAt
	word  string
	final bool // a number, or a text, may end here

	base *leaf // if not nil, the same position without bounds of the length
	left lengths

	class *[256]uint8
	to    []*leaf
	leads *[0xF5 - 0xC2]*leaf // where the first bytes of characters lead, as far as known
}

// numAt is a position within a number of one machine.
type numAt struct {
	m     *numMachine
	state string
}

// structural marks a byte that leaves the token of JSON, lead the first byte of a character that is
// not ASCII, and nowhere that of one that cannot stand there.
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

// step returns the position after b within the same token: nil when b cannot stand there,
// structural when the token ends before or with b.
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

// lead returns where the first byte of a character leads.
func (g *Grammar) lead(l *leaf, b byte) *leaf {
	if l.leads == nil {
		e := g.set.edges(l.q)
		rest := rx(-1)
		if e.from[len(e.from)-1] <= 0x80 && l.kind != lRule { // such expressions share the table
			rest = e.next[len(e.next)-1]
			l.leads = g.leads[leadKey{l.kind, l.keep, rest}]
		}
		if l.leads == nil {
			l.leads = new([0xF5 - 0xC2]*leaf)
			g.charge(500)
			if rest >= 0 {
				g.leads[leadKey{l.kind, l.keep, rest}] = l.leads
			}
		}
	}
	slot := &l.leads[b-0xC2]
	if *slot == nil {
		switch {
		case b < 0xE0:
			*slot = g.part(l, 1, uint64(b&0x1F), 0x80)
		case b < 0xF0:
			*slot = g.part(l, 2, uint64(b&0x0F), 0x800)
		default:
			*slot = g.part(l, 3, uint64(b&0x07), 0x10000)
		}
		if *slot == nil {
			*slot = nowhere
		}
	}
	if *slot == nowhere {
		return nil
	}
	return *slot
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
		row[':'] = g.leaf(leafKey{kind: lValue, node: l.node})
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
	if len(n.objs) > 0 {
		row['{'] = structural
	}
	if len(n.arrs) > 0 {
		row['['] = structural
	}
}

// without returns m except for the numbers that were used.
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

// string leaves

func (l *leaf) with(mode uint8, aux uint64) leafKey {
	return leafKey{kind: l.kind, mode: mode, keep: l.keep, q: l.q, aux: aux, rule: l.rule}
}

// after returns the position behind the character r, or nil.
func (g *Grammar) after(l *leaf, r rune) *leaf {
	q := g.set.edges(l.q).by(r)
	if q == rxNone || !g.set.alive(q) {
		return nil
	}
	if l.kind == lRule {
		return structural
	}
	return g.leaf(leafKey{kind: l.kind, keep: l.keep, q: q})
}

// reaches reports whether a character of lo…hi may stand next.
func (g *Grammar) reaches(q rx, lo, hi rune) bool {
	e := g.set.edges(q)
	for i, from := range e.from {
		to := rune(maxRune)
		if i+1 < len(e.from) {
			to = e.from[i+1] - 1
		}
		if from <= hi && to >= lo && e.next[i] != rxNone && g.set.alive(e.next[i]) {
			lo, hi := max(lo, from), min(hi, to)
			if lo >= 0xD800 && hi <= 0xDFFF {
				continue
			}
			return true
		}
	}
	return false
}

func (g *Grammar) fillString(l *leaf, row *[256]*leaf) {
	switch l.mode {
	case mChar:
		g.fillChars(l, row, 0x20)
		row['"'], row['\\'] = nil, nil
		if g.set.nullable(l.q) {
			row['"'] = structural
		}
		if esc := g.escapes(l); esc != nil {
			row['\\'] = esc
		}
	case mUTF8:
		g.fillUTF8(l, row)
	case mEscape:
		g.fillEscape(l, row)
	case mHex:
		g.fillHex(l, row)
	case mLow:
		row['\\'] = g.leaf(l.with(mLowU, l.aux))
	case mLowU:
		row['u'] = g.leaf(l.with(mLowHex, l.aux))
	case mLowHex:
		g.fillLowHex(l, row)
	}
}

// fillText reads the characters of a text that is not JSON.
func (g *Grammar) fillText(l *leaf, row *[256]*leaf) {
	if l.mode == mUTF8 {
		g.fillUTF8(l, row)
		return
	}
	g.fillChars(l, row, 0)
}

// leadKey names the positions within a character that is not ASCII, for expressions that treat all
// of them alike.
type leadKey struct {
	kind leafKind
	keep bool
	q    rx
}

// fillChars reads one character, or the first byte of one.
func (g *Grammar) fillChars(l *leaf, to *[256]*leaf, from rune) {
	e := g.set.edges(l.q)
	for i, lo := range e.from {
		if lo > 0x7F {
			break
		}
		hi := rune(0x7F)
		if i+1 < len(e.from) {
			hi = min(hi, e.from[i+1]-1)
		}
		if t := g.after(l, lo); t != nil {
			for r := max(lo, from); r <= hi; r++ {
				to[r] = t
			}
		}
	}
	for b := 0xC2; b <= 0xF4; b++ {
		to[b] = lead
	}
}

// part returns the position where left more bytes of a character, at least least, follow those of
// value v.
func (g *Grammar) part(l *leaf, left, v uint64, least rune) *leaf {
	lo := rune(v << (6 * left))
	hi := min(lo|(1<<(6*left)-1), maxRune)
	if lo = max(lo, least); lo > hi {
		return nil
	}
	if left == 0 {
		if lo >= 0xD800 && lo <= 0xDFFF {
			return nil
		}
		return g.after(l, lo)
	}
	e := g.set.edges(l.q)
	if rune(v<<(6*left)) >= least && rune((v+1)<<(6*left)-1) <= maxRune && (hi < 0xD800 || lo > 0xDFFF) {
		i := e.index(lo)
		if i+1 == len(e.from) || e.from[i+1] > hi { // all such characters lead to the same
			if e.next[i] == rxNone || !g.set.alive(e.next[i]) {
				return nil
			}
			k := l.with(mUTF8, left|uniform)
			k.q = g.set.concat(rxAny, e.next[i])
			return g.leaf(k)
		}
	}
	if !g.reaches(l.q, lo, hi) {
		return nil
	}
	k := l.with(mUTF8, left|v<<2|uint64(least)<<32)
	if e.from[len(e.from)-1] <= 0x80 && l.kind != lRule { // such expressions share the rest
		k.q = g.set.concat(rxAny, e.next[len(e.next)-1])
	}
	return g.leaf(k)
}

// uniform marks a position within a character, any of which leads to the same.
const uniform = 1 << 30

func (g *Grammar) fillUTF8(l *leaf, row *[256]*leaf) {
	if l.aux&uniform != 0 {
		var to *leaf
		if left := l.aux & 3; left == 1 {
			to = g.after(l, 0)
		} else {
			to = g.leaf(l.with(mUTF8, left-1|uniform))
		}
		for b := 0x80; b <= 0xBF; b++ {
			row[b] = to
		}
		return
	}
	left, v, least := l.aux&3, l.aux>>2&0x1FFFFF, rune(l.aux>>32)
	for b := 0x80; b <= 0xBF; b++ {
		row[b] = g.part(l, left-1, v<<6|uint64(b&0x3F), least)
	}
}

// mustEscape reports whether JSON has no other way to write r. Where what follows depends on
// the character, only such characters are read in escaped form, so that most texts have one
// spelling.
func mustEscape(r rune) bool { return r < 0x20 || r == '"' || r == '\\' }

// escapes returns the position after a backslash, or nil.
func (g *Grammar) escapes(l *leaf) *leaf {
	k := l.with(mEscape, 0)
	if !g.set.free(l.q) {
		e := g.set.edges(l.q)
		q := e.by(0)
		if len(e.from) > 1 && e.from[1] > 0x1F && e.by('"') == q && e.by('\\') == q {
			if q == rxNone || !g.set.alive(q) {
				return nil
			}
			// Expressions that are alike for these characters share the rest.
			k.q = g.set.concat(g.escaped, q)
		}
	}
	esc := g.leaf(k)
	if esc.class == nil {
		g.fill(esc)
	}
	if len(esc.to) == 1 && esc.to[0] == nil {
		return nil
	}
	return esc
}

func (g *Grammar) fillEscape(l *leaf, row *[256]*leaf) {
	free := g.set.free(l.q)
	for _, b := range []byte(`"\/bfnrt`) {
		if r, _ := shortEscape(b); free || mustEscape(r) {
			row[b] = g.after(l, r)
		}
	}
	if free || g.reaches(l.q, 0, 0x1F) {
		row['u'] = g.leaf(l.with(mHex, 0))
	}
}

// hexDigits calls f for each hexadecimal digit and its value.
func hexDigits(f func(b byte, v rune)) {
	for i, b := range []byte("0123456789abcdef") {
		f(b, rune(i))
		if b >= 'a' {
			f(b-'a'+'A', rune(i))
		}
	}
}

func hexValue(b byte) rune {
	switch {
	case b <= '9':
		return rune(b - '0')
	case b >= 'a':
		return rune(b-'a') + 10
	}
	return rune(b-'A') + 10
}

func (g *Grammar) fillHex(l *leaf, row *[256]*leaf) {
	free := g.set.free(l.q)
	n, v := int(l.aux&7), rune(l.aux>>3)
	hexDigits(func(b byte, d rune) {
		v := v<<4 | d
		bits := 4 * (3 - n)
		lo, hi := v<<bits, v<<bits|(1<<bits-1)
		if !free {
			if hi = min(hi, 0x1F); lo > hi {
				return
			}
		}
		surrogates := lo <= 0xDBFF && hi >= 0xD800 &&
			g.reaches(l.q, 0x10000+(max(lo, 0xD800)-0xD800)<<10, 0x10000+(min(hi, 0xDBFF)-0xD800)<<10+0x3FF)
		switch {
		case n < 3:
			if surrogates || g.reaches(l.q, lo, hi) {
				row[b] = g.leaf(l.with(mHex, uint64(n+1)|uint64(v)<<3))
			}
		case lo < 0xD800 || lo > 0xDFFF:
			row[b] = g.after(l, lo)
		case surrogates:
			row[b] = g.leaf(l.with(mLow, uint64(v)))
		}
	})
}

func (g *Grammar) fillLowHex(l *leaf, row *[256]*leaf) {
	high, n, v := rune(l.aux&0xFFFF), int(l.aux>>16&7), rune(l.aux>>20)
	base := 0x10000 + (high-0xD800)<<10
	hexDigits(func(b byte, d rune) {
		v := v<<4 | d
		bits := 4 * (3 - n)
		lo, hi := max(v<<bits, 0xDC00), min(v<<bits|(1<<bits-1), 0xDFFF)
		if lo > hi {
			return
		}
		if n == 3 {
			row[b] = g.after(l, base+lo-0xDC00)
		} else if g.reaches(l.q, base+lo-0xDC00, base+hi-0xDC00) {
			row[b] = g.leaf(l.with(mLowHex, uint64(high)|uint64(n+1)<<16|uint64(v)<<20))
		}
	})
}

// remember appends what the byte b, read between l and to, adds to a remembered text.
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
