package llamacpp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// several sends a request that must succeed and decodes its answer into out.
func (w *testWorker) several(t testing.TB, path, body string, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.severalWithin(ctx, t, path, body, out)
}

func (w *testWorker) severalWithin(ctx context.Context, t testing.TB, path, body string, out any) {
	t.Helper()
	resp := w.post(ctx, t, path, body)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	must.NoError(t, json.Unmarshal(b, out))
}

// choices returns the answers to a chat and the number of prompt tokens evaluated for them.
func (w *testWorker) choices(t testing.TB, body string) (out openai.ChatResponse, evaluated int) {
	t.Helper()
	before := w.served.engine.Stats().PromptEvaluated
	w.several(t, "/v1/chat/completions", body, &out)
	for i, c := range out.Choices {
		must.Eq(t, i, c.Index)
	}
	return out, int(w.served.engine.Stats().PromptEvaluated - before)
}

// completions returns the answers to a legacy completion.
func (w *testWorker) completions(t testing.TB, body string) (out openai.CompletionResponse) {
	t.Helper()
	w.several(t, "/v1/completions", body, &out)
	for i, c := range out.Choices {
		must.Eq(t, i, c.Index)
	}
	return out
}

// sampled returns the body of a seeded chat request at temperature 1.
func sampled(more string) string {
	return `{"temperature":1,"seed":5,"max_tokens":24,"messages":[{"role":"user","content":"Tell me a short story about a bee named Pip."}]` + more + `}`
}

// Seeded answers depend on their index alone, not on the number of answers or of slots. The first
// one equals that of a request for a single answer. The prompt is evaluated once.
func TestChoicesWithSeed(t *testing.T) {
	var want []openai.ChatChoice
	for _, slots := range []int{1, 2, 6} {
		w := startWorker(t, slots, 512, `{"prefix_store_mib":0}`)
		five, evaluated := w.choices(t, sampled(`,"n":5,"logprobs":true`))
		must.Len(t, 5, five.Choices)
		must.Eq(t, five.Usage.PromptTokens+4, evaluated) // the last token is evaluated again for each, for its logits
		must.Eq(t, 0, five.Usage.PromptTokensDetails.CachedTokens)
		if want == nil {
			want = five.Choices
		}
		must.Eq(t, want, five.Choices)
		two, _ := w.choices(t, sampled(`,"n":2,"logprobs":true`))
		must.Eq(t, want[:2], two.Choices)
		must.Eq(t, five.Usage.PromptTokens, two.Usage.PromptTokens)
		must.Eq(t, five.Usage.PromptTokens-1, two.Usage.PromptTokensDetails.CachedTokens)
		one := w.chat(t, sampled(`,"logprobs":true`))
		must.Eq(t, want[:1], one.Choices)
		must.Eq(t, one.Usage.PromptTokens, five.Usage.PromptTokens)
		must.Eq(t, five.Usage.PromptTokens+five.Usage.CompletionTokens, five.Usage.TotalTokens)
		w.idle(t)
	}
	texts := map[string]bool{}
	for _, c := range want {
		texts[*c.Message.Content] = true
	}
	must.Greater(t, 1, len(texts))
}

func TestChoicesAtTemperatureZero(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	one := w.chat(t, question("What is a queen?", `,"max_tokens":20,"ignore_eos":true`))
	four, _ := w.choices(t, question("What is a queen?", `,"max_tokens":20,"ignore_eos":true,"n":4`))
	must.Len(t, 4, four.Choices)
	for _, c := range four.Choices {
		must.Eq(t, one.Choices[0].Message, c.Message)
		must.Eq(t, openai.FinishLength, c.FinishReason)
	}
	must.Eq(t, one.Usage.PromptTokens, four.Usage.PromptTokens)
	must.Eq(t, 4*20, four.Usage.CompletionTokens)
}

