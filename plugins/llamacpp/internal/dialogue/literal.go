package dialogue

import (
	"encoding/json"
	"strconv"
	"strings"
)

// literalCall converts the arguments of a call to JSON as they arrive: Python's keyword arguments
// and literals, or Gemma's notation, whose names are unquoted and whose strings have special tokens
// as quotes.
type literalCall struct {
	stack []byte // what is open: ( arguments, t a tuple, [ a list, { a dict or an object
	state literalState
	comma bool   // a comma was read, to be written before what follows
	quote string // the quote that ends the string
	named bool   // the string is a key
	token []byte // a number, a word or a bare key
	bytes int    // digits of the current escape
}

type literalState uint8

const (
	iKey       literalState = iota // a key, or the end of the open bracket
	iBareKey                       //
	iColon                         // the separator of a key and its value
	iValue                         // a value, or the end of a list
	iWord                          // a number or a word
	iString                        //
	iEscape                        // after a backslash
	iEscapeHex                     // digits of an escape
	iAfter                         // a comma, or the end of the open bracket
)

// pythonOpen follows the marker of a list of calls.
func (p *Parser) pythonOpen() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	if p.array = p.buf[0] == '['; p.array {
		p.take(1)
	}
	p.state = (*Parser).pythonFirst
	return true
}

func (p *Parser) pythonFirst() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	p.state = (*Parser).pythonName
	if p.buf[0] == '{' { // the model was asked for JSON
		p.state = (*Parser).jsonItem
	}
	return true
}

func (p *Parser) pythonName() bool {
	_, st := p.nameUntil([]string{"("})
	if st == more {
		return false
	}
	name := p.takeName()
	if st == bad || !validName(name) || p.calls >= MaxCalls {
		return p.fail()
	}
	p.beginLiteral(name, '(')
	return true
}

func (p *Parser) gemmaName() bool {
	_, st := p.nameUntil([]string{"{"})
	if st == more {
		return false
	}
	name := p.takeName()
	if st == bad || !validName(name) || p.calls >= MaxCalls {
		return p.fail()
	}
	p.take(1)
	p.beginLiteral(name, '{')
	return true
}

func (p *Parser) beginLiteral(name string, open byte) {
	p.begin(name, "")
	p.arguments([]byte("{"))
	p.lit = literalCall{stack: []byte{open}}
	p.state = (*Parser).literal
}

// pythonNext follows a call.
func (p *Parser) pythonNext() bool { return p.nextOf((*Parser).pythonName) }

// literal continues with the arguments.
func (p *Parser) literal() bool {
	c := &p.lit
	var out []byte
	for p.buf != "" {
		var ok, wait bool
		out, ok, wait = p.literalStep(out)
		if wait {
			break
		}
		if !ok {
			p.arguments(out)
			p.content(string(c.token))
			return p.fail()
		}
		if len(c.stack) == 0 {
			p.arguments(out)
			p.end()
			if p.f.syntax == pythonCalls && p.array {
				p.state, p.tail = (*Parser).pythonNext, false
			}
			return true
		}
	}
	if p.eof { // cut off
		out = append(out, c.token...)
		c.token = nil
	}
	p.arguments(out)
	return false
}

func (p *Parser) literalStep(out []byte) (_ []byte, ok, wait bool) {
	c := &p.lit
	b := p.buf[0]
	switch c.state {
	case iString:
		return p.literalString(out)
	case iEscape, iEscapeHex:
		p.take(1)
		return p.literalEscape(out, b)
	case iBareKey:
		if b != '=' && b != ':' {
			c.token = append(c.token, b)
			p.take(1)
			return out, len(c.token) <= maxName, false
		}
		key := strings.Trim(string(c.token), spaces)
		if !validName(key) {
			return out, false, false
		}
		c.token = c.token[:0]
		c.state = iColon
		return appendQuoted(out, key), true, false
	case iWord:
		if !isSpace(b) && strings.IndexByte(",)]}", b) < 0 {
			c.token = append(c.token, b)
			p.take(1)
			return out, len(c.token) <= maxName, false
		}
		c.state = iAfter
		if out, ok = p.word(out, string(c.token)); ok {
			c.token = c.token[:0]
		}
		return out, ok, false
	}
	if isSpace(b) {
		p.take(1)
		return out, true, false
	}
	top := c.stack[len(c.stack)-1]
	closes := b == ')' && (top == '(' || top == 't') || b == ']' && top == '[' || b == '}' && top == '{'
	switch {
	case c.state == iColon:
		want := byte(':')
		if top == '(' {
			want = '='
		}
		p.take(1)
		c.state = iValue
		return append(out, ':'), b == want, false
	case closes && (c.state == iAfter || c.state == iKey || c.state == iValue && top != '{' && top != '('):
		p.take(1)
		c.stack = c.stack[:len(c.stack)-1]
		c.state, c.comma = iAfter, false
		if top == '(' || top == '{' {
			return append(out, '}'), true, false
		}
		return append(out, ']'), true, false
	case c.state == iAfter:
		p.take(1)
		c.comma = true
		if c.state = iKey; top == '[' || top == 't' {
			c.state = iValue
		}
		return out, b == ',', false
	}
	// A key or a value begins.
	quote, wait := p.quote()
	if wait {
		return out, true, true
	}
	if c.comma {
		out = append(out, ',')
		c.comma = false
	}
	if quote != "" {
		p.take(len(quote))
		c.quote, c.named, c.state = quote, c.state == iKey, iString
		return append(out, '"'), top != '(' || !c.named, false
	}
	if c.state == iKey {
		c.state = iBareKey
		return out, top == '(' || p.f.syntax == gemmaCalls, false
	}
	if b == '[' || b == '{' || b == '(' {
		if len(c.stack) == maxDepth || b == '(' && p.f.syntax == gemmaCalls {
			return out, false, false
		}
		p.take(1)
		switch b {
		case '{':
			c.stack, c.state = append(c.stack, '{'), iKey
			return append(out, '{'), true, false
		case '(':
			b = 't'
		}
		c.stack = append(c.stack, b)
		return append(out, '['), true, false
	}
	c.state = iWord
	return out, true, false
}

