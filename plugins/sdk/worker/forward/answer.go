package forward

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	maxErrorBytes   = 64 << 10 // most that is read of an error response
	maxErrorMessage = 2000     // most of its message that is passed on, in runes
)

// returned lists the response headers that are passed on to the client.
func returned() []string {
	return []string{"Content-Type", "Content-Length", "Retry-After", "X-Request-Id", "Cache-Control"}
}

// answer passes a server's response on to the client.
func (f *Forwarder) answer(w http.ResponseWriter, t *target, resp *http.Response) {
	defer resp.Body.Close()
	t.spoke.Store(time.Now().UnixNano())
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // a partial body explains more than the read error
		f.fail(w, resp, resp.StatusCode, body)
		return
	}
	buf := f.buffers.Get().(*[copyBytes]byte)
	defer f.buffers.Put(buf)
	kind := resp.Header.Get("Content-Type")
	events := strings.HasPrefix(kind, "text/event-stream")
	n, err := resp.Body.Read(buf[:])
	if !events && hasError(buf[:n]) {
		rest, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
		f.fail(w, resp, http.StatusOK, append(bytes.Clone(buf[:n]), rest...))
		return
	}
	h := w.Header()
	for _, name := range returned() {
		if v := resp.Header[name]; v != nil {
			h[name] = v
		}
	}
	if events {
		h.Del("Content-Length")
		h.Set("X-Accel-Buffering", "no")
	}
	w.WriteHeader(resp.StatusCode)
	flusher := http.NewResponseController(w)
	flush := events || resp.ContentLength < 0
	c := counter{events: events, count: f.o.Count}
	defer c.end()
	for {
		if n > 0 {
			c.add(buf[:n])
			if _, err := w.Write(buf[:n]); err != nil {
				return // the client has disconnected
			}
			if flush && flusher.Flush() != nil {
				return
			}
		}
		if err != nil {
			break
		}
		n, err = resp.Body.Read(buf[:])
		if n > 0 {
			t.spoke.Store(time.Now().UnixNano())
		}
	}
	if !errors.Is(err, io.EOF) {
		panic(http.ErrAbortHandler) // otherwise the answer would look complete
	}
}

// hasError reports whether a body begins as an error envelope, whatever its status.
func hasError(b []byte) bool {
	b = bytes.TrimLeft(b, " \r\n\t")
	rest, ok := bytes.CutPrefix(b, []byte("{"))
	return ok && bytes.HasPrefix(bytes.TrimLeft(rest, " \r\n\t"), []byte(`"error":`)) && !bytes.HasPrefix(bytes.TrimLeft(rest, " \r\n\t"), []byte(`"error":null`))
}

// fail responds with a server's error in OpenAI's envelope.
func (f *Forwarder) fail(w http.ResponseWriter, resp *http.Response, status int, body []byte) {
	e := decodeError(status, body)
	for secret, shown := range f.o.Hide {
		e.Message = strings.ReplaceAll(e.Message, secret, shown)
	}
	if r := []rune(e.Message); len(r) > maxErrorMessage {
		e.Message = string(r[:maxErrorMessage]) + "…"
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		// The client's own credentials are valid: they got it as far as this worker.
		e, status = openai.NewError(0, openai.TypeServer, "", "server_refuses", "the server behind this worker refuses the worker's key"), http.StatusBadGateway
	case status == http.StatusUnprocessableEntity, status == http.StatusUnsupportedMediaType:
		status = http.StatusBadRequest
	case status == http.StatusMethodNotAllowed:
		status = http.StatusNotFound
	case status < 400: // a redirect, or an error with status 200
		status = http.StatusBadGateway
	}
	if v := resp.Header.Get("Retry-After"); v != "" {
		w.Header().Set("Retry-After", v)
	} else if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	openai.WriteError(w, status, e)
}

// decodeError reads an error in the forms that servers use: OpenAI's, Ollama's text, FastAPI's
// detail, and an error object without an envelope.
func decodeError(status int, body []byte) *openai.Error {
	var other struct {
		Object  string          `json:"object"`
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Detail  json.RawMessage `json:"detail"`
	}
	if !hasError(body) && json.Unmarshal(body, &other) == nil {
		text := other.Message
		if len(other.Detail) > 0 {
			text = detailText(other.Detail)
		}
		if text != "" {
			return openai.NewError(status, errorType(status), "", "", "%s", text)
		}
	}
	if trimmed := bytes.TrimSpace(body); bytes.HasPrefix(trimmed, []byte("<")) { // an HTML page for people
		body = nil
	}
	e := openai.DecodeError(status, body)
	if e.Type == "" || e.Type == openai.TypeServer && status >= 400 && status < 500 {
		e.Type = errorType(status)
	}
	return e
}

func errorType(status int) string {
	switch {
	case status == http.StatusNotFound:
		return openai.TypeNotFound
	case status == http.StatusTooManyRequests:
		return openai.TypeRateLimit
	case status == http.StatusServiceUnavailable:
		return openai.TypeUnavailable
	case status >= 400 && status < 500:
		return openai.TypeInvalidRequest
	}
	return openai.TypeServer
}

// detailText reads FastAPI's detail: a text, or a list of problems with their locations.
func detailText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var list []struct {
		Place []any  `json:"loc"`
		Text  string `json:"msg"`
	}
	if json.Unmarshal(raw, &list) != nil {
		return ""
	}
	var out []string
	for _, d := range list[:min(len(list), 5)] {
		var place []string
		for _, p := range d.Place {
			if s, ok := p.(string); ok && s != "body" {
				place = append(place, s)
			}
		}
		out = append(out, strings.TrimPrefix(strings.Join(place, ".")+": "+d.Text, ": "))
	}
	return strings.Join(out, "; ")
}
