package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shoenig/test/must"
)

func TestDecodeChat(t *testing.T) {
	t.Parallel()
	r, err := DecodeChat([]byte(`{
		"model":"m","messages":[
			{"role":"system","content":"s"},
			{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
			{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},
			{"role":"tool","tool_call_id":"1","content":"r"}],
		"temperature":0,"top_p":0.9,"top_k":40,"min_p":0.1,"seed":-5,"max_tokens":5,"max_completion_tokens":6,"stop":"x","stream":true,
		"stream_options":{"include_usage":true},"n":2,"logit_bias":{"5":-100},"frequency_penalty":-2,"presence_penalty":2,"repeat_penalty":1.1,
		"logprobs":true,"top_logprobs":3,"ignore_eos":true,"response_format":{"type":"json_schema","json_schema":{"schema":{}}},"tools":[{"type":"function","function":{"name":"f"}}],"a_field_of_tomorrow":[1]}`))
	must.NoError(t, err)
	must.Eq(t, 4, len(r.Messages))
	text, other := r.Messages[1].Content.PlainText()
	must.Eq(t, "ab", text)
	must.Eq(t, "", other)
	must.Eq(t, 0.0, *r.Temperature)
	must.Eq(t, 6, r.MaxOutput())
	must.Eq(t, Stop{"x"}, r.Stop)
	must.True(t, r.IncludeUsage())
	must.Eq(t, -5, *r.Seed)
	must.Eq(t, "f", r.Messages[2].ToolCalls[0].Function.Name)

	r, err = DecodeChat([]byte(`{"messages":[{"role":"user","content":""}],"stop":["a","b"],"temperature":null,"max_tokens":null,"stop_sequences":1}`))
	must.NoError(t, err)
	must.Eq(t, Stop{"a", "b"}, r.Stop)
	must.Nil(t, r.Temperature)
	must.Eq(t, 0, r.MaxOutput())
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	many := make([]string, MaxStops+1)
	for i := range many {
		many[i] = `"x"`
	}
	for body, c := range map[string]struct{ param, says string }{
		``:                               {"", "is empty"},
		"  \n":                           {"", "is empty"},
		`[]`:                             {"", "must be a JSON object"},
		`"x"`:                            {"", "must be a JSON object"},
		`{`:                              {"", "not valid JSON"},
		`{"a":}`:                         {"", "not valid JSON at byte 6"},
		`{} {}`:                          {"", "not valid JSON"},
		`{"messages":[]}`:                {"messages", "at least one"},
		`{"messages":5}`:                 {"messages", "messages must be an array, not a number"},
		`{"messages":["x"]}`:             {"messages", "messages must be an object, not a string"},
		`{"messages":[{"content":"x"}]}`: {"messages[0].role", "missing"},
		`{"messages":[{"role":"king"}]}`: {"messages[0].role", `"king" is unknown`},
		`{"messages":[{"role":"user","content":7}]}`:              {"messages.content", "a string or an array of parts, not a number"},
		`{"messages":[{"role":"user","content":{"a":1}}]}`:        {"messages.content", "a string or an array of parts, not an object"},
		`{"messages":[{"role":"user","content":[1]}]}`:            {"messages.content", "array of objects"},
		msg(`"temperature":"hot"`):                                {"temperature", "temperature must be a number, not a string"},
		msg(`"temperature":2.1`):                                  {"temperature", "between 0 and 2"},
		msg(`"top_p":-0.1`):                                       {"top_p", "between 0 and 1"},
		msg(`"min_p":1.5`):                                        {"min_p", "between 0 and 1"},
		msg(`"top_k":-2`):                                         {"top_k", "-1 or more"},
		msg(`"top_k":1.5`):                                        {"top_k", "top_k must be an integer, not 1.5"},
		msg(`"seed":1.5`):                                         {"seed", "seed must be an integer, not 1.5"},
		msg(`"seed":"1"`):                                         {"seed", "seed must be an integer, not a string"},
		msg(`"max_tokens":-2`):                                    {"max_tokens", "-1 or more"},
		msg(`"max_completion_tokens":-2`):                         {"max_completion_tokens", "-1 or more"},
		msg(`"stop":""`):                                          {"stop", "empty string"},
		msg(`"stop":[1]`):                                         {"stop", "a string or an array of strings"},
		msg(`"stop":{}`):                                          {"stop", "a string or an array of strings, not an object"},
		msg(`"stop":[` + strings.Join(many, ",") + `]`):           {"stop", "at most 16"},
		msg(`"stop":"` + strings.Repeat("x", 600) + `"`):          {"stop", "600 bytes"},
		msg(`"stream":"yes"`):                                     {"stream", "true or false"},
		msg(`"stream":true,"stream_options":{"include_usage":1}`): {"stream_options.include_usage", "true or false"},
		msg(`"n":0`):                                              {"n", "between 1 and 128"},
		msg(`"logit_bias":{"x":true}`):                            {"logit_bias", "an object from token ids to numbers"},
		msg(`"logit_bias":[["x"]]`):                               {"logit_bias", "an array of such pairs"},
		msg(`"logit_bias":[[1.5,1]]`):                             {"logit_bias", "an array of such pairs"},
		msg(`"logit_bias":7`):                                     {"logit_bias", "not a number"},
		msg(`"logit_bias":[` + strings.Repeat(`[1,1],`, 1_000_000) + `[1,1]]`): {"logit_bias", "more than 4096"},
		msg(`"samplers":[1]`):                                             {"samplers", "an array of names"},
		msg(`"samplers":"` + strings.Repeat("k", 99) + `"`):               {"samplers", "99 entries"},
		msg(`"typical_p":2`):                                              {"typical_p", "between 0 and 1"},
		msg(`"xtc_probability":-1`):                                       {"xtc_probability", "between 0 and 1"},
		msg(`"dry_allowed_length":0`):                                     {"dry_allowed_length", "1 or more"},
		msg(`"dry_sequence_breakers":[""]`):                               {"dry_sequence_breakers", "empty string"},
		msg(`"repeat_last_n":-2`):                                         {"repeat_last_n", "-1 or more"},
		msg(`"mirostat":3`):                                               {"mirostat", "between 0 and 2"},
		msg(`"logit_bias":{"-1":1}`):                                      {"logit_bias", "token ids"},
		msg(`"logit_bias":{"5":101}`):                                     {"logit_bias", "between -100 and 100"},
		msg(`"frequency_penalty":3`):                                      {"frequency_penalty", "between -2 and 2"},
		msg(`"presence_penalty":-3`):                                      {"presence_penalty", "between -2 and 2"},
		msg(`"repeat_penalty":0`):                                         {"repeat_penalty", "between"},
		msg(`"top_logprobs":3`):                                           {"top_logprobs", "needs logprobs"},
		msg(`"logprobs":true,"top_logprobs":21`):                          {"top_logprobs", "between 0 and 20"},
		msg(`"response_format":{"type":"xml"}`):                           {"response_format.type", `"xml" is unknown`},
		msg(`"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200)): {"", "deeper than 128"},
	} {
		t.Run(body[:min(len(body), 60)], func(t *testing.T) {
			t.Parallel()
			_, err := DecodeChat([]byte(body))
			e, ok := errors.AsType[*Error](err)
			must.True(t, ok, must.Sprint(err))
			must.Eq(t, http.StatusBadRequest, e.Status)
			must.Eq(t, TypeInvalidRequest, e.Type)
			must.StrContains(t, e.Message, c.says)
			if c.param == "" {
				must.Nil(t, e.Param)
			} else {
				must.NotNil(t, e.Param, must.Sprint(e.Message))
				must.Eq(t, c.param, *e.Param)
			}
		})
	}
}

func msg(more string) string {
	return `{"messages":[{"role":"user","content":"x"}],` + more + `}`
}

func TestDecodeNumbers(t *testing.T) {
	t.Parallel()
	for spelling, want := range map[string]int{
		"100": 100, "100.0": 100, "1e2": 100, "-1": 0, "-1.0": 0, "0": 0, "2147483648": math.MaxInt32, "1e30": math.MaxInt32, "null": 0,
	} {
		r, err := DecodeChat([]byte(msg(`"max_tokens":` + spelling)))
		must.NoError(t, err, must.Sprint(spelling))
		must.Eq(t, want, r.MaxOutput(), must.Sprint(spelling))
		must.Eq(t, spelling == "0", r.NoOutput(), must.Sprint(spelling))
	}
	r, err := DecodeCompletion([]byte(`{"prompt":"x","n_predict":7,"seed":18446744073709551615,"top_logprobs":0,"stream_options":{"include_usage":true}}`))
	must.NoError(t, err)
	must.Eq(t, 7, r.MaxOutput())
	must.Eq(t, math.MaxInt64, *r.Seed)
}

func TestShape(t *testing.T) {
	t.Parallel()
	for more, want := range map[string]Shape{
		`"response_format":null`:                    {},
		`"response_format":{"type":"text"}`:         {},
		`"grammar":"","guided_json":null`:           {},
		`"response_format":{"type":"json_object"}`:  {Kind: ShapeSchema, Text: `{"type":"object"}`, Param: "response_format", Path: "response_format"},
		`"json_schema":{"type":"null"}`:             {Kind: ShapeSchema, Text: `{"type":"null"}`, Param: "json_schema", Path: "json_schema"},
		`"guided_json":"{\"type\":\"null\"}"`:       {Kind: ShapeSchema, Text: `{"type":"null"}`, Param: "guided_json", Path: "guided_json"},
		`"grammar":"root ::= \"x\""`:                {Kind: ShapeGrammar, Text: `root ::= "x"`, Param: "grammar", Path: "grammar"},
		`"guided_regex":"a+"`:                       {Kind: ShapeRegex, Text: "a+", Param: "guided_regex", Path: "guided_regex"},
		`"guided_choice":["a","b"]`:                 {Kind: ShapeChoice, Choices: []string{"a", "b"}, Param: "guided_choice", Path: "guided_choice"},
		`"guided_grammar":"root ::= x"`:             {Kind: ShapeGrammar, Text: "root ::= x", Param: "guided_grammar", Path: "guided_grammar"},
		`"structured_outputs":{"regex":"a"}`:        {Kind: ShapeRegex, Text: "a", Param: "structured_outputs", Path: "structured_outputs.regex"},
		`"structured_outputs":{"json_object":true}`: {Kind: ShapeSchema, Text: `{"type":"object"}`, Param: "structured_outputs", Path: "structured_outputs.json_object"},
		`"structured_outputs":{"choice":["x"]}`:     {Kind: ShapeChoice, Choices: []string{"x"}, Param: "structured_outputs", Path: "structured_outputs.choice"},
		`"response_format":{"type":"json_object","schema":true}`: {
			Kind: ShapeSchema, Text: "true", Param: "response_format", Path: "response_format.schema",
		},
		`"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"a":1}}}`: {
			Kind: ShapeSchema, Text: `{"a":1}`, Param: "response_format", Path: "response_format.json_schema.schema",
		},
		`"structured_outputs":{"json":{"a":1},"disable_any_whitespace":false}`: {
			Kind: ShapeSchema, Text: `{"a":1}`, Param: "structured_outputs", Path: "structured_outputs.json", Whitespace: true,
		},
	} {
		r, err := DecodeChat([]byte(msg(more)))
		must.NoError(t, err, must.Sprint(more))
		got, err := r.Shape()
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(more))
		c, err := DecodeCompletion([]byte(`{"prompt":"x",` + more + `}`))
		must.NoError(t, err, must.Sprint(more))
		got, err = c.Shape()
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(more))
	}
	shape := `"json_schema":{"description":"` + strings.Repeat("x", MaxShapeBytes) + `"}`
	choices := `"structured_outputs":{"choice":[` + strings.Repeat(`"x",`, MaxChoices+1) + `"x"]}`
	for more, param := range map[string]string{
		`"response_format":{"type":"json_schema"}`:                    "response_format",
		`"response_format":{"type":"json_schema","json_schema":5}`:    "response_format",
		`"response_format":{"type":"json_object"},"guided_regex":"x"`: "guided_regex",
		`"guided_choice":[]`:                               "guided_choice",
		`"guided_choice":[1]`:                              "guided_choice",
		`"structured_outputs":{"structural_tag":{}}`:       "structured_outputs",
		`"structured_outputs":{"regex":"x","grammar":"y"}`: "structured_outputs",
		shape:              "json_schema",
		`"guided_regex":5`: "guided_regex",
		choices:            "structured_outputs",
	} {
		_, err := DecodeChat([]byte(msg(more)))
		e, ok := errors.AsType[*Error](err)
		must.True(t, ok, must.Sprint(more[:min(len(more), 80)]))
		must.Eq(t, http.StatusBadRequest, e.Status)
		must.Eq(t, param, *e.Param)
	}
}

