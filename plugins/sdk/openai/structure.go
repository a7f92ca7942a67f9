package openai

import (
	"bytes"
	"encoding/json"
)

// Structure holds the fields, besides response_format, that constrain the shape of an answer: those
// of llama.cpp's server and of vLLM.
type Structure struct {
	// llama.cpp: a schema
	JSONSchema json.RawMessage `json:"json_schema,omitempty"`
	Grammar    string          `json:"grammar,omitempty"` // llama.cpp: GBNF
	// vLLM: a schema, or its text
	GuidedJSON        json.RawMessage    `json:"guided_json,omitempty"`
	GuidedRegex       string             `json:"guided_regex,omitempty"`       // vLLM
	GuidedChoice      []string           `json:"guided_choice,omitempty"`      // vLLM
	GuidedGrammar     string             `json:"guided_grammar,omitempty"`     // vLLM: here GBNF
	StructuredOutputs *StructuredOutputs `json:"structured_outputs,omitempty"` // vLLM
}

// StructuredOutputs is the object of structured_outputs. Exactly one of its forms is set.
type StructuredOutputs struct {
	JSON          json.RawMessage `json:"json,omitempty"` // a schema, or its text
	Regex         string          `json:"regex,omitempty"`
	Choice        []string        `json:"choice,omitempty"`
	Grammar       string          `json:"grammar,omitempty"`
	JSONObject    bool            `json:"json_object,omitempty"`
	StructuralTag json.RawMessage `json:"structural_tag,omitempty"`
	// DisableAnyWhitespace, if present and false, allows whitespace between the tokens of JSON.
	DisableAnyWhitespace *bool `json:"disable_any_whitespace,omitempty"`
}

// ShapeKind is the kind of a Shape.
type ShapeKind string

// The kinds of a Shape; empty: any text.
const (
	ShapeSchema  ShapeKind = "schema"
	ShapeRegex   ShapeKind = "regex"
	ShapeGrammar ShapeKind = "grammar"
	ShapeChoice  ShapeKind = "choice"
)

// Shape is the shape that a request's answer must have.
type Shape struct {
	Kind       ShapeKind
	Text       string   // schema, regular expression or GBNF grammar
	Choices    []string // for ShapeChoice
	Whitespace bool     // allowed between the tokens of JSON
	Param      string   // the request field that requires the shape
	Path       string   // path of the schema within that field
}

// Bounds of a Shape.
const (
	MaxShapeBytes = 1 << 20 // of a schema, a regular expression, a grammar or all choices
	MaxChoices    = 4096
)

// anyObject is the schema used for response_format json_object.
const anyObject = `{"type":"object"}`

// Shape returns the shape that the answer must have. Its error is an *Error.
func (r *ChatRequest) Shape() (Shape, error) { return shape(r.ResponseFormat, &r.Structure) }

// Shape returns the shape that the answer must have. Its error is an *Error.
func (r *CompletionRequest) Shape() (Shape, error) { return shape(r.ResponseFormat, &r.Structure) }

// Shape returns the shape that the answer must have. Its error is an *Error.
func (r *InfillRequest) Shape() (Shape, error) { return shape(nil, &r.Structure) }

func shape(f *ResponseFormat, s *Structure) (Shape, error) {
	var all []Shape
	add := func(kind ShapeKind, text, param, path string) {
		if text != "" {
			all = append(all, Shape{Kind: kind, Text: text, Param: param, Path: path})
		}
	}
	choice := func(list []string, param, path string) {
		if list != nil {
			all = append(all, Shape{Kind: ShapeChoice, Choices: list, Param: param, Path: path})
		}
	}
	if f != nil {
		text, path, err := f.schema()
		if err != nil {
			return Shape{}, err
		}
		add(ShapeSchema, text, "response_format", path)
	}
	add(ShapeSchema, schemaText(s.JSONSchema), "json_schema", "json_schema")
	add(ShapeGrammar, s.Grammar, "grammar", "grammar")
	add(ShapeSchema, schemaText(s.GuidedJSON), "guided_json", "guided_json")
	add(ShapeRegex, s.GuidedRegex, "guided_regex", "guided_regex")
	choice(s.GuidedChoice, "guided_choice", "guided_choice")
	add(ShapeGrammar, s.GuidedGrammar, "guided_grammar", "guided_grammar")
	if o := s.StructuredOutputs; o != nil {
		const param = "structured_outputs"
		if len(o.StructuralTag) > 0 && string(o.StructuralTag) != "null" {
			return Shape{}, NotSupported(param, "structured_outputs.structural_tag is not supported by this worker; use json, regex, choice or grammar")
		}
		add(ShapeSchema, schemaText(o.JSON), param, "structured_outputs.json")
		add(ShapeRegex, o.Regex, param, "structured_outputs.regex")
		choice(o.Choice, param, "structured_outputs.choice")
		add(ShapeGrammar, o.Grammar, param, "structured_outputs.grammar")
		if o.JSONObject {
			add(ShapeSchema, anyObject, param, "structured_outputs.json_object")
		}
	}
	switch {
	case len(all) == 0:
		return Shape{}, nil
	case len(all) > 1:
		return Shape{}, Invalid(all[1].Param, "%s and %s both set the form of the answer; send one of them", all[0].Path, all[1].Path)
	}
	out := all[0]
	if o := s.StructuredOutputs; o != nil && o.DisableAnyWhitespace != nil {
		out.Whitespace = !*o.DisableAnyWhitespace
	}
	return out, out.validate()
}

func (s *Shape) validate() error {
	if s.Kind == ShapeChoice && (len(s.Choices) == 0 || len(s.Choices) > MaxChoices) {
		return Invalid(s.Param, "%s has %d texts; it takes 1 to %d", s.Path, len(s.Choices), MaxChoices)
	}
	size := len(s.Text)
	for _, c := range s.Choices {
		size += len(c)
	}
	if size > MaxShapeBytes {
		return Invalid(s.Param, "%s has %d bytes; at most %d are taken", s.Path, size, MaxShapeBytes)
	}
	return nil
}

// schema returns a response format's schema and its path; empty: none is required.
func (f *ResponseFormat) schema() (text, path string, err error) {
	switch f.Type {
	case "json_object":
		if text := schemaText(f.Schema); text != "" { // where llama.cpp puts it
			return text, "response_format.schema", nil
		}
		return anyObject, "response_format", nil
	case "json_schema":
		if text := schemaText(f.Schema); text != "" {
			return text, "response_format.schema", nil
		}
		var v struct {
			Schema json.RawMessage `json:"schema"`
		}
		if len(f.JSONSchema) > 0 && json.Unmarshal(f.JSONSchema, &v) != nil {
			return "", "", Invalid("response_format", "response_format.json_schema must be an object with a schema")
		}
		if text := schemaText(v.Schema); text != "" {
			return text, "response_format.json_schema.schema", nil
		}
		return "", "", Invalid("response_format", "response_format.json_schema.schema is missing; for any JSON object, use the type json_object")
	}
	return "", "", nil
}

// schemaText returns the text of a schema, which may be encoded as a string; empty: there is none.
func schemaText(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	if raw[0] == '"' {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return text
		}
	}
	return string(raw)
}
