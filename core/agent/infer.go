package agent

import (
	"context"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// maxInferText bounds the answer of an infer job, in bytes: it is kept in memory.
const maxInferText = 1 << 20

// infer answers the prompt of a job as POST /v1/chat/completions would, by way of the gateway: it picks the worker, starts one where there is none, and
// goes on with another when one dies.
func (p *process) infer(ctx context.Context, r core.Request, progress func(core.Progress), log func(string)) (core.InferResult, error) {
	c, err := client.New(client.Options{HTTPClient: &http.Client{Transport: p.api.Within()}})
	if err != nil {
		return core.InferResult{}, err
	}
	request := openai.ChatRequest{Model: r.Model}
	request.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	if r.SystemPrompt != "" {
		request.Messages = append(request.Messages, openai.Message{Role: "system", Content: openai.TextContent(r.SystemPrompt)})
	}
	request.Messages = append(request.Messages, openai.Message{Role: "user", Content: openai.TextContent(r.Prompt)})
	if r.MaxTokens > 0 {
		request.MaxCompletionTokens = new(r.MaxTokens)
	}
	result := core.InferResult{Model: r.Model}
	var text strings.Builder
	var tokens int64
	err = c.ChatStream(ctx, request, func(chunk openai.ChatChunk) error {
		if chunk.Model != "" {
			result.Model = chunk.Model
		}
		if u := chunk.Usage; u != nil {
			result.PromptTokens, result.CompletionTokens = u.PromptTokens, u.CompletionTokens
		}
		for _, choice := range chunk.Choices {
			if choice.FinishReason != nil {
				result.FinishReason = *choice.FinishReason
			}
			if choice.Delta.Content == nil || *choice.Delta.Content == "" {
				continue
			}
			if text.Len()+len(*choice.Delta.Content) > maxInferText {
				return core.WithHint(core.Errorf("", core.TooLarge, "the answer has more than %d bytes", maxInferText), "Set max_tokens, or take POST /v1/chat/completions, which streams.")
			}
			text.WriteString(*choice.Delta.Content)
			tokens++
			progress(core.Progress{Phase: "generate", Done: tokens, Total: int64(r.MaxTokens), Unit: "tokens"})
		}
		return nil
	}, client.OnComment(func(line string) {
		if line != "" && line != "keep-alive" {
			log(line)
		}
	}), client.OnAnswer(func(a client.Answer) { result.Worker = a.Worker }))
	result.Text = text.String()
	return result, err
}
