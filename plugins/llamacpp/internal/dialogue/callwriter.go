package dialogue

import (
	"encoding/json"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// writing is how a family writes calls: open, lead, calls separated by sep, close. With repeats,
// several calls may follow each other between open and close.
type writing struct {
	open, lead, sep, close string
	repeats                bool
}

func (f *Format) writing() writing {
	switch f.Name {
	case "hermes":
		return writing{open: "<tool_call>", lead: "\n", sep: "\n</tool_call>\n<tool_call>\n", close: "\n</tool_call>"}
	case "qwen-coder":
		return writing{open: "<tool_call>", lead: "\n", sep: "\n</tool_call>\n<tool_call>\n", close: "\n</tool_call>"}
	case "seed-oss":
		return writing{open: "<seed:tool_call>", lead: "\n", sep: "\n</seed:tool_call>\n<seed:tool_call>\n", close: "\n</seed:tool_call>"}
	case "minimax-m2":
		return writing{open: "<minimax:tool_call>", lead: "\n", close: "</minimax:tool_call>", repeats: true}
	case "deepseek-v3.2":
		return writing{open: "<｜DSML｜function_calls>", lead: "\n", close: "</｜DSML｜function_calls>", repeats: true}
	case "glm-4":
		return writing{open: "<tool_call>", sep: "\n<tool_call>"}
	case "functionary-v3.1":
		return writing{open: "<function=", sep: "<function="}
	case "functionary-v3.2", "functionary-v2":
		return writing{open: f.opens[0], sep: f.opens[0]}
	case "mistral":
		if f.oldArray {
			return writing{open: "[TOOL_CALLS]", lead: "[", sep: ", ", close: "]", repeats: true}
		}
		return writing{open: "[TOOL_CALLS]", sep: "[TOOL_CALLS]"}
	case "deepseek-v3":
		w := writing{open: "<｜tool▁calls▁begin｜>", close: "<｜tool▁calls▁end｜>", repeats: true}
		if f.fenced {
			w.sep = "\n"
		}
		return w
	case "kimi-k2":
		return writing{open: "<|tool_calls_section_begin|>", close: "<|tool_calls_section_end|>", repeats: true}
	case "granite":
		return writing{open: "<|tool_call|>", lead: "[", sep: ", ", close: "]", repeats: true}
	case "command-r7b":
		return writing{open: "<|START_ACTION|>", lead: "[\n    ", sep: ",\n    ", close: "\n]<|END_ACTION|>", repeats: true}
	case "command-r":
		return writing{open: "Action: ```json", lead: "\n[\n    ", sep: ",\n    ", close: "\n]```", repeats: true}
	case "phi-4":
		return writing{open: "<|tool_call|>", lead: "[", sep: ", ", close: "]<|/tool_call|>", repeats: true}
	case "nemotron":
		return writing{open: "<TOOLCALL>", lead: "[", sep: ", ", close: "]</TOOLCALL>", repeats: true}
	case "jamba":
		return writing{open: "<tool_calls>", lead: "[", sep: ", ", close: "]</tool_calls>", repeats: true}
	case "lfm2":
		return writing{open: "<|tool_call_start|>", lead: "[", sep: ", ", close: "]<|tool_call_end|>", repeats: true}
	case "functiongemma":
		return writing{open: "<start_function_call>call:", sep: "<end_function_call><start_function_call>call:", close: "<end_function_call>"}
	case "gemma-4":
		return writing{open: "<|tool_call>call:", sep: "<tool_call|><|tool_call>call:", close: "<tool_call|>"}
	case "gpt-oss":
		return writing{open: "<|channel|>commentary to=functions."}
	case "llama-3":
		return writing{sep: "; "}
	}
	return writing{sep: "\n"}
}

// callWriter builds the grammar parts of calls.
type callWriter struct {
	f     *Format
	calls []grammar.Part // by tool, without the surrounding markers
	args  []grammar.Part // by tool
	names []string

	strict bool // an unenforceable constraint of the current tool is an error
}

// section follows the opening marker.
func (b *callWriter) section(w writing, parallel bool) grammar.Part {
	return grammar.Sequence(grammar.Literal(w.lead), grammar.OneOf(b.calls...), b.more(w, parallel), grammar.Literal(w.close))
}

// more allows further calls.
func (b *callWriter) more(w writing, parallel bool) grammar.Part {
	if !parallel || w.sep == "" && !w.repeats {
		return grammar.Part{}
	}
	return grammar.Repeat(grammar.Sequence(grammar.Literal(w.sep), grammar.OneOf(b.calls...)), 0, MaxCalls-1)
}

type triggerPart struct {
	text   string
	begins bool
	part   grammar.Part
}

// triggers returns the texts that begin a call, and what follows each.
func (b *callWriter) triggers(w writing, parallel bool) []triggerPart {
	switch {
	case b.f.syntax == recipients:
		var out []triggerPart
		for i, name := range b.names { // with the name, as the marker with other names is no call
			rest := grammar.Sequence(grammar.Literal(b.f.afterName), b.arguments(i))
			out = append(out, triggerPart{name + "\n", true, rest}, triggerPart{w.open + name + "\n", false, rest})
		}
		return out
	case b.f.weak:
		var out []triggerPart
		for i, name := range b.names {
			head := b.objectHead(name)
			out = append(out, triggerPart{head, true, grammar.Sequence(b.arguments(i), grammar.Literal("}"))})
		}
		if len(b.f.opens) > 0 && b.f.opens[0] == "<tool_call>" {
			rest := grammar.Sequence(grammar.Regex(`\n?`), grammar.OneOf(b.calls...), grammar.Regex(`\n?`), grammar.Literal("</tool_call>"))
			out = append(out, triggerPart{"<tool_call>", false, rest})
		}
		return out
	case b.f.syntax == harmony:
		return []triggerPart{{" to=functions.", false, b.harmonyRest()}}
	}
	return []triggerPart{{w.open, false, b.section(w, parallel && w.repeats)}}
}

// harmonyRest is the rest of the header of a message to a tool, wherever the recipient appears in
// it.
func (b *callWriter) harmonyRest() grammar.Part {
	var list []grammar.Part
	for i, name := range b.names {
		list = append(list, grammar.Sequence(grammar.Literal(name), grammar.OneOf(
			grammar.Literal(" <|constrain|>json"), grammar.Literal("<|channel|>commentary <|constrain|>json"), grammar.Literal("<|channel|>commentary json"),
			grammar.Literal(" json"), grammar.Literal("<|channel|>commentary"), grammar.Literal(""),
		), grammar.Literal("<|message|>"), b.arguments(i)))
	}
	return grammar.OneOf(list...)
}

// objectHead is a call as a JSON object, up to its arguments.
func (b *callWriter) objectHead(name string) string {
	switch b.f.Name {
	case "llama-3":
		return `{"name": "` + name + `", "parameters": `
	case "command-r":
		return `{"tool_name": "` + name + `", "parameters": `
	}
	return `{"name": "` + name + `", "arguments": `
}

// arguments is the JSON of the arguments of tool i.
func (b *callWriter) arguments(i int) grammar.Part { return b.args[i] }

// call is a call of a tool, without the surrounding markers.
func (b *callWriter) call(t *Tool, schema json.RawMessage) (grammar.Part, error) {
	args := grammar.JSON(schema)
	b.args = append(b.args, args)
	name := t.Name
	if b.f.syntax == xmlCalls {
		return b.xmlCall(name, schema)
	}
	return b.otherCall(name, schema, args), nil
}

// xmlCall is a call whose arguments are between markers.
func (b *callWriter) xmlCall(name string, schema json.RawMessage) (grammar.Part, error) {
	lit := grammar.Literal
	inner, after := "", "\n"
	var head grammar.Part
	switch b.f.Name {
	case "qwen-coder", "seed-oss":
		head, inner = lit("<function="+name+">\n"), "\n"
	case "minimax-m2":
		head = lit(`<invoke name="` + name + `">` + "\n")
	case "deepseek-v3.2":
		head = lit(`<｜DSML｜invoke name="` + name + `">` + "\n")
	case "glm-4":
		head, after = grammar.Sequence(lit(name), grammar.Regex(`\n?`)), ""
	}
	params, err := b.params(schema, inner, after)
	end := b.f.callClose
	if b.f.Name == "minimax-m2" || b.f.Name == "deepseek-v3.2" {
		end += "\n"
	}
	return grammar.Sequence(head, params, lit(end)), err
}

// otherCall is a call in the other notations.
func (b *callWriter) otherCall(name string, schema json.RawMessage, args grammar.Part) grammar.Part {
	lit := grammar.Literal
	switch b.f.Name {
	case "functionary-v3.1":
		return grammar.Sequence(lit(name+">"), args, lit("</function>"))
	case "functionary-v3.2", "functionary-v2":
		return grammar.Sequence(lit(name+"\n"+b.f.afterName), args)
	case "mistral":
		if !b.f.oldArray {
			return grammar.Sequence(lit(name+"[ARGS]"), args)
		}
	case "deepseek-v3":
		if b.f.fenced {
			return grammar.Sequence(lit("<｜tool▁call▁begin｜>function<｜tool▁sep｜>"+name+"\n```json\n"), args, lit("\n```<｜tool▁call▁end｜>"))
		}
		return grammar.Sequence(lit("<｜tool▁call▁begin｜>"+name+"<｜tool▁sep｜>"), args, lit("<｜tool▁call▁end｜>"))
	case "kimi-k2":
		return grammar.Sequence(lit("<|tool_call_begin|>functions."+name+":"), grammar.Regex(`\d{1,4}`), lit("<|tool_call_argument_begin|>"), args, lit("<|tool_call_end|>"))
	case "command-r7b":
		return grammar.Sequence(lit(`{"tool_call_id": "`), grammar.Regex(`\d{1,4}`), lit(`", "tool_name": "`+name+`", "parameters": `), args, lit("}"))
	case "lfm2":
		if p, ok := b.keywords(schema); ok {
			return grammar.Sequence(lit(name+"("), p, lit(")"))
		}
	case "functiongemma", "gemma-4":
		return grammar.Sequence(lit(name), args)
	case "gpt-oss":
		return grammar.Sequence(lit(name+" <|constrain|>json<|message|>"), args)
	}
	return grammar.Sequence(lit(b.objectHead(name)), args, lit("}"))
}
