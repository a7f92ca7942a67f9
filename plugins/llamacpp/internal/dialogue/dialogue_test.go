package dialogue

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// call is a call as a client sees it.
type call struct{ id, name, args string }

// answer accumulates deltas.
type answer struct {
	reasoning, content string
	calls              []call
}

func (a *answer) add(t testing.TB, deltas []Delta) {
	t.Helper()
	for _, d := range deltas {
		switch d.Kind {
		case Reasoning:
			a.reasoning += d.Text
		case Content:
			a.content += d.Text
		case Call:
			must.Eq(t, len(a.calls), d.Index)
			a.calls = append(a.calls, call{id: d.ID, name: d.Name})
		case Arguments:
			must.Eq(t, len(a.calls)-1, d.Index)
			a.calls[d.Index].args += d.Text
		}
	}
}

func (a *answer) String() string {
	return fmt.Sprintf("reasoning %q, content %q, calls %q", a.reasoning, a.content, a.calls)
}

var testTools = []Tool{
	{Name: "get_weather", Parameters: []byte(`{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"},"metric":{"type":"boolean"},
		"tags":{"type":"array","items":{"type":"string"}},"at":{"anyOf":[{"type":"string"},{"type":"null"}]},"where":{"$ref":"#/$defs/p"}},
		"$defs":{"p":{"type":"object"}}}`)},
	{Name: "get_time", Parameters: []byte(`{"type":"object","properties":{}}`)},
	{Name: "brave_search", Parameters: []byte(`{"type":"object","properties":{"query":{"type":"string"}}}`)},
	{Name: "python", Parameters: []byte(`{"type":"object","properties":{"code":{"type":"string"}}}`)},
}

func parse(t testing.TB, f *Format, opts Options, pieces ...string) *answer {
	t.Helper()
	n := 0
	opts.NewID = func() string { n++; return "id" + strconv.Itoa(n) }
	p := f.NewParser(opts)
	var a answer
	for _, s := range pieces {
		a.add(t, p.Push(s))
	}
	a.add(t, p.Close())
	must.Eq(t, len(a.calls), p.Calls())
	return &a
}

// everyCut parses text in two pieces, cut at every byte, and byte by byte.
func everyCut(t *testing.T, f *Format, opts Options, text string) *answer {
	t.Helper()
	whole := parse(t, f, opts, text)
	for i := range text {
		must.Eq(t, whole.String(), parse(t, f, opts, text[:i], text[i:]).String(), must.Sprintf("cut at %d: %q", i, text[:i]))
	}
	must.Eq(t, whole.String(), parse(t, f, opts, strings.Split(text, "")...).String(), must.Sprint("character by character"))
	bytes := make([]string, len(text))
	for i := range len(text) {
		bytes[i] = text[i : i+1]
	}
	must.Eq(t, whole.String(), parse(t, f, opts, bytes...).String(), must.Sprint("byte by byte"))
	return whole
}

func format(name string) *Format {
	f := formats[name]
	f.Name, f.TakesTools = name, true
	f.addThinks("<think></think>", func(string) bool { return false })
	return &f
}

var weather = call{"id1", "get_weather", `{"city":"Paris","days":2}`}

