package jinja

import (
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokEOF tokenKind = iota
	tokData
	tokVariableBegin
	tokVariableEnd
	tokBlockBegin
	tokBlockEnd
	tokName
	tokString
	tokNumber
	tokOperator
)

// token is one token of a template. value holds the text of data and strings, and the number of a
// number.
type token struct {
	kind  tokenKind
	text  string // name, operator, data, string
	value any    // of a number
	line  int
}

// maxTokens bounds the memory of a template's tokens. The largest templates in use have 8000.
const maxTokens = 1 << 16

// operators lists the longest first, so that the first match is the right one.
var operators = []string{
	"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";",
}

type lexer struct {
	src          string
	at           int
	line         int
	lineStarting bool
	tokens       []token
}

// lex cuts a template into tokens, as Jinja2's lexer does with trim_blocks and lstrip_blocks.
func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	source = strings.TrimSuffix(source, "\n")
	l := &lexer{src: source, line: 1, lineStarting: true}
	for l.at < len(l.src) {
		if err := l.data(); err != nil {
			return nil, err
		}
	}
	l.emit(token{kind: tokEOF})
	return l.tokens, nil
}

func (l *lexer) emit(t token) {
	t.line = l.line
	l.tokens = append(l.tokens, t)
}

func (l *lexer) fail(format string, args ...any) error {
	return failAt(l.line, "TemplateSyntaxError", format, args...)
}

// advance skips n bytes and counts lines.
func (l *lexer) advance(n int) {
	text := l.src[l.at : l.at+n]
	l.line += strings.Count(text, "\n")
	l.at += n
	l.lineStarting = strings.HasSuffix(text, "\n")
}

// data reads text up to the next tag, and the tag.
func (l *lexer) data() error {
	rest := l.src[l.at:]
	begin := nextTag(rest)
	if begin < 0 {
		l.text(rest)
		l.advance(len(rest))
		return nil
	}
	tag := rest[begin : begin+2]
	sign, skip := byte(0), 2
	if begin+2 < len(rest) && (rest[begin+2] == '-' || rest[begin+2] == '+') {
		sign, skip = rest[begin+2], 3
	}
	l.text(l.strip(rest[:begin], sign, tag != "{{"))
	raw := tag == "{%" && isRaw(rest[begin+skip:])
	l.advance(begin + skip)
	switch {
	case tag == "{#":
		return l.comment()
	case raw:
		return l.raw()
	case tag == "{{":
		l.emit(token{kind: tokVariableBegin})
		return l.code("}}", tokVariableEnd)
	}
	l.emit(token{kind: tokBlockBegin})
	return l.code("%}", tokBlockEnd)
}

// nextTag returns the offset of the first opening of a tag, or -1.
func nextTag(s string) int {
	for i := 0; ; i++ {
		n := strings.IndexByte(s[i:], '{')
		if n < 0 || i+n+1 >= len(s) {
			return -1
		}
		i += n
		if c := s[i+1]; c == '{' || c == '%' || c == '#' {
			return i
		}
	}
}

// strip removes white space before a tag, according to its sign and lstrip_blocks.
func (l *lexer) strip(text string, sign byte, block bool) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(text, isSpace)
	case sign == '+' || !block:
		return text
	}
	start := strings.LastIndexByte(text, '\n') + 1
	if (start > 0 || l.lineStarting) && strings.TrimLeftFunc(text[start:], isSpace) == "" {
		return text[:start]
	}
	return text
}

func (l *lexer) text(s string) {
	if s != "" {
		l.emit(token{kind: tokData, text: s})
	}
}

// isSpace reports whether Python's \s matches the character.
func isSpace(r rune) bool {
	return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f
}

// closing returns the length of the closing tag at the start of s, with the white space that it
// swallows; 0: none.
func closing(s, tag string, trim bool) int {
	switch {
	case strings.HasPrefix(s, "-"+tag):
		n := 1 + len(tag)
		return n + len(s[n:]) - len(strings.TrimLeftFunc(s[n:], isSpace))
	case trim && strings.HasPrefix(s, "+"+tag):
		return 1 + len(tag)
	case strings.HasPrefix(s, tag):
		n := len(tag)
		if trim && strings.HasPrefix(s[n:], "\n") {
			n++
		}
		return n
	}
	return 0
}

