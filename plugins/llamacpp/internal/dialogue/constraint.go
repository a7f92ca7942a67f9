package dialogue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// MaxMemory bounds what a constraint takes, roughly, in bytes; a grammar of each tool may need
// minMemory of it.
const (
	MaxMemory = 32 << 20
	minMemory = 1 << 20
)

// Choice says how tools are to be called.
type Choice struct {
	Required bool // the answer is a call, of any of the tools; else the model decides
	Parallel bool // it may hold several
	Thinking bool // the prompt has opened a block of thinking
	Form     Form // of an answer that is not a call; not with Required
}

// Form is what content must look like: at most one of its fields is set.
type Form struct {
	Schema     string // JSON Schema
	Regex      string
	Choices    []string
	Whitespace bool // may stand between the tokens of JSON, in arguments too
}

// Given reports whether content must have a form.
func (f *Form) Given() bool { return f.Schema != "" || f.Regex != "" || len(f.Choices) > 0 }

func (f *Form) part() grammar.Part {
	switch {
	case f.Schema != "":
		return grammar.JSON([]byte(f.Schema))
	case f.Regex != "":
		return grammar.Regex(f.Regex)
	}
	var list []grammar.Part
	for _, c := range f.Choices {
		list = append(list, grammar.Literal(c))
	}
	return grammar.OneOf(list...)
}

// content is a whole answer that is not a call, as the format writes it.
func (f *Format) content(form Form) grammar.Part {
	switch {
	case f.syntax == recipients: // the prompt wrote the first marker
		return grammar.Sequence(grammar.Literal("all\n"+f.afterName), form.part())
	case f.syntax == harmony:
		return grammar.Sequence(grammar.Literal("<|channel|>final<|message|>"), form.part())
	}
	return form.part()
}

// Constraint is what calls must look like. It is safe for concurrent use.
type Constraint struct {
	whole    *grammar.Grammar // of the answer from its beginning on; nil: any text
	triggers []trigger        // what wakes the grammar of a call, where whole is nil
	parallel bool
}

// trigger is a text behind which a call is constrained.
type trigger struct {
	text   string
	begins bool // it counts only where an answer begins, or behind a call
	call   *grammar.Grammar
}

// ToolError says which tool cannot be constrained as it demands.
type ToolError struct {
	Index int // of the tool
	Err   error
}

func (e *ToolError) Error() string { return e.Err.Error() }
func (e *ToolError) Unwrap() error { return e.Err }

// Constrain returns what calls of tools must look like, and an answer without one. The arguments
// satisfy a tool's schema. What of a schema cannot be guaranteed is a *ToolError for a strict tool,
// and is given up for others. Between tools it looks at ctx.
func (f *Format) Constrain(ctx context.Context, tools []Tool, choice Choice) (*Constraint, error) {
	b := &callWriter{f: f}
	for i := range tools {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		schema, err := b.schema(&tools[i])
		if err != nil {
			return nil, &ToolError{i, err}
		}
		b.strict = tools[i].Strict
		call, err := b.call(&tools[i], schema)
		if err != nil {
			return nil, &ToolError{i, err}
		}
		b.calls = append(b.calls, call)
		b.names = append(b.names, tools[i].Name)
	}
	c := &Constraint{parallel: choice.Parallel}
	w := f.writing()
	if choice.Required || choice.Form.Given() {
		part := b.section(w, choice.Parallel)
		if f.syntax == recipients { // the prompt wrote the first marker
			part = grammar.Sequence(grammar.OneOf(b.calls...), b.more(w, choice.Parallel))
		} else {
			part = grammar.Sequence(grammar.Literal(w.open), part)
		}
		opts := grammar.Options{MaxMemory: MaxMemory}
		if !choice.Required {
			if len(tools) > 0 {
				part = grammar.OneOf(part, f.content(choice.Form))
			} else {
				part = f.content(choice.Form)
			}
			if choice.Form.Whitespace {
				opts.Whitespace = grammar.AnyWhitespace
			}
		}
		var err error
		c.whole, err = grammar.CompileParts(grammar.Sequence(f.thinkingFirst(choice.Thinking), part), opts)
		return c, err
	}
	parts := b.triggers(w, choice.Parallel)
	for _, t := range parts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g, err := grammar.CompileParts(t.part, grammar.Options{MaxMemory: max(MaxMemory/len(parts), minMemory)})
		if err != nil {
			return nil, err
		}
		c.triggers = append(c.triggers, trigger{t.text, t.begins, g})
	}
	return c, nil
}

