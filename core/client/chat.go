package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	chatPath       = "/v1/chat/completions"
	completionPath = "/v1/completions"
)

// Answer describes where the answer to an inference request comes from.
type Answer struct {
	RequestID string
	Worker    string // core.Worker.ID; empty in a stream that had to wait for its worker
	Route     string // why that worker was chosen
}

func answerOf(h http.Header) Answer {
	return Answer{RequestID: h.Get("X-Request-Id"), Worker: h.Get("X-Rbee-Worker"), Route: h.Get("X-Rbee-Route")}
}

// StreamOption changes how a stream is read.
type StreamOption func(*streamOptions)

type streamOptions struct {
	comment func(string)
	answer  func(Answer)
}

// OnComment calls f for every comment of a stream: progress while a worker is started. f must not
// block.
func OnComment(f func(text string)) StreamOption { return func(o *streamOptions) { o.comment = f } }

// OnAnswer calls f once, when the answer begins.
func OnAnswer(f func(Answer)) StreamOption { return func(o *streamOptions) { o.answer = f } }

// Chat requests a whole chat completion. It waits while a worker is started.
func (c *Client) Chat(ctx context.Context, r openai.ChatRequest) (openai.ChatResponse, Answer, error) {
	r.Stream, r.StreamOptions = false, nil
	return ask[openai.ChatResponse](ctx, c, chatPath, r)
}

// ChatStream requests a chat completion and calls emit for every chunk, in order, until the answer
// is complete. Errors: WorkerLost if the stream ends before that, the kind of the in-band error if
// it has one, emit's own error unchanged.
func (c *Client) ChatStream(ctx context.Context, r openai.ChatRequest, emit func(openai.ChatChunk) error, opts ...StreamOption) error {
	r.Stream = true
	return stream(ctx, c, chatPath, r, emit, opts)
}

// Complete requests a whole legacy completion.
func (c *Client) Complete(ctx context.Context, r openai.CompletionRequest) (openai.CompletionResponse, Answer, error) {
	r.Stream, r.StreamOptions = false, nil
	return ask[openai.CompletionResponse](ctx, c, completionPath, r)
}

// CompleteStream is ChatStream for a legacy completion.
func (c *Client) CompleteStream(ctx context.Context, r openai.CompletionRequest, emit func(openai.CompletionResponse) error, opts ...StreamOption) error {
	r.Stream = true
	return stream(ctx, c, completionPath, r, emit, opts)
}

func ask[T any](ctx context.Context, c *Client, path string, r any) (T, Answer, error) {
	var zero T
	body, err := json.Marshal(r)
	if err != nil {
		return zero, Answer{}, core.WithKind(err, core.Invalid)
	}
	v, h, err := fetchWithHeader[T](ctx, c, call{method: http.MethodPost, path: path, body: body, model: true, requestID: rand.Text()})
	return v, answerOf(h), err
}

func stream[T any](ctx context.Context, c *Client, path string, r any, emit func(T) error, opts []StreamOption) error {
	o := streamOptions{comment: func(string) {}, answer: func(Answer) {}}
	for _, opt := range opts {
		opt(&o)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return core.WithKind(err, core.Invalid)
	}
	resp, n, err := c.do(ctx, call{method: http.MethodPost, path: path, body: body, model: true, requestID: rand.Text(), accept: "text/event-stream"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // enough for a message
		return notRbee(resp, c.queens[n], body)
	}
	o.answer(answerOf(resp.Header))
	events := openai.NewEventReader(resp.Body)
	for {
		ev, err := events.Next()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return core.FromContext(ctx)
		case errors.Is(err, openai.ErrEventTooLarge):
			return core.WithKind(err, core.Internal)
		case errors.Is(err, io.EOF):
			return lost("the answer ended before it was whole")
		default:
			return lost("the answer was cut before it was whole: " + err.Error())
		}
		if ev.Data == nil {
			for line := range bytes.Lines(ev.Raw) {
				if text, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(":")); ok {
					o.comment(string(bytes.TrimSpace(text)))
				}
			}
			continue
		}
		if ev.IsDone() {
			return nil
		}
		if e := openai.ErrorIn(ev.Data); e != nil {
			return errorOf(e)
		}
		var chunk T
		if err := json.Unmarshal(ev.Data, &chunk); err != nil {
			return core.Errorf(core.Internal, "a chunk of the answer cannot be read")
		}
		if err := emit(chunk); err != nil {
			return err
		}
	}
}

func lost(what string) error {
	return core.WithHint(core.WithKind(errors.New(what), core.WorkerLost), "Ask again; `rbee ps` shows which workers there are.")
}