func TestDecodeManyValues(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("1,", MaxValues)
	for name, body := range map[string]string{
		"numbers":      `{"model":"m","messages":[` + many + `1]}`,
		"objects":      `{"model":"m","prompt":"p","messages":[` + strings.Repeat("{},", MaxValues) + `{}]}`,
		"after prompt": `{"prompt":[1,2],"model":"m","messages":[` + many + `1]}`,
		"beside it":    `{"model":"m","messages":[{"prompt":[` + many + `1]}]}`,
	} {
		_, err := DecodeChat([]byte(body))
		e, ok := errors.AsType[*Error](err)
		must.True(t, ok, must.Sprint(name))
		must.Eq(t, http.StatusRequestEntityTooLarge, e.Status, must.Sprint(name))
	}
	got, err := DecodeCompletion([]byte(`{"model":"m","prompt":[` + many + `1],"suffix":"},{,[,\",,"}`))
	must.NoError(t, err)
	must.Len(t, MaxValues+1, got.Prompt.Tokens[0])
	n, err := CheckValues([]byte(`{"a":[1,{"b":",[\\\"{"}],"input":[1,2,3],"c":null}`), "input")
	must.NoError(t, err)
	must.Eq(t, 7, n) // the object, its first member, the list and its two elements, and two further members
}