// thinkingFirst is the thinking that an answer may begin with, as the parser reads it.
func (f *Format) thinkingFirst(opened bool) grammar.Part {
	if f.syntax == harmony {
		return grammar.Repeat(grammar.Sequence(
			grammar.Literal("<|channel|>analysis<|message|>"), grammar.Until(harmonyEnds...), grammar.Literal("<|end|><|start|>assistant"),
		), 0, 1)
	}
	if len(f.thinks) == 0 {
		return grammar.Part{}
	}
	space := grammar.Regex(`[ \n]{0,4}`)
	if opened {
		var closes []string
		var literals []grammar.Part
		for _, t := range f.thinks {
			closes = append(closes, t.close)
			literals = append(literals, grammar.Literal(t.close))
		}
		return grammar.Sequence(grammar.Until(f.endOfThinking(closes)...), grammar.OneOf(literals...), space)
	}
	t := f.thinks[0]
	return grammar.Repeat(grammar.Sequence(
		grammar.Literal(t.open), grammar.Until(f.endOfThinking([]string{t.close})...), grammar.Literal(t.close), space), 0, 1)
}

// writing is how a family writes calls: open, lead, calls with sep between them, close. repeats
// means that calls may follow each other between open and close.
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

// callWriter makes the parts of calls.
type callWriter struct {
	f     *Format
	calls []grammar.Part // by tool, without what stands around them
	args  []grammar.Part // by tool
	names []string

	strict bool // what cannot be guaranteed of the current tool is an error
}

// section is what follows the opening marker.
func (b *callWriter) section(w writing, parallel bool) grammar.Part {
	return grammar.Sequence(grammar.Literal(w.lead), grammar.OneOf(b.calls...), b.more(w, parallel), grammar.Literal(w.close))
}

// more is further calls.
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

