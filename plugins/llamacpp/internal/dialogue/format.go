package dialogue

import (
	"slices"
	"strings"
)

// syntax is how a family writes a call.
type syntax uint8

const (
	noCalls     syntax = iota
	jsonCalls          // an object with a name and arguments, or an array of them
	namedCalls         // a name, then the arguments as JSON
	xmlCalls           // a name, then arguments one by one between markers
	pythonCalls        // as Python writes a call
	gemmaCalls         // a name, then arguments in Gemma's own notation
	recipients         // parts of an answer, each beginning with its recipient
	harmony            // messages on channels
)

// thinks holds the markers around a block of thinking.
type thinks struct{ open, close string }

// Format is how a family of models writes its thinking and tool calls. It is safe for concurrent
// use.
type Format struct {
	// Name names the family in documents and logs.
	Name string
	// TakesTools reports whether the chat template describes tools itself; otherwise use Describe.
	TakesTools bool

	syntax       syntax
	thinks       []thinks
	endsThinking bool     // a call ends a block of thinking
	sections     []string // markers before the first of several calls
	opens        []string // markers before a call
	closers      []string // markers that may follow a call
	drop         []string // markers around content, to be ignored
	weak         bool     // a call may begin an answer without a marker
	shortIDs     bool     // ids are nine letters and digits

	// jsonCalls:
	python bool // also code, Python's calls, and <function=NAME>{…}</function>
	// namedCalls and xmlCalls:
	nameEnds  []string // what may follow a name
	fences    []string // what may stand in front of the arguments
	arrays    bool     // also an array of objects
	typed     bool     // the name may be the type function; the real one is on the next line
	kimi      bool     // the name is functions.NAME:INDEX and also serves as the id
	afterName string   // recipients: what follows a name
	oldArray  bool     // calls are written in the older form, an array
	fenced    bool     // arguments are written within a fence
	// xmlCalls:
	bareName                                    bool // nothing of its own follows the name
	paramOpen, valueOpen, paramClose, callClose string
	keyEnds                                     []string
	lines                                       bool // values stand on lines of their own
}

