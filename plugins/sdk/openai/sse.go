package openai

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Bounds for reading an event stream.
const (
	MaxLineBytes  = 1 << 20
	MaxEventBytes = 4 << 20
)

// ErrEventTooLarge is returned by EventReader.Next for a line over MaxLineBytes or an event over
// MaxEventBytes.
var ErrEventTooLarge = errors.New("event stream: line or event is too large")

// EventWriter writes server-sent events: every event is one Write and one Flush, so that nothing
// waits in a buffer. Headers and status 200 are sent with the first event; until then an error can
// still be written with WriteError. It is not safe for concurrent use.
type EventWriter struct {
	w       http.ResponseWriter
	c       *http.ResponseController
	buf     []byte
	started bool
}

// NewEventWriter returns an EventWriter on w.
func NewEventWriter(w http.ResponseWriter) *EventWriter {
	return &EventWriter{w: w, c: http.NewResponseController(w)}
}

// Started reports whether headers and status have been sent.
func (e *EventWriter) Started() bool { return e.started }

// Data writes an event with data, which must hold no line break.
func (e *EventWriter) Data(data []byte) error {
	e.buf = append(e.buf[:0], "data: "...)
	e.buf = append(e.buf, data...)
	return e.send()
}

// JSON writes v as the data of an event.
func (e *EventWriter) JSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	return e.Data(b)
}

// Error writes err as an in-band error event. Do not call Done after it: its absence tells a client
// that the answer is incomplete.
func (e *EventWriter) Error(err *Error) error { return e.JSON(envelope{err}) }

// Done writes the event that ends a complete answer: data: [DONE].
func (e *EventWriter) Done() error { return e.Data([]byte(doneData)) }

// Comment writes a comment, which clients ignore. Line breaks in it become spaces. No blank line
// follows: OpenAI's Go client treats a blank line after a comment as an event without data, and
// fails.
func (e *EventWriter) Comment(text string) error {
	e.start()
	e.buf = append(e.buf[:0], ": "...)
	e.buf = append(e.buf, strings.NewReplacer("\n", " ", "\r", " ").Replace(text)...)
	return e.write(append(e.buf, '\n'))
}

// Raw writes a whole event as an EventReader returned it in Event.Raw.
func (e *EventWriter) Raw(event []byte) error {
	e.start()
	return e.write(event)
}

func (e *EventWriter) send() error {
	e.start()
	e.buf = append(e.buf, '\n', '\n')
	return e.write(e.buf)
}

func (e *EventWriter) write(b []byte) error {
	if _, err := e.w.Write(b); err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	if err := e.c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("event stream: %w", err)
	}
	return nil
}

func (e *EventWriter) start() {
	if e.started {
		return
	}
	e.started = true
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // tells reverse proxies not to buffer
	e.w.WriteHeader(http.StatusOK)
}

const doneData = "[DONE]"

// Event is one server-sent event, or a comment that precedes one.
type Event struct {
	ID   string // the event's own id: line; empty if it has none
	Name string // the event: line
	Data []byte // the data: lines, joined by line feeds; nil: a comment, or an event without data
	// Raw is the event as received, with its blank line, or the comment's line.
	Raw []byte
}

// IsDone reports whether the event is the data: [DONE] that ends a complete answer.
func (e Event) IsDone() bool { return string(e.Data) == doneData }

// EventReader reads server-sent events in bounded memory. It accepts LF and CRLF, comments and
// several data: lines. It is not safe for concurrent use.
type EventReader struct {
	r         *bufio.Reader
	raw, data []byte
	first     bool
}

// NewEventReader returns an EventReader on r.
func NewEventReader(r io.Reader) *EventReader {
	return &EventReader{r: bufio.NewReaderSize(r, 16<<10), first: true}
}

// Next returns the next event; its Data and Raw are valid until the next call. At the end of the
// stream it returns io.EOF, or io.ErrUnexpectedEOF if the stream ends within an event. An EOF
// without an event for which IsDone reports true means that the answer is incomplete.
func (e *EventReader) Next() (Event, error) {
	e.raw, e.data = e.raw[:0], e.data[:0]
	var ev Event
	hasData := false
	for {
		start := len(e.raw)
		if err := e.line(); err != nil {
			if errors.Is(err, io.EOF) && len(e.raw) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		line := bytes.TrimSuffix(bytes.TrimSuffix(e.raw[start:], []byte("\n")), []byte("\r"))
		if e.first {
			e.first = false
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		if len(line) == 0 {
			if start == 0 { // a blank line with nothing before it is not an event
				e.raw = e.raw[:0]
				continue
			}
			ev.Raw = e.raw
			if hasData {
				ev.Data = e.data
			}
			return ev, nil
		}
		if start == 0 && line[0] == ':' {
			ev.Raw = e.raw
			return ev, nil
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "data":
			if hasData {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
			if e.data == nil { // an empty first data line still counts as data
				e.data = []byte{}
			}
			hasData = true
		case "id":
			ev.ID = string(value)
		case "event":
			ev.Name = string(value)
		}
	}
}

// line appends one line with its line break to raw.
func (e *EventReader) line() error {
	start := len(e.raw)
	for {
		part, err := e.r.ReadSlice('\n')
		e.raw = append(e.raw, part...)
		if len(e.raw)-start > MaxLineBytes || len(e.raw) > MaxEventBytes {
			return ErrEventTooLarge
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err // nil: the line is complete
		}
	}
}
