package gateway

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/core/gateway/dialect/anthropic"
	"github.com/rbee-project/rbee/core/gateway/dialect/ollama"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// failer returns the function that formats errors for the API of a request; nil: OpenAI's.
func failer(r *http.Request) func(*openai.Error, dialect.About) (int, []byte) {
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/api/"):
		return ollama.Fail
	case path == "/v1/messages" || strings.HasPrefix(path, "/v1/messages/"):
		return anthropic.Fail
	case fromAnthropic(r) && (path == "/v1/models" || strings.HasPrefix(path, "/v1/models/")):
		return anthropic.Fail
	}
	return nil
}

// fromAnthropic reports whether the client uses Anthropic's API: all such clients send its version.
func fromAnthropic(r *http.Request) bool { return r.Header.Get("Anthropic-Version") != "" }

// anthropicOr returns the handler of a path that also exists in Anthropic's API.
func anthropicOr(theirs, ours handler) handler {
	return func(g *Gateway, w *response, r *http.Request) error {
		if fromAnthropic(r) {
			return theirs(g, w, r)
		}
		return ours(g, w, r)
	}
}

func (g *Gateway) anthropicModels(w *response, r *http.Request) error {
	models, err := g.modelsFor(r.Context(), w)
	if err != nil {
		return err
	}
	list, err := anthropic.ModelsOf(models, r.URL.Query())
	return answerOne(w, list, err)
}

func (g *Gateway) anthropicModel(w *response, r *http.Request) error {
	m, err := g.findModel(r.Context(), w, r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, anthropic.ModelOf(m))
}

// speak returns the handler of an inference route in another dialect than OpenAI's.
func speak(d func(*Gateway) dialect.Dialect) handler {
	return local(func(g *Gateway, w *response, r *http.Request) error { return g.translate(w, r, d(g)) })
}

func always(d dialect.Dialect) func(*Gateway) dialect.Dialect {
	return func(*Gateway) dialect.Dialect { return d }
}

// translate answers an inference request in a dialect.
func (g *Gateway) translate(w *response, r *http.Request, d dialect.Dialect) error {
	start := time.Now()
	body, err := g.readBody(w, r, g.o.MaxBodyBytes)
	if err != nil {
		return err
	}
	if err := inference.CheckBody(body); err != nil { // so that no key is ambiguous
		return err
	}
	values, err := openai.CheckValues(body)
	if err != nil {
		return err
	}
	if err := w.body.grow(r.Context(), int64(values)*openai.ValueBytes); err != nil {
		return err
	}
	about := dialect.About{ID: rand.Text(), Request: w.id, Key: w.key, Now: time.Now}
	if d.Previous != nil {
		if err := g.fetchKept(r.Context(), w, d.Previous(body)); err != nil {
			return err
		}
	}
	request, encoder, err := d.Decode(body, about)
	if err != nil {
		return err
	}
	keepAlive, keeps, err := core.ReadKeepAlive(request.KeepAlive)
	if err != nil {
		return &inference.FieldError{Param: "keep_alive", Err: err}
	}
	// From here on only the translated body, and what the encoder keeps, are in memory; the
	// client's body is released.
	held, kept := w.body.held, request.Kept
	if err := w.body.grow(r.Context(), int64(len(request.Body))+max(0, kept-held)); err != nil {
		return err
	}
	w.body.shrink(max(0, held-kept))
	r, cancel, end, err := g.begin(r)
	if err != nil {
		return err
	}
	defer end()
	if d.Name != nil {
		defer g.running.add(d.Name(about), w.key, cancel)()
	}
	c := &dialectClient{openaiClient: openaiClient{w: w}, d: d, encoder: encoder, about: about}
	release := func() { w.body.shrink(w.body.held - kept) }
	ask := inference.Request{Path: request.Path, Body: request.Body, At: start, Release: release}
	if keeps {
		ask.KeepAlive = &keepAlive
	}
	g.relay(w, r, ask, c)
	return c.err
}

// dialectClient translates the answer of an inference request.
type dialectClient struct {
	openaiClient
	d       dialect.Dialect
	encoder dialect.Encoder
	about   dialect.About
	out     []byte
}

// Send implements inference.Client.
func (c *dialectClient) Send(block []byte) error {
	if c.w.status == 0 {
		h := c.w.Header()
		h.Set("Content-Type", c.encoder.ContentType())
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		c.w.WriteHeader(http.StatusOK)
	}
	c.out = c.out[:0]
	for line := range bytes.Lines(block) {
		if err := c.line(bytes.TrimRight(line, "\r\n")); err != nil {
			return err
		}
	}
	if len(c.out) == 0 {
		return nil
	}
	if _, err := c.w.Write(c.out); err != nil {
		return err
	}
	if err := c.w.c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// line translates one line of a worker's stream.
func (c *dialectClient) line(line []byte) error {
	data, isData := bytes.CutPrefix(line, []byte("data:"))
	switch {
	case len(line) > 0 && line[0] == ':':
		c.out = c.encoder.Alive(c.out)
	case !isData:
	case string(bytes.TrimSpace(data)) == "[DONE]":
		c.out = c.encoder.End(c.out)
	default:
		if e := openai.ErrorIn(data); e != nil {
			c.out = c.encoder.Error(c.out, e)
			return nil
		}
		chunk, err := dialect.ParseChunk(data)
		if err != nil {
			return core.Errorf(core.Internal, "the worker sent an event that cannot be read")
		}
		c.out = c.encoder.Chunk(c.out, chunk)
	}
	return nil
}

// Answer implements inference.Client.
func (c *dialectClient) Answer(a inference.Answer) {
	e := a.Error
	if e == nil && a.Status >= http.StatusBadRequest {
		e = openai.DecodeError(a.Status, a.Body)
	}
	if e == nil {
		answer, err := dialect.ParseAnswer(a.Body)
		if err == nil {
			var body []byte
			if body, err = c.encoder.Whole(answer); err == nil {
				writeBody(c.w, a.Status, body)
				return
			}
		}
		e = openai.NewError(http.StatusBadGateway, openai.TypeServer, "", "", "the worker's answer cannot be read")
	}
	e.Status = max(e.Status, a.Status)
	if a.RetryAfter != "" {
		c.w.Header().Set("Retry-After", a.RetryAfter)
	}
	status, body := c.d.Fail(e, c.about)
	writeBody(c.w, status, body)
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // if the client has disconnected, there is no one to inform
}

// Fail implements inference.Client.
func (c *dialectClient) Fail(err error) (status int) {
	return c.fail(err, func(e *openai.Error) {
		if _, err := c.w.Write(c.encoder.Error(nil, e)); err == nil { // otherwise the client has disconnected
			_ = c.w.c.Flush()
		}
	})
}