func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		family, name, text string
		want               answer
		thinking           bool
	}{
		{family: "hermes", name: "one", text: "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\",\"days\":2}}\n</tool_call>", want: answer{calls: []call{weather}}},
		{
			family: "hermes", name: "two, with thinking and text", text: "<think>\nHm, é.\n</think>\n\nLet me see.\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\",\"days\":2}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
			want: answer{reasoning: "Hm, é.", content: "Let me see.", calls: []call{weather, {"id2", "get_time", "{}"}}},
		},
		{family: "hermes", name: "thinking that the prompt opened", text: "I think.\n</think>\n\nHello  there\n", thinking: true, want: answer{reasoning: "I think.", content: "Hello  there\n"}},
		{family: "hermes", name: "empty thinking", text: "<think>\n\n</think>\n\nHi.", want: answer{content: "Hi."}},
		{family: "hermes", name: "arguments first", text: `<tool_call>{"arguments": {"a": "<tool_call>"}, "name": "f"}</tool_call>`, want: answer{calls: []call{{"id1", "f", `{"a": "<tool_call>"}`}}}},
		{family: "hermes", name: "arguments as text", text: `<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call> done`, want: answer{content: "done", calls: []call{{"id1", "f", `{"a": 1}`}}}},
		{family: "hermes", name: "no arguments", text: `<tool_call>{"name": "get_time"}</tool_call>`, want: answer{calls: []call{{"id1", "get_time", `{}`}}}},
		{family: "hermes", name: "line breaks in a string", text: "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x\ny\tz\"}}</tool_call>", want: answer{calls: []call{{"id1", "f", `{"a": "x\ny\tz"}`}}}},
		{family: "hermes", name: "nested function", text: `<tool_call>{"type":"function","id":"call_abc","function":{"name":"f","arguments":{"a":[{"b":null}]}}}</tool_call>`, want: answer{calls: []call{{"call_abc", "f", `{"a":[{"b":null}]}`}}}},
		{family: "hermes", name: "no JSON", text: "<tool_call>\nnothing </tool_call>", want: answer{content: "<tool_call>\nnothing </tool_call>"}},
		{family: "hermes", name: "a name that is a number", text: `a <tool_call>{"name": 5}</tool_call>`, want: answer{content: `a <tool_call>{"name": 5}</tool_call>`}},
		{family: "hermes", name: "cut off before the name", text: `<tool_call>{"name": "get_`, want: answer{content: `<tool_call>{"name": "get_`}},
		{family: "hermes", name: "cut off in the arguments", text: `<tool_call>{"name": "f", "arguments": {"a": "b`, want: answer{calls: []call{{"id1", "f", `{"a": "b`}}}},
		{family: "hermes", name: "malformed arguments", text: `<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call>`, want: answer{content: `oops}}</tool_call>`, calls: []call{{"id1", "f", `{"a": `}}}},
		{family: "hermes", name: "a brace too few", text: `<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>`, want: answer{content: "</tool_call>", calls: []call{{"id1", "f", `{"a": 1}`}}}},
		{family: "hermes", name: "failed, then right", text: "<tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>", want: answer{content: "<tool_call>", calls: []call{{"id1", "get_time", "{}"}}}},

		{
			family: "qwen-coder", name: "typed", text: "Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis \"x\"\n\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n<parameter=tags>\n[\"a\", \"b\"]\n</parameter>\n<parameter=at>\nnull\n</parameter>\n<parameter=where>\n{\"x\": 1}\n</parameter>\n<parameter=other>\n5\n</parameter>\n</function>\n</tool_call>",
			want: answer{content: "Sure.", calls: []call{{"id1", "get_weather", `{"city":"Paris \"x\"\n","days":2,"metric":true,"tags":["a", "b"],"at":null,"where":{"x": 1},"other":"5"}`}}},
		},
		{family: "qwen-coder", name: "without the outer marker", text: "<function=get_time>\n</function>", want: answer{calls: []call{{"id1", "get_time", "{}"}}}},
		{family: "qwen-coder", name: "two", text: "<tool_call>\n<function=get_time>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>\nok", want: answer{content: "ok", calls: []call{{"id1", "get_time", "{}"}, {"id2", "get_time", "{}"}}}},
		{family: "qwen-coder", name: "markup in a value", text: "<tool_call>\n<function=f>\n<parameter=a>\n<b>\n</parameter\n</parameter>\n</function>\n</tool_call>", want: answer{calls: []call{{"id1", "f", `{"a":"<b>\n</parameter"}`}}}},
		{family: "qwen-coder", name: "cut off", text: "<tool_call>\n<function=f>\n<parameter=a>\nhalf", want: answer{calls: []call{{"id1", "f", `{"a":"half`}}}},
		{family: "qwen-coder", name: "not a call", text: "<tool_call> hm", want: answer{content: "<tool_call> hm"}},
		{family: "qwen-coder", name: "garbage between values", text: "<tool_call>\n<function=f>\nhm</function>", want: answer{content: "hm</function>", calls: []call{{"id1", "f", `{`}}}},

		{family: "seed-oss", name: "with thinking", text: "<seed:think>\nhm\n</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>2</parameter>\n</function>\n</seed:tool_call>", want: answer{reasoning: "hm", calls: []call{weather}}},
		{family: "minimax-m2", name: "two", text: "<think>\na\n</think>\n\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n<invoke name=\"get_time\">\n</invoke>\n</minimax:tool_call>", want: answer{reasoning: "a", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "deepseek-v3.2", name: "typed by itself", text: "Ok\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">5</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>", want: answer{content: "Ok", calls: []call{{"id1", "f", `{"a":"5","b":[1]}`}}}},
		{family: "glm-4", name: "4.5", text: "\n<think>a</think>\nHm.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>", want: answer{reasoning: "a", content: "Hm.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "glm-4", name: "4.7", text: "</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>get_time</tool_call>", thinking: true, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},

		{family: "llama-3", name: "JSON", text: `{"name": "get_weather", "parameters": {"city":"Paris","days":2}}`, want: answer{calls: []call{weather}}},
		{family: "llama-3", name: "typed, two", text: `{"type": "function", "name": "get_weather", "parameters": {"city":"Paris","days":2}}; {"name": "get_time", "parameters": {}}`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "llama-3", name: "JSON behind the tag", text: `<|python_tag|>{"name": "get_weather", "parameters": {"city":"Paris","days":2}}`, want: answer{calls: []call{weather}}},
		{family: "llama-3", name: "built-in tool", text: `<|python_tag|>brave_search.call(query="a \"b\"", n=3)`, want: answer{calls: []call{{"id1", "brave_search", `{"query":"a \"b\"","n":3}`}}}},
		{family: "llama-3", name: "code", text: "<|python_tag|>import os\nprint(\"a.call(1)\")", want: answer{calls: []call{{"id1", "python", `{"code":"import os\nprint(\"a.call(1)\")"}`}}}},
		{family: "llama-3", name: "function markup", text: `<function=get_weather>{"city":"Paris","days":2}</function>`, want: answer{calls: []call{weather}}},
		{family: "llama-3", name: "an answer in JSON", text: `{"name": "Vince", "age": 42}`, want: answer{content: `{"name": "Vince", "age": 42}`}},
		{family: "llama-3", name: "another answer in JSON", text: `{"age": 42, "name": "get_time"}`, want: answer{content: `{"age": 42, "name": "get_time"}`}},
		{family: "llama-3", name: "JSON in the middle", text: `So: {"name": "get_time", "parameters": {}}`, want: answer{content: `So: {"name": "get_time", "parameters": {}}`}},

		{family: "functionary-v3.1", name: "two", text: `<function=get_weather>{"city":"Paris","days":2}</function><function=get_time>{}</function>`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "functionary-v3.2", name: "text and a call", text: "all\nLet me see >>> that.\n>>>get_weather\n{\"city\":\"Paris\",\"days\":2}>>>get_time\n{}", want: answer{content: "Let me see >>> that.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "functionary-v3.2", name: "call alone", text: "get_weather\n{\"city\":\"Paris\",\"days\":2}", want: answer{calls: []call{weather}}},
		{family: "functionary-v3.2", name: "neither", text: "Hello there, I am\na model", want: answer{content: "Hello there, I am\na model"}},
		{family: "functionary-v2", name: "text and a call", text: "all\n<|content|>Let me see.\n<|from|>assistant\n<|recipient|>get_weather\n<|content|>{\"city\":\"Paris\",\"days\":2}<|stop|>", want: answer{content: "Let me see.", calls: []call{weather}}},

		{family: "mistral", name: "array", text: `[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city":"Paris","days":2}}, {"name": "get_time", "arguments": {}, "id": "abcdefghi"}]`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "mistral", name: "array with an id first", text: `[TOOL_CALLS][{"id": "abcdefghi", "name": "get_time", "arguments": {}}]`, want: answer{calls: []call{{"abcdefghi", "get_time", "{}"}}}},
		{family: "mistral", name: "names", text: `[THINK]Hm.[/THINK]Ok.[TOOL_CALLS]get_weather[ARGS]{"city":"Paris","days":2}[TOOL_CALLS]get_time[ARGS]{}`, want: answer{reasoning: "Hm.", content: "Ok.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "mistral", name: "name and id", text: `[TOOL_CALLS]get_time[CALL_ID]abcdefghi[ARGS]{}`, want: answer{calls: []call{{"abcdefghi", "get_time", "{}"}}}},
		{family: "mistral", name: "name alone in front", text: `[TOOL_CALLS]get_time{}`, want: answer{calls: []call{{"id1", "get_time", "{}"}}}},
		{family: "mistral", name: "nothing", text: `[TOOL_CALLS]`, want: answer{content: `[TOOL_CALLS]`}},

		{family: "deepseek-v3", name: "V3", text: "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\":\"Paris\",\"days\":2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", want: answer{content: "Ok.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "deepseek-v3", name: "V3.1, within thinking", text: "Hm<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\":\"Paris\",\"days\":2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", thinking: true, want: answer{reasoning: "Hm", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "kimi-k2", name: "two", text: "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\":\"Paris\",\"days\":2}<|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>", want: answer{calls: []call{{"functions.get_weather:0", "get_weather", weather.args}, {"functions.get_time:1", "get_time", "{}"}}}},

		{family: "granite", name: "3.0", text: `<|tool_call|>[{"name": "get_weather", "arguments": {"city":"Paris","days":2}}]`, want: answer{calls: []call{weather}}},
		{family: "granite", name: "3.1", text: `<tool_call>[{"arguments": {"city":"Paris","days":2}, "name": "get_weather"}, {"name": "get_time", "arguments": {}}]`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "granite", name: "3.2 thinking", text: "Here is my thought process: hm.\n\nHere is my response: 4", want: answer{reasoning: "hm.", content: "4"}},
		{family: "granite", name: "3.3 thinking", text: "<think>hm</think><response>4</response>", want: answer{reasoning: "hm", content: "4"}},
		{family: "command-r7b", name: "call", text: "<|START_THINKING|>I will.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\":\"Paris\",\"days\":2}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"get_time\", \"parameters\": {}}\n]<|END_ACTION|>", want: answer{reasoning: "I will.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "command-r7b", name: "text", text: "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", want: answer{content: "Hello."}},
		{family: "command-r", name: "call", text: "Action: ```json\n[\n    {\n        \"tool_name\": \"get_weather\",\n        \"parameters\": {\"city\":\"Paris\",\"days\":2}\n    }\n]```", want: answer{calls: []call{weather}}},
		{family: "phi-4", name: "mini", text: `<|tool_call|>[{"name": "get_weather", "arguments": {"city":"Paris","days":2}}, {"type": "function", "function": {"name": "get_time", "arguments": {}}}]<|/tool_call|>`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "phi-4", name: "functools", text: `functools[{"name": "get_weather", "arguments": {"city":"Paris","days":2}}]`, want: answer{calls: []call{weather}}},
		{family: "phi-4", name: "text of functools", text: `Use functools.partial or functools`, want: answer{content: `Use functools.partial or functools`}},
		{family: "nemotron", name: "two", text: `<TOOLCALL>[{"name": "get_weather", "arguments": {"city":"Paris","days":2}}, {"name": "get_time", "arguments": "{}"}]</TOOLCALL>`, want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "jamba", name: "two", text: "<tool_calls>[\n    {\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\",\"days\":2}},\n    {\"name\": \"get_time\", \"arguments\": {}}\n]</tool_calls>", want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "lfm2", name: "two", text: `<|tool_call_start|>[get_weather(city="Paris",days=2), get_time()]<|tool_call_end|>Checking.`, want: answer{content: "Checking.", calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "lfm2", name: "literals", text: `<|tool_call_start|>[f(a='it\'s', b=[1, -2.5, True,], c={"k": None, 'j': (1,)}, d="""x"y""", e="", g=0x10, h="\x41\u00e9\q")]<|tool_call_end|>`, want: answer{calls: []call{{"id1", "f", `{"a":"it's","b":[1,-2.5,true],"c":{"k":null,"j":[1]},"d":"x\"y","e":"","g":16,"h":"\u0041\u00e9\\q"}`}}}},
		{family: "lfm2", name: "JSON", text: `<|tool_call_start|>[{"name": "get_weather", "arguments": {"city":"Paris","days":2}}]<|tool_call_end|>`, want: answer{calls: []call{weather}}},
		{family: "lfm2", name: "a variable", text: `<|tool_call_start|>[f(a=b)]<|tool_call_end|>`, want: answer{content: "b)]<|tool_call_end|>", calls: []call{{"id1", "f", `{"a":`}}}},
		{family: "functiongemma", name: "one", text: `<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:2}<end_function_call>`, want: answer{calls: []call{weather}}},
		{family: "gemma-4", name: "nested", text: `<|channel>thought
Hm.<channel|><|tool_call>call:f{a:<|"|>x "y" {}<|"|>,b:[1,true,<|"|>z<|"|>],c:{d:null,e:{}},g:metric}<tool_call|><|tool_call>call:get_time{}<tool_call|>`, want: answer{reasoning: "Hm.", calls: []call{{"id1", "f", `{"a":"x \"y\" {}","b":[1,true,"z"],"c":{"d":null,"e":{}},"g":"metric"}`}, {"id2", "get_time", "{}"}}}},

		{family: "gpt-oss", name: "call", text: `<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris","days":2}<|call|>`, want: answer{reasoning: "Need the weather.", calls: []call{weather}}},
		{family: "gpt-oss", name: "recipient in the role", text: `<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city":"Paris","days":2}`, want: answer{content: "I look.", calls: []call{weather}}},
		{family: "gpt-oss", name: "text", text: `<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>Hello
there.<|return|>`, want: answer{reasoning: "One.\nTwo.", content: "Hello\nthere."}},
		{family: "gpt-oss", name: "markers in the text", text: `<|channel|>final<|message|>Write <|channel|>, <|start|> or <|start|>user, end with <|end|> (or <|return|> ) and <|call|>.
<|channel|>other<|message|> is none.<|return|>`, want: answer{content: "Write <|channel|>, <|start|> or <|start|>user, end with <|end|> (or <|return|> ) and <|call|>.\n<|channel|>other<|message|> is none."}},
		{family: "gpt-oss", name: "markers in thoughts and arguments", text: `<|channel|>analysis<|message|>An <|end|> here.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"<|call|>","days":2}<|call|>`, want: answer{reasoning: "An <|end|> here.", calls: []call{{"id1", "get_weather", `{"city":"<|call|>","days":2}`}}}},
		{family: "gpt-oss", name: "a call, then text", text: `<|channel|>commentary to=functions.get_time <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>Noon.`, want: answer{content: "Noon.", calls: []call{{"id1", "get_time", "{}"}}}},
		{family: "gpt-oss", name: "no channels", text: `Hello.`, want: answer{content: "Hello."}},
		{family: "gpt-oss", name: "cut off in a head", text: `<|channel|>fin`, want: answer{content: "<|channel|>fin"}},

		{family: "generic", name: "one", text: "{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\",\"days\":2}}\n{\"name\": \"get_time\", \"arguments\": {}}", want: answer{calls: []call{weather, {"id2", "get_time", "{}"}}}},
		{family: "generic", name: "with a marker", text: "Ok <tool_call>{\"name\": \"get_time\", \"arguments\": {}}</tool_call>", want: answer{content: "Ok", calls: []call{{"id1", "get_time", "{}"}}}},
		{family: "generic", name: "an unknown tool", text: `{"name": "nope", "arguments": {}}`, want: answer{content: `{"name": "nope", "arguments": {}}`}},
		{family: "generic", name: "text", text: " a  b \n", want: answer{content: " a  b \n"}},
	} {
		t.Run(c.family+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			got := everyCut(t, format(c.family), Options{Tools: testTools, Calls: true, Thinking: c.thinking}, c.text)
			must.Eq(t, c.want.String(), got.String())
			for _, c := range c.want.calls {
				if strings.HasSuffix(c.args, "}") {
					must.True(t, json.Valid([]byte(c.args)), must.Sprint(c.args))
				}
			}
		})
	}
}

// Without tools the markers of calls are text.
func TestNoTools(t *testing.T) {
	t.Parallel()
	const text = "<think>hm</think><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n"
	got := everyCut(t, format("hermes"), Options{}, text)
	must.Eq(t, (&answer{reasoning: "hm", content: strings.TrimPrefix(text, "<think>hm</think>")}).String(), got.String())
}

// An answer with a required form holds no calls, whatever its strings contain.
func TestFormedContent(t *testing.T) {
	t.Parallel()
	opts := Options{Tools: testTools, Calls: true, Formed: true}
	for name := range formats {
		f := format(name)
		content := `{"name": "Maja", "text": "` + strings.ReplaceAll(strings.Join(f.Markers(true), ""), `"`, `\"`) + `"}`
		text := content
		switch f.syntax {
		case recipients:
			text = "all\n" + f.afterName + content
		case harmony:
			text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>" + content
		}
		for _, d := range f.drop { // ignored everywhere
			content = strings.ReplaceAll(content, d, "")
		}
		got := everyCut(t, f, opts, text)
		must.Eq(t, content, got.content, must.Sprint(name))
		must.SliceEmpty(t, got.calls)
	}
	got := everyCut(t, format("hermes"), opts, "<think>\na\n</think>\n\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>")
	must.SliceLen(t, 1, got.calls)
	must.Eq(t, "a", got.reasoning)
	got = everyCut(t, format("hermes"), opts, "<think>\na\n</think>\n\n{\"a\":\"<tool_call>{\\\"name\\\": \\\"get_time\\\"}</tool_call>\"}")
	must.SliceEmpty(t, got.calls)
}

func TestBounds(t *testing.T) {
	t.Parallel()
	opts := Options{Tools: testTools, Calls: true}
	one := `<tool_call>{"name":"f","arguments":{}}</tool_call>`
	got := parse(t, format("hermes"), opts, strings.Repeat(one, MaxCalls+2))
	must.SliceLen(t, MaxCalls, got.calls)
	must.Eq(t, one+one, got.content)

	deep := `<tool_call>{"name":"f","arguments":{"a":` + strings.Repeat("[", 100)
	got = everyCut(t, format("hermes"), opts, deep)
	must.Eq(t, strings.Repeat("[", 100-maxDepth+1), got.content)

	held := `<tool_call>{"arguments":{"a":"` + strings.Repeat("x", maxHeld) + `"},"name":"f"}</tool_call>`
	for _, pieces := range [][]string{{held}, {held[:100], held[100:maxHeld], held[maxHeld:]}} {
		got = parse(t, format("hermes"), opts, pieces...)
		must.Eq(t, held, got.content)
	}
	name := "<tool_call>" + strings.Repeat("n", maxName+1) + "<arg_key>"
	got = everyCut(t, format("glm-4"), opts, name)
	must.Eq(t, name, got.content)

	value := strings.Repeat("1", maxValue)
	for _, cut := range []int{10, maxValue, maxValue + 30} {
		text := "<function=get_weather><parameter=days>" + value + "23</parameter></function>"
		got = parse(t, format("qwen-coder"), opts, text[:cut], text[cut:])
		must.Eq(t, `{"days":"`+value+`23"}`, got.calls[0].args)
	}
}

func TestNewIDs(t *testing.T) {
	t.Parallel()
	for family, want := range map[string]int{"mistral": 9, "hermes": 29} {
		p := format(family).NewParser(Options{Calls: true})
		d := p.Push(map[string]string{"mistral": "[TOOL_CALLS]f[ARGS]{}", "hermes": `<tool_call>{"name":"f","arguments":{}}`}[family])
		must.Eq(t, want, len(d[0].ID))
	}
}

// No marker of a family is a prefix of another one: the shorter would hide the longer.
func TestMarkersDiffer(t *testing.T) {
	t.Parallel()
	for name, f := range formats {
		marks := append(append(append([]string{}, f.sections...), f.opens...), f.drop...)
		for i, a := range marks {
			must.NotEq(t, "", a)
			for j, b := range marks {
				must.True(t, i == j || !strings.HasPrefix(b, a), must.Sprintf("%s: %q and %q", name, a, b))
			}
		}
	}
}

func FuzzParser(f *testing.F) {
	names := []string{}
	for name := range formats {
		names = append(names, name)
	}
	for i, text := range []string{
		"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>", "<think>a</think>b", "[TOOL_CALLS]f[ARGS]{}", `{"name": "get_time", "parameters": {}}`,
		"<function=f>\n<parameter=a>\n1\n</parameter>\n</function>", `<|tool_call_start|>[f(a='b', c=[1])]<|tool_call_end|>`, `<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>`,
		"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>", ">>>f\n{}",
	} {
		f.Add(uint8(i), uint64(i), text)
	}
	f.Fuzz(func(t *testing.T, family uint8, cuts uint64, text string) {
		if len(text) > 4096 {
			return
		}
		for _, name := range []string{names[int(family)%len(names)], "hermes", "llama-3"} {
			opts := Options{Tools: testTools, Calls: family&0x80 == 0, Thinking: family&0x40 != 0}
			whole := parse(t, format(name), opts, text)
			var pieces []string
			rest, seed := text, cuts|1
			for rest != "" {
				seed = seed*6364136223846793005 + 1442695040888963407
				n := min(len(rest), 1+int(seed>>33)%7)
				pieces = append(pieces, rest[:n])
				rest = rest[n:]
			}
			must.Eq(t, whole.String(), parse(t, format(name), opts, pieces...).String(), must.Sprint(name))
			if !strings.ContainsAny(text, "<[{>◁:T=ft") && name != "gpt-oss" && !opts.Thinking {
				must.Eq(t, text, whole.content)
			}
		}
	})
}
