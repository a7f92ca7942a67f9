package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/hashicorp/go-hclog"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/responses"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

const (
	wholeCall = `{"id":"c1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"Let me see.","reasoning_content":"hm",` +
		`"tool_calls":[{"id":"call_a","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]},"finish_reason":"tool_calls"}],` +
		`"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":5}}}`
	usageEvent = `data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":5}}}` + "\n\n"
)

// callStream is wholeCall as a stream.
var callStream = []string{
	roleEvent,
	`data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{"content":"Let me "}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{"content":"see."}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"weather","arguments":""}}]}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Oslo\"}"}}]}}]}` + "\n\n",
	`data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}` + "\n\n",
	usageEvent, doneEvent,
}

// wholeOrStream answers in the form that the request asks for, and stores the request in asked.
func wholeOrStream(asked *map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		clear(*asked)
		_ = json.NewDecoder(r.Body).Decode(asked)
		if (*asked)["stream"] == true {
			streamOf(callStream...)(w, r)
			return
		}
		answerJSON(200, wholeCall)(w, r)
	}
}

func TestAnthropicSDK(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", wholeOrStream(&asked))
	c := anthropic.NewClient(anthropicoption.WithBaseURL(r.url), anthropicoption.WithAPIKey("any"), anthropicoption.WithHTTPClient(r.client), anthropicoption.WithMaxRetries(0))
	ask := anthropic.MessageNewParams{
		Model: "tiny", MaxTokens: 50, System: []anthropic.TextBlockParam{{Text: "Be brief."}},
		Thinking: anthropic.ThinkingConfigParamOfEnabled(1024),
		Messages: []anthropic.MessageParam{
			anthropic.NewUserMessage(anthropic.NewTextBlock("Weather?")),
			anthropic.NewAssistantMessage(anthropic.NewToolUseBlock("call_0", map[string]string{"city": "Bonn"}, "weather")),
			anthropic.NewUserMessage(anthropic.NewToolResultBlock("call_0", "rain", false), anthropic.NewTextBlock("And Oslo?")),
		},
		Tools: []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "weather", InputSchema: anthropic.ToolInputSchemaParam{Properties: map[string]any{"city": map[string]any{"type": "string"}}}}}},
	}
	check := func(t *testing.T, m *anthropic.Message) {
		t.Helper()
		must.Len(t, 3, m.Content)
		must.Eq(t, "hm", m.Content[0].AsThinking().Thinking)
		must.Eq(t, "Let me see.", m.Content[1].AsText().Text)
		call := m.Content[2].AsToolUse()
		must.Eq(t, "call_a", call.ID)
		must.Eq(t, "weather", call.Name)
		must.Eq(t, `{"city":"Oslo"}`, string(call.Input))
		must.Eq(t, anthropic.StopReasonToolUse, m.StopReason)
		must.Eq(t, 4, m.Usage.OutputTokens)
		must.Eq(t, 5, m.Usage.CacheReadInputTokens)
	}
	m, err := c.Messages.New(t.Context(), ask)
	must.NoError(t, err)
	check(t, m)
	must.Eq(t, 4, m.Usage.InputTokens)
	roles := []any{}
	for _, x := range asked["messages"].([]any) {
		roles = append(roles, x.(map[string]any)["role"])
	}
	must.Eq(t, []any{"system", "user", "assistant", "tool", "user"}, roles)
	must.Eq(t, any(50.0), asked["max_tokens"])

	stream := c.Messages.NewStreaming(t.Context(), ask)
	defer stream.Close()
	var whole anthropic.Message
	for stream.Next() {
		must.NoError(t, whole.Accumulate(stream.Current()))
	}
	must.NoError(t, stream.Err())
	check(t, &whole)

	ask.Model = "nobody"
	_, err = c.Messages.New(t.Context(), ask)
	refused, ok := errors.AsType[*anthropic.Error](err)
	must.True(t, ok)
	must.Eq(t, 404, refused.StatusCode)
	must.StrContains(t, refused.RawJSON(), `"not_found_error"`)
}

