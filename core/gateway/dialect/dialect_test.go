package dialect_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/core/gateway/dialect/anthropic"
	"github.com/rbee-project/rbee/core/gateway/dialect/ollama"
	"github.com/rbee-project/rbee/core/gateway/dialect/responses"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// dialects returns all dialects, each with a request that it accepts.
func dialects() map[string]struct {
	d    dialect.Dialect
	body string
} {
	return map[string]struct {
		d    dialect.Dialect
		body string
	}{
		"anthropic": {anthropic.Messages, `{"model":"m","max_tokens":9,"stream":true,"thinking":{"type":"enabled"},"messages":[{"role":"user","content":"hi"}]}`},
		"chat":      {ollama.Chat, `{"model":"m","messages":[{"role":"user","content":"hi"}]}`},
		"generate":  {ollama.Generate, `{"model":"m","prompt":"hi"}`},
		"responses": {responses.New(&responses.Store{}), `{"model":"m","stream":true,"input":"hi"}`},
	}
}

func about() dialect.About {
	at := time.Unix(1_700_000_000, 0)
	return dialect.About{ID: "x", Request: "r", Now: func() time.Time { return at }}
}

func refusal(err error) *openai.Error {
	e, _ := errors.AsType[*openai.Error](err)
	return e
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	messages := func(s string) string { return `{"model":"m","max_tokens":9,"messages":[` + s + `]}` }
	for name, c := range map[string]struct {
		d           dialect.Dialect
		body, param string
	}{
		"anthropic without max_tokens":    {anthropic.Messages, `{"model":"m","messages":[{"role":"user","content":"a"}]}`, "max_tokens"},
		"anthropic without messages":      {anthropic.Messages, messages(""), "messages"},
		"anthropic role":                  {anthropic.Messages, messages(`{"role":"king","content":"a"}`), "messages[0].role"},
		"anthropic result without id":     {anthropic.Messages, messages(`{"role":"user","content":[{"type":"tool_result","content":"x"}]}`), "messages[0].content[0].tool_use_id"},
		"anthropic call without name":     {anthropic.Messages, messages(`{"role":"assistant","content":[{"type":"tool_use","id":"a"}]}`), "messages[0].content[0]"},
		"anthropic unknown block":         {anthropic.Messages, messages(`{"role":"user","content":[{"type":"video"}]}`), "messages[0].content[0].type"},
		"anthropic image without source":  {anthropic.Messages, messages(`{"role":"user","content":[{"type":"image"}]}`), "messages[0].content[0].source"},
		"anthropic server tool":           {anthropic.Messages, `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"}],"tools":[{"type":"web_search_20250305","name":"w"}]}`, "tools[0].type"},
		"anthropic tool_choice":           {anthropic.Messages, `{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"w"}],"tool_choice":{"type":"tool"}}`, "tool_choice.name"},
		"anthropic empty message":         {anthropic.Messages, messages(`{"role":"user","content":[]}`), "messages[0].content"},
		"ollama result without call":      {ollama.Chat, `{"model":"m","messages":[{"role":"tool","content":"x"}]}`, "messages[0]"},
		"ollama image":                    {ollama.Chat, `{"model":"m","messages":[{"role":"user","images":["?"],"content":"x"}]}`, "messages[0].images"},
		"ollama num_predict":              {ollama.Chat, `{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":1.5}}`, "options.num_predict"},
		"ollama num_predict text":         {ollama.Chat, `{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":"x"}}`, "options.num_predict"},
		"ollama format":                   {ollama.Generate, `{"model":"m","prompt":"x","format":"yaml"}`, "format"},
		"ollama think":                    {ollama.Generate, `{"model":"m","prompt":"x","think":3}`, "think"},
		"ollama context":                  {ollama.Generate, `{"model":"m","prompt":"x","context":[1,2]}`, "context"},
		"ollama type":                     {ollama.Generate, `{"model":"m","prompt":5}`, "prompt"},
		"responses without input":         {responses.New(nil), `{"model":"m"}`, "input"},
		"responses unknown item":          {responses.New(nil), `{"model":"m","input":[{"type":"computer_call"}]}`, "input[0].type"},
		"responses reference":             {responses.New(nil), `{"model":"m","input":[{"type":"item_reference","id":"x"}]}`, "input[0]"},
		"responses call without id":       {responses.New(nil), `{"model":"m","input":[{"type":"function_call","name":"x"}]}`, "input[0]"},
		"responses part":                  {responses.New(nil), `{"model":"m","input":[{"role":"user","content":[{"type":"input_audio"}]}]}`, "input[0].content[0].type"},
		"responses tool":                  {responses.New(nil), `{"model":"m","input":"a","tools":[{"type":"web_search"}],"tool_choice":"required"}`, "tools[0].type"},
		"responses named tool":            {responses.New(nil), `{"model":"m","input":"a","tools":[{"type":"web_search"}],"tool_choice":{"type":"web_search"}}`, "tool_choice"},
		"responses background":            {responses.New(nil), `{"model":"m","input":"a","background":true}`, "background"},
		"responses unknown previous":      {responses.New(&responses.Store{}), `{"model":"m","input":"a","previous_response_id":"resp_1"}`, "previous_response_id"},
		"responses tool_choice of server": {responses.New(nil), `{"model":"m","input":"a","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"file_search"}}`, "tool_choice"},
	} {
		_, _, err := c.d.Decode([]byte(c.body), about())
		e := refusal(err)
		must.NotNil(t, e, must.Sprint(name))
		must.NotNil(t, e.Param, must.Sprint(name, err))
		must.Eq(t, c.param, *e.Param, must.Sprint(name))
		must.Between(t, 400, e.Status, 404)
		status, body := c.d.Fail(e, about())
		must.Eq(t, e.Status, status)
		must.True(t, json.Valid(body))
	}
}

