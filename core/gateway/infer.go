package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func (g *Gateway) chat(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/chat/completions")
}

func (g *Gateway) completion(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/completions")
}

func (g *Gateway) embeddings(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/embeddings")
}

// The routes below are llama-server's; /v1/rerank has the spellings of Jina, Cohere and
// llama-server.

func (g *Gateway) rerank(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/rerank")
}

func (g *Gateway) inputTokens(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/chat/completions/input_tokens")
}

// infer answers an inference request.
func (g *Gateway) infer(w *response, r *http.Request, path string) error {
	start := time.Now()
	body, err := g.readBody(w, r, g.o.MaxBodyBytes)
	if err != nil {
		return err
	}
	r, _, end, err := g.begin(r)
	if err != nil {
		return err
	}
	defer end()
	c := &openaiClient{w: w}
	g.relay(w, r, inference.Request{Path: path, Body: body, At: start, Release: w.body.release}, c)
	return c.err
}

// begin registers a running inference request until end. It returns the HTTP request with a context
// that also ends on cancel and on shutdown. Errors: errRefused if the server is already stopping.
func (g *Gateway) begin(r *http.Request) (begun *http.Request, cancel context.CancelCauseFunc, end func(), err error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	done, ok := g.streams.add(false, cancel)
	if !ok {
		cancel(nil)
		return nil, nil, nil, errRefused
	}
	return r.WithContext(ctx), cancel, func() { done(); cancel(nil) }, nil
}

// relay runs the inference request of an HTTP request, in any dialect. It adds what the HTTP
// request contains besides its body.
func (g *Gateway) relay(w *response, r *http.Request, q inference.Request, c inference.Client) {
	q.ID, q.Key, q.Weight = w.id, w.key, w.token.Priority.Weight()
	q.Limited = func(rates []inference.Rate) { tellRates(w.Header(), rates, time.Now()) }
	if len(w.token.Models) > 0 {
		q.Allow = func(ctx context.Context, name string) (string, error) {
			m, err := g.findModel(ctx, w, name)
			return m.ID, err
		}
	}
	_ = g.o.Inference.Serve(r.Context(), q, c) // c received the error
}

// openaiClient passes the answer of an inference request to a client of OpenAI's API.
type openaiClient struct {
	w   *response
	err error // error left for the route to answer, or http.ErrAbortHandler
}

// Asked implements inference.Client.
func (c *openaiClient) Asked(w core.Worker, reason string) {
	c.w.model, c.w.worker = w.Model, w.ID
	h := c.w.Header()
	h.Set("X-Rbee-Worker", w.ID)
	h.Set("X-Rbee-Route", reason)
}

// Send implements inference.Client. It flushes, so that nothing waits in a buffer.
func (c *openaiClient) Send(block []byte) error {
	if c.w.status == 0 {
		h := c.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
		c.w.WriteHeader(http.StatusOK)
	}
	return c.w.send(block)
}

// Answer implements inference.Client.
func (c *openaiClient) Answer(a inference.Answer) {
	if a.Error != nil {
		openai.WriteError(c.w, a.Status, a.Error)
		return
	}
	h := c.w.Header()
	if a.ContentType != "" {
		h.Set("Content-Type", a.ContentType)
	}
	if a.RetryAfter != "" {
		h.Set("Retry-After", a.RetryAfter)
	}
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	c.w.WriteHeader(a.Status)
	_, _ = c.w.Write(a.Body) // if the client has disconnected, there is no one to inform
}

// Fail implements inference.Client. A stream that has begun ends with an error event and without
// the mark of a complete answer.
func (c *openaiClient) Fail(err error) (status int) {
	return c.fail(err, func(e *openai.Error) {
		_ = openai.NewEventWriter(c.w).Error(e) // the client may have disconnected; there is no one else to inform
	})
}

// fail leaves the error to the route or, if the answer has begun, passes it to tell, unless the
// client knows it or has disconnected.
func (c *openaiClient) fail(err error, tell func(e *openai.Error)) (status int) {
	e, a := envelope(&concealed{err})
	if c.w.status == 0 {
		c.err = &concealed{err}
		return a.status
	}
	c.err = http.ErrAbortHandler
	if refusal, ok := errors.AsType[*inference.Refusal](err); ok {
		e = refusal.Err
	}
	if core.KindOf(err) != core.Cancelled && !errors.Is(err, inference.ErrTold) {
		tell(e)
	}
	return c.w.status
}
