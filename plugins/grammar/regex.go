package grammar

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The dialect is ECMA 262 as JSON Schema wants it, with the leniency of its Annex B, plus a
// leading (?i) or (?s) and the anchors \A, \z and \Z of other dialects.

type astKind uint8

const (
	aEmpty astKind = iota
	aClass
	aConcat
	aAlt
	aRepeat
	aStart   // ^
	aEnd     // $
	aWord    // \b
	aNotWord // \B
	aLook    // (?=…)
	aNotLook // (?!…)
)

type ast struct {
	kind     astKind
	kids     []*ast
	class    []runeRange
	min, max int32
	asserts  bool // holds an assertion
	caret    bool // holds an assertion that looks back: ^, \b or \B
}

const (
	maxRegexLen   = 64 << 10
	maxRegexDepth = 200
)

var (
	errLookbehind = errors.New("lookbehind is not supported")
	errBackref    = errors.New("backreferences are not supported")
	errRegexSize  = errors.New("regular expression is too complex")
)

type regexParser struct {
	src    string
	pos    int
	depth  int
	fold   bool // (?i)
	dotAll bool // (?s)
}

// parseRegex returns the expression for the texts in which pattern is found.
func (s *rxSet) parseRegex(pattern string) (rx, error) { return s.compileRegex(pattern, false) }

// parseWholeRegex returns the expression for the texts that pattern matches from end to end.
func (s *rxSet) parseWholeRegex(pattern string) (rx, error) { return s.compileRegex(pattern, true) }

func (s *rxSet) compileRegex(pattern string, whole bool) (rx, error) {
	if len(pattern) > maxRegexLen {
		return rxNone, errRegexSize
	}
	p := &regexParser{src: pattern}
	p.flags()
	tree, err := p.alternatives()
	if err != nil {
		return rxNone, fmt.Errorf("regular expression: %w at byte %d", err, p.pos)
	}
	if p.pos < len(p.src) {
		return rxNone, fmt.Errorf("regular expression: unexpected %q at byte %d", p.src[p.pos], p.pos)
	}
	c := &regexCompiler{set: s, left: 20000}
	tail := rxAll
	if whole {
		tail = rxEmpty
	}
	out, err := c.match(tree, prevStart, func(prev) (rx, error) { return tail, nil })
	if err != nil || whole {
		return out, err
	}
	if !tree.caret {
		return s.concat(rxAll, out), nil
	}
	word := s.class(wordClass)
	other := s.class(complement(wordClass))
	for _, x := range []struct {
		last rx
		prev prev
	}{{word, prevWord}, {other, prevOther}} {
		rest, err := c.match(tree, x.prev, func(prev) (rx, error) { return tail, nil })
		if err != nil {
			return rxNone, err
		}
		out = s.alt(out, s.concat(rxAll, s.concat(x.last, rest)))
	}
	return out, nil
}

func (p *regexParser) flags() {
	if !strings.HasPrefix(p.src, "(?") {
		return
	}
	for i := 2; i < len(p.src); i++ {
		switch p.src[i] {
		case 'i':
			p.fold = true
		case 's':
			p.dotAll = true
		case ')':
			if i > 2 {
				p.pos = i + 1
				return
			}
			fallthrough
		default:
			p.fold, p.dotAll = false, false
			return
		}
	}
	p.fold, p.dotAll = false, false
}

func (p *regexParser) more() bool { return p.pos < len(p.src) }

func (p *regexParser) alternatives() (*ast, error) {
	if p.depth++; p.depth > maxRegexDepth {
		return nil, errRegexSize
	}
	defer func() { p.depth-- }()
	out := &ast{kind: aAlt}
	for {
		branch, err := p.sequence()
		if err != nil {
			return nil, err
		}
		out.add(branch)
		if !p.more() || p.src[p.pos] != '|' {
			break
		}
		p.pos++
	}
	if len(out.kids) == 1 {
		return out.kids[0], nil
	}
	return out, nil
}

func (a *ast) add(kid *ast) {
	a.kids = append(a.kids, kid)
	a.asserts = a.asserts || kid.asserts
	a.caret = a.caret || kid.caret
}

func (p *regexParser) sequence() (*ast, error) {
	out := &ast{kind: aConcat}
	for p.more() && p.src[p.pos] != '|' && p.src[p.pos] != ')' {
		atom, err := p.atom()
		if err != nil {
			return nil, err
		}
		if atom, err = p.quantified(atom); err != nil {
			return nil, err
		}
		out.add(atom)
	}
	return out, nil
}

