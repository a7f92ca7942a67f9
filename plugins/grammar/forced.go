package grammar

import (
	"bytes"
	"slices"
	"unicode/utf8"
)

const maxForced = 4096

// Forced returns the text that every document continues with: while only one byte can come next,
// that byte. It is empty at a choice, where the text may end, and when the bounds of the grammar
// are exhausted.
func (m *Matcher) Forced() []byte {
	if m.ended {
		return nil
	}
	if m.begin(callWork) != nil {
		m.g.mu.Unlock()
		return nil
	}
	out := m.forced()
	if m.end() != nil {
		return nil
	}
	return out
}

func (m *Matcher) forced() []byte {
	var out []byte
	c := m.at
	c.text = slices.Clone(c.text)
	for len(out) < maxForced && !m.g.final(&c) {
		b, ok := m.g.only(&c)
		if !ok {
			break
		}
		if c = m.g.step(&c, b); c.dead() {
			break
		}
		out = append(out, b)
	}
	return out
}

// only returns the byte that must come next, if there is only one.
func (g *Grammar) only(c *config) (byte, bool) {
	plain := c.more == nil && c.leaf.base == nil
	if plain {
		switch b, way := g.oneWay(c.leaf); way {
		case ways:
			return 0, false
		case oneWay:
			return b, true
		}
	}
	found := -1
	for b := range 256 {
		if plain && c.leaf.to[c.leaf.class[b]] == nil {
			continue
		}
		x := *c
		x.text = slices.Clip(x.text)
		if x = g.step(&x, byte(b)); x.dead() {
			continue
		}
		if found >= 0 {
			return 0, false
		}
		found = b
	}
	return byte(found), found >= 0
}

// Which bytes can come at a position, as far as the position alone determines it.
const (
	unseen  uint8 = iota
	unclear       // depends on the enclosing values
	oneWay
	ways // several bytes
)

// oneWay returns the byte that must come at l, if there is only one.
func (g *Grammar) oneWay(l *leaf) (byte, uint8) {
	if l.class == nil {
		g.fill(l)
	}
	if l.way == unseen {
		l.way = unclear
		inside, outside := 0, false
		for b, class := range l.class {
			switch l.to[class] {
			case nil:
			case structural, lead:
				outside = true
			default:
				inside++
				l.one = byte(b)
			}
		}
		switch {
		case inside > 1:
			l.way = ways
		case inside == 1 && !outside:
			l.way = oneWay
		}
	}
	return l.one, l.way
}

// contextTokens is the number of tokens before a forced text that the tokenizer gets as context,
// since its result depends on them.
const contextTokens = 16

// ForcedTokens returns the tokens of the text from Forced, as far as encode writes them the same
// way whatever follows. encode, which must use the matcher's vocabulary, gets the text together
// with the text before it, and tokens that could merge with what follows are left out. before holds
// the last tokens before the text, including the prompt's; tokens without text end the context for
// encode. If encode would have written the preceding tokens differently, ForcedTokens returns
// nothing.
//
// This is correct for tokenizers that merge pieces, or take the longest piece, from left to right:
// then a piece that begins in the text and ends after it is a token as well.
func (m *Matcher) ForcedTokens(before []int, encode func(text []byte) []int) []int {
	text := settled(m.Forced())
	if len(text) == 0 {
		return nil
	}
	crossings, err := m.crossings(text)
	if err != nil || len(crossings) > 0 && crossings[0] == 0 {
		return nil
	}
	var head []byte
	first := len(before)
	for first > 0 && len(before)-first < contextTokens && m.v.text(before[first-1]) != nil {
		first--
	}
	before = before[first:]
	for _, t := range before {
		head = append(head, m.v.tokens[t]...)
	}
	for len(before) > 0 && !utf8.Valid(head) { // cut within a character
		head, before = head[len(m.v.tokens[before[0]]):], before[1:]
	}
	head = slices.Clip(head)
	out := m.v.behind(before, encode(append(head, text...)), text)
	for _, at := range crossings {
		if len(out) == 0 {
			break
		}
		other := m.v.behind(before, encode(append(head, text[:at]...)), text[:at])
		n := 0
		for n < min(len(out), len(other)) && out[n] == other[n] {
			n++
		}
		out = out[:n]
	}
	return out
}

// settled returns the prefix of a text that tokenizers treat the same way whatever follows: they
// look ahead after whitespace, and never split a character. A NUL ends a text for some.
func settled(text []byte) []byte {
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if last := text[len(text)-n:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				text = text[:len(text)-n]
			}
			break
		}
	}
	return bytes.TrimRight(text, " \t\r\n")
}

// text returns the bytes of a token, or nil if it has no text.
func (v *Vocabulary) text(token int) []byte {
	if token < 0 || token >= len(v.tokens) || !v.usable(token) {
		return nil
	}
	return v.tokens[token]
}

// behind returns the tokens of text at the end of list, provided the ones before them equal the
// last tokens of before. Otherwise, or if no token begins where text does, it returns nil.
func (v *Vocabulary) behind(before, list []int, text []byte) []int {
	i, left := len(list), text
	for i > 0 && len(left) > 0 {
		t := v.text(list[i-1])
		if t == nil || !bytes.HasSuffix(left, t) {
			return nil
		}
		left = left[:len(left)-len(t)]
		i--
	}
	if len(left) > 0 || i == 0 && len(before) > 0 {
		return nil
	}
	for k := 1; k <= min(i, len(before)); k++ {
		// Some tokenizers prepend a space to a text, which changes the first token.
		if list[i-k] != before[len(before)-k] && (k < i || k == 1) {
			return nil
		}
	}
	return list[i:]
}

// crossings returns the positions in text at which a token can begin that extends beyond its end.
// text must be allowed to come next.
func (m *Matcher) crossings(text []byte) ([]int, error) {
	if err := m.begin(callWork); err != nil {
		m.g.mu.Unlock()
		return nil, err
	}
	var out []int
	if end, ok := m.g.run(m.at, text); ok {
		for i := max(0, len(text)-m.v.longest+1); i < len(text); i++ {
			if from, to := m.v.trie.below(text[i:]); from < to && m.g.takesAny(m.v.trie, from, to, &end) {
				out = append(out, i)
			}
		}
	}
	return out, m.end()
}

// below returns the nodes of the byte strings that extend s.
func (t *trie) below(s []byte) (from, to int) {
	from, to = 0, len(t.bytes)
	for _, b := range s {
		for from < to && t.bytes[from] != b {
			from = int(t.skip[from])
		}
		if from >= to {
			return 0, 0
		}
		from, to = from+1, int(t.skip[from])
	}
	return from, to
}

// takesAny reports whether the rest of any of the nodes, beyond a text, can follow it.
func (g *Grammar) takesAny(t *trie, from, to int, start *config) bool {
	path := &g.walker.path
	top := int(t.depth[from])
	for i := from; i < to; {
		d := int(t.depth[i]) - top
		at := start
		if d > 0 {
			at = &path[d-1]
		}
		if path[d] = g.step(at, t.bytes[i]); path[d].dead() {
			i = int(t.skip[i])
			continue
		}
		if t.tok[i] >= 0 {
			return true
		}
		i++
	}
	return false
}
