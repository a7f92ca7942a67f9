// Package sse splits the event streams of workers at event boundaries, and counts events and
// tokens. It leaves the bytes of events unchanged.
package sse

import (
	"bytes"
	"errors"
	"io"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	firstBuffer = 8 << 10  // bytes of a new Splitter's buffer, which grows with the events
	keptBuffer  = 64 << 10 // bytes of the largest buffer that Reset keeps
	maxEvent    = 1 << 20  // bytes of one event, all lines included
)

// ErrEventTooLarge is the error of Fill for an event of more than 1 MiB.
var ErrEventTooLarge = errors.New("an event of the worker's stream is larger than 1 MiB")

// Ending is how a stream of events has ended.
type Ending int

// The endings.
const (
	Open   Ending = iota
	Whole         // data: [DONE]
	Failed        // data: {"error":…}
)

// Splitter splits an event stream at event boundaries. Line ends are LF, CRLF or CR. It allocates
// only when an event does not fit its buffer. It is not safe for concurrent use.
type Splitter struct {
	buf   []byte
	start int // start of what Next has not returned yet
	line  int // start of the current line
	seen  int // no line end lies between line and here
	end   int // end of what Fill has read

	begun   bool // the stream was checked for a byte order mark
	pending bool // the event at start has a line that is not a comment
	data    bool // the event at start has a data line
	last    Ending
	ending  Ending // set once Next has returned the event that ends the stream
	token   bool   // a token was seen: from here on every event counts as one
	texts   int64  // events with text or a tool call
	usage   Usage  // as reported by an event; zero: not yet
}

// NewSplitter returns a Splitter with a buffer.
func NewSplitter() *Splitter { return &Splitter{buf: make([]byte, firstBuffer)} }

// Reset prepares s for another stream. It keeps its buffer unless that has grown large.
func (s *Splitter) Reset() {
	buf := s.buf
	if len(buf) > keptBuffer {
		buf = make([]byte, firstBuffer)
	}
	*s = Splitter{buf: buf}
}

// Ending returns how the stream has ended, or Open.
func (s *Splitter) Ending() Ending { return s.ending }

// Token reports whether an event with text or a tool call was seen. From then on every event
// counts as a token.
func (s *Splitter) Token() bool { return s.token }

// Tokens returns the number of generated tokens: as the stream reports it, otherwise the number of
// events with text or a tool call, which is about the same.
func (s *Splitter) Tokens() int64 {
	if s.usage.Completion > 0 {
		return s.usage.Completion
	}
	return s.texts
}

// Usage returns the usage that the stream has reported; zero: none.
func (s *Splitter) Usage() Usage { return s.usage }

func (s *Splitter) countTokens(data []byte) {
	switch {
	case hasText(data):
		s.texts++
		s.token = true
	case !s.token:
		s.token = hasToken(data)
	}
	if CompletionTokens(data) > 0 {
		s.usage = UsageOf(data)
	}
}

// Usage is what an answer reports that it used, in tokens.
type Usage struct {
	Prompt     int64
	Cached     int64 // tokens of the prompt that were not evaluated again
	Completion int64
}

// UsageOf returns the usage that an answer, or the end of a stream, reports; zero if none.
func UsageOf(data []byte) Usage {
	return Usage{Prompt: count(data, `"prompt_tokens":`), Cached: count(data, `"cached_tokens":`), Completion: CompletionTokens(data)}
}

// CompletionTokens returns the number of generated tokens that an answer, or the end of a stream,
// reports; 0 if none.
func CompletionTokens(data []byte) int64 { return count(data, `"completion_tokens":`) }

// count returns the number after the last occurrence of key; 0: it does not occur. Within a JSON
// string the quotes of a key would be escaped.
func count(data []byte, key string) (n int64) {
	const digits = 12
	// bytes.Index, unlike LastIndex, uses vector instructions, and nearly every event lacks the
	// key.
	if !bytes.Contains(data, []byte(key)) {
		return 0
	}
	i := bytes.LastIndex(data, []byte(key))
	for k, c := range bytes.TrimLeft(data[i+len(key):], " ") {
		if c < '0' || c > '9' || k >= digits {
			break
		}
		n = 10*n + int64(c-'0')
	}
	return n
}