// A stream that breaks off ends with Anthropic's error event.
func TestAnthropicBrokenStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", streamOf(roleEvent, tokenEvent(1)))
	_, body, err := r.post("/v1/messages", `{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}`)
	must.Error(t, err)
	must.StrContains(t, body, "event: error\ndata: {\"type\":\"error\"")
	must.StrNotContains(t, body, "message_stop")
}

func TestResponsesSDK(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", wholeOrStream(&asked))
	c := sdk(r)
	ask := responses.ResponseNewParams{
		Model: "tiny", Instructions: openai.String("Be brief."),
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Weather in Oslo?")},
		Tools: []responses.ToolUnionParam{responses.ToolParamOfFunction("weather", map[string]any{"type": "object"}, true)},
	}
	check := func(t *testing.T, a *responses.Response) {
		t.Helper()
		must.Eq(t, responses.ResponseStatusCompleted, a.Status)
		must.Eq(t, "Let me see.", a.OutputText())
		must.Len(t, 3, a.Output)
		call := a.Output[2].AsFunctionCall()
		must.Eq(t, "call_a", call.CallID)
		must.Eq(t, `{"city":"Oslo"}`, call.Arguments)
		must.Eq(t, 13, a.Usage.TotalTokens)
		must.Eq(t, 5, a.Usage.InputTokensDetails.CachedTokens)
	}
	first, err := c.Responses.New(t.Context(), ask)
	must.NoError(t, err)
	check(t, first)

	stream := c.Responses.NewStreaming(t.Context(), ask)
	defer stream.Close()
	var last responses.Response
	text, seq := "", int64(0)
	for stream.Next() {
		e := stream.Current()
		must.Eq(t, seq, e.SequenceNumber)
		seq++
		switch e.Type {
		case "response.output_text.delta":
			text += e.Delta
		case "response.completed":
			last = e.Response
		}
	}
	must.NoError(t, stream.Err())
	must.Eq(t, "Let me see.", text)
	check(t, &last)

	next := responses.ResponseNewParams{
		Model: "tiny", PreviousResponseID: openai.String(last.ID), Store: openai.Bool(false),
		Input: responses.ResponseNewParamsInputUnion{OfInputItemList: responses.ResponseInputParam{{OfFunctionCallOutput: &responses.ResponseInputItemFunctionCallOutputParam{CallID: openai.String("call_a"), Output: responses.ResponseInputItemFunctionCallOutputOutputUnionParam{OfString: openai.String("sun")}}}}},
	}
	kept, err := c.Responses.New(t.Context(), next)
	must.NoError(t, err)
	roles := []any{}
	for _, x := range asked["messages"].([]any) {
		roles = append(roles, x.(map[string]any)["role"])
	}
	must.Eq(t, []any{"user", "assistant", "tool"}, roles) // instructions are not carried over
	next.PreviousResponseID = openai.String(kept.ID)
	_, err = c.Responses.New(t.Context(), next)
	refused, ok := errors.AsType[*openai.Error](err)
	must.True(t, ok)
	must.Eq(t, "previous_response_not_found", refused.Code, must.Sprint(refused.RawJSON())) // it was sent with store false
}

// lines returns the decoded lines of an answer.
func lines(t *testing.T, body string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(body) {
		var v map[string]any
		must.NoError(t, json.Unmarshal([]byte(line), &v), must.Sprint(line))
		out = append(out, v)
	}
	return out
}