// Streamed answers equal the unstreamed ones, in chunks that carry their index.
func TestChoicesStreamed(t *testing.T) {
	w := startWorker(t, 3, 512, "")
	for name, more := range map[string]string{"plain": "", "with log probabilities": `,"logprobs":true,"top_logprobs":2`} {
		t.Run(name, func(t *testing.T) { sameStreamed(t, w, sampled(more+`,"n":4,"stop":["e s"]`)) })
	}
}

// sameStreamed sends a request for four answers, unstreamed and streamed, and compares them.
func sameStreamed(t *testing.T, w *testWorker, body string) {
	t.Helper()
	whole, _ := w.choices(t, body)
	s := w.stream(t.Context(), t, strings.TrimSuffix(body, "}")+`,"stream":true,"stream_options":{"include_usage":true}}`, nil)
	must.True(t, s.done)
	got := make([]openai.ChatChoice, 4)
	usages, turns, last := 0, 0, -1
	for i := range got {
		got[i] = openai.ChatChoice{Index: i}
	}
	for _, chunk := range s.chunks {
		if chunk.Usage != nil {
			usages++
			must.SliceEmpty(t, chunk.Choices)
			must.Eq(t, whole.Usage.CompletionTokens, chunk.Usage.CompletionTokens)
			must.Eq(t, whole.Usage.PromptTokens, chunk.Usage.PromptTokens)
			continue
		}
		must.Len(t, 1, chunk.Choices)
		must.Eq(t, s.chunks[0].ID, chunk.ID)
		c := chunk.Choices[0]
		x := &got[c.Index]
		must.Eq(t, "", x.FinishReason)
		if c.Delta.Role != "" {
			must.Nil(t, x.Message.Content)
			x.Message = openai.AnswerMessage{Role: c.Delta.Role, Content: new("")}
		}
		if c.Delta.Content != nil {
			*x.Message.Content += *c.Delta.Content
		}
		if c.LogProbs != nil {
			if x.LogProbs == nil {
				x.LogProbs = &openai.LogProbs{}
			}
			x.LogProbs.Content = append(x.LogProbs.Content, c.LogProbs.Content...)
		}
		if c.FinishReason != nil {
			x.FinishReason = *c.FinishReason
		}
		if c.Index != last {
			turns++
			last = c.Index
		}
	}
	must.Eq(t, whole.Choices, got)
	must.Eq(t, 1, usages)
	must.Greater(t, 4, turns) // interleaved
}

// Each answer follows the requested format and has its own calls.
func TestChoicesWithForm(t *testing.T) {
	w := startWorker(t, 2, 1024, "")
	form := regexp.MustCompile(`^[a-z]{3} [0-9]{2}$`)
	out, _ := w.choices(t, sampled(`,"n":4,"guided_regex":"[a-z]{3} [0-9]{2}"`))
	must.Len(t, 4, out.Choices)
	for _, c := range out.Choices {
		must.RegexMatch(t, form, *c.Message.Content)
		must.Eq(t, openai.FinishStop, c.FinishReason)
	}
	out, _ = w.choices(t, question("x", withTools(`,"n":3,"max_tokens":250,"temperature":1,"seed":3,"parallel_tool_calls":false,"tool_choice":{"type":"function","function":{"name":"get_weather"}}`)))
	must.Len(t, 3, out.Choices)
	ids := map[string]bool{}
	for _, c := range out.Choices {
		must.Eq(t, openai.FinishToolCalls, c.FinishReason)
		must.SliceLen(t, 1, c.Message.ToolCalls)
		checkToolCalls(t, c.Message.ToolCalls)
		ids[c.Message.ToolCalls[0].ID] = true
	}
	must.MapLen(t, 3, ids)
}

