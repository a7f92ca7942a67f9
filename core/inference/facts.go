package inference

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
)

const (
	maxDepth     = 256 // of arrays and objects in a request; workers may allow less
	maxFields    = 256 // of the request object itself
	maxModelName = 512 // bytes
)

// facts are the parts of a request that routing needs. The rest is up to the worker.
type facts struct {
	model  string
	stream bool
	wants  wants
	// maxTokens bounds the answer; 0: not given.
	maxTokens int64
	// keepAlive is how long to keep the worker after the request, negative: indefinitely; nil: not
	// given.
	keepAlive *time.Duration
	// prompt and tools are parts of the body as the client wrote them; nil: absent.
	prompt, tools []byte
}

// FieldError names the field of a request that an error is about.
type FieldError struct {
	Err   error  // classified
	Param string // a key of the request's body; empty: the whole body
	Code  string // OpenAI's error code; empty: derived from the kind of Err
}

func (e *FieldError) Error() string { return e.Err.Error() }

// Unwrap returns the classified error.
func (e *FieldError) Unwrap() error { return e.Err }

// readFacts checks that body is one JSON object and reads its facts. It refuses ambiguous bodies,
// so that the worker cannot understand another request than the queen did: a key that occurs twice,
// or that differs from a key of the facts only by case. It allocates next to nothing, whatever the
// body. otherwise is the model for a body that names none; empty: the body must name one. Its
// errors repeat nothing of the body.
func readFacts(body []byte, otherwise string) (facts, error) {
	f := facts{model: otherwise}
	if !utf8.Valid(body) {
		return f, badBody("", "the request's body is not valid UTF-8")
	}
	s := scanner{b: body}
	s.space()
	if s.i == len(body) {
		return f, badBody("", "the request's body is empty: send a JSON object")
	}
	if body[s.i] != '{' {
		return f, badBody("", "the request's body must be a JSON object")
	}
	hasModel, keys := otherwise != "", make([][]byte, 0, 16)
	bad := s.object(func(rawKey []byte) (ok bool, err error) {
		key, err := unquote(rawKey)
		if err != nil {
			return false, badBody("", "the request's body has a key that is not valid JSON")
		}
		if len(keys) == maxFields {
			return false, badBody("", "the request's body has more than %d fields", maxFields)
		}
		for _, k := range keys {
			if bytes.Equal(k, key) {
				return false, badBody(clip(string(key), 40), "the request's body has a field twice")
			}
		}
		keys = append(keys, key)
		for _, known := range []string{"model", "stream"} {
			if string(key) != known && bytes.EqualFold(key, []byte(known)) {
				return false, badBody(known, "the request's body has a field that is written %q: it must be %q", key, known)
			}
		}
		s.space()
		start := s.i
		if !s.value(1) {
			return false, nil
		}
		value := s.b[start:s.i]
		switch string(key) {
		case "model":
			hasModel = true
			if value[0] != '"' {
				return false, badBody("model", "model must be a string")
			}
			name, err := unquote(value)
			if err != nil {
				return false, badBody("model", "model is not a valid string")
			}
			f.model = string(name)
		case "stream":
			if value[0] != 't' && value[0] != 'f' && value[0] != 'n' {
				return false, badBody("stream", "stream must be true or false")
			}
			f.stream = value[0] == 't'
		case "max_tokens", "max_completion_tokens":
			if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n > 0 { // the worker refuses an invalid number
				f.maxTokens = max(f.maxTokens, n)
			}
		case "keep_alive": // Ollama's field, which llama-swap and others accept as well
			keep, set, err := core.ReadKeepAlive(value)
			if err != nil {
				return false, &FieldError{Param: "keep_alive", Err: err}
			}
			if set {
				f.keepAlive = &keep
			}
		default:
			switch string(key) {
			case "messages", "prompt":
				f.prompt = value
			case "tools":
				f.tools = value
			}
			f.wants |= wantsOf(string(key), value)
		}
		return true, nil
	})
	if bad != nil {
		return f, bad
	}
	s.space()
	switch {
	case s.deep:
		return f, badBody("", "the request's body is nested deeper than %d levels", maxDepth)
	case !s.ok || s.i != len(body):
		return f, badBody("", "the request's body is not valid JSON at byte %d", s.i)
	case !hasModel || f.model == "":
		return f, &FieldError{Param: "model", Err: core.Errorf(core.Invalid, "model is missing").Hint(`Add "model"; GET /v1/models lists what there is.`)}
	case len(f.model) > maxModelName || strings.ContainsFunc(f.model, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return f, badBody("model", "model is not a name: it is longer than %d bytes or has control characters", maxModelName)
	}
	return f, nil
}

// CheckBody returns an error unless body is one unambiguous JSON object that names a model. Errors:
// *FieldError.
func CheckBody(body []byte) error {
	_, err := readFacts(body, "")
	return err
}

func badBody(param, format string, args ...any) error {
	return &FieldError{Param: param, Err: core.Errorf(core.Invalid, format, args...)}
}

// unquote decodes a JSON string that the scanner has accepted.
func unquote(raw []byte) ([]byte, error) {
	inner := raw[1 : len(raw)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner, nil
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return []byte(s), err
}

// scanner walks over JSON without building values.
type scanner struct {
	b    []byte
	i    int
	ok   bool // object has accepted its whole input
	deep bool // the input is nested too deeply
}

// whole reports whether the rest of the input is exactly one value.
func (s *scanner) whole() bool {
	s.space()
	if !s.value(0) {
		return false
	}
	s.space()
	return s.i == len(s.b)
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// take steps over c if it is next, and reports whether it was.
func (s *scanner) take(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// object walks over the outermost object. It calls member with each key, quotes included; member
// must walk over the value.
func (s *scanner) object(member func(key []byte) (bool, error)) error {
	s.i++
	s.space()
	if s.take('}') {
		s.ok = true
		return nil
	}
	for {
		s.space()
		start := s.i
		if !s.str() {
			return nil
		}
		key := s.b[start:s.i]
		if s.space(); !s.take(':') {
			return nil
		}
		if ok, err := member(key); err != nil || !ok {
			return err
		}
		s.space()
		if s.take('}') {
			s.ok = true
			return nil
		}
		if !s.take(',') {
			return nil
		}
	}
}

// value steps over the value that begins at i and reports whether it is one.
func (s *scanner) value(depth int) bool {
	if s.i == len(s.b) {
		return false
	}
	switch c := s.b[s.i]; c {
	case '"':
		return s.str()
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	case '{', '[':
		if depth == maxDepth {
			s.deep = true
			return false
		}
		s.i++
		end := c + 2 // in ASCII, for both
		if s.space(); s.take(end) {
			return true
		}
		for {
			s.space()
			if c == '{' {
				if !s.str() {
					return false
				}
				if s.space(); !s.take(':') {
					return false
				}
				s.space()
			}
			if !s.value(depth + 1) {
				return false
			}
			if s.space(); s.take(end) {
				return true
			}
			if !s.take(',') {
				return false
			}
		}
	}
	return s.number()
}

func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

func (s *scanner) str() bool {
	if !s.take('"') {
		return false
	}
	b := s.b
	for i := s.i; i < len(b); i++ {
		for i+8 <= len(b) && plain(binary.LittleEndian.Uint64(b[i:])) {
			i += 8
		}
		if i == len(b) {
			break
		}
		switch c := b[i]; {
		case c == '"':
			s.i = i + 1
			return true
		case c < 0x20:
			s.i = i
			return false
		case c == '\\':
			i++
			if i == len(b) {
				s.i = i
				return false
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if i++; i == len(b) || !isHex(b[i]) {
						s.i = i
						return false
					}
				}
			default:
				s.i = i
				return false
			}
		}
	}
	s.i = len(b)
	return false
}

// plain reports whether none of eight bytes is a quote, a backslash or a control character. Prompts
// are long, so this is what the check of a body costs.
func plain(x uint64) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	quote, slash := x^ones*'"', x^ones*'\\'
	return ((x-ones*0x20)&^x|(quote-ones)&^quote|(slash-ones)&^slash)&high == 0
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

func (s *scanner) number() bool {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return false
	}
	if s.take('.') && !s.digits() {
		return false
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		return s.digits()
	}
	return true
}

// ValidJSON reports whether body is one JSON value within the bounds for requests.
func ValidJSON(body []byte) bool {
	s := scanner{b: body}
	return s.whole()
}

// isJSONObject reports whether body is one JSON object.
func isJSONObject(body []byte) bool {
	s := scanner{b: body}
	s.space()
	return s.i < len(body) && body[s.i] == '{' && s.whole()
}