func TestTranslateManyValues(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", func(http.ResponseWriter, *http.Request) { t.Error("the worker was asked") })
	list := "[" + strings.Repeat("{},", 1<<17) + "{}]"
	for path, body := range map[string]string{
		"/v1/responses": `{"model":"tiny","input":` + list + `}`,
		"/v1/messages":  `{"model":"tiny","max_tokens":1,"messages":` + list + `}`,
		"/api/chat":     `{"model":"tiny","messages":` + list + `}`,
	} {
		resp, _, err := r.post(path, body)
		must.NoError(t, err)
		must.Eq(t, http.StatusRequestEntityTooLarge, resp.StatusCode, must.Sprint(path))
	}
	few := newRig(t, func(o *rigOptions) { o.BodyMemory, o.BodyWait = 1<<20, time.Millisecond })
	resp, _, err := few.post("/v1/responses", `{"model":"tiny","input":[`+strings.Repeat("{},", 2100)+`{}]}`)
	must.NoError(t, err)
	must.Eq(t, http.StatusServiceUnavailable, resp.StatusCode)
}

func TestOllamaChat(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", wholeOrStream(&asked))
	ask := `{"model":"tiny:latest","messages":[{"role":"user","content":"Weather?"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"weather","arguments":{"city":"Bonn"}}}]},` +
		`{"role":"tool","tool_name":"weather","content":"rain"}],"options":{"num_predict":7,"temperature":0.5,"num_ctx":4096},"think":true,"format":{"type":"object"}`
	resp, body, err := r.post("/api/chat", ask+`}`)
	must.NoError(t, err)
	must.Eq(t, "application/x-ndjson", resp.Header.Get("Content-Type"))
	got := lines(t, body)
	last := got[len(got)-1]
	text, thinking := "", ""
	var calls []any
	for _, l := range got {
		must.Eq(t, any("tiny:latest"), l["model"])
		m := l["message"].(map[string]any)
		text += m["content"].(string)
		if s, ok := m["thinking"].(string); ok {
			thinking += s
		}
		if c, ok := m["tool_calls"].([]any); ok {
			calls = append(calls, c...)
		}
		must.Eq(t, any(l["done"] == true), any(l["done_reason"] != nil))
	}
	must.Eq(t, "Let me see.", text)
	must.Eq(t, "hm", thinking)
	must.Eq(t, []any{map[string]any{"function": map[string]any{"name": "weather", "arguments": map[string]any{"city": "Oslo"}}}}, calls)
	must.Eq(t, any("stop"), last["done_reason"])
	must.Eq(t, any(9.0), last["prompt_eval_count"])
	must.Eq(t, any(4.0), last["eval_count"])
	must.Positive(t, last["total_duration"].(float64))

	must.Eq(t, any("tiny"), asked["model"])
	must.Eq(t, any(7.0), asked["max_tokens"])
	must.Eq(t, any(0.5), asked["temperature"])
	must.Eq(t, any(map[string]any{"enable_thinking": true}), asked["chat_template_kwargs"])
	must.Eq(t, any("json_schema"), asked["response_format"].(map[string]any)["type"])
	messages := asked["messages"].([]any)
	call := messages[1].(map[string]any)["tool_calls"].([]any)[0].(map[string]any)
	must.Eq(t, call["id"], messages[2].(map[string]any)["tool_call_id"])

	_, body, err = r.post("/api/chat", ask+`,"stream":false}`)
	must.NoError(t, err)
	whole := lines(t, body)
	must.Len(t, 1, whole)
	must.Eq(t, any(true), whole[0]["done"])
	m := whole[0]["message"].(map[string]any)
	must.Eq(t, any("Let me see."), m["content"])
	must.Eq(t, calls, m["tool_calls"].([]any))
}

