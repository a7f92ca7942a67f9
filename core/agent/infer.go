package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// maxInferText bounds the answer of an infer job, in bytes: it is held in memory.
const maxInferText = 1 << 20

// infer answers the prompt of a job as POST /v1/chat/completions would.
func (p *process) infer(ctx context.Context, r core.Request, progress func(core.Progress), log func(string)) (core.InferResult, error) {
	request := openai.ChatRequest{Model: r.Model}
	request.Stream, request.StreamOptions = true, &openai.StreamOptions{IncludeUsage: true}
	if r.SystemPrompt != "" {
		request.Messages = append(request.Messages, openai.Message{Role: "system", Content: openai.TextContent(r.SystemPrompt)})
	}
	request.Messages = append(request.Messages, openai.Message{Role: "user", Content: openai.TextContent(r.Prompt)})
	if r.MaxTokens > 0 {
		request.MaxCompletionTokens = new(openai.Int(r.MaxTokens))
	}
	body, err := json.Marshal(request)
	if err != nil {
		return core.InferResult{}, core.Wrap(err, core.Internal, "encode request")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &jobClient{result: core.InferResult{Model: r.Model}, maxTokens: r.MaxTokens, progress: progress, log: log}
	err = p.answers.Serve(ctx, inference.Request{ID: rand.Text(), Path: "/v1/chat/completions", Body: body, At: time.Now()}, c)
	c.result.Text = c.text.String()
	if c.problem != nil {
		err = c.problem
	}
	return c.result, err
}

// jobClient receives the answer of an infer job.
type jobClient struct {
	progress  func(core.Progress)
	log       func(string)
	maxTokens int

	result  core.InferResult
	text    strings.Builder
	tokens  int64
	problem error // why the answer cannot be the job's result
}

// Asked implements inference.Client.
func (c *jobClient) Asked(w core.Worker, _ string) { c.result.Worker = w.ID }

// Send implements inference.Client.
func (c *jobClient) Send(block []byte) error {
	events := openai.NewEventReader(bytes.NewReader(block))
	for ev, err := events.Next(); err == nil; ev, err = events.Next() {
		switch {
		case ev.Data == nil:
			c.comments(ev.Raw)
		case ev.IsDone():
		default:
			if c.problem = c.chunk(ev.Data); c.problem != nil {
				return c.problem
			}
		}
	}
	return nil
}

// comments logs what the answer is waiting for.
func (c *jobClient) comments(raw []byte) {
	for line := range bytes.Lines(raw) {
		text, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(":"))
		if text = bytes.TrimSpace(text); ok && len(text) > 0 && string(text) != "keep-alive" {
			c.log(string(text))
		}
	}
}

func (c *jobClient) chunk(data []byte) error {
	if e := openai.ErrorIn(data); e != nil {
		return refusal(e)
	}
	var chunk openai.ChatChunk
	if err := json.Unmarshal(data, &chunk); err != nil {
		return core.Errorf(core.Internal, "malformed chunk in the worker's answer")
	}
	if chunk.Model != "" {
		c.result.Model = chunk.Model
	}
	if u := chunk.Usage; u != nil {
		c.result.PromptTokens, c.result.CompletionTokens = u.PromptTokens, u.CompletionTokens
	}
	for _, choice := range chunk.Choices {
		if choice.FinishReason != nil {
			c.result.FinishReason = *choice.FinishReason
		}
		if choice.Delta.Content == nil || *choice.Delta.Content == "" {
			continue
		}
		if c.text.Len()+len(*choice.Delta.Content) > maxInferText {
			return core.Errorf(core.TooLarge, "the answer has more than %d bytes", maxInferText).Hint("Set max_tokens, or use POST /v1/chat/completions, which streams.")
		}
		c.text.WriteString(*choice.Delta.Content)
		c.tokens++
		c.progress(core.Progress{Phase: "generate", Done: c.tokens, Total: int64(c.maxTokens), Unit: "tokens"})
	}
	return nil
}

// Answer implements inference.Client. A streaming request gets a plain answer only when it is
// refused.
func (c *jobClient) Answer(a inference.Answer) {
	e := a.Error
	if e == nil {
		e = openai.DecodeError(a.Status, a.Body)
	}
	if e.Kind == "" {
		e.Kind = string(inference.KindOfStatus(a.Status))
	}
	c.problem = refusal(e)
}

// Fail implements inference.Client. The job's own error reports the failure.
func (c *jobClient) Fail(error) int { return 0 }

// refusal converts a worker's error to a classified one.
func refusal(e *openai.Error) error {
	kind := core.Kind(e.Kind)
	if kind == "" {
		kind = core.Internal
	}
	return core.Errorf(kind, "%s", e.Message).Hint("%s", e.Hint)
}