// Fill reads once from r. Errors: r's own, ErrEventTooLarge.
func (s *Splitter) Fill(r io.Reader) (int, error) {
	if s.start == s.end {
		s.line, s.seen = s.line-s.start, s.seen-s.start
		s.start, s.end = 0, 0
	}
	if s.end == len(s.buf) {
		switch {
		case s.start > 0:
			n := copy(s.buf, s.buf[s.start:s.end])
			s.line, s.seen = s.line-s.start, s.seen-s.start
			s.start, s.end = 0, n
		case s.end > maxEvent:
			return 0, ErrEventTooLarge
		default:
			grown := make([]byte, min(2*len(s.buf), maxEvent+firstBuffer))
			copy(grown, s.buf[:s.end])
			s.buf = grown
		}
	}
	n, err := r.Read(s.buf[s.end:])
	s.end += n
	return n, err
}

// Next returns the whole events and comments that Fill has read, and how many of the events have
// data. The block is valid until the next Fill.
func (s *Splitter) Next() (block []byte, events int) {
	if !s.begun {
		bom := []byte("\ufeff")
		if read := s.buf[s.start:s.end]; len(read) < len(bom) && bytes.HasPrefix(bom, read) {
			return nil, 0
		} else if bytes.HasPrefix(read, bom) { // valid only at the start, but comments may have been sent before it
			s.start, s.line, s.seen = s.start+len(bom), s.start+len(bom), s.start+len(bom)
		}
		s.begun = true
	}
	cut := s.start
	for s.ending == Open {
		eol, after := lineEnd(s.buf[s.seen:s.end])
		if eol < 0 {
			s.seen = max(s.seen, s.end-1) // the last byte may be a CR whose LF has yet to arrive
			break
		}
		line := s.buf[s.line : s.seen+eol]
		s.seen += after
		s.line = s.seen
		if s.take(line) {
			events++
		}
		if !s.pending {
			cut = s.seen
		}
	}
	block = s.buf[s.start:cut]
	s.start = cut
	return block, events
}

// take reads one line and reports whether it ends an event with data.
func (s *Splitter) take(line []byte) bool {
	switch {
	case len(line) == 0:
		ended := s.data
		s.ending, s.last = s.last, Open
		s.pending, s.data = false, false
		return ended
	case line[0] == ':':
		return false
	}
	s.pending = true
	value, ok := bytes.CutPrefix(line, []byte("data"))
	if !ok || len(value) > 0 && value[0] != ':' {
		return false
	}
	if len(value) > 0 {
		value = value[1:]
	}
	if len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	switch {
	case s.data:
		s.last = Open // [DONE] and errors have one line only
	case string(value) == "[DONE]":
		s.last = Whole
	case openai.ErrorIn(value) != nil:
		s.last = Failed
	}
	if s.last == Open {
		s.countTokens(value)
	}
	s.data = true
	return false
}

// Rest returns the end of a stream that lacks only its last line ends: "data: [DONE]" with nothing
// after it completes an answer. It returns nil for any other end.
func (s *Splitter) Rest() []byte {
	line := bytes.TrimSuffix(s.buf[s.line:s.end], []byte("\r"))
	if len(line) > 0 {
		s.take(line)
	}
	if s.last != Whole || s.ending != Open {
		return nil
	}
	s.ending = Whole
	return append(bytes.TrimRight(s.buf[s.start:s.end], "\r\n"), "\n\n"...)
}

// lineEnd returns the index of the first line end in b and of what follows it; -1: none yet.
func lineEnd(b []byte) (eol, after int) {
	i := bytes.IndexByte(b, '\n')
	before := b
	if i >= 0 {
		before = b[:i]
	}
	j := bytes.IndexByte(before, '\r')
	switch {
	case j >= 0 && j+1 < len(b):
		if b[j+1] == '\n' {
			return j, j + 2
		}
		return j, j + 1
	case i >= 0:
		return i, i + 1
	}
	return -1, -1
}

// hasToken reports whether the data of an event carries text, a tool call or the end of the answer.
// The first event usually carries only the role.
func hasToken(data []byte) bool {
	return hasText(data) || bytes.Contains(data, []byte(`"finish_reason":"`))
}

func hasText(data []byte) bool {
	for _, key := range [...]string{`"content":`, `"text":`, `"reasoning_content":`, `"reasoning":`} {
		_, value, ok := bytes.Cut(data, []byte(key))
		value = bytes.TrimLeft(value, " ")
		if ok && len(value) > 1 && value[0] == '"' && value[1] != '"' {
			return true
		}
	}
	return bytes.Contains(data, []byte(`"tool_calls":`))
}