// triggers are the texts that begin a call, and what follows each.
func (b *callWriter) triggers(w writing, parallel bool) []triggerPart {
	switch {
	case b.f.syntax == recipients:
		var out []triggerPart
		for i, name := range b.names { // the name is part of the trigger, as others mean no tool
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

// harmonyRest is the rest of the head of a message to a tool, wherever the recipient stands in it.
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

// empty is the schema of a tool without arguments, anyObject that of one whose own is given up.
const (
	empty     = `{"type":"object","properties":{},"additionalProperties":false}`
	anyObject = `{"type":"object"}`
)

// schema returns the schema of a tool's arguments, which are an object, in a form that a grammar
// takes.
func (b *callWriter) schema(t *Tool) (json.RawMessage, error) {
	if len(t.Parameters) == 0 {
		return json.RawMessage(empty), nil
	}
	schema := json.RawMessage(t.Parameters)
	var m map[string]json.RawMessage
	if err := json.Unmarshal(schema, &m); err != nil {
		return nil, fmt.Errorf("the schema of its parameters is not an object: %w", err)
	}
	if string(m["type"]) != `"object"` {
		m["type"] = json.RawMessage(`"object"`)
		schema, _ = json.Marshal(m) // it was JSON
	}
	_, err := grammar.Compile(schema, grammar.Options{})
	switch {
	case err == nil:
		return schema, nil
	case t.Strict:
		return nil, err
	}
	return json.RawMessage(anyObject), nil
}

// objectHead is a call as a JSON object up to its arguments.
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

// call is a call of a tool, without what stands around calls.
func (b *callWriter) call(t *Tool, schema json.RawMessage) (grammar.Part, error) {
	args := grammar.JSON(schema)
	b.args = append(b.args, args)
	name := t.Name
	if b.f.syntax == xmlCalls {
		return b.xmlCall(name, schema)
	}
	return b.otherCall(name, schema, args), nil
}

// xmlCall is a call whose arguments stand between markers.
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

// property is one argument of a simple schema.
type property struct {
	name     string
	schema   json.RawMessage // with the definitions that it may refer to
	required bool
	types    typeSet
}

// properties returns the arguments of a schema in their order, or false where it says more than
// that.
func properties(schema json.RawMessage) ([]property, bool) {
	var s struct {
		Properties json.RawMessage            `json:"properties"`
		Required   []string                   `json:"required"`
		Defs       json.RawMessage            `json:"$defs"`
		Older      json.RawMessage            `json:"definitions"`
		Rest       map[string]json.RawMessage `json:"-"`
	}
	if json.Unmarshal(schema, &s) != nil || json.Unmarshal(schema, &s.Rest) != nil {
		return nil, false
	}
	for key := range s.Rest {
		switch key {
		case "type", "properties", "required", "additionalProperties", "$defs", "definitions", "description", "title", "$schema", "$id", "$comment", "strict", "default", "examples", "deprecated", "readOnly", "writeOnly":
		default:
			return nil, false
		}
	}
	tool := Tool{Parameters: schema}
	var out []property
	d := json.NewDecoder(strings.NewReader(string(s.Properties)))
	if _, err := d.Token(); err != nil {
		return nil, len(s.Required) == 0
	}
	for d.More() {
		key, err := d.Token()
		name, isText := key.(string)
		if err != nil || !isText || !validName(name) {
			return nil, false
		}
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			return nil, false
		}
		p := property{name: name, schema: raw, required: slices.Contains(s.Required, name), types: tool.typesOf(name)}
		var m map[string]json.RawMessage
		if json.Unmarshal(raw, &m) == nil {
			if m["$defs"] == nil && s.Defs != nil {
				m["$defs"] = s.Defs
			}
			if m["definitions"] == nil && s.Older != nil {
				m["definitions"] = s.Older
			}
			p.schema, _ = json.Marshal(m) // it was JSON
		}
		out = append(out, p)
	}
	for _, name := range s.Required {
		if !slices.ContainsFunc(out, func(p property) bool { return p.name == name }) {
			return nil, false
		}
	}
	return out, true
}

// errNested says what a format cannot write of a strict tool.
var errNested = &grammar.Error{Reason: "this model writes arguments one by one, so that only the properties of the parameters can be constrained, by names without spaces or quotes, and which are required"}

// params is arguments between markers: inner stands between a value and its markers, after behind
// each argument.
func (b *callWriter) params(schema json.RawMessage, inner, after string) (grammar.Part, error) {
	f := b.f
	lit := grammar.Literal
	list, ok := properties(schema)
	if !ok {
		if b.strict {
			return grammar.Part{}, errNested
		}
		one := grammar.Sequence(lit(f.paramOpen), grammar.Regex(`[^<>\n"]{1,64}`), lit(f.keyEnds[0]+f.valueOpen+inner), grammar.Until(f.paramClose), lit(inner+f.paramClose+after))
		return grammar.Repeat(one, 0, -1), nil
	}
	var out []grammar.Part
	for _, p := range list {
		end := f.keyEnds[0]
		typed := f.Name == "deepseek-v3.2" && p.types != tString // the marker says that it is JSON
		if typed {
			end = f.keyEnds[1]
		}
		value, err := b.argument(p, typed, inner)
		if err != nil {
			return grammar.Part{}, err
		}
		gap := lit("")
		last := lit(after)
		if f.valueOpen != "" {
			gap, last = grammar.Regex(`\n?`), grammar.Regex(`\n?`)
		}
		one := grammar.Sequence(lit(f.paramOpen+p.name+end), gap, lit(f.valueOpen+inner), value, lit(inner+f.paramClose), last)
		if !p.required {
			one = grammar.Repeat(one, 0, 1)
		}
		out = append(out, one)
	}
	return grammar.Sequence(out...), nil
}

// argument is a value between markers: JSON, or the text of a string, which the parser tells apart
// by the types that the schema allows.
func (b *callWriter) argument(p property, typed bool, inner string) (grammar.Part, error) {
	if typed || p.types != 0 && p.types&tString == 0 {
		if _, err := grammar.Compile(p.schema, grammar.Options{}); err != nil { // it refers to what is elsewhere
			if b.strict {
				return grammar.Part{}, err
			}
			return grammar.JSON([]byte("true")), nil
		}
		return grammar.JSON(p.schema), nil
	}
	also := []grammar.Part{grammar.Until(b.f.paramClose)}
	if b.f.lines && inner == "" { // the parser drops line breaks at both ends
		also = append(also, grammar.Regex(`(?!\n)[\s\S]*`), grammar.Regex(`(?![\s\S]*\n$)[\s\S]*`))
	}
	var list []grammar.Part
	if p.types != 0 && p.types != tString {
		also = append(also, grammar.Regex(`(?!`+readAsJSON(p.types)+`)[\s\S]*`))
		if others := grammar.JSON(withoutStrings(p.schema)); compiles(others) == nil {
			list = append(list, others)
		}
	}
	text := grammar.Text(p.schema, also...)
	switch err := compiles(text); {
	case err == nil:
		list = append(list, text)
	case len(list) > 0:
	case b.strict:
		return grammar.Part{}, err
	default:
		return grammar.Until(b.f.paramClose), nil
	}
	return grammar.OneOf(list...), nil
}

func compiles(p grammar.Part) error {
	_, err := grammar.CompileParts(p, grammar.Options{})
	return err
}

// readAsJSON returns an expression of the texts that the parser takes for a value of one of types
// rather than for a string, and of some more.
func readAsJSON(types typeSet) string {
	const space = `[\s\u0085]*`
	var words, starts []string
	if types&tNull != 0 {
		words = append(words, "null", "None")
	}
	if types&tBool != 0 {
		words = append(words, "true", "false", "True", "False")
	}
	if types&(tInteger|tNumber) != 0 {
		starts = append(starts, "[-0-9]")
	}
	if types&tArray != 0 {
		starts = append(starts, `\[`)
	}
	if types&tObject != 0 {
		starts = append(starts, `\{`)
	}
	if words != nil {
		starts = append(starts, "(?:"+strings.Join(words, "|")+")"+space+"$")
	}
	return space + "(?:" + strings.Join(starts, "|") + ")"
}

// withoutStrings returns a schema that allows what schema, an object, allows but strings.
func withoutStrings(schema json.RawMessage) json.RawMessage {
	var m map[string]json.RawMessage
	var all []json.RawMessage
	if json.Unmarshal(schema, &m) != nil || m["allOf"] != nil && json.Unmarshal(m["allOf"], &all) != nil {
		return json.RawMessage("false")
	}
	m["allOf"], _ = json.Marshal(append(all, json.RawMessage(`{"not":{"type":"string"}}`))) // it was JSON
	out, _ := json.Marshal(m)
	return out
}

// keywords is the arguments as Python writes them. It reports false for what is not that simple.
func (b *callWriter) keywords(schema json.RawMessage) (grammar.Part, bool) {
	list, ok := properties(schema)
	if !ok || len(list) > 32 {
		return grammar.Part{}, false
	}
	for _, p := range list {
		if _, err := grammar.Compile(p.schema, grammar.Options{}); err != nil {
			return grammar.Part{}, false
		}
	}
	return keywordsFrom(list, true), true
}

func keywordsFrom(list []property, first bool) grammar.Part {
	if len(list) == 0 {
		return grammar.Part{}
	}
	p := list[0]
	one := grammar.Sequence(grammar.Literal(p.name+"="), grammar.JSON(p.schema))
	rest := keywordsFrom(list[1:], false)
	switch {
	case !first:
		one = grammar.Sequence(grammar.Literal(", "), one)
		if !p.required {
			one = grammar.Repeat(one, 0, 1)
		}
		return grammar.Sequence(one, rest)
	case p.required:
		return grammar.Sequence(one, rest)
	}
	return grammar.OneOf(grammar.Sequence(one, rest), keywordsFrom(list[1:], true))
}

// Explain returns what of a schema could not be guaranteed, where err says so.
func Explain(err error) (pointer, keyword, reason string, ok bool) {
	e, ok := errors.AsType[*grammar.Error](err)
	if !ok {
		return "", "", "", false
	}
	return e.Pointer, e.Keyword, e.Reason, true
}