func TestDecodeLogitBias(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]LogitBias{
		`{"5":-100,"7":1.5}`:                {{ID: 5, Bias: -100}, {ID: 7, Bias: 1.5}},
		`{" bee":2,"5":false}`:              {{Text: " bee", Bias: 2}, {ID: 5, Bias: math.Inf(-1)}},
		`[[5,false],["bee",-1],["5",1]]`:    {{ID: 5, Bias: math.Inf(-1)}, {Text: "bee", Bias: -1}, {ID: 5, Bias: 1}},
		`[]`:                                nil,
		`null`:                              nil,
		`{"1":0.0000000000000000000000001}`: {{ID: 1, Bias: 1e-25}},
	} {
		r, err := DecodeChat([]byte(msg(`"logit_bias":` + text)))
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want, r.LogitBias)
		b, err := json.Marshal(r)
		must.NoError(t, err)
		again, err := DecodeChat(b)
		must.NoError(t, err)
		must.Eq(t, want, again.LogitBias)
	}
}

func TestDecodeCompletion(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]Prompt{
		`{"prompt":"a"}`:            {Texts: []string{"a"}},
		`{"prompt":["a","b"]}`:      {Texts: []string{"a", "b"}},
		`{"prompt":[1,2]}`:          {Tokens: [][]int32{{1, 2}}},
		`{"prompt":[[1],[2,3]]}`:    {Tokens: [][]int32{{1}, {2, 3}}},
		`{"prompt":"","suffix":""}`: {Texts: []string{""}},
	} {
		r, err := DecodeCompletion([]byte(body))
		must.NoError(t, err)
		must.Eq(t, want, r.Prompt)
		must.Eq(t, DefaultCompletionTokens, r.MaxOutput())
	}
	for _, body := range []string{`{}`, `{"prompt":null}`, `{"prompt":5}`, `{"prompt":{}}`, `{"prompt":["a",1]}`, `{"prompt":[99999999999]}`, `{"prompt":"a","logprobs":21}`, `{"prompt":"a","best_of":0}`} {
		_, err := DecodeCompletion([]byte(body))
		must.Error(t, err, must.Sprint(body))
	}
}