func (l *lexer) comment() error {
	rest := l.src[l.at:]
	end := strings.Index(rest, "#}")
	if end < 0 {
		return l.fail("Missing end of comment tag")
	}
	if end > 0 && (rest[end-1] == '-' || rest[end-1] == '+') {
		end--
	}
	l.advance(end + closing(rest[end:], "#}", true))
	return nil
}

// isRaw reports whether the inside of a block tag is only the word raw.
func isRaw(s string) bool {
	s, ok := strings.CutPrefix(strings.TrimLeftFunc(s, isSpace), "raw")
	s = strings.TrimLeftFunc(s, isSpace)
	return ok && (strings.HasPrefix(s, "%}") || strings.HasPrefix(s, "-%}"))
}

func (l *lexer) raw() error {
	rest := l.src[l.at:]
	begin := strings.Index(rest, "raw") + len("raw")
	begin += len(rest[begin:]) - len(strings.TrimLeftFunc(rest[begin:], isSpace))
	l.advance(begin + closing(rest[begin:], "%}", false))
	rest = l.src[l.at:]
	for at := 0; ; {
		n := strings.Index(rest[at:], "{%")
		if n < 0 {
			return l.fail("Missing end of raw directive")
		}
		at += n
		end, sign := at+2, byte(0)
		if end < len(rest) && (rest[end] == '-' || rest[end] == '+') {
			sign = rest[end]
			end++
		}
		inner := strings.TrimLeftFunc(rest[end:], isSpace)
		if after, ok := strings.CutPrefix(inner, "endraw"); ok {
			after = strings.TrimLeftFunc(after, isSpace)
			if n := closing(after, "%}", true); n > 0 {
				l.text(l.strip(rest[:at], sign, true))
				l.advance(len(rest) - len(after) + n)
				return nil
			}
		}
		at += 2
	}
}

// code reads the inside of a tag.
func (l *lexer) code(end string, kind tokenKind) error {
	var open []byte
	for {
		if len(l.tokens) > maxTokens {
			return failAt(l.line, classLimit, "the template has more than %d tokens", maxTokens)
		}
		rest := l.src[l.at:]
		if space := len(rest) - len(strings.TrimLeftFunc(rest, isSpace)); space > 0 {
			l.advance(space)
			continue
		}
		if rest == "" {
			return l.fail("unexpected end of template")
		}
		if len(open) == 0 {
			if n := closing(rest, end, end == "%}"); n > 0 {
				l.emit(token{kind: kind})
				l.advance(n)
				return nil
			}
		}
		var err error
		if open, err = l.word(rest, open); err != nil {
			return err
		}
	}
}

// word reads one token inside a tag; open holds the open brackets.
func (l *lexer) word(rest string, open []byte) ([]byte, error) {
	c := rest[0]
	switch {
	case c >= '0' && c <= '9':
		return open, l.number(rest)
	case c == '"' || c == '\'':
		return open, l.quoted(rest)
	}
	if r, _ := utf8.DecodeRuneInString(rest); r == '_' || unicode.IsLetter(r) {
		n := strings.IndexFunc(rest, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
		if n < 0 {
			n = len(rest)
		}
		l.emit(token{kind: tokName, text: rest[:n]})
		l.advance(n)
		return open, nil
	}
	for _, op := range operators {
		if !strings.HasPrefix(rest, op) {
			continue
		}
		switch op {
		case "(", "[", "{":
			open = append(open, map[string]byte{"(": ')', "[": ']', "{": '}'}[op])
		case ")", "]", "}":
			if len(open) == 0 {
				return nil, l.fail("unexpected '%s'", op)
			}
			if want := open[len(open)-1]; want != op[0] {
				return nil, l.fail("unexpected '%s', expected '%c'", op, want)
			}
			open = open[:len(open)-1]
		}
		l.emit(token{kind: tokOperator, text: op})
		l.advance(len(op))
		return open, nil
	}
	r, _ := utf8.DecodeRuneInString(rest)
	return nil, l.fail("unexpected char %s at %d", reprString(string(r)), l.at)
}

// digits returns the length of a run of digits with single underscores between them.
func digits(s string, is func(c byte) bool) int {
	n := 0
	for n < len(s) && (is(s[n]) || n > 0 && s[n] == '_' && n+1 < len(s) && is(s[n+1])) {
		n++
	}
	return n
}

func isDecimal(c byte) bool { return c >= '0' && c <= '9' }

func (l *lexer) number(s string) error {
	if len(s) > 2 && s[0] == '0' {
		base, is := 0, func(byte) bool { return false }
		switch s[1] | 0x20 {
		case 'x':
			base, is = 16, func(c byte) bool { return isDecimal(c) || c|0x20 >= 'a' && c|0x20 <= 'f' }
		case 'o':
			base, is = 8, func(c byte) bool { return c >= '0' && c <= '7' }
		case 'b':
			base, is = 2, func(c byte) bool { return c == '0' || c == '1' }
		}
		if n := digits(s[2:], is); base != 0 && n > 0 {
			return l.integer(s[2:2+n], base, 2+n)
		}
	}
	n := digits(s, isDecimal)
	float := false
	if end := n + 1; end < len(s) && s[n] == '.' && isDecimal(s[end]) {
		n = end + digits(s[end:], isDecimal)
		float = true
	}
	if n < len(s) && s[n]|0x20 == 'e' {
		end := n + 1
		if end < len(s) && (s[end] == '+' || s[end] == '-') {
			end++
		}
		if d := digits(s[end:], isDecimal); d > 0 {
			n = end + d
			float = true
		}
	}
	if !float {
		return l.integer(s[:n], 10, n)
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s[:n], "_", ""), 64)
	if err != nil && f == 0 {
		return l.fail("bad number %s", s[:n])
	}
	l.emit(token{kind: tokNumber, value: f})
	l.advance(n)
	return nil
}

