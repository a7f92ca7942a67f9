package operation

import (
	"reflect"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Info describes an operation to users: GET /v1/operations, `rbee operations`.
type Info struct {
	Name    core.Operation `json:"operation"`
	Number  int            `json:"number,omitempty"` // number in the contract; 0: not in it
	Summary string         `json:"summary"`
	Runs    Runs           `json:"runs"`     // who runs it as a job
	RunsOn  string         `json:"runs_on"`  // the same, for people
	Result  string         `json:"result"`   // name of the result's type
	Get     string         `json:"get"`      // route with the same result without a job; empty: none
	CLI     []string       `json:"commands"` // without "rbee"
	Request Schema         `json:"request"`  // schema of the body of POST /v1/jobs
}

// Schema is the part of JSON Schema that describes a request.
type Schema struct {
	Type        string            `json:"type"`
	Description string            `json:"description,omitempty"`
	Const       string            `json:"const,omitempty"`
	Enum        []string          `json:"enum,omitempty"`
	Pattern     string            `json:"pattern,omitempty"`
	MaxLength   int64             `json:"maxLength,omitempty"` // rbee counts bytes
	Minimum     *int64            `json:"minimum,omitempty"`
	Maximum     int64             `json:"maximum,omitempty"`
	Items       *Schema           `json:"items,omitempty"`
	MaxItems    int               `json:"maxItems,omitempty"`
	Properties  map[string]Schema `json:"properties,omitempty"`
	Required    []string          `json:"required,omitempty"`
	Additional  *bool             `json:"additionalProperties,omitempty"`
}

// Describe describes every operation, in the order of All.
func Describe() []Info {
	var out []Info
	for _, s := range All() {
		info := Info{
			Name: s.Name, Number: s.Number, Summary: s.Summary, Runs: s.Runs, RunsOn: s.Runs.Text(), Result: s.ResultType(), Get: s.Get, CLI: s.CLI,
			Request: Schema{Type: "object", Additional: new(false), Required: []string{"operation"}, Properties: map[string]Schema{
				"operation":  {Type: "string", Const: string(s.Name)},
				"request_id": {Type: "string", MaxLength: core.MaxRequestIDBytes, Description: "the same id twice is one job"},
			}},
		}
		if !s.Runs.OnQueen() {
			info.Request.Properties["hive"] = Schema{Type: "string", MaxLength: core.MaxTextBytes, Description: "id or name of a hive; empty: " + s.Runs.Text()}
		}
		for _, f := range s.Fields {
			v, _ := requestField(new(core.Request), f.Name)
			info.Request.Properties[f.Name] = f.schema(v)
			if f.Required {
				info.Request.Required = append(info.Request.Required, f.Name)
			}
		}
		out = append(out, info)
	}
	return out
}

// schema describes the values that check accepts.
func (f Field) schema(v reflect.Value) Schema {
	top := f.limit(v)
	text := Schema{Type: "string", MaxLength: top, Enum: f.Enum}
	var s Schema
	switch v.Interface().(type) {
	case bool:
		s = Schema{Type: "boolean"}
	case core.Duration:
		s = Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
		s.Description = f.Doc + "; such as 1m30s, at most " + time.Duration(top).String()
		return s
	case int:
		s = Schema{Type: "integer", Minimum: new(int64), Maximum: top}
		if f.Required {
			s.Minimum = new(int64(1))
		}
	case []string:
		s = Schema{Type: "array", Items: &text, MaxItems: core.MaxTexts}
	default:
		s = text
	}
	s.Description = f.Doc
	return s
}
