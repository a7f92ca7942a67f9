package grammar

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// jkind is the type of a JSON value.
type jkind uint8

const (
	jNull jkind = iota
	jFalse
	jTrue
	jNumber
	jString
	jArray
	jObject
)

// jvalue is a JSON value that keeps the order of an object's members and the text of a number.
type jvalue struct {
	kind jkind
	str  string // text of a string, digits of a number
	arr  []*jvalue
	keys []string // members in the order of their first appearance
	obj  map[string]*jvalue
}

func (v *jvalue) get(key string) *jvalue {
	if v == nil || v.kind != jObject {
		return nil
	}
	return v.obj[key]
}

// canonical returns a text that is equal for equal values, whatever their order and spelling.
func (v *jvalue) canonical() string {
	var b strings.Builder
	v.writeCanonical(&b)
	return b.String()
}

func (v *jvalue) writeCanonical(b *strings.Builder) {
	switch v.kind {
	case jNull:
		b.WriteByte('n')
	case jFalse:
		b.WriteByte('f')
	case jTrue:
		b.WriteByte('t')
	case jNumber:
		if d, err := parseDecimal(v.str); err == nil {
			b.WriteString(d.String())
		} else {
			b.WriteString(v.str)
		}
	case jString:
		b.WriteString(strconv.Quote(v.str))
	case jArray:
		b.WriteByte('[')
		for _, e := range v.arr {
			e.writeCanonical(b)
			b.WriteByte(',')
		}
		b.WriteByte(']')
	case jObject:
		b.WriteByte('{')
		for _, k := range sortedKeys(v.obj) {
			b.WriteString(strconv.Quote(k))
			b.WriteByte(':')
			v.obj[k].writeCanonical(b)
			b.WriteByte(',')
		}
		b.WriteByte('}')
	}
}

// jparser parses one JSON text of bounded depth.
type jparser struct {
	src   string
	pos   int
	depth int
	left  int // values left to read
}

var errTruncated = errors.New("unexpected end of JSON")

// parseJSON parses src as one JSON value with at most maxDepth levels and maxValues values.
func parseJSON(src string, maxDepth, maxValues int) (*jvalue, error) {
	p := &jparser{src: src, depth: maxDepth, left: maxValues}
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	p.space()
	if p.pos != len(src) {
		return nil, fmt.Errorf("unexpected %q after the JSON value at byte %d", src[p.pos], p.pos)
	}
	return v, nil
}