// A server reads what a client writes.
func TestRequestRoundTrip(t *testing.T) {
	t.Parallel()
	in := ChatRequest{
		Model:    "m",
		Messages: []Message{{Role: "user", Content: TextContent("hi")}, {Role: "user", Content: Content{Parts: []Part{{Type: "text", Text: "x"}}}}},
		Sampling: Sampling{Temperature: new(0.0), Stop: Stop{"a"}, MaxTokens: new(Int(3)), Seed: new(Int(math.MaxInt64)), LogitBias: LogitBias{{ID: 3, Bias: -5}}, Samplers: Samplers{Names: []string{"top_k"}}, Stream: true, StreamOptions: &StreamOptions{IncludeUsage: true}},
	}
	b, err := json.Marshal(in)
	must.NoError(t, err)
	out, err := DecodeChat(b)
	must.NoError(t, err)
	must.Eq(t, in, *out)
	for _, p := range []Prompt{TextPrompt("x"), {Texts: []string{"a", "b"}}, {Tokens: [][]int32{{1, 2}}}, {Tokens: [][]int32{{1}, {2}}}} {
		b, err := json.Marshal(CompletionRequest{Prompt: p})
		must.NoError(t, err)
		out, err := DecodeCompletion(b)
		must.NoError(t, err)
		must.Eq(t, p, out.Prompt)
	}
}