func TestOllamaGenerate(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked, path := map[string]any{}, ""
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		asked, path = map[string]any{}, req.URL.Path
		_ = json.NewDecoder(req.Body).Decode(&asked)
		streamOf(`data: {"choices":[{"index":0,"text":"ab","delta":{"content":""}}]}`+"\n\n", `data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]}`+"\n\n", usageEvent, doneEvent)(w, req)
	})
	_, body, err := r.post("/api/generate", `{"model":"tiny","prompt":"Once","system":"Tell."}`)
	must.NoError(t, err)
	must.Eq(t, "/v1/chat/completions", path)
	must.Len(t, 2, asked["messages"].([]any))
	got := lines(t, body)
	must.Eq(t, any("ab"), got[0]["response"])
	must.Eq(t, any("length"), got[len(got)-1]["done_reason"])

	_, _, err = r.post("/api/generate", `{"model":"tiny","prompt":"Once","raw":true}`)
	must.NoError(t, err)
	must.Eq(t, "/v1/completions", path)
	must.Eq(t, any("Once"), asked["prompt"])

	_, body, err = r.post("/api/generate", `{"model":"tiny"}`) // loads the model
	must.NoError(t, err)
	got = lines(t, body)
	must.Len(t, 1, got)
	must.Eq(t, any("load"), got[0]["done_reason"])
	must.Eq(t, any(""), got[0]["response"])

	resp, body, err := r.post("/api/generate", `{"model":"nobody","prompt":"a"}`)
	must.NoError(t, err)
	must.Eq(t, 404, resp.StatusCode)
	must.StrContains(t, body, `{"error":"no model`)
}

// The requests that Ollama's clients make before they chat.
func TestOllamaModels(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "tiny", Digest: "sha256:abc", SizeBytes: 7, Architecture: "llama", Quantization: "Q8_0", Parameters: 135_000_000, Hives: []string{"h1"}}}
	})
	r.cluster.Change(func(s *fakecluster.State) {
		s.Workers = []core.Worker{{ID: "w1", Model: "tiny", State: core.WorkerReady, ContextTokens: 64}, {ID: "w2", Model: "tiny", State: core.WorkerReady, ContextTokens: 32}}
	})
	var tags struct {
		Models []struct {
			Name, Digest string
			Size         int64
			Details      struct {
				ParameterSize string `json:"parameter_size"`
			}
			ContextLength int `json:"context_length"`
		}
	}
	for _, path := range []string{"/api/tags", "/api/ps"} {
		_, body := r.get(path)
		must.NoError(t, json.Unmarshal([]byte(body), &tags))
		must.Len(t, 1, tags.Models, must.Sprint(path))
		must.Eq(t, "tiny", tags.Models[0].Name)
		must.Eq(t, "abc", tags.Models[0].Digest)
		must.Eq(t, "135.00M", tags.Models[0].Details.ParameterSize)
	}
	must.Eq(t, 32, tags.Models[0].ContextLength)
	_, body, err := r.post("/api/show", `{"model":"tiny:latest"}`)
	must.NoError(t, err)
	must.StrContains(t, body, `"general.architecture":"llama"`)
	resp, body, err := r.post("/api/show", `{"name":"tinny"}`)
	must.NoError(t, err)
	must.Eq(t, 404, resp.StatusCode)
	must.StrContains(t, body, `The nearest name is \"tiny\".`)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodHead, r.url+"/", nil)
	must.NoError(t, err)
	resp, _, err = r.do(req)
	must.NoError(t, err)
	must.Eq(t, 200, resp.StatusCode)
}

// The log names the job behind a change, whichever API requested it.
func TestOllamaChangesAudited(t *testing.T) {
	t.Parallel()
	log := &syncBuffer{}
	r := newRig(t, func(o *rigOptions) { o.Logger = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Info}) })
	r.cluster.Change(func(s *fakecluster.State) { s.Models = []core.Model{{ID: "tiny", Hives: []string{"h1"}}} })
	r.jobs.add(core.Event{Kind: core.EventEnd})
	for method, path := range map[string]string{http.MethodDelete: "/api/delete", http.MethodPost: "/api/pull"} {
		req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(`{"model":"tiny"}`))
		must.NoError(t, err)
		resp, _, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		want := `action="` + method + " " + path + `"`
		eventually(t, "the log has the job of "+path, func() bool {
			_, line, _ := strings.Cut(log.String(), want)
			line, _, _ = strings.Cut(line, "\n")
			return strings.Contains(line, "job=j1-h1")
		})
	}
}