func (p *jparser) space() {
	for p.pos < len(p.src) {
		switch p.src[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

func (p *jparser) value() (*jvalue, error) {
	p.space()
	if p.left--; p.left < 0 {
		return nil, errors.New("too many JSON values")
	}
	if p.pos >= len(p.src) {
		return nil, errTruncated
	}
	switch c := p.src[p.pos]; {
	case c == '{':
		return p.object()
	case c == '[':
		return p.array()
	case c == '"':
		s, err := p.text()
		return &jvalue{kind: jString, str: s}, err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	for word, kind := range map[string]jkind{"null": jNull, "true": jTrue, "false": jFalse} {
		if strings.HasPrefix(p.src[p.pos:], word) {
			p.pos += len(word)
			return &jvalue{kind: kind}, nil
		}
	}
	return nil, fmt.Errorf("unexpected %q at byte %d", p.src[p.pos], p.pos)
}

func (p *jparser) number() (*jvalue, error) {
	start := p.pos
	for p.pos < len(p.src) && strings.IndexByte("+-.0123456789eE", p.src[p.pos]) >= 0 {
		p.pos++
	}
	text := p.src[start:p.pos]
	if !validNumber(text) {
		return nil, fmt.Errorf("malformed number %q at byte %d", text, start)
	}
	return &jvalue{kind: jNumber, str: text}, nil
}

// validNumber reports whether text is a JSON number.
func validNumber(text string) bool {
	s := strings.TrimPrefix(text, "-")
	digits := func() int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	n := digits()
	if n == 0 || n > 1 && s[0] == '0' {
		return false
	}
	s = s[n:]
	if strings.HasPrefix(s, ".") {
		s = s[1:]
		if n = digits(); n == 0 {
			return false
		}
		s = s[n:]
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		if n = digits(); n == 0 {
			return false
		}
		s = s[n:]
	}
	return s == ""
}

func (p *jparser) object() (*jvalue, error) {
	if p.depth--; p.depth < 0 {
		return nil, errors.New("nested too deeply")
	}
	defer func() { p.depth++ }()
	p.pos++
	v := &jvalue{kind: jObject, obj: map[string]*jvalue{}}
	for first := true; ; first = false {
		p.space()
		if p.pos >= len(p.src) {
			return nil, errTruncated
		}
		if p.src[p.pos] == '}' && first {
			p.pos++
			return v, nil
		}
		if p.src[p.pos] != '"' {
			return nil, fmt.Errorf("unexpected %q at byte %d", p.src[p.pos], p.pos)
		}
		key, err := p.text()
		if err != nil {
			return nil, err
		}
		p.space()
		if p.pos >= len(p.src) || p.src[p.pos] != ':' {
			return nil, fmt.Errorf("expected ':' at byte %d", p.pos)
		}
		p.pos++
		e, err := p.value()
		if err != nil {
			return nil, err
		}
		if _, again := v.obj[key]; !again {
			v.keys = append(v.keys, key)
		}
		v.obj[key] = e
		if done, err := p.next('}'); done || err != nil {
			return v, err
		}
	}
}

// next reads a comma, or the closing byte and then reports done.
func (p *jparser) next(closing byte) (done bool, err error) {
	p.space()
	if p.pos >= len(p.src) {
		return false, errTruncated
	}
	c := p.src[p.pos]
	if c != ',' && c != closing {
		return false, fmt.Errorf("unexpected %q at byte %d", c, p.pos)
	}
	p.pos++
	return c == closing, nil
}

func (p *jparser) array() (*jvalue, error) {
	if p.depth--; p.depth < 0 {
		return nil, errors.New("nested too deeply")
	}
	defer func() { p.depth++ }()
	p.pos++
	v := &jvalue{kind: jArray}
	p.space()
	if p.pos < len(p.src) && p.src[p.pos] == ']' {
		p.pos++
		return v, nil
	}
	for {
		e, err := p.value()
		if err != nil {
			return nil, err
		}
		v.arr = append(v.arr, e)
		if done, err := p.next(']'); done || err != nil {
			return v, err
		}
	}
}

func (p *jparser) text() (string, error) {
	start := p.pos
	p.pos++
	plain := true
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == '"':
			p.pos++
			if plain {
				s := p.src[start+1 : p.pos-1]
				if !utf8.ValidString(s) {
					return "", fmt.Errorf("string at byte %d: invalid UTF-8", start)
				}
				return s, nil
			}
			s, err := unescape(p.src[start+1 : p.pos-1])
			if err != nil {
				return "", fmt.Errorf("string at byte %d: %w", start, err)
			}
			return s, nil
		case c == '\\':
			plain = false
			p.pos += 2
		case c < 0x20:
			return "", fmt.Errorf("control character in a string at byte %d", p.pos)
		default:
			p.pos++
		}
	}
	return "", errTruncated
}

// unescape decodes the escapes of a JSON string. A lone surrogate becomes U+FFFD.
func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				return "", errors.New("invalid UTF-8")
			}
			b.WriteString(s[i : i+n])
			i += n
			continue
		}
		if i+1 >= len(s) {
			return "", errTruncated
		}
		if r, ok := shortEscape(s[i+1]); ok {
			b.WriteRune(r)
			i += 2
			continue
		}
		if s[i+1] != 'u' {
			return "", fmt.Errorf("unknown escape \\%c", s[i+1])
		}
		r, err := hexRune(s[i:])
		if err != nil {
			return "", err
		}
		i += 6
		if r >= 0xD800 && r < 0xDC00 {
			if low, err := hexRune(s[i:]); err == nil && low >= 0xDC00 && low < 0xE000 {
				r = 0x10000 + (r-0xD800)<<10 + (low - 0xDC00)
				i += 6
			}
		}
		b.WriteRune(r)
	}
	return b.String(), nil
}

func hexRune(s string) (rune, error) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, errors.New("malformed \\u escape")
	}
	n, err := strconv.ParseUint(s[2:6], 16, 32)
	if err != nil {
		return 0, errors.New("malformed \\u escape")
	}
	return rune(n), nil
}

// shortEscape returns the character for the JSON escape of a backslash and c.
func shortEscape(c byte) (rune, bool) {
	switch c {
	case '"', '\\', '/':
		return rune(c), true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	}
	return 0, false
}