func (p *regexParser) quantified(atom *ast) (*ast, error) {
	for p.more() {
		lo, hi := int32(0), int32(rxUnbounded)
		switch p.src[p.pos] {
		case '*':
			p.pos++
		case '+':
			lo = 1
			p.pos++
		case '?':
			hi = 1
			p.pos++
		case '{':
			var n int
			var err error
			if lo, hi, n, err = parseBraces(p.src[p.pos:]); err != nil {
				return nil, err
			}
			if n == 0 {
				return atom, nil
			}
			p.pos += n
		default:
			return atom, nil
		}
		if p.more() && p.src[p.pos] == '?' { // lazy: the same texts
			p.pos++
		}
		if atom.asserts && !(lo <= 1 && hi == 1) {
			switch {
			case onlyAsserts(atom): // repeating it changes nothing, but that zero times is allowed
				if lo > 0 {
					lo, hi = 1, 1
				} else {
					lo, hi = 0, 0
				}
			case lo > 1 || hi != rxUnbounded || !onlyEnds(atom):
				return nil, errors.New("repeated assertions are not supported")
			}
		}
		atom = &ast{kind: aRepeat, kids: []*ast{atom}, min: lo, max: hi, asserts: atom.asserts, caret: atom.caret}
	}
	return atom, nil
}

func onlyAsserts(a *ast) bool { return a.kind >= aStart }

// onlyEnds reports whether $ is the only assertion within a.
func onlyEnds(a *ast) bool {
	if a.kind > aEnd || a.kind == aStart {
		return false
	}
	for _, k := range a.kids {
		if !onlyEnds(k) {
			return false
		}
	}
	return true
}

// parseBraces reads {n}, {n,} or {n,m} and returns its length, or 0 if s begins with something
// else.
func parseBraces(s string) (lo, hi int32, n int, err error) {
	end := strings.IndexByte(s, '}')
	if end < 0 {
		return 0, 0, 0, nil
	}
	left, right, comma := strings.Cut(s[1:end], ",")
	low, err1 := strconv.ParseUint(left, 10, 31)
	if err1 != nil && !(left == "" && comma && right != "") {
		return 0, 0, 0, nil
	}
	high := low
	if comma {
		if right != "" {
			var bad error
			if high, bad = strconv.ParseUint(right, 10, 31); bad != nil {
				return 0, 0, 0, nil //nolint:nilerr // literal braces
			}
		}
	}
	if low > maxRepeat || high > maxRepeat {
		return 0, 0, 0, errors.New("repetition count is too large")
	}
	if comma && right == "" {
		return int32(low), rxUnbounded, end + 1, nil
	}
	if high < low {
		return 0, 0, 0, errors.New("repetition counts are out of order")
	}
	return int32(low), int32(high), end + 1, nil
}

func (p *regexParser) atom() (*ast, error) {
	r, n := utf8.DecodeRuneInString(p.src[p.pos:])
	if r == utf8.RuneError && n <= 1 {
		return nil, errors.New("invalid UTF-8")
	}
	switch r {
	case '(':
		return p.group()
	case '[':
		return p.bracket()
	case '\\':
		return p.escape()
	case '^':
		p.pos++
		return &ast{kind: aStart, asserts: true, caret: true}, nil
	case '$':
		p.pos++
		return &ast{kind: aEnd, asserts: true}, nil
	case '.':
		p.pos++
		if p.dotAll {
			return &ast{kind: aClass, class: []runeRange{{0, maxRune}}}, nil
		}
		return &ast{kind: aClass, class: complement(lineEnds)}, nil
	case '*', '+', '?':
		return nil, errors.New("nothing to repeat")
	}
	p.pos += n
	return p.char(r), nil
}

func (p *regexParser) char(r rune) *ast { return p.charClass([]runeRange{{r, r}}) }

func (p *regexParser) charClass(class []runeRange) *ast {
	if p.fold {
		class = foldCase(class)
	}
	return &ast{kind: aClass, class: normalize(class)}
}

// foldCase adds the other case of ASCII letters.
func foldCase(class []runeRange) []runeRange {
	out := class
	for _, x := range []struct{ lo, hi, to rune }{{'a', 'z', 'A'}, {'A', 'Z', 'a'}} {
		for _, r := range intersect(normalize(class), []runeRange{{x.lo, x.hi}}) {
			out = append(out, runeRange{r.lo - x.lo + x.to, r.hi - x.lo + x.to})
		}
	}
	return out
}