func TestContentWithPictures(t *testing.T) {
	t.Parallel()
	r, err := DecodeChat([]byte(`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}}]}]}`))
	must.NoError(t, err)
	_, other := r.Messages[0].Content.PlainText()
	must.Eq(t, "image_url", other)
}

func TestPeekHead(t *testing.T) {
	t.Parallel()
	h, err := PeekHead([]byte(msg(`"model":"m","stream":true,"stream_options":{"include_usage":true},"temperature":99`)), 7)
	must.NoError(t, err)
	must.Eq(t, Head{Model: "m", Stream: true, IncludeUsage: true, Text: []byte("user\nx\n")}, h)
	h, err = PeekHead([]byte(`{"prompt":["abc","def"]}`), 6)
	must.NoError(t, err)
	must.Eq(t, "abc\nde", string(h.Text))
	h, err = PeekHead([]byte(`{"prompt":"abc"}`), 0)
	must.NoError(t, err)
	must.Len(t, 0, h.Text)
	_, err = PeekHead([]byte(`{"model":5}`), 0)
	e, ok := errors.AsType[*Error](err)
	must.True(t, ok)
	must.Eq(t, "model", *e.Param)
}

func TestReadBody(t *testing.T) {
	t.Parallel()
	b, err := ReadBody(strings.NewReader("12345"), 5)
	must.NoError(t, err)
	must.Eq(t, "12345", string(b))
	_, err = ReadBody(strings.NewReader("123456"), 5)
	e, ok := errors.AsType[*Error](err)
	must.True(t, ok)
	must.Eq(t, http.StatusRequestEntityTooLarge, e.Status)
	_, err = ReadBody(http.MaxBytesReader(httptest.NewRecorder(), http.NoBody, 5), math.MaxInt64-1)
	must.NoError(t, err)
}

