package grammar

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The dialect is ECMA 262 as JSON Schema requires it, with the leniency of its Annex B, plus a
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
	asserts  bool // contains an assertion
	caret    bool // contains an assertion that looks back: ^, \b or \B
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

// parseRegex returns the expression for texts that contain a match of pattern.
func (s *rxSet) parseRegex(pattern string) (rx, error) { return s.compileRegex(pattern, false) }

// parseWholeRegex returns the expression for texts that pattern matches as a whole.
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

// quantifier returns the repetition bounds of *, + and ?.
func quantifier(c byte) (lo, hi int32, ok bool) {
	switch c {
	case '*':
		return 0, rxUnbounded, true
	case '+':
		return 1, rxUnbounded, true
	case '?':
		return 0, 1, true
	}
	return 0, 0, false
}

func (p *regexParser) quantified(atom *ast) (*ast, error) {
	for p.more() {
		lo, hi, ok := quantifier(p.src[p.pos])
		switch {
		case ok:
			p.pos++
		case p.src[p.pos] == '{':
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
		if p.more() && p.src[p.pos] == '?' { // lazy: matches the same texts
			p.pos++
		}
		if atom.asserts && !(lo <= 1 && hi == 1) {
			switch {
			case onlyAsserts(atom): // repetition has no effect, except that zero times is allowed
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