// A copy is an alias in the cluster: it is listed like a model, and deleting it deletes no model.
func TestOllamaCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "tiny", Digest: "sha256:abc", Hives: []string{"h1"}}, {ID: "far", State: core.ModelOffered}}
		s.Aliases = []core.Alias{{Name: "gpt", Model: "tiny"}}
	})
	r.jobs.add(core.Event{Kind: core.EventEnd})
	last := func() core.Request {
		r.jobs.mu.Lock()
		defer r.jobs.mu.Unlock()
		return r.jobs.submitted[len(r.jobs.submitted)-1]
	}
	resp, body, err := r.post("/api/copy", `{"source":"tiny:latest","destination":"mine:latest"}`)
	must.NoError(t, err)
	must.EqOp(t, 200, resp.StatusCode, must.Sprint(body))
	must.EqOp(t, "mine", last().Name)
	must.EqOp(t, "tiny", last().Model)
	must.EqOp(t, core.OpAliasSet, last().Operation)
	for _, body := range []string{`{}`, `{"source":"tiny"}`, `[]`} {
		resp, _, err := r.post("/api/copy", body)
		must.NoError(t, err)
		must.EqOp(t, 400, resp.StatusCode)
	}
	_, tags := r.get("/api/tags")
	must.StrContains(t, tags, `"name":"gpt"`)
	must.StrContains(t, tags, `"name":"tiny"`)
	must.StrNotContains(t, tags, `"name":"far"`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.url+"/api/delete", strings.NewReader(`{"model":"gpt"}`))
	must.NoError(t, err)
	resp, _, err = r.do(req)
	must.NoError(t, err)
	must.EqOp(t, 200, resp.StatusCode)
	must.EqOp(t, core.OpAliasRemove, last().Operation)
	must.EqOp(t, "gpt", last().Name)
}

// What clients read about a model: its current context, its loading progress, its name.
func TestModelsAsClientsSeeThem(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{
			{ID: "hf.co/org/tiny:Q4_K_M", Aliases: []string{"gpt"}, Quantization: "Q4_K_M", SizeBytes: 7, ContextTokens: 4096, LoadedContextTokens: 512, State: core.ModelLoaded},
			{ID: "slow", ContextTokens: 2048, State: core.ModelLoading, Progress: &core.Progress{Phase: "load slow", Done: 4, Total: 100}},
		}
		s.Aliases = []core.Alias{{Name: "gpt", Model: "hf.co/org/tiny:Q4_K_M"}}
	})
	for _, path := range []string{"hf.co/org/tiny:Q4_K_M", "hf.co%2Forg%2Ftiny%3AQ4_K_M", "org/tiny", "ORG/tiny:q4_k_m", "gpt", "tiny"} {
		resp, body := r.get("/v1/models/" + path)
		must.EqOp(t, 200, resp.StatusCode, must.Sprint(path, body))
		for _, want := range []string{`"id":"hf.co/org/tiny:Q4_K_M"`, `"context_length":512`, `"max_model_len":512`, `"context_tokens":4096`, `"quantization":"Q4_K_M"`, `"size_bytes":7`, `"state":"loaded"`, `"aliases":["gpt"]`} {
			must.StrContains(t, body, want)
		}
	}
	_, body := r.get("/v1/models/slow")
	must.StrContains(t, body, `"state":"loading","progress":{"phase":"load slow","done":4,"total":100}`)
	must.StrContains(t, body, `"context_length":2048`)
	r.cluster.Change(func(s *fakecluster.State) { s.Models = append(s.Models, core.Model{ID: "hf.co/other/tiny:Q8_0"}) })
	resp, body := r.get("/v1/models/tiny")
	must.EqOp(t, 400, resp.StatusCode)
	must.StrContains(t, body, "hf.co/org/tiny:Q4_K_M, hf.co/other/tiny:Q8_0")
	must.StrContains(t, body, `"param":"model"`)
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		clear(asked)
		_ = json.NewDecoder(req.Body).Decode(&asked)
		answerJSON(200, `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,1]},{"object":"embedding","index":1,"embedding":[1,0]}],"model":"tiny","usage":{"prompt_tokens":4,"total_tokens":4}}`)(w, req)
	})
	c := sdk(r)
	got, err := c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "tiny", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
	must.NoError(t, err)
	must.Len(t, 2, got.Data)
	must.Eq(t, []float64{0.5, 1}, got.Data[0].Embedding)

	_, body, err := r.post("/api/embed", `{"model":"tiny","input":["a","b"]}`)
	must.NoError(t, err)
	must.StrContains(t, body, `"embeddings":[[0.5,1],[1,0]]`)
	must.StrContains(t, body, `"prompt_eval_count":4`)
	must.Eq(t, any(-1.0), asked["truncate_prompt_tokens"]) // Ollama truncates unless told otherwise
	_, body, err = r.post("/api/embed", `{"model":"tiny","input":"a","truncate":false}`)
	must.NoError(t, err)
	must.MapNotContainsKey(t, asked, "truncate_prompt_tokens")
	must.StrContains(t, body, "embeddings")
	_, body, err = r.post("/api/embeddings", `{"model":"tiny","prompt":"a"}`)
	must.NoError(t, err)
	must.Eq(t, `{"embedding":[0.5,1]}`, strings.TrimSpace(body))
}