// Tools that run on OpenAI's servers are dropped if the model is free to choose, as Codex sends
// them with every request.
func TestResponsesHostedTools(t *testing.T) {
	t.Parallel()
	for choice, want := range map[string]string{
		``: `"tools":[{`, `,"tool_choice":"auto"`: `"tools":[{`, `,"tool_choice":"required"`: `"tool_choice":"required"`,
	} {
		r, _, err := responses.New(nil).Decode([]byte(`{"model":"m","input":"a","tools":[{"type":"namespace","name":"n","tools":[]},{"type":"function","name":"f"},{"type":"web_search"}]`+choice+`}`), about())
		must.NoError(t, err)
		must.StrContains(t, string(r.Body), want)
		must.StrContains(t, string(r.Body), `"name":"f"`)
		must.StrNotContains(t, string(r.Body), "web_search")
		must.StrNotContains(t, string(r.Body), "namespace")
	}
	r, _, err := responses.New(nil).Decode([]byte(`{"model":"m","input":"a","tools":[{"type":"web_search"}],"tool_choice":"auto"}`), about())
	must.NoError(t, err)
	must.StrNotContains(t, string(r.Body), "tool") // a tool choice without tools would be refused
}

// chunks is an answer with every kind of part, split as a worker may split it.
func chunks() []dialect.Chunk {
	return []dialect.Chunk{
		{},
		{Reasoning: "a\""},
		{Reasoning: "b"},
		{Text: "c\n"},
		{Text: "dé"},
		{Calls: []dialect.CallPart{{Index: 0, ID: "call_1", Name: "f"}}},
		{Calls: []dialect.CallPart{{Index: 0, Arguments: `{"x"`}}},
		{Calls: []dialect.CallPart{{Index: 0, Arguments: `:1}`}, {Index: 1, ID: "call_2", Name: "g", Arguments: `{}`}}},
		{Finish: openai.FinishToolCalls},
		{Usage: &openai.Usage{PromptTokens: 3, CompletionTokens: 4, TotalTokens: 7}},
	}
}

// told is what a client reads from an answer, in any dialect.
type told struct {
	text, reasoning string
	calls           []string
	out             float64
}

