package dialogue

// maxDepth bounds the nesting of arguments.
const maxDepth = 64

// status is a scanner's result for a piece of text.
type status uint8

const (
	more status = iota // the value continues
	done               // the value has ended
	bad                // the text is not JSON
)

// scanner follows one JSON object, array or string as it arrives. The zero value is ready for use.
type scanner struct {
	stack []byte // the open brackets
	state scanState
	rest  string // rest of a word such as true
	hex   int    // hex digits left in an escape
	key   bool   // the string is a name
}

type scanState uint8

const (
	sValue     scanState = iota // a value
	sItem                       // a value or ], after [
	sName                       // a name, after a comma
	sNameOrEnd                  // a name or }, after {
	sColon                      //
	sAfter                      // a comma, or the end of the enclosing value
	sString                     //
	sEscape                     // after a backslash
	sHex                        //
	sWord                       //
	sMinus                      // after the sign of a number
	sZero                       // after a leading zero
	sInt                        //
	sPoint                      // after the point
	sFrac                       //
	sExp                        // after e
	sExpSign                    // after the sign of an exponent
	sExpInt                     //
)

func isSpace(b byte) bool { return b == ' ' || b == '\n' || b == '\t' || b == '\r' }

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

// feed consumes text up to the end of the value, appends it to out and returns how much it
// consumed. It escapes control characters within strings, which models write unescaped.
func (s *scanner) feed(text string, out []byte) ([]byte, int, status) {
	for i := 0; i < len(text); i++ {
		b := text[i]
		if s.state == sString && b < 0x20 {
			out = appendEscaped(out, text[i:i+1])
			continue
		}
		st := s.step(b)
		if st == bad {
			return out, i, bad
		}
		out = append(out, b)
		if st == done {
			return out, i + 1, done
		}
	}
	return out, len(text), more
}

func (s *scanner) step(b byte) status {
	switch s.state {
	case sString:
		switch b {
		case '"':
			return s.ended()
		case '\\':
			s.state = sEscape
		}
		return more
	case sEscape:
		switch b {
		case 'u':
			s.state, s.hex = sHex, 4
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			s.state = sString
		default:
			return bad
		}
		return more
	case sHex:
		if !isDigit(b) && (b|0x20 < 'a' || b|0x20 > 'f') {
			return bad
		}
		if s.hex--; s.hex == 0 {
			s.state = sString
		}
		return more
	case sWord:
		if b != s.rest[0] {
			return bad
		}
		if s.rest = s.rest[1:]; s.rest == "" {
			return s.ended()
		}
		return more
	}
	if s.state >= sMinus {
		if next, ok := number(s.state, b); ok {
			s.state = next
			return more
		}
		if !finalNumber(s.state) || len(s.stack) == 0 {
			return bad
		}
		s.state = sAfter
	}
	if isSpace(b) {
		return more
	}
	return s.structure(b)
}

// structure consumes a byte between values.
func (s *scanner) structure(b byte) status {
	switch s.state {
	case sItem:
		if b == ']' {
			return s.pop()
		}
		return s.open(b)
	case sValue:
		return s.open(b)
	case sNameOrEnd, sName:
		switch {
		case b == '"':
			s.state, s.key = sString, true
			return more
		case b == '}' && s.state == sNameOrEnd:
			return s.pop()
		}
	case sColon:
		if b == ':' {
			s.state = sValue
			return more
		}
	case sAfter:
		if len(s.stack) == 0 {
			return bad
		}
		in := s.stack[len(s.stack)-1]
		switch {
		case b == ',' && in == '{':
			s.state = sName
			return more
		case b == ',':
			s.state = sValue
			return more
		case b == in+2: // '}' is '{' plus 2, and ']' is '[' plus 2
			return s.pop()
		}
	}
	return bad
}

// open begins a value with b.
func (s *scanner) open(b byte) status {
	switch {
	case b == '{' || b == '[':
		if len(s.stack) == maxDepth {
			return bad
		}
		s.stack = append(s.stack, b)
		if s.state = sItem; b == '{' {
			s.state = sNameOrEnd
		}
	case b == '"':
		s.state, s.key = sString, false
	case b == '-':
		s.state = sMinus
	case b == '0':
		s.state = sZero
	case isDigit(b):
		s.state = sInt
	case b == 't':
		s.state, s.rest = sWord, "true"[1:]
	case b == 'f':
		s.state, s.rest = sWord, "false"[1:]
	case b == 'n':
		s.state, s.rest = sWord, "null"[1:]
	default:
		return bad
	}
	return more
}

func (s *scanner) pop() status {
	s.stack = s.stack[:len(s.stack)-1]
	s.key = false
	return s.ended()
}

// ended continues after a value or a name.
func (s *scanner) ended() status {
	if s.key {
		s.key, s.state = false, sColon
		return more
	}
	s.state = sAfter
	if len(s.stack) == 0 {
		return done
	}
	return more
}

// number returns the state after b within a number.
func number(s scanState, b byte) (scanState, bool) {
	digit := isDigit(b)
	switch {
	case s == sMinus && b == '0':
		return sZero, true
	case (s == sMinus || s == sInt) && digit:
		return sInt, true
	case (s == sZero || s == sInt) && b == '.':
		return sPoint, true
	case (s == sPoint || s == sFrac) && digit:
		return sFrac, true
	case (s == sZero || s == sInt || s == sFrac) && b|0x20 == 'e':
		return sExp, true
	case s == sExp && (b == '+' || b == '-'):
		return sExpSign, true
	case (s == sExp || s == sExpSign || s == sExpInt) && digit:
		return sExpInt, true
	}
	return s, false
}

func finalNumber(s scanState) bool { return s == sZero || s == sInt || s == sFrac || s == sExpInt }

const hexDigits = "0123456789abcdef"

// appendEscaped appends text, escaped for a JSON string. text may end within a character.
func appendEscaped(out []byte, text string) []byte {
	for i := range len(text) {
		switch b := text[i]; {
		case b == '"' || b == '\\':
			out = append(out, '\\', b)
		case b == '\n':
			out = append(out, '\\', 'n')
		case b == '\r':
			out = append(out, '\\', 'r')
		case b == '\t':
			out = append(out, '\\', 't')
		case b < 0x20 || b == 0x7F:
			out = append(out, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
		default:
			out = append(out, b)
		}
	}
	return out
}
