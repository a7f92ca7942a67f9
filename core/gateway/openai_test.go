package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

// sdk returns OpenAI's own client, connected to the gateway.
func sdk(r *rig) openai.Client {
	return openai.NewClient(option.WithBaseURL(r.url+"/v1"), option.WithAPIKey("any"), option.WithHTTPClient(r.client), option.WithMaxRetries(0))
}

func chatParams() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hi")}}
}

func TestOpenAISDK(t *testing.T) {
	t.Parallel()
	t.Run("chat", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", answerJSON(200, `{"id":"c1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`))
		c := sdk(r)
		answer, err := c.Chat.Completions.New(t.Context(), chatParams())
		must.NoError(t, err)
		must.Eq(t, "hello", answer.Choices[0].Message.Content)
		must.Eq(t, 3, answer.Usage.TotalTokens)
	})
	t.Run("completion", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", answerJSON(200, `{"id":"c1","object":"text_completion","created":1,"model":"tiny","choices":[{"index":0,"text":"once","finish_reason":"length","logprobs":null}]}`))
		c := sdk(r)
		answer, err := c.Completions.New(t.Context(), openai.CompletionNewParams{Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("a")}})
		must.NoError(t, err)
		must.Eq(t, "once", answer.Choices[0].Text)
	})
	t.Run("stream", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(o *rigOptions) { o.inf.ProgressAfter, o.inf.ProgressInterval = time.Millisecond, time.Millisecond })
		r.serve("w1", streamOf(": ping\n\n", roleEvent, tokenEvent(1), ": ping\n\n", tokenEvent(2), doneEvent))
		slow := make(chan struct{})
		r.router.wait = func(ctx context.Context, _ func(core.Progress)) error {
			<-slow // progress comments precede the first event
			return nil
		}
		time.AfterFunc(30*time.Millisecond, func() { close(slow) })
		c := sdk(r)
		stream := c.Chat.Completions.NewStreaming(t.Context(), chatParams())
		defer stream.Close()
		text := ""
		for stream.Next() {
			text += stream.Current().Choices[0].Delta.Content
		}
		must.NoError(t, stream.Err())
		must.Eq(t, "t1t2", text)
	})
	t.Run("stream that breaks", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", streamOf(roleEvent, tokenEvent(1)))
		c := sdk(r)
		stream := c.Chat.Completions.NewStreaming(t.Context(), chatParams())
		defer stream.Close()
		n := 0
		for stream.Next() {
			n++
		}
		must.Eq(t, 2, n)
		must.ErrorContains(t, stream.Err(), "worker_lost")
	})
	t.Run("errors", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		c := sdk(r)
		params := chatParams()
		params.Model = "tiney"
		_, err := c.Chat.Completions.New(t.Context(), params)
		var api *openai.Error
		must.True(t, errors.As(err, &api))
		must.Eq(t, 404, api.StatusCode)
		must.Eq(t, "model_not_found", api.Code)
		must.Eq(t, "model", api.Param)
		must.StrContains(t, api.RawJSON(), "Near to it are: tiny.")
		_, err = c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "tiny", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("a")}})
		must.True(t, errors.As(err, &api))
		must.Eq(t, 404, api.StatusCode)
		must.Eq(t, "model_not_found", api.Code)
	})
	t.Run("cancel", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		gone := make(chan struct{})
		r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			streamOf(tokenEvent(1))(w, req)
			<-req.Context().Done()
			close(gone)
		})
		ctx, cancel := context.WithCancel(t.Context())
		c := sdk(r)
		stream := c.Chat.Completions.NewStreaming(ctx, chatParams())
		defer stream.Close()
		must.True(t, stream.Next())
		cancel()
		<-gone
		must.False(t, stream.Next())
		must.ErrorIs(t, stream.Err(), context.Canceled)
	})
	t.Run("models", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.cluster.Change(func(s *fakecluster.State) {
			s.Models = []core.Model{{ID: "tiny", CreatedAt: time.Unix(5, 0)}, {ID: "org/big:Q4", CreatedAt: time.Unix(6, 0)}}
		})
		c := sdk(r)
		page, err := c.Models.List(t.Context())
		must.NoError(t, err)
		must.Len(t, 2, page.Data)
		must.Eq(t, "org/big:Q4", page.Data[0].ID)
		m, err := c.Models.Get(t.Context(), "org/big:Q4")
		must.NoError(t, err)
		must.Eq(t, 6, m.Created)
	})
}
