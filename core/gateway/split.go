package gateway

import (
	"bytes"
	"errors"
	"io"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	firstBuffer = 8 << 10 // of one stream; it grows with the events
	keptBuffer  = 64 << 10
	maxEvent    = 1 << 20 // bytes of one event, its data: lines and all
)

var errEventTooLarge = errors.New("an event of the worker's stream is larger than 1 MiB")

// ending is how a stream of events has ended.
type ending int

const (
	notYet ending = iota
	whole         // data: [DONE]
	failed        // data: {"error":…}
)

// splitter cuts an event stream where events end and leaves their bytes as they are. Line ends are LF, CRLF or CR.
// It allocates only when an event does not fit its buffer.
type splitter struct {
	buf   []byte
	start int // of what was not handed out yet
	line  int // of the line that is being read
	seen  int // before it there is no line end after line
	end   int // of what was read

	begun   bool // a byte order mark was looked for
	pending bool // the event at start has a line that is no comment
	data    bool // and one of them is data
	last    ending
	ending  ending // set once the event that ends the stream was handed out
	token   bool   // a token was seen: from then on every event counts as one
}

// fill reads once from r.
func (s *splitter) fill(r io.Reader) (int, error) {
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
			return 0, errEventTooLarge
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

// next returns the whole events and comments that were read, valid until the next fill, and how many of the events have data.
func (s *splitter) next() (block []byte, events int) {
	if !s.begun {
		bom := []byte("\ufeff")
		if read := s.buf[s.start:s.end]; len(read) < len(bom) && bytes.HasPrefix(bom, read) {
			return nil, 0
		} else if bytes.HasPrefix(read, bom) { // it must be first, and comments may have been sent before it
			s.start, s.line, s.seen = s.start+len(bom), s.start+len(bom), s.start+len(bom)
		}
		s.begun = true
	}
	cut := s.start
	for s.ending == notYet {
		eol, after := lineEnd(s.buf[s.seen:s.end])
		if eol < 0 {
			s.seen = max(s.seen, s.end-1) // the last byte may be a CR that waits for its LF
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

// take reads one line and says whether an event with data ends with it.
func (s *splitter) take(line []byte) bool {
	switch {
	case len(line) == 0:
		ended := s.data
		s.ending, s.last = s.last, notYet
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
		s.last = notYet // several lines are neither of the two
	case string(value) == "[DONE]":
		s.last = whole
	case openai.ErrorIn(value) != nil:
		s.last = failed
	}
	if !s.token && s.last == notYet {
		s.token = hasToken(value)
	}
	s.data = true
	return false
}

// rest returns the end of the stream where it lacks only the last line ends: "data: [DONE]" and nothing after it is a whole answer.
func (s *splitter) rest() []byte {
	line := bytes.TrimSuffix(s.buf[s.line:s.end], []byte("\r"))
	if len(line) > 0 {
		s.take(line)
	}
	if s.last != whole || s.ending != notYet {
		return nil
	}
	s.ending = whole
	return append(bytes.TrimRight(s.buf[s.start:s.end], "\r\n"), "\n\n"...)
}

// lineEnd finds the first line end in b and what comes after it; -1 where there is none yet.
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

// hasToken says whether the data of an event carries text or a tool call: the first event usually has only the role.
func hasToken(data []byte) bool {
	for _, key := range []string{`"content":`, `"text":`, `"reasoning_content":`, `"reasoning":`} {
		_, value, ok := bytes.Cut(data, []byte(key))
		value = bytes.TrimLeft(value, " ")
		if ok && len(value) > 1 && value[0] == '"' && value[1] != '"' {
			return true
		}
	}
	return bytes.Contains(data, []byte(`"tool_calls":`)) || bytes.Contains(data, []byte(`"finish_reason":"`))
}
