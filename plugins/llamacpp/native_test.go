package llamacpp

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// TestTimings reads llama-server's timings of answers.
func TestTimings(t *testing.T) {
	w := startWorker(t, 2, 128, "")
	check := func(name string, got *openai.Timings, prompt, cached, said int) {
		t.Helper()
		must.NotNil(t, got, must.Sprint(name))
		must.Eq(t, [3]int{prompt, cached, said}, [3]int{got.PromptN + got.CacheN, got.CacheN, got.PredictedN}, must.Sprint(name))
		must.Positive(t, got.PromptMS, must.Sprint(name))
		if said > 1 {
			must.Positive(t, got.PredictedMS, must.Sprint(name))
			must.InDelta(t, 1000*float64(said)/got.PredictedMS, got.PredictedPerSecond, 0.001)
		}
	}
	whole := w.chat(t, question("Hi", `,"max_tokens":6,"ignore_eos":true`))
	check("whole", whole.Timings, whole.Usage.PromptTokens, 0, 6)
	whole = w.chat(t, question("Hi", `,"max_tokens":6,"ignore_eos":true`))
	check("cached", whole.Timings, whole.Usage.PromptTokens, whole.Usage.PromptTokensDetails.CachedTokens, 6)
	must.Positive(t, whole.Timings.CacheN)

	timed := func(chunks []openai.ChatChunk) (n int) {
		for _, c := range chunks {
			if c.Timings != nil {
				n++
			}
		}
		return n
	}
	s := w.stream(t.Context(), t, question("Hi", `,"stream":true,"max_tokens":6,"ignore_eos":true`), nil)
	last := s.chunks[len(s.chunks)-1]
	must.Eq(t, 1, timed(s.chunks))
	must.NotNil(t, last.Choices[0].FinishReason)
	check("stream", last.Timings, whole.Usage.PromptTokens, whole.Usage.PromptTokensDetails.CachedTokens, 6)

	s = w.stream(t.Context(), t, question("Hi", `,"stream":true,"max_tokens":6,"ignore_eos":true,"stream_options":{"include_usage":true}`), nil)
	last = s.chunks[len(s.chunks)-1]
	must.Eq(t, 1, timed(s.chunks))
	must.NotNil(t, last.Usage)
	check("usage", last.Timings, last.Usage.PromptTokens, last.Usage.PromptTokensDetails.CachedTokens, 6)

	s = w.stream(t.Context(), t, question("Hi", `,"stream":true,"max_tokens":6,"ignore_eos":true,"timings_per_token":true`), nil)
	must.Eq(t, *whole.Choices[0].Message.Content, s.text)
	must.Greater(t, 2, timed(s.chunks))
	for i := 1; i < len(s.chunks); i++ {
		if a, b := s.chunks[i-1].Timings, s.chunks[i].Timings; a != nil && b != nil {
			must.LessEq(t, b.PredictedN, a.PredictedN)
		}
	}

	// With two answers, their tokens are added up.
	var two openai.ChatResponse
	w.ask(t, "/v1/chat/completions", json.RawMessage(question("Hi", `,"max_tokens":6,"ignore_eos":true,"n":2`)), &two)
	check("two", two.Timings, two.Usage.PromptTokens, two.Usage.PromptTokensDetails.CachedTokens, 12)
}

// TestNative reads llama-server's own completions, streamed and unstreamed.
func TestNative(t *testing.T) {
	w := startWorker(t, 1, 128, "")
	type fields = map[string]any
	request := fields{"prompt": "The queen", "temperature": 0, "n_predict": 8, "ignore_eos": true}
	var whole openai.NativeResponse
	w.ask(t, "/completion", request, &whole)
	must.Eq(t, openai.StopLimit, whole.StopType)
	must.Eq(t, 8, whole.TokensPredicted)
	must.NotNil(t, whole.Timings)
	must.NotEq(t, "", whole.Content)

	request["stream"] = true
	body, err := json.Marshal(request)
	must.NoError(t, err)
	resp := w.post(t.Context(), t, "/completion", string(body))
	defer func() { _ = resp.Body.Close() }()
	text, stops := "", 0
	for r := openai.NewEventReader(resp.Body); ; {
		ev, err := r.Next()
		must.NoError(t, err)
		if ev.IsDone() {
			break
		}
		var c openai.NativeResponse
		must.NoError(t, json.Unmarshal(ev.Data, &c))
		text += c.Content
		if c.Stop {
			stops++
			must.Eq(t, 8, c.TokensPredicted)
			must.Eq(t, whole.TokensEvaluated, c.TokensEvaluated)
			must.NotNil(t, c.Timings)
		}
	}
	must.Eq(t, 1, stops)
	must.Eq(t, whole.Content, text)

	var stopped openai.NativeResponse
	w.ask(t, "/completion", fields{"prompt": "The queen", "temperature": 0, "n_predict": 8, "ignore_eos": true, "stop": []string{text[len(text)/2:][:1]}}, &stopped)
	must.Eq(t, openai.StopWord, stopped.StopType)
}

// TestProps reports what llama-server does about a model, and nothing about this machine.
func TestProps(t *testing.T) {
	w := startWorker(t, 3, 64, "")
	get := func(path string, v any) string {
		t.Helper()
		resp, err := w.client.Get(w.url + path)
		must.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		must.Eq(t, http.StatusOK, resp.StatusCode)
		var raw json.RawMessage
		must.NoError(t, json.NewDecoder(resp.Body).Decode(&raw))
		must.NoError(t, json.Unmarshal(raw, v))
		return string(raw)
	}
	var p openai.Props
	raw := get("/props", &p)
	must.Eq(t, 3, p.TotalSlots)
	must.Eq(t, 64, p.Settings.Context)
	must.Eq(t, "rbee-tiny", p.ModelPath)
	must.Eq(t, "<s>", p.BOSToken)
	must.StrContains(t, p.ChatTemplate, "im_start")
	must.True(t, p.TemplateCaps["supports_system_role"])
	must.StrNotContains(t, raw, ".gguf")
	var slots []openai.Slot
	get("/slots", &slots)
	must.Eq(t, []openai.Slot{{ID: 0, Context: 64}, {ID: 1, Context: 64}, {ID: 2, Context: 64}}, slots)
}