// read parses the lines and events of every dialect as a client does.
func read(t *testing.T, body string) told {
	t.Helper()
	var all told
	calls := map[string]string{}
	order := []string{}
	open := ""
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "data:"))
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var v map[string]any
		must.NoError(t, json.Unmarshal([]byte(line), &v), must.Sprint(line))
		get := func(path ...string) any {
			var at any = v
			for _, p := range path {
				m, _ := at.(map[string]any)
				at = m[p]
			}
			return at
		}
		str := func(path ...string) string { s, _ := get(path...).(string); return s }
		begin := func(name string) { open = name; order = append(order, name) }
		switch typ := str("type"); typ {
		case "content_block_start":
			if str("content_block", "type") == "tool_use" {
				begin(str("content_block", "name"))
			}
		case "content_block_delta":
			all.text += str("delta", "text")
			all.reasoning += str("delta", "thinking")
			calls[open] += str("delta", "partial_json")
		case "message_delta":
			all.out, _ = get("usage", "output_tokens").(float64)
		case "response.output_item.added":
			if str("item", "type") == "function_call" {
				begin(str("item", "name"))
			}
		case "response.output_text.delta":
			all.text += str("delta")
		case "response.reasoning_text.delta":
			all.reasoning += str("delta")
		case "response.function_call_arguments.delta":
			calls[open] += str("delta")
		case "response.completed":
			all.out, _ = get("response", "usage", "output_tokens").(float64)
		case "":
			all.text += str("message", "content") + str("response")
			all.reasoning += str("message", "thinking") + str("thinking")
			list, _ := get("message", "tool_calls").([]any)
			for _, c := range list {
				f := c.(map[string]any)["function"].(map[string]any)
				args, err := json.Marshal(f["arguments"])
				must.NoError(t, err)
				begin(f["name"].(string))
				calls[open] = string(args)
			}
			if n, ok := v["eval_count"].(float64); ok {
				all.out = n
			}
		}
	}
	for _, name := range order {
		all.calls = append(all.calls, name+calls[name])
	}
	return all
}

func TestStreams(t *testing.T) {
	t.Parallel()
	for name, c := range dialects() {
		request, enc, err := c.d.Decode([]byte(c.body), about())
		must.NoError(t, err)
		must.True(t, request.Stream)
		var body []byte
		for _, chunk := range chunks() {
			body = enc.Chunk(body, chunk)
		}
		body = enc.End(enc.Alive(body))
		want := told{"c\ndé", `a"b`, []string{`f{"x":1}`, `g{}`}, 4}
		if name == "generate" {
			want.calls = nil // it supports no tools
		}
		must.Eq(t, want, read(t, string(body)), must.Sprintf("%s: %s", name, body))
		must.StrContains(t, string(enc.Error(nil, openai.Invalid("a", "wrong"))), "wrong")
	}
}

// An answer that a client sends back as history keeps its meaning.
func TestHistories(t *testing.T) {
	t.Parallel()
	const want = `[{"role":"system","content":"s"},{"role":"user","content":"q"},` +
		`{"role":"assistant","content":null,"reasoning_content":"r","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},` +
		`{"role":"tool","content":"out","tool_call_id":"call_1"}]`
	for name, c := range map[string]struct {
		d    dialect.Dialect
		body string
	}{
		"anthropic": {anthropic.Messages, `{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},
			{"role":"assistant","content":[{"type":"thinking","thinking":"r","signature":"zz"},{"type":"tool_use","id":"call_1","name":"f","input":{"x":1}}]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"call_1","content":[{"type":"text","text":"out"}]}]}]}`},
		"responses": {responses.New(nil), `{"model":"m","instructions":"s","input":[{"role":"user","content":[{"type":"input_text","text":"q"}]},
			{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"r"}]},{"type":"function_call","call_id":"call_1","name":"f","arguments":"{\"x\":1}"},
			{"type":"function_call_output","call_id":"call_1","output":"out"}]}`},
		"ollama": {ollama.Chat, `{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},
			{"role":"assistant","content":"","thinking":"r","tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","tool_name":"f","content":"out"}]}`},
	} {
		request, _, err := c.d.Decode([]byte(c.body), about())
		must.NoError(t, err, must.Sprint(name))
		var got struct{ Messages json.RawMessage }
		must.NoError(t, json.Unmarshal(request.Body, &got))
		text := string(got.Messages)
		if name == "ollama" { // it has no null
			text = strings.Replace(text, `"role":"assistant","content":""`, `"role":"assistant","content":null`, 1)
		}
		must.Eq(t, want, text, must.Sprint(name))
	}
}

