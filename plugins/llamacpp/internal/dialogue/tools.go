package dialogue

import "encoding/json"

// Tool is a function that a model may call.
type Tool struct {
	Name        string
	Description string
	Parameters  []byte // a JSON Schema; empty: no arguments
	Strict      bool   // the arguments must satisfy it

	types map[string]typeSet
}

// typeSet is a set of JSON types.
type typeSet uint8

const (
	tNull typeSet = 1 << iota
	tBool
	tInteger
	tNumber
	tString
	tArray
	tObject
)

var typeNames = map[string]typeSet{
	"null": tNull, "boolean": tBool, "integer": tInteger, "number": tNumber | tInteger, "string": tString, "array": tArray, "object": tObject,
}

// typesOf returns the types that the schema allows an argument; 0: unknown.
func (t *Tool) typesOf(name string) typeSet {
	if t == nil {
		return 0
	}
	if t.types == nil {
		t.types = map[string]typeSet{}
		var s struct {
			Properties map[string]json.RawMessage `json:"properties"`
			Defs       map[string]json.RawMessage `json:"$defs"`
			Older      map[string]json.RawMessage `json:"definitions"`
		}
		if json.Unmarshal(t.Parameters, &s) == nil {
			defs := map[string]json.RawMessage{}
			for k, v := range s.Defs {
				defs["#/$defs/"+k] = v
			}
			for k, v := range s.Older {
				defs["#/definitions/"+k] = v
			}
			for k, v := range s.Properties {
				t.types[k] = schemaTypes(v, defs, 8)
			}
		}
	}
	return t.types[name]
}

// schemaTypes returns the types that a schema allows, as far as they are obvious.
func schemaTypes(raw json.RawMessage, defs map[string]json.RawMessage, depth int) typeSet {
	var s struct {
		Type  json.RawMessage   `json:"type"`
		Ref   string            `json:"$ref"`
		AnyOf []json.RawMessage `json:"anyOf"`
		OneOf []json.RawMessage `json:"oneOf"`
		AllOf []json.RawMessage `json:"allOf"`
		Enum  []json.RawMessage `json:"enum"`
		Const json.RawMessage   `json:"const"`
	}
	if depth == 0 || json.Unmarshal(raw, &s) != nil {
		return 0
	}
	var out typeSet
	var one string
	var list []string
	switch {
	case json.Unmarshal(s.Type, &one) == nil:
		return typeNames[one]
	case json.Unmarshal(s.Type, &list) == nil:
		for _, name := range list {
			out |= typeNames[name]
		}
		return out
	case s.Ref != "":
		return schemaTypes(defs[s.Ref], defs, depth-1)
	case len(s.Const) > 0:
		return typeOfJSON(string(s.Const))
	case len(s.Enum) > 0:
		for _, v := range s.Enum {
			out |= typeOfJSON(string(v))
		}
		return out
	}
	for _, v := range append(s.AnyOf, s.OneOf...) {
		t := schemaTypes(v, defs, depth-1)
		if t == 0 {
			return 0
		}
		out |= t
	}
	for _, v := range s.AllOf {
		if t := schemaTypes(v, defs, depth-1); t != 0 {
			return t
		}
	}
	return out
}