// formats are the families, by name.
var formats = map[string]Format{
	"hermes": {
		syntax: jsonCalls, opens: []string{"<tool_call>"}, closers: []string{"</tool_call>"},
	},
	"qwen-coder": {
		syntax: xmlCalls, sections: []string{"<tool_call>"}, opens: []string{"<function="}, closers: []string{"</tool_call>"},
		nameEnds: []string{">"}, paramOpen: "<parameter=", keyEnds: []string{">"}, paramClose: "</parameter>", callClose: "</function>", lines: true,
	},
	"seed-oss": {
		syntax: xmlCalls, sections: []string{"<seed:tool_call>"}, opens: []string{"<function="}, closers: []string{"</seed:tool_call>"},
		nameEnds: []string{">"}, paramOpen: "<parameter=", keyEnds: []string{">"}, paramClose: "</parameter>", callClose: "</function>", lines: true,
		thinks: []thinks{{"<seed:think>", "</seed:think>"}},
	},
	"minimax-m2": {
		syntax: xmlCalls, sections: []string{"<minimax:tool_call>"}, opens: []string{`<invoke name="`}, closers: []string{"</minimax:tool_call>"},
		nameEnds: []string{`">`}, paramOpen: `<parameter name="`, keyEnds: []string{`">`}, paramClose: "</parameter>", callClose: "</invoke>", lines: true,
	},
	"deepseek-v3.2": {
		syntax: xmlCalls, sections: []string{"<｜DSML｜function_calls>"}, opens: []string{`<｜DSML｜invoke name="`}, closers: []string{"</｜DSML｜function_calls>"},
		nameEnds: []string{`">`}, paramOpen: `<｜DSML｜parameter name="`, keyEnds: []string{`" string="true">`, `" string="false">`, `">`},
		paramClose: "</｜DSML｜parameter>", callClose: "</｜DSML｜invoke>",
	},
	"glm-4": {
		syntax: xmlCalls, opens: []string{"<tool_call>"}, bareName: true, nameEnds: []string{"\n", "<arg_key>", "</tool_call>"},
		paramOpen: "<arg_key>", keyEnds: []string{"</arg_key>"}, valueOpen: "<arg_value>", paramClose: "</arg_value>", callClose: "</tool_call>",
	},
	"llama-3": {
		syntax: jsonCalls, opens: []string{"<|python_tag|>", "<function="}, closers: []string{";", "<|python_end|>", "</function>"}, drop: []string{"<|python_start|>"},
		weak: true, python: true, nameEnds: []string{">"},
	},
	"functionary-v3.1": {
		syntax: namedCalls, opens: []string{"<function="}, closers: []string{"</function>"}, nameEnds: []string{">"},
	},
	"functionary-v3.2": {syntax: recipients, opens: []string{">>>"}},
	"functionary-v2": {
		syntax: recipients, opens: []string{"<|from|>assistant\n<|recipient|>"}, closers: []string{"<|content|>", "<|stop|>"}, fences: []string{"<|content|>"}, afterName: "<|content|>",
	},
	"mistral": {
		syntax: namedCalls, opens: []string{"[TOOL_CALLS]"}, nameEnds: []string{"[ARGS]", "[CALL_ID]", "{"}, arrays: true, shortIDs: true,
		thinks: []thinks{{"[THINK]", "[/THINK]"}, {"<think>", "</think>"}},
	},
	"deepseek-v3": {
		syntax: namedCalls, sections: []string{"<｜tool▁calls▁begin｜>"}, opens: []string{"<｜tool▁call▁begin｜>"}, nameEnds: []string{"<｜tool▁sep｜>"},
		typed: true, fences: []string{"```json", "```"}, closers: []string{"```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"}, endsThinking: true,
	},
	"kimi-k2": {
		syntax: namedCalls, sections: []string{"<|tool_calls_section_begin|>"}, opens: []string{"<|tool_call_begin|>"}, nameEnds: []string{"<|tool_call_argument_begin|>"},
		kimi: true, closers: []string{"<|tool_call_end|>", "<|tool_calls_section_end|>"}, endsThinking: true,
		thinks: []thinks{{"<think>", "</think>"}, {"◁think▷", "◁/think▷"}},
	},
	"granite": {
		syntax: jsonCalls, opens: []string{"<|tool_call|>", "<tool_call>", "<function_call>"}, closers: []string{"</tool_call>", "<|/tool_call|>"},
		thinks: []thinks{
			{"<think>", "</think>"}, {"Here is my thought process:", "Here is my response:"}, {"Here's my thought process:", "Here's my response:"},
		},
		drop: []string{"<response>", "</response>"},
	},
	"command-r7b": {
		syntax: jsonCalls, opens: []string{"<|START_ACTION|>"}, closers: []string{"<|END_ACTION|>"},
		thinks: []thinks{{"<|START_THINKING|>", "<|END_THINKING|>"}},
		drop:   []string{"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"}, endsThinking: true,
	},
	"command-r": {
		syntax: jsonCalls, opens: []string{"Action: ```json", "Action:```json"}, closers: []string{"```"},
	},
	"phi-4": {
		syntax: jsonCalls, opens: []string{"<|tool_call|>", "functools"}, closers: []string{"<|/tool_call|>"},
	},
	"nemotron": {
		syntax: jsonCalls, opens: []string{"<TOOLCALL>"}, closers: []string{"</TOOLCALL>"},
	},
	"jamba": {
		syntax: jsonCalls, opens: []string{"<tool_calls>"}, closers: []string{"</tool_calls>"},
	},
	"lfm2": {
		syntax: pythonCalls, opens: []string{"<|tool_call_start|>"}, closers: []string{"<|tool_call_end|>"},
	},
	"functiongemma": {
		syntax: gemmaCalls, opens: []string{"<start_function_call>call:"}, closers: []string{"<end_function_call>"},
	},
	"gemma-4": {
		syntax: gemmaCalls, opens: []string{"<|tool_call>call:"}, closers: []string{"<tool_call|>"},
		thinks: []thinks{{"<|channel>thought", "<channel|>"}},
	},
	"gpt-oss": {syntax: harmony},
	"generic": {
		syntax: jsonCalls, weak: true, opens: []string{"<tool_call>"}, closers: []string{"</tool_call>", ";", ","},
	},
}

