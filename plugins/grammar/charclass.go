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

var (
	digitClass = []runeRange{{'0', '9'}}
	wordClass  = []runeRange{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}
	lineEnds   = []runeRange{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}
	spaceClass = []runeRange{{9, 13}, {' ', ' '}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}}
)

func (p *regexParser) charClass(class []runeRange) *ast {
	if p.fold {
		class = foldCase(class)
	}
	return &ast{kind: aClass, class: normalize(class)}
}

// classEscape reads an escape for one character or for a class of them.
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
		if !single || !also { // [\w-x]: the hyphen is literal
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

func (p *regexParser) char(r rune) *ast { return p.charClass([]runeRange{{r, r}}) }

// runeRange is a range of characters with both ends.
type runeRange struct{ lo, hi rune }

// normalize sorts ranges and joins adjacent ones. No range begins or ends within the surrogates,
// which are not characters, so that equal classes have equal ranges.
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

// complement returns the characters outside normalized ranges.
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

func inClass(class []runeRange, c rune) bool {
	i, found := slices.BinarySearchFunc(class, c, func(x runeRange, c rune) int { return int(x.lo - c) })
	return found || i > 0 && class[i-1].hi >= c
}