func (p *regexParser) group() (*ast, error) {
	rest := p.src[p.pos:]
	kind := aConcat
	switch {
	case strings.HasPrefix(rest, "(?:"):
		p.pos += 3
	case strings.HasPrefix(rest, "(?="):
		kind = aLook
		p.pos += 3
	case strings.HasPrefix(rest, "(?!"):
		kind = aNotLook
		p.pos += 3
	case strings.HasPrefix(rest, "(?<=") || strings.HasPrefix(rest, "(?<!"):
		return nil, errLookbehind
	case strings.HasPrefix(rest, "(?<") || strings.HasPrefix(rest, "(?P<"):
		end := strings.IndexByte(rest, '>')
		if end < 0 {
			return nil, errors.New("unterminated group name")
		}
		p.pos += end + 1
	case strings.HasPrefix(rest, "(?"):
		return nil, errors.New("unsupported group")
	default:
		p.pos++
	}
	inner, err := p.alternatives()
	if err != nil {
		return nil, err
	}
	if !p.more() {
		return nil, errors.New("missing )")
	}
	p.pos++
	if kind == aConcat {
		return inner, nil
	}
	return &ast{kind: kind, kids: []*ast{inner}, asserts: true, caret: inner.caret}, nil
}

func (p *regexParser) escape() (*ast, error) {
	if p.pos+1 >= len(p.src) {
		return nil, errors.New("trailing backslash")
	}
	switch c := p.src[p.pos+1]; c {
	case 'b':
		p.pos += 2
		return &ast{kind: aWord, asserts: true, caret: true}, nil
	case 'B':
		p.pos += 2
		return &ast{kind: aNotWord, asserts: true, caret: true}, nil
	case 'A':
		p.pos += 2
		return &ast{kind: aStart, asserts: true, caret: true}, nil
	case 'z', 'Z':
		p.pos += 2
		return &ast{kind: aEnd, asserts: true}, nil
	case 'k':
		return nil, errBackref
	default:
		if c >= '1' && c <= '9' {
			return nil, errBackref
		}
	}
	class, _, err := p.classEscape()
	if err != nil {
		return nil, err
	}
	return p.charClass(class), nil
}

var (
	digitClass = []runeRange{{'0', '9'}}
	wordClass  = []runeRange{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}
	lineEnds   = []runeRange{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}
	spaceClass = []runeRange{{9, 13}, {' ', ' '}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}}
)

// classEscape reads an escape that stands for one character, or for a class of them.
func (p *regexParser) classEscape() (class []runeRange, single bool, err error) {
	p.pos++
	r, n := utf8.DecodeRuneInString(p.src[p.pos:])
	p.pos += n
	one := func(r rune) ([]runeRange, bool, error) { return []runeRange{{r, r}}, true, nil }
	switch r {
	case 'd':
		return digitClass, false, nil
	case 'D':
		return complement(digitClass), false, nil
	case 'w':
		return wordClass, false, nil
	case 'W':
		return complement(wordClass), false, nil
	case 's':
		return spaceClass, false, nil
	case 'S':
		return complement(spaceClass), false, nil
	case 't':
		return one('\t')
	case 'n':
		return one('\n')
	case 'r':
		return one('\r')
	case 'f':
		return one('\f')
	case 'v':
		return one('\v')
	case '0':
		if p.more() && p.src[p.pos] >= '0' && p.src[p.pos] <= '9' {
			return nil, false, errors.New("octal escapes are not supported")
		}
		return one(0)
	case 'c':
		if p.more() {
			if c := p.src[p.pos] | 0x20; c >= 'a' && c <= 'z' {
				p.pos++
				return one(rune(c - 'a' + 1))
			}
		}
		return nil, false, errors.New("malformed \\c escape")
	case 'x':
		return p.hex(2)
	case 'u':
		return p.unicodeEscape()
	case 'p', 'P':
		class, err := p.property()
		if r == 'P' {
			class = complement(class)
		}
		return class, false, err
	}
	if r >= '1' && r <= '9' {
		return nil, false, errBackref
	}
	if n == 0 || r == utf8.RuneError {
		return nil, false, errors.New("trailing backslash")
	}
	if r < utf8.RuneSelf && unicode.IsLetter(r) {
		return nil, false, fmt.Errorf("unknown escape \\%c", r)
	}
	return one(r)
}

func (p *regexParser) hex(digits int) ([]runeRange, bool, error) {
	if p.pos+digits > len(p.src) {
		return nil, false, errors.New("malformed escape")
	}
	v, err := strconv.ParseUint(p.src[p.pos:p.pos+digits], 16, 32)
	if err != nil {
		return nil, false, errors.New("malformed escape")
	}
	p.pos += digits
	return []runeRange{{rune(v), rune(v)}}, true, nil
}