// With echo each answer begins with its prompt: streamed, unstreamed, and with no generated token.
func TestEcho(t *testing.T) {
	w := startWorker(t, 4, 512, "")
	const ask = `{"prompt":["A bee is","The queen of a hive has"],"temperature":1,"seed":9,"max_tokens":5,"n":2`
	bare, echoed := w.completions(t, ask+`}`), w.completions(t, ask+`,"echo":true}`)
	texts := make([]string, 4)
	for i, c := range bare.Choices {
		texts[i] = []string{"A bee is", "The queen of a hive has"}[i/2] + c.Text
		must.Eq(t, texts[i], echoed.Choices[i].Text)
	}
	must.Eq(t, bare.Usage.TotalTokens, echoed.Usage.TotalTokens)
	resp := w.post(t.Context(), t, "/v1/completions", ask+`,"echo":true,"stream":true}`)
	defer func() { _ = resp.Body.Close() }()
	streamed := make([]string, 4)
	for r := openai.NewEventReader(resp.Body); ; {
		ev, err := r.Next()
		must.NoError(t, err)
		if ev.IsDone() {
			break
		}
		var c openai.CompletionResponse
		must.NoError(t, json.Unmarshal(ev.Data, &c))
		streamed[c.Choices[0].Index] += c.Choices[0].Text
	}
	must.Eq(t, texts, streamed)
	must.Eq(t, "A bee is", w.completions(t, `{"prompt":"A bee is","echo":true,"max_tokens":0}`).Choices[0].Text)
	ids := w.completions(t, `{"prompt":[[1,300,301],[1,302]],"echo":true,"max_tokens":0}`)
	must.Eq(t, w.served.model.spelled(1)+w.served.model.spelled(300)+w.served.model.spelled(301), ids.Choices[0].Text)
	best := w.completions(t, `{"prompt":["A","B"],"echo":true,"max_tokens":1,"best_of":2,"temperature":1}`)
	must.StrHasPrefix(t, "A", best.Choices[0].Text)
	must.StrHasPrefix(t, "B", best.Choices[1].Text)
}

func TestSeveralPrompts(t *testing.T) {
	w := startWorker(t, 3, 512, "")
	const streamed = `,"n":2,"temperature":1,"seed":9,"max_tokens":12`
	const more = streamed + `,"logprobs":1`
	all := w.completions(t, `{"prompt":["A bee is","The queen of a hive has"]`+more+`}`)
	var want []openai.CompletionChoice
	tokens, answered := 0, 0
	for _, prompt := range []string{"A bee is", "The queen of a hive has"} {
		out := w.completions(t, fmt.Sprintf(`{"prompt":%q%s}`, prompt, more))
		tokens, answered = tokens+out.Usage.PromptTokens, answered+out.Usage.CompletionTokens
		for _, c := range out.Choices {
			c.Index = len(want)
			want = append(want, c)
		}
	}
	must.Eq(t, want, all.Choices)
	must.Eq(t, tokens, all.Usage.PromptTokens)
	must.Eq(t, answered, all.Usage.CompletionTokens)
	ids := w.completions(t, `{"prompt":[[1,300,301],[1,302]],"max_tokens":3,"ignore_eos":true}`)
	must.Len(t, 2, ids.Choices)
	must.Eq(t, 5, ids.Usage.PromptTokens)
	must.Eq(t, 6, ids.Usage.CompletionTokens)

	resp := w.post(t.Context(), t, "/v1/completions", `{"prompt":["A bee is","The queen of a hive has"],"stream":true`+streamed+`}`)
	defer func() { _ = resp.Body.Close() }()
	texts := make([]string, 4)
	for r := openai.NewEventReader(resp.Body); ; {
		ev, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
		if ev.IsDone() {
			continue
		}
		var c openai.CompletionResponse
		must.NoError(t, json.Unmarshal(ev.Data, &c))
		texts[c.Choices[0].Index] += c.Choices[0].Text
	}
	for i, c := range want {
		must.Eq(t, c.Text, texts[i])
	}
}