// Token counts are available in each API, all from the same route of a worker.
func TestCountTokens(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	paths, asked := []string{}, ""
	answer := `{"object":"response.input_tokens","input_tokens":17}`
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		asked, paths = string(body), append(paths, req.URL.Path)
		answerJSON(200, answer)(w, req)
	})
	const messages = `{"model":"tiny","system":"s","messages":[{"role":"user","content":"hi"}],"tools":[{"name":"f","input_schema":{}}]}`
	for path, c := range map[string]struct{ body, want string }{
		"/v1/messages/count_tokens":            {messages, `{"input_tokens":17}`},
		"/v1/responses/input_tokens":           {`{"model":"tiny","instructions":"s","input":"hi"}`, answer},
		"/v1/chat/completions/input_tokens":    {`{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, answer},
		"/v1/v1/chat/completions/input_tokens": {`{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, answer},
	} {
		resp, body, err := r.post(path, c.body)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(path, body))
		must.Eq(t, c.want, strings.TrimSpace(body), must.Sprint(path))
		must.StrContains(t, asked, `"hi"`)
	}
	for _, p := range paths {
		must.Eq(t, "/v1/chat/completions/input_tokens", p)
	}
	resp, body, err := r.post("/v1/messages/count_tokens", `{"model":"tiny","messages":[]}`)
	must.NoError(t, err)
	must.Eq(t, 400, resp.StatusCode)
	must.StrHasPrefix(t, `{"type":"error","error":{"type":"invalid_request_error"`, body)
	answer = `{"input":1}`
	resp, body, err = r.post("/v1/messages/count_tokens", messages)
	must.NoError(t, err)
	must.Eq(t, 502, resp.StatusCode)
	must.StrHasPrefix(t, `{"type":"error","error":{"type":"api_error"`, body)
}

// Worker routes other than OpenAI's pass through unchanged.
func TestRoutesOfLlamaServer(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	path, asked := "", ""
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		path, asked = req.URL.Path, string(body)
		answerJSON(200, `{"as":"it is"}`)(w, req)
	})
	for from, to := range map[string]string{
		"/tokenize": "/tokenize", "/detokenize": "/detokenize", "/apply-template": "/apply-template", "/v1/rerank": "/v1/rerank",
		"/v2/rerank": "/v1/rerank", "/rerank": "/v1/rerank", "/v1/reranking": "/v1/rerank", "/reranking": "/v1/rerank",
	} {
		const request = `{"model":"tiny", "content":"x","tokens":[1],"query":"q"}`
		resp, body, err := r.post(from, request)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(from, body))
		must.Eq(t, `{"as":"it is"}`, body)
		must.Eq(t, to, path)
		must.Eq(t, request, asked)
		resp, _, err = r.post(from, `{"content":"x"}`)
		must.NoError(t, err)
		must.Eq(t, 400, resp.StatusCode)
	}
}