// again decodes a request, encodes it, and checks that decoding it once more gives an equal
// request.
func again[R any](t *testing.T, body []byte, check func(error), decode func([]byte) (*R, error)) {
	r, err := decode(body)
	check(err)
	if err != nil {
		return
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("%T: %v", r, err)
	}
	second, err := decode(b)
	if err != nil {
		t.Fatalf("%T: %s: %v", r, b, err)
	}
	if d := cmp.Diff(r, second, cmpopts.EquateEmpty(), cmp.Exporter(func(reflect.Type) bool { return true })); d != "" {
		t.Fatalf("%T: %s: %s", r, b, d)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(msg(`"stop":["a"],"temperature":1`)))
	f.Add([]byte(`{"prompt":[[1,2],[3]],"logit_bias":{"1":2}}`))
	f.Add([]byte(`{"messages":[{"role":"user","content":[{"type":"text"}]}]}`))
	f.Add([]byte(msg(`"logit_bias":[[1,false],[" x",-5],["7",1e0]],"samplers":"kt","seed":1e99,"max_tokens":-1`)))
	f.Add([]byte(msg(`"logit_bias":{"1":false," x":2}}`)))
	f.Add([]byte(strings.Repeat("[", 100)))
	f.Add([]byte(`{"messages":null,"prompt":null,"stop":null}`))
	f.Add([]byte(`{"content":["a",1,"b"],"tokens":[1,2],"query":"q","documents":["a",{"text":"b"}],"top_n":1}`))
	f.Add([]byte(`{"content":[null,1.5],"tokens":[-1e9],"query":5,"texts":[{"text":null}],"documents":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		check := func(err error) {
			if err == nil {
				return
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Status != http.StatusBadRequest || e.Message == "" {
				t.Fatalf("%v is no error for a client", err)
			}
		}
		again(t, body, check, DecodeChat)
		again(t, body, check, DecodeCompletion)
		again(t, body, check, DecodeEmbedding)
		again(t, body, check, DecodeTokenize)
		again(t, body, check, DecodeDetokenize)
		again(t, body, check, DecodeRerank)
		again(t, body, check, DecodeNative)
		again(t, body, check, DecodeInfill)
		h, err := PeekHead(body, 10)
		check(err)
		if len(h.Text) > 10 {
			t.Fatal(fmt.Sprint("too much text: ", len(h.Text)))
		}
	})
}

func TestDecodePrompt(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Prompt{
		`"a"`: TextPrompt("a"), `["a","b"]`: {Texts: []string{"a", "b"}}, `[ ]`: {Texts: []string{}}, `null`: {},
		`[1,-2]`: {Tokens: [][]int32{{1, -2}}}, `[[1],[],[2,3]]`: {Tokens: [][]int32{{1}, {}, {2, 3}}},
		`["a,]\"",","]`: {Texts: []string{`a,]"`, ","}},
	} {
		var got Prompt
		must.NoError(t, json.Unmarshal([]byte(in), &got), must.Sprint(in))
		must.Eq(t, want, got, must.Sprint(in))
	}
	for _, in := range []string{`1`, `{}`, `true`, `[1,"a"]`, `["a",1]`, `[[1],"a"]`, `[[1],2]`, `[["a"]]`, `[null]`, `[true]`, `[{}]`, `[1.5]`, `[99999999999]`, `[[[1]]]`} {
		var got Prompt
		must.Error(t, json.Unmarshal([]byte(in), &got), must.Sprint(in))
		must.Eq(t, Prompt{}, got, must.Sprint(in))
	}
	_, err := DecodeCompletion([]byte(`{"prompt":[` + strings.Repeat(`"",`, MaxInputs) + `""]}`))
	must.StrContains(t, err.Error(), "2049 texts")
	_, err = DecodeCompletion([]byte(`{"prompt":[` + strings.Repeat(`[],`, MaxInputs) + `[]]}`))
	must.StrContains(t, err.Error(), "2049 texts")
}

// Decoding a prompt of tokens takes only a few bytes of memory for each byte of the body.
func TestPromptMemory(t *testing.T) { // not parallel: it counts allocations
	for name, body := range map[string]string{
		"tokens":         `{"prompt":[` + strings.Repeat("1,", 1<<20) + `1]}`,
		"list of tokens": `{"prompt":[[` + strings.Repeat("1,", 1<<20) + `1]]}`,
		"empty lists":    `{"prompt":[` + strings.Repeat("[],", 1<<20) + `[]]}`,
		"empty texts":    `{"prompt":[` + strings.Repeat(`"",`, 1<<20) + `""]}`,
		"then a text":    `{"prompt":[` + strings.Repeat("1,", 1<<20) + `"a"]}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = DecodeCompletion([]byte(body))
		runtime.ReadMemStats(&after)
		took := int(after.TotalAlloc-before.TotalAlloc) - len(body) // the body is copied into bytes
		must.Less(t, 4*len(body), took, must.Sprintf("%s: %d bytes for %d", name, took, len(body)))
	}
}
