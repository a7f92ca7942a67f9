package llamacpp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goopenai "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/shared"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

var schemaOfTool = map[string]string{
	"get_weather": `{"type":"object","properties":{"city":{"enum":["Bern","Paris"]},"days":{"type":"integer","minimum":0,"maximum":9},"tags":{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}},` +
		`"required":["city","days"],"additionalProperties":false,"$defs":{"t":{"type":"string","maxLength":4}}}`,
	"get_time": `{"type":"object","properties":{},"additionalProperties":false}`,
}

const someTools = `,"tools":[{"type":"function","function":{"name":"get_weather","description":"Weather of a city","strict":true,"parameters":%s}},` +
	`{"type":"function","function":{"name":"get_time"}}]`

func withTools(more string) string {
	return fmt.Sprintf(someTools, schemaOfTool["get_weather"]) + more
}

// checkToolCalls validates the calls against the schemas of their tools.
func checkToolCalls(t *testing.T, calls []openai.ToolCall) {
	t.Helper()
	must.SliceNotEmpty(t, calls)
	seen := map[string]bool{}
	for _, c := range calls {
		must.Eq(t, "function", c.Type)
		must.NotEq(t, "", c.ID)
		must.False(t, seen[c.ID])
		seen[c.ID] = true
		schema, ok := schemaOfTool[c.Function.Name]
		must.True(t, ok, must.Sprint(c.Function.Name))
		v, err := validator([]byte(schema))
		must.NoError(t, err)
		must.NoError(t, validate(v, c.Function.Arguments), must.Sprint(c.Function.Arguments))
	}
}

// calls assembles the calls of a stream.
func (s *streamed) calls(t *testing.T) []openai.ToolCall {
	t.Helper()
	var out []openai.ToolCall
	for _, c := range s.chunks {
		for _, choice := range c.Choices {
			for _, call := range choice.Delta.ToolCalls {
				must.NotNil(t, call.Index)
				if *call.Index == len(out) { // the first piece has name and id
					must.NotEq(t, "", call.ID)
					must.NotEq(t, "", call.Function.Name)
					out = append(out, openai.ToolCall{ID: call.ID, Type: call.Type, Function: openai.ToolFunction{Name: call.Function.Name}})
				} else {
					must.Eq(t, "", call.ID)
				}
				must.Eq(t, len(out)-1, *call.Index)
				out[*call.Index].Function.Arguments += call.Function.Arguments
			}
		}
	}
	return out
}

