package apischema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// Transport checks the answers that pass through it. It passes bytes on as they arrive, and reports
// a violation once the client has read that far.
type Transport struct {
	Base    http.RoundTripper
	Schemas *Schemas
	// Report is called for each answer that does not match its schema, by the goroutine that reads
	// the answer.
	Report func(error)
	// Skip excludes schemas whose answers a test makes up itself; nil: excludes none.
	Skip func(schema string) bool
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.Base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	e, failure, known := endpointOf(r)
	typ, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	c := &checked{ReadCloser: resp.Body, t: t, what: fmt.Sprintf("%s %s: %d", r.Method, r.URL.Path, resp.StatusCode)}
	switch {
	case r.Method == http.MethodHead || resp.Header.Get("Content-Encoding") != "":
		return resp, nil
	case resp.StatusCode >= http.StatusBadRequest && typ == "application/json":
		c.whole = failure
	case !known || resp.StatusCode != http.StatusOK:
		return resp, nil
	case typ == "text/event-stream":
		c.events, c.failure = e.part, failure
	case typ == "application/x-ndjson":
		c.lines, c.failure = e.part, failure
	case typ == "application/json":
		c.whole = e.whole
	}
	if name := c.whole + c.events + c.lines; name == "" || t.Skip != nil && t.Skip(name) {
		return resp, nil
	}
	resp.Body = c
	return resp, nil
}

// maxHeld bounds how much of an answer is buffered, in bytes. A longer answer is not checked.
const maxHeld = 8 << 20

// checked is the body of an answer being read.
type checked struct {
	io.ReadCloser
	t    *Transport
	what string

	whole, events, lines, failure string // names of schemas
	held                          []byte
	seen                          int64 // events so far
	over                          bool  // the answer is too long, or already known to be wrong
}

// Read implements io.Reader.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.held = append(c.held, p[:n]...)
	switch {
	case c.over:
		c.held = nil
		return n, err
	case len(c.held) > maxHeld:
		c.over = true
	case c.events != "":
		c.cut("\n\n", c.event)
	case c.lines != "":
		c.cut("\n", c.line)
	case errors.Is(err, io.EOF):
		c.over = true
		c.report(c.t.Schemas.check(c.whole, c.held))
	}
	return n, err
}

func (c *checked) report(err error) {
	if err != nil {
		c.over = true
		c.t.Report(fmt.Errorf("%s: %w", c.what, err))
	}
}

// cut removes complete parts from the buffer and passes them to take.
func (c *checked) cut(end string, take func(part []byte)) {
	for !c.over {
		part, rest, ok := bytes.Cut(c.held, []byte(end))
		if !ok {
			return
		}
		take(part)
		c.held = rest
	}
}

// event checks one event. Its name, if any, must be its type, and its number must follow the
// previous one.
func (c *checked) event(block []byte) {
	name, data := "", []byte(nil)
	for line := range strings.Lines(string(block)) {
		line = strings.TrimRight(line, "\r\n")
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			name = rest
		}
		if rest, ok := strings.CutPrefix(line, "data: "); ok {
			data = append(data, rest...)
		}
	}
	if data == nil || string(data) == "[DONE]" {
		return
	}
	var head struct {
		Type   string          `json:"type"`
		Number *int64          `json:"sequence_number"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		c.report(fmt.Errorf("an event is not JSON: %w", err))
		return
	}
	if name != "" && name != head.Type {
		c.report(fmt.Errorf("the event %q has the type %q", name, head.Type))
		return
	}
	if head.Number != nil && *head.Number != c.seen {
		c.report(fmt.Errorf("the event %q has the number %d, not %d", name, *head.Number, c.seen))
		return
	}
	c.seen++
	schema := c.events
	if head.Error != nil && head.Type == "" {
		schema = c.failure
	}
	c.report(c.t.Schemas.check(schema, data))
}

// line checks one line of a stream of JSON lines.
func (c *checked) line(data []byte) {
	if len(bytes.TrimSpace(data)) == 0 {
		return
	}
	schema := c.lines
	var head struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(data, &head) == nil && head.Error != nil {
		schema = c.failure
	}
	c.report(c.t.Schemas.check(schema, data))
}