func (p *regexParser) unicodeEscape() ([]runeRange, bool, error) {
	if strings.HasPrefix(p.src[p.pos:], "{") {
		end := strings.IndexByte(p.src[p.pos:], '}')
		if end < 0 {
			return nil, false, errors.New("malformed \\u escape")
		}
		v, err := strconv.ParseUint(p.src[p.pos+1:p.pos+end], 16, 32)
		if err != nil || v > maxRune {
			return nil, false, errors.New("malformed \\u escape")
		}
		p.pos += end + 1
		return []runeRange{{rune(v), rune(v)}}, true, nil
	}
	class, single, err := p.hex(4)
	if err != nil {
		return nil, false, err
	}
	if high := class[0].lo; high >= 0xD800 && high < 0xDC00 && strings.HasPrefix(p.src[p.pos:], "\\u") {
		at := p.pos
		p.pos += 2
		low, _, err := p.hex(4)
		if err == nil && low[0].lo >= 0xDC00 && low[0].lo < 0xE000 {
			r := 0x10000 + (high-0xD800)<<10 + (low[0].lo - 0xDC00)
			return []runeRange{{r, r}}, true, nil
		}
		p.pos = at
	}
	return class, single, nil
}

// property reads the name of a Unicode property in braces.
func (p *regexParser) property() ([]runeRange, error) {
	rest := p.src[p.pos:]
	end := strings.IndexByte(rest, '}')
	if !strings.HasPrefix(rest, "{") || end < 0 {
		return nil, errors.New("malformed \\p escape")
	}
	name := rest[1:end]
	p.pos += end + 1
	for _, prefix := range []string{"General_Category=", "gc=", "Script=", "sc="} {
		name = strings.TrimPrefix(name, prefix)
	}
	long := map[string]string{
		"Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Mark": "M", "Number": "N",
		"Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Other": "C",
		"Alphabetic": "L", "digit": "Nd", "Any": "Any", "ASCII": "ASCII",
	}
	if name == "Alphabetic" {
		return nil, errors.New("unsupported Unicode property")
	}
	if short, ok := long[name]; ok {
		name = short
	}
	switch name {
	case "Any":
		return []runeRange{{0, maxRune}}, nil
	case "ASCII":
		return []runeRange{{0, 0x7F}}, nil
	}
	table, ok := unicode.Categories[name]
	if !ok {
		table, ok = unicode.Scripts[name]
	}
	if !ok {
		return nil, errors.New("unknown Unicode property")
	}
	var out []runeRange
	add := func(lo, hi, stride rune) {
		if stride == 1 {
			out = append(out, runeRange{lo, hi})
			return
		}
		for r := lo; r <= hi; r += stride {
			out = append(out, runeRange{r, r})
		}
	}
	for _, r := range table.R16 {
		add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
	for _, r := range table.R32 {
		add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
	return normalize(out), nil
}

func (p *regexParser) bracket() (*ast, error) {
	p.pos++
	negated := strings.HasPrefix(p.src[p.pos:], "^")
	if negated {
		p.pos++
	}
	var out []runeRange
	for {
		if !p.more() {
			return nil, errors.New("missing ]")
		}
		if p.src[p.pos] == ']' {
			p.pos++
			break
		}
		lo, single, err := p.bracketItem()
		if err != nil {
			return nil, err
		}
		if !p.more() || p.src[p.pos] != '-' || strings.HasPrefix(p.src[p.pos:], "-]") {
			out = append(out, lo...)
			continue
		}
		p.pos++
		if !p.more() {
			return nil, errors.New("missing ]")
		}
		hi, also, err := p.bracketItem()
		if err != nil {
			return nil, err
		}
		if !single || !also { // [\w-x]: the hyphen stands for itself
			out = append(append(append(out, lo...), hi...), runeRange{'-', '-'})
			continue
		}
		if hi[0].lo < lo[0].lo {
			return nil, errors.New("character range is out of order")
		}
		out = append(out, runeRange{lo[0].lo, hi[0].lo})
	}
	if p.fold {
		out = foldCase(out)
	}
	out = normalize(out)
	if negated {
		out = complement(out)
	}
	return &ast{kind: aClass, class: out}, nil
}

func (p *regexParser) bracketItem() ([]runeRange, bool, error) {
	r, n := utf8.DecodeRuneInString(p.src[p.pos:])
	if r == utf8.RuneError && n <= 1 {
		return nil, false, errors.New("invalid UTF-8")
	}
	if r != '\\' {
		p.pos += n
		return []runeRange{{r, r}}, true, nil
	}
	if strings.HasPrefix(p.src[p.pos:], `\b`) {
		p.pos += 2
		return []runeRange{{'\b', '\b'}}, true, nil
	}
	return p.classEscape()
}

// prev is what stands before a position.
type prev uint8

const (
	prevStart prev = iota
	prevWord
	prevOther
	prevKinds // how many there are
)

type regexCompiler struct {
	set   *rxSet
	left  int
	inner bool // text follows: no $ is passed
}

// plain translates a tree without assertions.
func (c *regexCompiler) plain(a *ast) rx {
	s := c.set
	switch a.kind {
	case aClass:
		return s.class(a.class)
	case aConcat:
		out := rxEmpty
		for _, k := range slices.Backward(a.kids) {
			out = s.concat(c.plain(k), out)
		}
		return out
	case aAlt:
		kids := make([]rx, len(a.kids))
		for i, k := range a.kids {
			kids[i] = c.plain(k)
		}
		return s.alt(kids...)
	case aRepeat:
		return s.repeat(c.plain(a.kids[0]), a.min, a.max)
	}
	return rxEmpty
}

type regexTail func(prev) (rx, error)

// match translates a after at, followed by what tail returns for the position behind a.
func (c *regexCompiler) match(a *ast, at prev, tail regexTail) (rx, error) {
	if c.left--; c.left < 0 || c.set.exhausted() {
		return rxNone, errRegexSize
	}
	s := c.set
	if !a.asserts {
		return c.before(c.plain(a), at, tail)
	}
	switch a.kind {
	case aStart:
		if at != prevStart {
			return rxNone, nil
		}
		return tail(at)
	case aEnd:
		if c.inner {
			return rxNone, nil
		}
		rest, err := tail(at)
		return s.and(rxEmpty, rest), err
	case aWord, aNotWord:
		rest, err := tail(at)
		next := s.concat(s.class(wordClass), rxAll) // a word character follows
		if (at == prevWord) == (a.kind == aWord) {
			next = s.not(next)
		}
		return s.and(rest, next), err
	case aLook, aNotLook:
		inner, err := c.match(a.kids[0], at, func(prev) (rx, error) { return rxAll, nil })
		if err != nil {
			return rxNone, err
		}
		if a.kind == aNotLook {
			inner = s.not(inner)
		}
		rest, err := tail(at)
		return s.and(inner, rest), err
	case aConcat:
		return c.sequence(a.kids, at, tail)
	case aAlt:
		out := rxNone
		for _, k := range a.kids {
			r, err := c.match(k, at, tail)
			if err != nil {
				return rxNone, err
			}
			out = s.alt(out, r)
		}
		return out, nil
	case aRepeat: // once, never, or perhaps
		if a.max == 0 {
			return tail(at)
		}
		out, err := c.match(a.kids[0], at, tail)
		if err == nil && a.max == rxUnbounded { // only the last round passes a $
			var round rx
			inner := c.inner
			c.inner = true
			round, err = c.match(a.kids[0], at, func(prev) (rx, error) { return rxEmpty, nil })
			c.inner = inner
			out = s.concat(s.repeat(round, 0, rxUnbounded), out)
		}
		if err != nil || a.min > 0 {
			return out, err
		}
		none, err := tail(at)
		return s.alt(out, none), err
	}
	return rxNone, errRegexSize
}

func (c *regexCompiler) sequence(kids []*ast, at prev, tail regexTail) (rx, error) {
	type result struct {
		r    rx
		done bool
	}
	known := make([][prevKinds]result, len(kids)+1)
	var from func(int, prev) (rx, error)
	from = func(i int, at prev) (rx, error) {
		if k := known[i][at]; k.done {
			return k.r, nil
		}
		var r rx
		var err error
		if i == len(kids) {
			r, err = tail(at)
		} else {
			r, err = c.match(kids[i], at, func(next prev) (rx, error) { return from(i+1, next) })
		}
		known[i][at] = result{r, err == nil}
		return r, err
	}
	return from(0, at)
}

// before puts r before its tail. Where the tail depends on the character before it, r is split
// by its last character.
func (c *regexCompiler) before(r rx, at prev, tail regexTail) (rx, error) {
	s := c.set
	word, err := tail(prevWord)
	if err != nil {
		return rxNone, err
	}
	other, err := tail(prevOther)
	if err != nil {
		return rxNone, err
	}
	same := rxNone
	if s.nullable(r) {
		if same, err = tail(at); err != nil {
			return rxNone, err
		}
	}
	if word == other && (!s.nullable(r) || same == word) {
		return s.concat(r, word), nil
	}
	endsIn := func(class []runeRange) rx { return s.and(r, s.concat(rxAll, s.class(class))) }
	return s.alt(same, s.concat(endsIn(wordClass), word), s.concat(endsIn(complement(wordClass)), other)), nil
}