// maxDigits bounds the digits of integers: Python's own bound.
const maxDigits = 4300

func (l *lexer) integer(text string, base, length int) error {
	if len(text) > maxDigits {
		return l.fail("a number has more than %d digits", maxDigits)
	}
	n, ok := new(big.Int).SetString(strings.ReplaceAll(text, "_", ""), base)
	if !ok {
		return l.fail("bad number %s", text)
	}
	l.emit(token{kind: tokNumber, value: normalInt(n)})
	l.advance(length)
	return nil
}

// quoted reads a string with Python's escapes.
func (l *lexer) quoted(s string) error {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case s[0]:
			l.emit(token{kind: tokString, text: b.String()})
			l.advance(i + 1)
			return nil
		case '\\':
			n, err := l.escape(&b, s[i+1:])
			if err != nil {
				return err
			}
			i += n
		default:
			b.WriteByte(c)
		}
	}
	return l.fail("unexpected char %s at %d", reprString(s[:1]), l.at)
}

// simpleEscapes maps the letter after a backslash to its character.
var simpleEscapes = map[byte]string{
	'\n': "", '\\': "\\", '\'': "'", '"': "\"", 'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v",
}

// escape reads the escape after a backslash and returns its length in bytes.
func (l *lexer) escape(b *strings.Builder, s string) (int, error) {
	if s == "" {
		return 0, l.fail("unexpected end of template")
	}
	if text, ok := simpleEscapes[s[0]]; ok {
		b.WriteString(text)
		return 1, nil
	}
	if s[0] >= '0' && s[0] <= '7' {
		n := 1
		for n < 3 && n < len(s) && s[n] >= '0' && s[n] <= '7' {
			n++
		}
		code, _ := strconv.ParseUint(s[:n], 8, 16)
		b.WriteRune(rune(code))
		return n, nil
	}
	length := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[0]]
	if length == 0 {
		b.WriteByte('\\') // Python keeps an unknown escape unchanged
		return 0, nil
	}
	if len(s) < 1+length {
		return 0, l.fail("truncated \\%cXX escape", s[0])
	}
	code, err := strconv.ParseUint(s[1:1+length], 16, 32)
	if err != nil || code > unicode.MaxRune {
		return 0, l.fail("bad \\%c escape", s[0])
	}
	n := 1 + length
	if code >= 0xd800 && code < 0xdc00 && strings.HasPrefix(s[n:], "\\u") && len(s) >= n+6 {
		if low, err := strconv.ParseUint(s[n+2:n+6], 16, 32); err == nil && low >= 0xdc00 && low < 0xe000 {
			code = 0x10000 + (code-0xd800)<<10 + low - 0xdc00
			n += 6
		}
	}
	b.WriteRune(rune(code))
	return n, nil
}
