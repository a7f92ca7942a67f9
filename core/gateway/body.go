package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	maxDepth     = 256 // of arrays and objects in a request; workers may take less
	maxFields    = 256 // of the request object itself
	maxModelName = 512 // bytes
)

// readBody reads a request's body of at most limit bytes. A longer one is not read to its end: the connection is closed instead.
func (g *Gateway) readBody(w *response, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, g.refuseBody(w, limit)
	}
	// The server's own writer is told, so that it gives the client time to read the answer before the connection is closed.
	from := http.MaxBytesReader(w.inner, r.Body, limit)
	// The stated length is not believed before its bytes are there.
	body := make([]byte, 0, max(512, min(r.ContentLength+1, 1<<20)))
	for {
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case err == io.EOF:
			_ = w.c.SetReadDeadline(time.Time{}) // from here on only the client's going away is waited for
			return body, nil
		case err != nil:
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return nil, g.refuseBody(w, limit)
			}
			w.Header().Set("Connection", "close")
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf("", core.DeadlineExceeded, "the request's body did not arrive within %s", g.o.BodyTimeout)}
			}
			return nil, core.Errorf("", core.Invalid, "the request's body could not be read to its end")
		case len(body) == cap(body):
			body = append(body, 0)[:len(body)]
		}
	}
}

func (g *Gateway) refuseBody(w *response, limit int64) error {
	w.Header().Set("Connection", "close")
	_ = w.c.SetReadDeadline(time.Now()) // else the server would read on, in the hope to keep the connection
	return &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.WithHint(
		core.Errorf("", core.Invalid, "the request's body is larger than %d bytes", limit), "Send a shorter prompt.")}
}

// facts are what the gateway must know of an inference request; the rest is the worker's business.
type facts struct {
	model  string
	stream bool
}

// readFacts checks that body is one JSON object and reads its facts. What could be read in two ways is refused, so that the worker cannot
// understand another request than the gateway did: keys that are there twice, or that differ from those of the facts by case alone.
// It allocates next to nothing whatever the body is. Its errors repeat nothing of the body.
func readFacts(body []byte) (facts, error) {
	var f facts
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
	hasModel, keys := false, make([][]byte, 0, 16)
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
		return f, &apiError{param: "model", err: core.WithHint(core.Errorf("", core.Invalid, "model is missing"), `Add "model"; GET /v1/models lists what there is.`)}
	case len(f.model) > maxModelName || strings.ContainsFunc(f.model, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return f, badBody("model", "model is not a name: it is longer than %d bytes or has control characters", maxModelName)
	}
	return f, nil
}

func badBody(param, format string, args ...any) error {
	return &apiError{param: param, err: core.Errorf("", core.Invalid, format, args...)}
}

// unquote decodes a JSON string that the scanner has passed.
func unquote(raw []byte) ([]byte, error) {
	inner := raw[1 : len(raw)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner, nil
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return []byte(s), err
}

// scanner walks over JSON without building anything of it.
type scanner struct {
	b    []byte
	i    int
	ok   bool // of object: the whole was JSON
	deep bool // it was given up for its depth
}

// whole says whether what is left is one value and nothing after it.
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

// take steps over c, if it is next.
func (s *scanner) take(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// object walks over the outermost object. member is called with each key, quotes included, and must walk over the value.
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

// value steps over one value, which begins at i; false where it is none.
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

// plain says whether none of eight bytes is a quote, a backslash or a control character: prompts are long, so this is what a body's check costs.
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