// The best answers are those with the highest mean log probability, likeliest first.
func TestBestOf(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	const more = `"prompt":["A bee is","The queen"],"temperature":1.2,"seed":9,"max_tokens":10,"ignore_eos":true`
	all := w.completions(t, `{"n":5,"logprobs":0,`+more+`}`)
	mean := func(c openai.CompletionChoice) float64 {
		sum := 0.0
		for _, p := range c.LogProbs.TokenLogProbs {
			sum += p
		}
		return sum / float64(len(c.LogProbs.TokenLogProbs))
	}
	var want []openai.CompletionChoice
	for group := range slices.Chunk(all.Choices, 5) {
		slices.SortFunc(group, func(a, b openai.CompletionChoice) int { return cmp.Compare(mean(b), mean(a)) })
		for _, c := range group[:2] {
			c.Index = len(want)
			want = append(want, c)
		}
	}
	best := w.completions(t, `{"n":2,"best_of":5,"logprobs":0,`+more+`}`)
	must.Eq(t, want, best.Choices)
	must.Eq(t, all.Usage.CompletionTokens, best.Usage.CompletionTokens)
	must.Eq(t, all.Usage.PromptTokens, best.Usage.PromptTokens)
	plain := w.completions(t, `{"best_of":5,`+more+`}`)
	must.Len(t, 2, plain.Choices)
	for i, c := range plain.Choices {
		must.Eq(t, want[2*i].Text, c.Text)
		must.Nil(t, c.LogProbs)
	}
}

// When a client disconnects, all its answers end, running and queued.
func TestChoicesClientDisconnects(t *testing.T) {
	w := startWorker(t, 2, 4096, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.stream(ctx, t, sampledEndless(5), func(openai.ChatChunk) { cancel() })
	w.idle(t)
	must.Less(t, 1000, w.served.engine.Stats().TokensTotal)
	ended, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	must.NoError(t, w.gate.wait(ended))
}

func sampledEndless(n int) string {
	return fmt.Sprintf(`{"messages":[{"role":"user","content":"Tell me a story"}],"n":%d%s}`, n, endless)
}

// A request for more answers than currently fit is refused before any of them starts.
func TestChoicesWithoutRoom(t *testing.T) {
	w := startWorker(t, 1, 4096, `{"queue":2}`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	refused := false
	w.stream(ctx, t, sampledEndless(1), func(openai.ChatChunk) {
		if refused {
			return
		}
		refused = true
		status, e, h := w.refused(t, "/v1/chat/completions", sampled(`,"n":3`))
		must.Eq(t, http.StatusServiceUnavailable, status)
		must.Eq(t, openai.TypeUnavailable, e.Type)
		must.NotEq(t, "", h.Get("Retry-After"))
		cancel()
	})
	must.True(t, refused)
	w.idle(t)
	out, _ := w.choices(t, sampled(`,"n":3`))
	must.Len(t, 3, out.Choices)
}

// When one answer fails, the others end.
func TestOneChoiceFails(t *testing.T) {
	w := startWorker(t, 2, 4096, "")
	m := w.served.model
	srv := &server{engine: w.served.engine, model: m, modelID: "m", now: time.Now}
	for _, stream := range []bool{false, true} {
		tokens, err := m.textPrompt(openai.TextPrompt("A bee is"), 4096)
		must.NoError(t, err)
		sampling := &openai.Sampling{Stream: stream, IgnoreEOS: true}
		req := newRequest()
		req.sampling, err = m.choose(sampling)
		must.NoError(t, err)
		a := &ask{request: req, prompts: [][]token{tokens}, count: 4, best: 4, format: newTextFormat("c", 1, "m", m), sampling: sampling}
		list := a.answers()
		for i := range m.pieces {
			list[1].sampling.Bias = append(list[1].sampling.Bias, sampler.Bias{Token: token(i), Add: float32(math.Inf(-1))})
		}
		rec := httptest.NewRecorder()
		srv.generate(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil), a, list)
		must.StrContains(t, rec.Body.String(), "logit_bias forbids every token")
		must.StrNotContains(t, rec.Body.String(), "[DONE]")
		if !stream {
			must.Eq(t, http.StatusBadRequest, rec.Code)
		}
		w.idle(t)
		must.Less(t, 1000, w.served.engine.Stats().TokensTotal)
	}
}
