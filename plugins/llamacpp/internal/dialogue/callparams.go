package dialogue

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// schema returns the schema of a tool's arguments, which are an object, in a form that grammars
// support.
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
		schema, _ = json.Marshal(m) // marshalling decoded JSON cannot fail
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

// property is one argument of a simple schema.
type property struct {
	name     string
	schema   json.RawMessage // including the definitions that it may refer to
	required bool
	types    typeSet
}

// properties returns the arguments of a schema in order, or false when the schema has other
// constraints.
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
			p.schema, _ = json.Marshal(m) // marshalling decoded JSON cannot fail
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

// errNested is the error for strict tools whose nested arguments a format cannot write.
var errNested = &grammar.Error{Reason: "this model writes arguments one by one, so that only the properties of the parameters can be constrained, by names without spaces or quotes, and which are required"}

// params writes arguments between markers: inner separates a value from its markers, after follows
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
		typed := f.Name == "deepseek-v3.2" && p.types != tString // the marker declares the value as JSON
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

// argument is a value between markers: JSON, or the text of a string. The parser distinguishes them
// by the types that the schema allows.
func (b *callWriter) argument(p property, typed bool, inner string) (grammar.Part, error) {
	if typed || p.types != 0 && p.types&tString == 0 {
		if _, err := grammar.Compile(p.schema, grammar.Options{}); err != nil { // it refers to another schema
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

// readAsJSON returns an expression that matches every text that the parser reads as a value of one
// of types instead of as a string, and some more.
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

// withoutStrings returns schema, an object, restricted to values other than strings.
func withoutStrings(schema json.RawMessage) json.RawMessage {
	var m map[string]json.RawMessage
	var all []json.RawMessage
	if json.Unmarshal(schema, &m) != nil || m["allOf"] != nil && json.Unmarshal(m["allOf"], &all) != nil {
		return json.RawMessage("false")
	}
	m["allOf"], _ = json.Marshal(append(all, json.RawMessage(`{"not":{"type":"string"}}`))) // marshalling decoded JSON cannot fail
	out, _ := json.Marshal(m)
	return out
}

// keywords writes the arguments as Python keyword arguments. It reports false for schemas that are
// not that simple.
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

// empty is the schema of a tool without arguments; anyObject replaces a schema that cannot be
// enforced.
const (
	empty     = `{"type":"object","properties":{},"additionalProperties":false}`
	anyObject = `{"type":"object"}`
)