// Blocks in a tool result have no nested blocks: decoding them would read the innermost once per
// level.
func TestMessagesResultBlocks(t *testing.T) {
	t.Parallel()
	ask := func(content string) error {
		_, _, err := anthropic.Messages.Decode([]byte(`{"model":"m","max_tokens":9,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":`+content+`}]}]}`), about())
		return err
	}
	must.NoError(t, ask(`[{"type":"text","text":"x","content":5}]`))
	must.NoError(t, ask(`"x"`))
	must.NoError(t, ask(`null`))
	must.Eq(t, "messages[0].content[0].content", *refusal(ask(`5`)).Param)
}

// A count request has the same conversation as the request for its answer.
func TestCounts(t *testing.T) {
	t.Parallel()
	store := &responses.Store{}
	for name, c := range map[string]struct {
		count, answer dialect.Dialect
		body, want    string
	}{
		"anthropic": {anthropic.CountTokens, anthropic.Messages, `{"model":"m","max_tokens":5,"system":"s","messages":[{"role":"user","content":"hi"}],"tools":[{"name":"x"}]}`, `{"input_tokens":5}`},
		"responses": {responses.CountTokens(store), responses.New(store), `{"model":"m","instructions":"s","input":"hi","max_output_tokens":5}`, `{"object":"response.input_tokens","input_tokens":5}`},
	} {
		count, enc, err := c.count.Decode([]byte(c.body), about())
		must.NoError(t, err, must.Sprint(name))
		answer, _, err := c.answer.Decode([]byte(c.body), about())
		must.NoError(t, err)
		must.Eq(t, dialect.PathInputTokens, count.Path)
		must.Eq(t, string(answer.Body), string(count.Body), must.Sprint(name))
		a, err := dialect.ParseAnswer([]byte(`{"input_tokens":5}`))
		must.NoError(t, err)
		body, err := enc.Whole(a)
		must.NoError(t, err)
		must.Eq(t, c.want, string(body))
		_, err = enc.Whole(dialect.Answer{})
		must.Error(t, err)
		must.StrContains(t, string(enc.Error(nil, openai.Invalid("a", "wrong"))), "wrong")
	}
	_, _, err := anthropic.CountTokens.Decode([]byte(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`), about())
	must.NoError(t, err) // it needs no max_tokens
}

func TestParseManyValues(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("{},", openai.MaxValues)
	_, err := dialect.ParseAnswer([]byte(`{"choices":[` + many + `{}]}`))
	must.Error(t, err)
	_, err = dialect.ParseChunk([]byte(`{"choices":[` + many + `{}]}`))
	must.Error(t, err)
	got, err := dialect.ParseAnswer([]byte(`{"data":[{"index":0,"embedding":[` + strings.Repeat("1,", openai.MaxValues) + `1]}]}`))
	must.NoError(t, err)
	must.Len(t, 1, got.Vectors)
	_, err = dialect.ParseAnswer([]byte(`{"data":[` + strings.Repeat("{},", openai.MaxInputs) + `{}]}`))
	must.ErrorContains(t, err, "2049 embeddings")
	got, err = dialect.ParseAnswer([]byte(`{"data":null}`))
	must.NoError(t, err)
	must.Len(t, 0, got.Vectors)
}

// The arguments of a call arrive in many small parts: joining them takes memory linear in their
// length.
func TestCallsMemory(t *testing.T) { // not parallel: it counts allocations
	const n = 1 << 16
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var c dialect.Calls
	for range n {
		c.Add([]dialect.CallPart{{ID: "a", Name: "f", Arguments: "x"}})
	}
	list := c.List()
	runtime.ReadMemStats(&after)
	must.Eq(t, []dialect.Call{{ID: "a", Name: "f", Arguments: strings.Repeat("x", n)}}, list)
	must.Less(t, 16*n, int(after.TotalAlloc-before.TotalAlloc))
}

func FuzzDecode(f *testing.F) {
	for _, c := range dialects() {
		f.Add([]byte(c.body))
	}
	f.Add([]byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":null}]}],"tools":[{"name":"x"}],"tool_choice":{"type":"any"}}`))
	f.Add([]byte(`{"model":"m","input":[{"type":"reasoning","content":[{"text":"a"}]},{"role":"assistant","content":"b"}],"text":{"format":{"type":"json_schema"}}}`))
	all := dialects()
	for name, d := range map[string]dialect.Dialect{"count": anthropic.CountTokens, "size": responses.CountTokens(&responses.Store{})} {
		c := all[name]
		c.d = d
		all[name] = c
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for name, c := range all {
			request, enc, err := c.d.Decode(body, about())
			if err != nil {
				if e := refusal(err); e == nil || e.Status < 400 {
					t.Fatalf("%s: %v is no error about the request", name, err)
				}
				continue
			}
			if !json.Valid(request.Body) {
				t.Fatalf("%s: %s", name, request.Body)
			}
			out := enc.End(enc.Chunk(nil, dialect.Chunk{Text: string(body)}))
			if len(out) == 0 || !strings.HasSuffix(string(out), "\n") {
				t.Fatalf("%s: %q", name, out)
			}
		}
	})
}