// signs identify a family by texts that its chat template must all contain. The first match wins.
var signs = []struct {
	name string
	all  []string
}{
	{"gpt-oss", []string{"<|channel|>", "<|message|>"}},
	{"deepseek-v3.2", []string{"<｜DSML｜"}},
	{"deepseek-v3", []string{"<｜tool▁calls▁begin｜>"}},
	{"deepseek-v3", []string{"<｜tool▁call▁begin｜>"}},
	{"kimi-k2", []string{"<|tool_calls_section_begin|>"}},
	{"kimi-k2", []string{"<|tool_call_argument_begin|>"}},
	{"minimax-m2", []string{"<minimax:tool_call>"}},
	{"minimax-m2", []string{"minimax:tool_call", "<invoke name="}},
	{"seed-oss", []string{"<seed:tool_call>"}},
	{"seed-oss", []string{"seed:tool_call"}},
	{"gemma-4", []string{"<|tool_call>"}},
	{"functiongemma", []string{"<start_function_call>"}},
	{"glm-4", []string{"<arg_key>"}},
	{"qwen-coder", []string{"<function=", "<parameter="}},
	{"functionary-v3.2", []string{">>>all"}},
	{"functionary-v3.2", []string{">>>", "recipient"}},
	{"functionary-v2", []string{"<|recipient|>", "<|content|>"}},
	{"command-r7b", []string{"<|START_ACTION|>"}},
	{"command-r", []string{"<|CHATBOT_TOKEN|>", "Action:"}},
	{"mistral", []string{"[TOOL_CALLS]"}},
	{"mistral", []string{"[INST]", "[AVAILABLE_TOOLS]"}},
	{"nemotron", []string{"<TOOLCALL>"}},
	{"granite", []string{"<|start_of_role|>", "<|tool_call|>"}},
	{"phi-4", []string{"<|/tool_call|>"}},
	{"phi-4", []string{"<|tool|>"}},
	{"phi-4", []string{"functools["}},
	{"lfm2", []string{"<|tool_list_start|>"}},
	{"lfm2", []string{"<|tool_call_start|>"}},
	{"jamba", []string{"<tool_calls>"}},
	{"hermes", []string{"<tool_call>"}},
	{"granite", []string{"<|start_of_role|>"}},
	{"functionary-v3.1", []string{"<function=", "<|start_header_id|>", "</function>", "You can choose"}},
	{"functionary-v3.1", []string{"<function=", "you have access to the following functions"}},
	{"llama-3", []string{"<|python_tag|>"}},
	{"llama-3", []string{"<|start_header_id|>", `"parameters"`}},
	{"llama-3", []string{"<|python_start|>"}},
}

