package grammar_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// Equal values with different spellings, and rare combinations of keywords: every accepted document
// is valid, whatever else is refused.
func TestHostileValues(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		schema string
		docs   []string
		some   bool // at least one of the valid documents is accepted
	}{
		{`{"const":1}`, []string{`1`, `1.0`, `1e0`, `10e-1`, `1.5`, `-1`, `01`, `"1"`, `true`}, true},
		{`{"enum":[1.0,2e1,-0]}`, []string{`1`, `1.0`, `20`, `2e1`, `0`, `-0`, `0.0`, `-0.0`, `2`, `200`}, true},
		{`{"not":{"const":1}}`, []string{`1`, `1.0`, `1.00`, `1e0`, `0.1e1`, `10e-1`, `2`}, true},
		{`{"type":"number","not":{"enum":[0,10]}}`, []string{`0`, `-0`, `0.0`, `0e5`, `10`, `1e1`, `1.0e1`, `100e-1`, `1`}, true},
		{`{"type":"array","items":{"type":"number"},"uniqueItems":true}`, []string{`[1,1.0]`, `[1,1e0]`, `[0,-0]`, `[0,0.00]`, `[10,1e1]`, `[1,2]`, `[1.5,1.50]`}, true},
		{`{"type":"array","items":{"type":["string","number","null","boolean"]},"uniqueItems":true}`, []string{`["a","\u0061"]`, `["1",1]`, `[null,null]`, `["\/","/"]`, `["\ud83d\ude00","😀"]`, `["null",null]`}, true},
		{`{"multipleOf":0.1}`, []string{`0.3`, `0.35`, `1`, `1e-1`, `1e-2`, `-0.7`, `0`}, true},
		{`{"type":"integer"}`, []string{`1.0`, `1e2`, `1.5`, `15e-1`, `-0`, `9007199254740993`}, true},
		{`{"minimum":0.1,"exclusiveMaximum":0.3}`, []string{`0.1`, `0.10`, `0.3`, `0.30`, `0.2999999999999999999`, `1e-1`, `3e-1`}, true},
		{`{"minimum":-0,"maximum":-0}`, []string{`0`, `-0`, `0.0`, `-0.0`, `0.1`}, true},
		{`{"type":"string","minLength":1,"maxLength":1}`, []string{`"é"`, `"é"`, `"😀"`, `"\ud83d\ude00"`, `"\ud83d"`, `""`, `"ab"`, `"\n"`}, true},
		{`{"type":"string","pattern":"^.$"}`, []string{`"\n"`, `"\u2028"`, `"😀"`, `"a"`, `"\r"`}, true},
		{`{"type":"string","pattern":"a|^$"}`, []string{`""`, `"b"`, `"ba"`}, true},
		{`{"type":"string","pattern":"^[^\\d]+$"}`, []string{`"a"`, `"1"`, `"٣"`}, true},
		{`{"type":"string","pattern":"\\bword\\b"}`, []string{`"word"`, `"sword"`, `"a word."`}, false},
		{`{"properties":{"a":{"const":1}},"additionalProperties":{"const":2}}`, []string{`{"a":1,"\u0061":2}`, `{"\u0061":2}`, `{"\u0061":1}`, `{"a":1,"b":2}`}, true},
		{`{"properties":{"":{"const":0}},"required":[""]}`, []string{`{"":0}`, `{"":1}`, `{}`}, true},
		{`{"patternProperties":{"^$":{"const":0},"a":{"const":1},"b":{"const":1}}}`, []string{`{"":0}`, `{"ab":1}`, `{"ab":2}`, `{"":1}`}, true},
		{`{"type":"object","propertyNames":{"enum":["a","b"]},"minProperties":2}`, []string{`{"a":1,"b":2}`, `{"a":1,"a":2}`, `{"a":1}`}, true},
		{`{"dependentRequired":{"a":["b"],"b":["a"]}}`, []string{`{"a":1}`, `{"b":1,"a":1}`, `{"a":1,"b":1}`, `{}`}, true},
		{`{"if":{"properties":{"a":{"const":1}},"required":["a"]},"then":{"required":["b"]},"else":{"maxProperties":1}}`, []string{`{"a":1}`, `{"a":1,"b":2}`, `{"a":2,"b":2}`, `{"a":1.0}`, `[]`}, true},
		{`{"oneOf":[{"minimum":1},{"maximum":2}]}`, []string{`0`, `1`, `1.5`, `2`, `3`, `"x"`}, true},
		{`{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, []string{`{"a":1}`, `{"a":1,"b":1}`, `{}`, `1`}, true},
		{`{"allOf":[{"contains":{"const":1}},{"contains":{"const":2}}],"type":"array","maxItems":2}`, []string{`[1,2]`, `[1]`, `[2,1.0]`, `[1,1]`}, true},
		{`{"type":"array","contains":{"type":"integer"},"minContains":0}`, []string{`[]`, `["a"]`, `[1]`}, true},
		{`{"type":"array","prefixItems":[{"const":1}],"items":false}`, []string{`[]`, `[1]`, `[1,2]`, `[1.0]`}, true},
		{`{"const":{"a":[1,{"b":null}]}}`, []string{`{"a":[1,{"b":null}]}`, `{"a":[1.0,{"b":null}]}`, `{"a":[1,{}]}`, `{"a":[1,{"b":null}],"c":1}`}, true},
		{`{"not":{"required":["a"]},"properties":{"b":{"not":{}}}}`, []string{`{"a":1}`, `{"b":1}`, `{"c":1}`, `3`}, true},
		{`{"$defs":{"n":{"properties":{"n":{"$ref":"#/$defs/n"}},"additionalProperties":false}},"$ref":"#/$defs/n","required":["n"]}`, []string{`{"n":{"n":{}}}`, `{"n":{"m":1}}`, `{}`}, true},
		{`{"allOf":[{"properties":{"a":true}},{"properties":{"b":true}}],"unevaluatedProperties":false}`, []string{`{"a":1,"b":1}`, `{"c":1}`}, true},
		{`{"type":"number","multipleOf":1e-3,"minimum":1e3}`, []string{`1000`, `1000.001`, `1000.0001`, `1e3`, `999`}, true},
		{`{"type":["integer","string"],"minimum":3,"maxLength":1}`, []string{`3`, `2`, `"a"`, `"ab"`, `3.0`, `3.5`}, true},
	} {
		validator := compileValidator(t, c.schema)
		for _, opts := range []grammar.Options{{Whitespace: grammar.AnyWhitespace, Order: grammar.AnyOrder}, {}} {
			g, err := grammar.Compile([]byte(c.schema), opts)
			if err != nil && !c.some {
				continue
			}
			must.NoError(t, err, must.Sprint(c.schema))
			taken := 0
			for _, doc := range c.docs {
				if !g.Accepts([]byte(doc)) {
					continue
				}
				taken++
				must.NoError(t, validates(t, validator, []byte(doc)), must.Sprintf("%s accepts %s", c.schema, doc))
			}
			must.True(t, taken > 0 || !c.some, must.Sprint(c.schema))
		}
	}
}

// Names with a common prefix are distinguished, whichever of them are still possible: cached
// results for one set of names are not used for another.
func TestNamesWithCommonPrefix(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"object","properties":{"ab":{"type":"integer"},"abc":{"type":"integer"},"abd":{"type":"integer"},"a":{"type":"integer"}}}`),
		grammar.Options{Order: grammar.AnyOrder})
	must.NoError(t, err)
	names := []string{"a", "ab", "abc", "abd"}
	for _, first := range names {
		for _, second := range names {
			doc := `{"` + first + `":1,"` + second + `":2}`
			must.Eq(t, first != second, g.Accepts([]byte(doc)), must.Sprint(doc))
		}
	}
	must.False(t, g.Accepts([]byte(`{"ab":1,"abc":"x"}`)))
}