// FuzzChunk feeds encoders what a hostile worker may send.
func FuzzChunk(f *testing.F) {
	f.Add([]byte(`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":-1},{"index":9999999,"id":"a"}]},"finish_reason":"x"}],"usage":{}}`))
	all := dialects()
	f.Fuzz(func(t *testing.T, data []byte) {
		chunk, err := dialect.ParseChunk(data)
		if err != nil {
			return
		}
		for name, c := range all {
			_, enc, err := c.d.Decode([]byte(c.body), about())
			must.NoError(t, err)
			out := enc.End(enc.Chunk(enc.Chunk(nil, chunk), chunk))
			for line := range strings.Lines(string(out)) {
				if data, ok := strings.CutPrefix(line, "data:"); ok && !json.Valid([]byte(data)) {
					t.Fatalf("%s: %s", name, line)
				}
			}
		}
		_, _ = dialect.ParseAnswer(data)
	})
}

// TestAnthropicContinues continues an answer from the assistant's last message, as the API does.
func TestAnthropicContinues(t *testing.T) {
	t.Parallel()
	for last, want := range map[string]bool{
		`{"role":"assistant","content":"The queen"}`: true, `{"role":"assistant","content":[{"type":"text","text":"The queen"}]}`: true,
		`{"role":"user","content":"b"}`: false, `{"role":"assistant","content":" "}`: false,
		`{"role":"assistant","content":[{"type":"text","text":"a"},{"type":"tool_use","id":"t","name":"f","input":{}}]}`: false,
	} {
		request, _, err := anthropic.Messages.Decode([]byte(`{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"},`+last+`]}`), about())
		must.NoError(t, err, must.Sprint(last))
		must.Eq(t, want, bytes.Contains(request.Body, []byte(`"continue_final_message":true,"add_generation_prompt":false`)), must.Sprint(last))
	}
}

