package client

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Answer says who answered an inference request.
type Answer struct {
	RequestID string
	Worker    string // core.Worker.ID; empty in a stream that had to wait for its worker
	Route     string // why that worker
}

// StreamOption changes how a stream is read.
type StreamOption func(*streamOptions)

type streamOptions struct {
	comment func(string)
	answer  func(Answer)
}

// OnComment has f called with every comment of a stream: progress while a worker is started. It must not block.
func OnComment(f func(text string)) StreamOption { return func(o *streamOptions) { o.comment = f } }

// OnAnswer has f called once, when the answer begins.
func OnAnswer(f func(Answer)) StreamOption { return func(o *streamOptions) { o.answer = f } }

// Chat asks for a whole chat completion. It waits while a worker is started.
func (c *Client) Chat(ctx context.Context, r openai.ChatRequest) (openai.ChatResponse, Answer, error) {
	return openai.ChatResponse{}, Answer{}, core.Errorf("chat", core.Unsupported, "not built yet")
}

// ChatStream asks for a chat completion and calls emit for every chunk, in order, until the answer is whole.
// Errors: WorkerLost where the stream ends before that, the in-band error's kind where it has one, emit's own error.
func (c *Client) ChatStream(ctx context.Context, r openai.ChatRequest, emit func(openai.ChatChunk) error, opts ...StreamOption) error {
	return core.Errorf("chat", core.Unsupported, "not built yet")
}

// Complete asks for a whole legacy completion.
func (c *Client) Complete(ctx context.Context, r openai.CompletionRequest) (openai.CompletionResponse, Answer, error) {
	return openai.CompletionResponse{}, Answer{}, core.Errorf("complete", core.Unsupported, "not built yet")
}

// CompleteStream is ChatStream for a legacy completion.
func (c *Client) CompleteStream(ctx context.Context, r openai.CompletionRequest, emit func(openai.CompletionResponse) error, opts ...StreamOption) error {
	return core.Errorf("complete", core.Unsupported, "not built yet")
}