// TestRequiredTools samples calls at temperature 1: each is valid, and the same streamed and
// unstreamed. The two share their steps with different requests, so a draw near the border between
// two tokens may fall on the other side: two of eight may differ.
func TestRequiredTools(t *testing.T) {
	w := startWorker(t, 4, 1024, "")
	var wg sync.WaitGroup
	var mu sync.Mutex // guards below
	finished, differ := 0, 0
	for seed := range 8 {
		wg.Go(func() {
			body := func(more string) string {
				return question("What is the weather?", withTools(fmt.Sprintf(`,"tool_choice":"required","seed":%d,"temperature":1,"max_tokens":250`, seed))+more)
			}
			c := w.chat(t, body("")).Choices[0]
			s := w.stream(t.Context(), t, body(`,"stream":true`), nil)
			calls := s.calls(t)
			if c.FinishReason != s.finish || !slices.EqualFunc(c.Message.ToolCalls, calls, func(a, b openai.ToolCall) bool { return a.Function == b.Function }) {
				mu.Lock()
				differ++
				mu.Unlock()
			}
			must.Eq(t, "", s.text)
			if s.finish != openai.FinishLength {
				checkToolCalls(t, calls)
			}
			if c.FinishReason != openai.FinishLength {
				must.Eq(t, openai.FinishToolCalls, c.FinishReason)
				must.Nil(t, c.Message.Content)
				checkToolCalls(t, c.Message.ToolCalls)
				mu.Lock()
				finished++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	must.Positive(t, finished)
	must.LessEq(t, 2, differ)
}

func TestToolChoices(t *testing.T) {
	w := startWorker(t, 1, 1024, "")
	named := `,"max_tokens":250,"temperature":1,"seed":3,"tool_choice":{"type":"function","function":{"name":"get_weather"}},"parallel_tool_calls":false`
	c := w.chat(t, question("x", withTools(named))).Choices[0]
	must.Eq(t, openai.FinishToolCalls, c.FinishReason)
	must.SliceLen(t, 1, c.Message.ToolCalls)
	must.Eq(t, "get_weather", c.Message.ToolCalls[0].Function.Name)
	checkToolCalls(t, c.Message.ToolCalls)

	none := w.chat(t, question("What is 7 + 5?", withTools(`,"tool_choice":"none","max_tokens":30`))).Choices[0]
	must.Eq(t, w.chat(t, question("What is 7 + 5?", `,"max_tokens":30`)).Choices[0], none)
	must.SliceEmpty(t, none.Message.ToolCalls)

	old := `,"functions":[{"name":"get_time","parameters":` + schemaOfTool["get_time"] + `}],"function_call":{"name":"get_time"},"max_tokens":99`
	c = w.chat(t, question("x", old)).Choices[0]
	must.Eq(t, openai.FinishFunction, c.FinishReason)
	must.SliceEmpty(t, c.Message.ToolCalls)
	must.Eq(t, &openai.ToolFunction{Name: "get_time", Arguments: "{}"}, c.Message.FunctionCall)
	s := w.stream(t.Context(), t, question("x", old+`,"stream":true`), nil)
	must.Eq(t, openai.FinishFunction, s.finish)
	var joined openai.ToolFunction
	for _, chunk := range s.chunks {
		if f := chunk.Choices[0].Delta.FunctionCall; f != nil {
			joined.Name += f.Name
			joined.Arguments += f.Arguments
		}
	}
	must.Eq(t, *c.Message.FunctionCall, joined)
}

func TestToolsRefused(t *testing.T) {
	w := startWorker(t, 1, 1024, "")
	for name, c := range map[string]struct{ more, param, says string }{
		"strict":          {`,"tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"type":"object","properties":{"a":{"pattern":"(?<=x)y"}}}}}]`, "tools", `function "f" cannot be guaranteed at #/properties/a, pattern`},
		"grammar":         {withTools(`,"grammar":"root ::= \"x\""`), "grammar", "together with tools"},
		"response format": {withTools(`,"json_schema":{"pattern":"(?<=x)y"}`), "json_schema", "json_schema cannot be guaranteed at #, pattern"},
		"grammar, budget": {`,"grammar":"root ::= \"x\"","thinking_budget":5`, "grammar", "thinking budget"},
	} {
		status, e, _ := w.refused(t, "/v1/chat/completions", question("x", c.more))
		must.Eq(t, http.StatusBadRequest, status)
		must.StrContains(t, e.Message, c.says, must.Sprint(name))
		must.Eq(t, c.param, *e.Param)
	}
}

// With tools and a form, an answer is a call or has the form, streamed and unstreamed; with a
// thinking budget it also keeps its form.
func TestToolsBesideForm(t *testing.T) {
	w := startWorker(t, 2, 1024, "")
	const schema = `{"type":"array","items":{"type":"integer","minimum":0,"maximum":99},"minItems":1,"maxItems":3}`
	v, err := validator([]byte(schema))
	must.NoError(t, err)
	calls, contents := 0, 0
	for seed := range 12 {
		bias := "" // the model prefers calls
		if seed%2 == 0 {
			bias = `,"logit_bias":{"{\"":-100,"{":-100}`
		}
		body := func(more string) string {
			return question("Hm?", withTools(fmt.Sprintf(`,"seed":%d,"temperature":1,"max_tokens":250,%s%s`, seed, schemaForm(schema), bias+more)))
		}
		c := w.chat(t, body("")).Choices[0]
		s := w.stream(t.Context(), t, body(`,"stream":true`), nil)
		must.Eq(t, c.FinishReason, s.finish)
		must.Eq(t, len(c.Message.ToolCalls), len(s.calls(t)))
		switch c.FinishReason {
		case openai.FinishToolCalls:
			calls++
			must.Nil(t, c.Message.Content)
			checkToolCalls(t, c.Message.ToolCalls)
		case openai.FinishStop:
			contents++
			must.Eq(t, *c.Message.Content, s.text)
			must.NoError(t, validate(v, s.text), must.Sprint(s.text))
		}
	}
	t.Logf("%d calls, %d contents", calls, contents)
	must.Positive(t, calls)
	must.Positive(t, contents)
	c := w.chat(t, question("Hm?", withTools(`,"tool_choice":"required","max_tokens":250,"temperature":1,"seed":3,`+schemaForm(schema)))).Choices[0]
	checkToolCalls(t, c.Message.ToolCalls)
	c = w.chat(t, question("Hm?", `,"thinking_budget":3,"max_tokens":99,"temperature":1,`+schemaForm(schema))).Choices[0]
	must.NoError(t, validate(v, *c.Message.Content), must.Sprint(*c.Message.Content))
}

// An answer with a call, forced by a grammar with only one text, is split correctly, streamed and
// unstreamed.
func TestCallInAnswer(t *testing.T) {
	w := startWorker(t, 1, 512, "")
	m := w.served.model
	srv := &server{engine: w.served.engine, model: m, modelID: "m", now: time.Now}
	const said = "Let me see.\n<tool_call>{\"name\": \"get_time\", \"arguments\": {\"zone\": \"CET\"}}</tool_call>"
	g, err := grammar.CompileChoice([]string{said}, grammar.Options{})
	must.NoError(t, err)
	ask := func(stream bool) *httptest.ResponseRecorder {
		chat, err := openai.DecodeChat([]byte(question("x", withTools(""))))
		must.NoError(t, err)
		req := newRequest()
		var form *speech
		req.prompt, form, err = m.chatPrompt(t.Context(), chat, 512, time.Time{})
		must.NoError(t, err)
		must.Eq(t, "generic", form.format.Name)
		req.sampling, err = m.choose(&chat.Sampling)
		must.NoError(t, err)
		req.rule = &rule{grammar: g}
		f := newChatFormat("c", 1, "m", m, form)
		a := &ask{request: req, prompts: [][]token{req.prompt}, count: 1, best: 1, format: f, sampling: &chat.Sampling}
		chat.Stream = stream
		rec := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		srv.generate(rec, r, a, a.answers())
		return rec
	}
	var whole openai.ChatResponse
	must.NoError(t, json.Unmarshal(ask(false).Body.Bytes(), &whole))
	c := whole.Choices[0]
	must.Eq(t, openai.FinishToolCalls, c.FinishReason)
	must.Eq(t, "Let me see.", *c.Message.Content)
	must.SliceLen(t, 1, c.Message.ToolCalls)
	want := openai.ToolFunction{Name: "get_time", Arguments: `{"zone": "CET"}`}
	must.Eq(t, want, c.Message.ToolCalls[0].Function)

	s := readStream(t, ask(true).Body, nil)
	must.Eq(t, "Let me see.", s.text)
	must.Eq(t, openai.FinishToolCalls, s.finish)
	must.Eq(t, want, s.calls(t)[0].Function)
	must.True(t, s.done)
}

// OpenAI's own client runs a tool loop: it asks, gets a streamed call, sends the result and gets an
// answer.
func TestToolLoopOfClient(t *testing.T) {
	w := startWorker(t, 1, 1024, "")
	client := goopenai.NewClient(option.WithBaseURL(w.url+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
	var schema map[string]any
	must.NoError(t, json.Unmarshal([]byte(schemaOfTool["get_weather"]), &schema))
	params := goopenai.ChatCompletionNewParams{
		Model:     "rbee-tiny",
		Messages:  []goopenai.ChatCompletionMessageParamUnion{goopenai.UserMessage("What is the weather in Bern?")},
		Seed:      param.NewOpt[int64](5),
		MaxTokens: param.NewOpt[int64](200),
		Tools: []goopenai.ChatCompletionToolUnionParam{goopenai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
			Name: "get_weather", Parameters: schema, Strict: param.NewOpt(true),
		})},
		ToolChoice:        goopenai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("required")},
		ParallelToolCalls: param.NewOpt(false),
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var acc goopenai.ChatCompletionAccumulator
	finished := 0
	for stream.Next() {
		must.True(t, acc.AddChunk(stream.Current()))
		if call, ok := acc.JustFinishedToolCall(); ok {
			finished++
			must.Eq(t, "get_weather", call.Name)
		}
	}
	must.NoError(t, stream.Err())
	must.Eq(t, "tool_calls", acc.Choices[0].FinishReason)
	must.Eq(t, 1, finished)
	message := acc.Choices[0].Message
	must.SliceLen(t, 1, message.ToolCalls)
	v, err := validator([]byte(schemaOfTool["get_weather"]))
	must.NoError(t, err)
	must.NoError(t, validate(v, message.ToolCalls[0].Function.Arguments))

	params.Messages = append(params.Messages, message.ToParam(), goopenai.ToolMessage("sunny, 21 degrees", message.ToolCalls[0].ID))
	params.ToolChoice = goopenai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("none")}
	answer, err := client.Chat.Completions.New(t.Context(), params)
	must.NoError(t, err)
	must.SliceEmpty(t, answer.Choices[0].Message.ToolCalls)
	must.NotEq(t, "", answer.Choices[0].Message.Content)
}

// A template without tool support gets tools described in words, and calls and results as text.
func TestConversationInWords(t *testing.T) {
	t.Parallel()
	req, err := openai.DecodeChat([]byte(`{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Time?"},
		{"role":"assistant","content":"One moment.","tool_calls":[{"id":"c1","function":{"name":"get_time","arguments":"{\"zone\":\"CET\"}"}},{"id":"c2","function":{"name":"get_time","arguments":""}}]},
		{"role":"tool","tool_call_id":"c1","content":"noon"},{"role":"tool","tool_call_id":"c2","content":"dusk"}],"tools":[{"function":{"name":"get_time"}}]}`))
	must.NoError(t, err)
	tmpl, err := newChatTemplate(chatML, "", "", newControlTokens(nil))
	must.NoError(t, err)
	text, err := tmpl.render(t.Context(), req, time.Time{})
	must.NoError(t, err)
	system, rest, _ := strings.Cut(text.String(), "<|im_end|>\n")
	must.StrContains(t, system, "Be brief.\nYou can call these functions.")
	must.StrContains(t, system, `{"name":"get_time","parameters":{"type":"object"`)
	must.Eq(t, "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\nOne moment.\n{\"name\": \"get_time\", \"arguments\": {\"zone\":\"CET\"}}\n{\"name\": \"get_time\", \"arguments\": {}}<|im_end|>\n"+
		"<|im_start|>user\nResult of get_time:\nnoon\nResult of get_time:\ndusk<|im_end|>\n<|im_start|>assistant\n", rest)

	tmpl, err = newChatTemplate("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}", "", "", newControlTokens(nil))
	must.NoError(t, err)
	text, err = tmpl.render(t.Context(), req, time.Time{})
	must.NoError(t, err)
	must.StrHasPrefix(t, "[user]Be brief.\nYou can call", text.String())
	must.StrContains(t, text.String(), "plain text.\nTime?[assistant]")
}

// A template with tool support gets tools as the client sent them, and thinking and ids in its own
// form.
func TestConversationOfTemplate(t *testing.T) {
	t.Parallel()
	const source = "{{ tools | tojson if tools }}<tool_call>{% for m in messages %}{% if m.tool_call_id is defined and m.tool_call_id | length != 9 %}{{ raise_exception('9') }}{% endif %}" +
		"[{{ m.role }}|{{ m.name }}|{{ m.reasoning_content }}|{{ m.tool_calls[0].id if m.tool_calls }}]{{ m.content or m.tool_calls }}{% endfor %}{{ enable_thinking }}{{ reasoning_effort }}"
	tmpl, err := newChatTemplate(source, "", "", newControlTokens([]string{"<|x|>"}))
	must.NoError(t, err)
	must.Eq(t, templateWants{tools: true, shortIDs: true}, tmpl.wants)
	must.Eq(t, "hermes", tmpl.dialogue.Name)
	req, err := openai.DecodeChat([]byte(`{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","reasoning_content":"hm","tool_calls":[{"id":"call_1","function":{"name":"f","arguments":"{}"}}]},
		{"role":"tool","tool_call_id":"call_1","content":"r"}],"tools":[{"function":{"name":"f","description":"<|x|>","parameters":{"b":1,"a":2}}},{"function":{"name":"g"}}],"reasoning_effort":"minimal"}`))
	must.NoError(t, err)
	text, err := tmpl.render(t.Context(), req, time.Time{})
	must.NoError(t, err)
	got := text.String()
	must.StrHasPrefix(t, `[{"type": "function", "function": {"name": "f", "description": "<|x|>", "parameters": {"b": 1, "a": 2}}}, {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}}]`, got)
	id := tmpl.callID("call_1")
	must.Eq(t, 9, len(id))
	must.StrContains(t, got, "[assistant||hm|"+id+"]y[tool|f||]r")
	must.StrHasSuffix(t, "Truelow", got)
	for _, s := range tmpl.control.segments(text) { // control tokens from a client are not real
		must.True(t, s.text != "<|x|>" || !s.trusted)
	}
	req.ReasoningEffort, req.ToolChoice = "none", openai.ToolChoice{Mode: "none"}
	req.ChatTemplateKwargs = json.RawMessage(`{"reasoning_effort":"own"}`)
	text, err = tmpl.render(t.Context(), req, time.Time{})
	must.NoError(t, err)
	must.StrHasSuffix(t, "Falseown", text.String())
	must.StrHasPrefix(t, "<tool_call>", text.String())
}

// Thinking is split off, streamed and unstreamed.
func TestReasoningContent(t *testing.T) {
	t.Parallel()
	form := &speech{format: dialogue.Recognise("<think></think>", false, nil), opened: true}
	var s streamed
	f := newChatFormat("c", 1, "m", nil, form)
	reasoning := ""
	take := func(b []byte) error {
		var c openai.ChatChunk
		must.NoError(t, json.Unmarshal(b, &c))
		s.chunks = append(s.chunks, c)
		if content := c.Choices[0].Delta.Content; content != nil {
			s.text += *content
		}
		reasoning += c.Choices[0].Delta.ReasoningContent
		return nil
	}
	for _, text := range []string{"I ", "think", ".\n</thi", "nk>\n\nY", "es."} {
		must.NoError(t, f.text(text, take))
	}
	must.SliceLen(t, 1, f.finish(openai.FinishStop))
	must.Eq(t, "I think.", reasoning)
	must.Eq(t, "Yes.", s.text)
	b, err := json.Marshal(newChatFormat("c", 1, "m", nil, form).whole("I think.\n</think>\n\nYes.", openai.FinishStop, nil))
	must.NoError(t, err)
	var whole openai.ChatResponse
	must.NoError(t, json.Unmarshal(b, &whole))
	must.Eq(t, "I think.", whole.Choices[0].Message.ReasoningContent)
	must.Eq(t, "Yes.", *whole.Choices[0].Message.Content)
	must.Eq(t, openai.FinishStop, whole.Choices[0].FinishReason)
}

// Agents send the same tools again and again: they are compiled once, and the cache is bounded.
func TestToolboxKeeps(t *testing.T) {
	t.Parallel()
	b := newToolbox()
	f := dialogue.Recognise(chatML, false, nil)
	constrain := func(name string) *dialogue.Constraint {
		c, err := b.constrain(t.Context(), f, []dialogue.Tool{{Name: name}}, dialogue.Choice{Required: true})
		must.NoError(t, err)
		return c
	}
	first := constrain("a")
	must.True(t, first == constrain("a"))
	for i := range 2 * maxConstraints {
		constrain(fmt.Sprint("b", i))
		must.LessEq(t, maxConstraints, len(b.kept))
		must.Eq(t, len(b.order), len(b.kept))
	}
	must.False(t, first == constrain("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.constrain(ctx, f, []dialogue.Tool{{Name: "c"}}, dialogue.Choice{})
	must.ErrorIs(t, err, context.Canceled)
}