// FuzzRoundTrip sends an answer back as history: what the client received whole, repeated in the
// conversation, keeps the worker's meaning.
func FuzzRoundTrip(f *testing.F) {
	f.Add("text", "thought", "f", `{"x":1}`)
	f.Add("", "", "a_b-c", `{}`)
	f.Add("a\u2028\"\\\n", "", "", "")
	f.Fuzz(func(t *testing.T, text, reasoning, name, arguments string) {
		for _, s := range []string{text, reasoning, name, arguments} { // two halves may combine into one letter
			if !utf8.ValidString(s) {
				return // workers send valid JSON
			}
		}
		if text == "" && name == "" {
			return // an answer is never empty
		}
		answer := dialect.Answer{Text: text, Reasoning: reasoning, Finish: openai.FinishStop}
		if name != "" {
			answer.Calls = []dialect.Call{{ID: "call_1", Name: name, Arguments: string(dialect.Object(arguments))}}
		}
		var content bytes.Buffer
		if name != "" {
			must.NoError(t, json.Compact(&content, []byte(answer.Calls[0].Arguments)))
			answer.Calls[0].Arguments = content.String()
		}
		for dialectName, c := range map[string]struct {
			d    dialect.Dialect
			body string // body of the first request
			next func(whole map[string]json.RawMessage) string
		}{
			"anthropic": {anthropic.Messages, `{"model":"m","max_tokens":9,"thinking":{"type":"enabled"},"messages":[{"role":"user","content":"q"}]}`, func(w map[string]json.RawMessage) string {
				return `{"model":"m","max_tokens":9,"messages":[{"role":"assistant","content":` + string(w["content"]) + `}]}`
			}},
			"responses": {responses.New(&responses.Store{}), `{"model":"m","input":"q"}`, func(w map[string]json.RawMessage) string {
				return `{"model":"m","input":` + string(w["output"]) + `}`
			}},
			"ollama": {ollama.Chat, `{"model":"m","stream":false,"messages":[{"role":"user","content":"q"}]}`, func(w map[string]json.RawMessage) string {
				return `{"model":"m","messages":[` + string(w["message"]) + `]}`
			}},
		} {
			_, enc, err := c.d.Decode([]byte(c.body), about())
			must.NoError(t, err)
			whole, err := enc.Whole(answer)
			must.NoError(t, err)
			var fields map[string]json.RawMessage
			must.NoError(t, json.Unmarshal(whole, &fields))
			request, _, err := c.d.Decode([]byte(c.next(fields)), about())
			must.NoError(t, err, must.Sprintf("%s: %s", dialectName, whole))
			var got struct {
				Messages []struct {
					Role      string             `json:"role"`
					Content   string             `json:"content"`
					Reasoning string             `json:"reasoning_content"`
					ToolCalls []dialect.ToolCall `json:"tool_calls"`
				} `json:"messages"`
			}
			must.NoError(t, json.Unmarshal(request.Body, &got))
			must.Len(t, 1, got.Messages, must.Sprintf("%s: %s", dialectName, request.Body))
			m := got.Messages[0]
			must.Eq(t, "assistant", m.Role)
			must.Eq(t, text, m.Content, must.Sprint(dialectName))
			must.Eq(t, reasoning, m.Reasoning, must.Sprint(dialectName))
			must.Len(t, len(answer.Calls), m.ToolCalls)
			for i, call := range m.ToolCalls {
				must.Eq(t, name, call.Function.Name)
				var args bytes.Buffer
				must.NoError(t, json.Compact(&args, []byte(call.Function.Arguments)))
				must.Eq(t, answer.Calls[i].Arguments, args.String(), must.Sprint(dialectName))
			}
		}
	})
}

// BenchmarkChunk measures the cost of a token beyond that of OpenAI's own stream, which passes
// through.
func BenchmarkChunk(b *testing.B) {
	event := []byte(`{"id":"chatcmpl-0123456789ab","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`)
	for name, c := range dialects() {
		b.Run(name, func(b *testing.B) {
			_, enc, err := c.d.Decode([]byte(c.body), about())
			must.NoError(b, err)
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				chunk, err := dialect.ParseChunk(event)
				if err != nil {
					b.Fatal(err)
				}
				out = enc.Chunk(out[:0], chunk)
			}
		})
	}
}

func TestFailStatus(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{400: "invalid_request_error", 401: "authentication_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 502: "api_error"} {
		got, body := anthropic.Fail(openai.NewError(status, "x", "", "", "why"), about())
		must.Eq(t, status, got)
		must.Eq(t, fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":"why"},"request_id":"r"}`+"\n", want), string(body))
	}
	got, _ := anthropic.Fail(openai.NewError(http.StatusServiceUnavailable, "x", "", openai.CodeOverloaded, "why"), about())
	must.Eq(t, anthropic.StatusOverloaded, got)
}