// Recognise returns the format of a chat template. has reports whether the vocabulary has a single
// token for a text; it may be nil. takesTools is whether the template describes tools.
func Recognise(template string, takesTools bool, has func(token string) bool) *Format {
	if has == nil {
		has = func(string) bool { return false }
	}
	name := ""
	for _, s := range signs {
		fits := true
		for _, text := range s.all {
			fits = fits && strings.Contains(template, text)
		}
		if fits {
			name = s.name
			break
		}
	}
	if name == "" && has("<|tool_call_start|>") && has("<|tool_call_end|>") {
		name = "lfm2"
	}
	// If the template does not describe tools, the model never saw the family's format in a prompt.
	if name == "" || !takesTools && name != "gpt-oss" {
		f := formats["generic"]
		if name != "" { // the thinking markers still apply
			f.thinks, f.drop = formats[name].thinks, formats[name].drop
			f.shortIDs = formats[name].shortIDs
		}
		f.Name = "generic"
		f.TakesTools = false
		f.addThinks(template, has)
		return &f
	}
	f := formats[name]
	f.Name, f.TakesTools = name, takesTools
	f.oldArray = f.arrays && !strings.Contains(template, "[ARGS]")
	f.fenced = f.typed && strings.Contains(template, "```json")
	f.addThinks(template, has)
	return &f
}

// otherThinks holds the thinking markers of families that write calls as others do.
var otherThinks = []thinks{
	{"<think>", "</think>"},
	{"<seed:think>", "</seed:think>"},
	{"[THINK]", "[/THINK]"},
	{"<thinking>", "</thinking>"},
	{"<thought>", "</thought>"},
	{"<reasoning>", "</reasoning>"},
	{"◁think▷", "◁/think▷"},
	{"<|START_THINKING|>", "<|END_THINKING|>"},
	{"<|inner_prefix|>", "<|inner_suffix|>"},
	{"<|channel>thought", "<channel|>"},
}

// addThinks adds the markers found in the template or the vocabulary.
func (f *Format) addThinks(template string, has func(string) bool) {
	if f.syntax == harmony {
		return
	}
	list := slices.Clip(f.thinks)
	for _, t := range otherThinks {
		if !slices.Contains(list, t) && (strings.Contains(template, t.close) || strings.Contains(template, t.open) || has(t.open) && has(t.close)) {
			list = append(list, t)
		}
	}
	f.thinks = list
}

// Thinks reports whether models of the format can think before they answer.
func (f *Format) Thinks() bool { return len(f.thinks) > 0 || f.syntax == harmony }

// OpensThinking reports whether a prompt ends within a block of thinking that it opened.
func (f *Format) OpensThinking(prompt string) bool {
	prompt = strings.TrimRight(prompt, spaces)
	for _, t := range f.thinks {
		if strings.HasSuffix(prompt, t.open) {
			return true
		}
	}
	return false
}

// EndOfThinking returns the marker that ends a block of thinking, or "".
func (f *Format) EndOfThinking() string {
	if len(f.thinks) == 0 {
		return ""
	}
	return f.thinks[0].close
}

// Markers returns the texts that a parser of the format looks for. The engine must pass on tokens
// of them, which it would otherwise omit. With calls, they include the markers of calls.
func (f *Format) Markers(calls bool) []string {
	var out []string
	for _, t := range f.thinks {
		out = append(out, t.open, t.close)
	}
	out = append(out, f.drop...)
	if f.syntax == harmony {
		return append(append(out, harmonyStarts...), harmonyEnds...)
	}
	if !calls {
		return out
	}
	for _, list := range [][]string{f.sections, f.opens, f.closers, f.nameEnds, f.keyEnds, f.fences} {
		out = append(out, list...)
	}
	out = append(out, f.paramOpen, f.valueOpen, f.paramClose, f.callClose, f.afterName)
	if f.syntax == gemmaCalls {
		out = append(out, "<escape>", `<|"|>`)
	}
	return out
}

// Thinking returns the markers around the thinking of an answer, or empty ones, and whether the
// answer begins within it. opened is whether the prompt has opened it.
func (f *Format) Thinking(opened bool) (open, end string, begins bool) {
	switch {
	case f.syntax == harmony: // everything before the final message
		return "", "<|channel|>final<|message|>", true
	case len(f.thinks) == 0:
		return "", "", false
	}
	return f.thinks[0].open, f.thinks[0].close, opened
}
