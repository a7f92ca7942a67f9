package grammar

// stringLanguage returns the strings that satisfy lits.
func (c *compiler) stringLanguage(lits []lit) (rx, error) {
	n := c.node(lits)
	if err := c.expand(n); err != nil {
		return rxNone, err
	}
	return c.set.bounded(n.str, n.length), nil
}

// gatherStrings joins the strings of the alternatives. Lengths stay separate only if all
// alternatives have the same.
func (c *compiler) gatherStrings(n *node, parts []*partial) {
	n.str, n.length = rxNone, anyLength
	same := true
	for _, p := range parts {
		same = same && p.length == parts[0].length
	}
	for _, p := range parts {
		if same {
			n.str, n.length = c.set.alt(n.str, p.str), p.length
		} else {
			n.str = c.set.alt(n.str, c.set.bounded(p.str, p.length))
		}
	}
}

func (l *leaf) with(mode uint8, aux uint64) leafKey {
	return leafKey{kind: l.kind, mode: mode, keep: l.keep, q: l.q, aux: aux, rule: l.rule}
}

// after returns the position after the character r, or nil.
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

// reaches reports whether a character of lo…hi may come next.
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

// leadKey identifies the positions within a non-ASCII character, for expressions that treat all of
// them alike.
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

// part returns the position where left more bytes of a character follow those of value v; the
// character must be at least least.
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
		if i+1 == len(e.from) || e.from[i+1] > hi { // all such characters lead to the same expression
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

// uniform marks a position within a character whose value does not matter.
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

// mustEscape reports whether JSON can write r only as an escape. Where the continuation depends on
// the character, only such characters are accepted in escaped form, so that most texts have one
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
			// Expressions that treat these characters alike share the rest.
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