// quote returns the quote that begins a string here, or "". wait is true when more text is needed
// to tell.
func (p *Parser) quote() (quote string, wait bool) {
	if p.f.syntax == gemmaCalls {
		quotes := []string{`<escape>`, `<|"|>`, `"`}
		i, wait := p.atAny(quotes)
		if i < 0 {
			return "", wait
		}
		return quotes[i], false
	}
	b := p.buf[0]
	if b != '"' && b != '\'' {
		return "", false
	}
	one := string(b)
	switch {
	case len(p.buf) == 1 || p.buf[1] == b && len(p.buf) == 2:
		return one, !p.eof
	case strings.HasPrefix(p.buf, one+one+one):
		return one + one + one, false
	}
	return one, false
}

func (p *Parser) literalString(out []byte) (_ []byte, ok, wait bool) {
	c := &p.lit
	marks := []string{c.quote, `\`}
	if len(c.quote) > 3 { // Gemma's strings have no escapes
		marks = marks[:1]
	}
	at, which, free := p.find(marks)
	if at < 0 {
		text := p.take(free)
		return appendEscaped(out, text), true, p.buf != ""
	}
	out = appendEscaped(out, p.take(at))
	p.take(len(marks[which]))
	if which == 1 {
		c.state = iEscape
		return out, true, false
	}
	if c.state = iAfter; c.named {
		c.state = iColon
	}
	return append(out, '"'), true, false
}

// literalEscape consumes a byte of an escape.
func (p *Parser) literalEscape(out []byte, b byte) (_ []byte, ok, wait bool) {
	c := &p.lit
	if c.state == iEscapeHex {
		if !isDigit(b) && (b|0x20 < 'a' || b|0x20 > 'f') {
			return out, false, false
		}
		if c.bytes--; c.bytes == 0 {
			c.state = iString
		}
		return append(out, b), true, false
	}
	c.state = iString
	switch b {
	case 'n', 't', 'r', 'b', 'f', '"', '\\', '/':
		return append(out, '\\', b), true, false
	case '\'':
		return append(out, b), true, false
	case '\n':
		return out, true, false
	case 'u':
		c.state, c.bytes = iEscapeHex, 4
		return append(out, '\\', 'u'), true, false
	case 'x':
		c.state, c.bytes = iEscapeHex, 2
		return append(out, `\u00`...), true, false
	}
	return appendEscaped(out, `\`+string([]byte{b})), true, false
}

// word appends a number, or a word such as True.
func (p *Parser) word(out []byte, word string) ([]byte, bool) {
	switch word {
	case "True", "true":
		return append(out, "true"...), true
	case "False", "false":
		return append(out, "false"...), true
	case "None", "null", "none":
		return append(out, "null"...), true
	case "":
		return out, false
	}
	if json.Valid([]byte(word)) {
		return append(out, word...), true
	}
	if p.f.syntax == gemmaCalls { // an enumeration value
		return appendQuoted(out, word), true
	}
	digits := strings.ReplaceAll(word, "_", "")
	if n, err := strconv.ParseInt(digits, 0, 64); err == nil {
		return strconv.AppendInt(out, n, 10), true
	}
	if f, err := strconv.ParseFloat(digits, 64); err == nil && f-f == 0 {
		return strconv.AppendFloat(out, f, 'g', -1, 64), true
	}
	return out, false
}

// scriptOpen follows the marker of Llama's built-in tools: a Python call, or code for an
// interpreter.
func (p *Parser) scriptOpen() bool {
	if !strings.HasSuffix(strings.TrimRight(string(p.held), spaces), "<|python_tag|>") {
		return false
	}
	p.state = (*Parser).script
	return true
}

// interpreters lists tools that take code.
var interpreters = []string{"code_interpreter", "python", "ipython"}

func (p *Parser) script() bool {
	const call = ".call("
	at, _, _ := p.find([]string{call})
	name := p.buf
	if at >= 0 {
		name = p.buf[:at]
	}
	word := strings.TrimRight(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
	if at >= 0 && word && p.calls < MaxCalls {
		if _, known := p.tools[name]; known {
			p.take(at + len(call))
			p.array = false
			p.beginLiteral(name, '(')
			return true
		}
	}
	if at < 0 && len(name) <= maxName && !p.eof {
		rest, _, _ := strings.Cut(name, ".")
		if strings.Trim(rest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" && strings.HasPrefix(call, name[len(rest):]) {
			return false // it may still be a call
		}
	}
	for _, name := range interpreters {
		if _, known := p.tools[name]; known && p.calls < MaxCalls {
			p.begin(name, "")
			p.arguments([]byte(`{"code":"`))
			p.state = (*Parser).code
			return true
		}
	}
	return p.fail()
}

// code is code for an interpreter, up to the end of the answer.
func (p *Parser) code() bool {
	if p.begun && p.buf != "" {
		p.arguments(appendEscaped(nil, p.take(len(p.buf))))
	}
	if p.eof && p.begun {
		p.arguments([]byte(`"}`))
		p.end()
	}
	return false
}
