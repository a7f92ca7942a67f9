package grammar_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

var schemaCases = []struct {
	name    string
	schema  string
	valid   []string
	invalid []string
}{
	{"anything", `{}`, []string{`null`, `true`, `-0.5e+10`, `"a\u00e9\ud83d\ude00é\n"`, `[1,[],{"a":{}}]`}, []string{``, `nul`, `01`, `"`, `"\ud83d"`, `"\x"`, `[1,]`, `{"a"}`, `{"a":1,"a":2}`, "\"\x01\"", "\"\xff\"", `[}`, `1.`, `1e`, `+1`}},
	{"types", `{"type":["integer","null"]}`, []string{`1`, `-12`, `null`}, []string{`1.5`, `"1"`, `true`}},
	{"enumeration", `{"enum":["a","ab",1,null,{"x":[1]}]}`, []string{`"a"`, `"ab"`, `1`, `null`, `{"x":[1]}`}, []string{`"b"`, `"abc"`, `2`, `{"x":[]}`, `{"x":[1],"y":1}`, `{}`}},
	{"constant", `{"const":{"a":[true,2.50]}}`, []string{`{"a":[true,2.5]}`, `{"a":[true,2.50]}`}, []string{`{"a":[true,2.51]}`, `{"a":[true]}`, `{}`}},
	{"range", `{"type":"number","minimum":-2.5,"exclusiveMaximum":10}`, []string{`-2.5`, `0`, `-0`, `9.999`, `3`, `-2.49`}, []string{`-2.51`, `10`, `10.0`, `11`, `100`, `-3`}},
	{"integer range", `{"type":"integer","minimum":3,"maximum":120}`, []string{`3`, `9`, `10`, `99`, `120`}, []string{`2`, `121`, `1000`, `0`, `-5`}},
	{"old exclusive range", `{"$schema":"http://json-schema.org/draft-04/schema#","type":"integer","minimum":3,"exclusiveMinimum":true}`, []string{`4`}, []string{`3`}},
	{"multiples", `{"type":"number","multipleOf":0.25,"minimum":1}`, []string{`1`, `1.5`, `1.250`, `100.75`}, []string{`1.3`, `0.75`, `1.251`}},
	{"length", `{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"äöü"`, `"a\n"`}, []string{`"a"`, `"abcd"`, `""`}},
	{"pattern", `{"type":"string","pattern":"^a+b?$"}`, []string{`"a"`, `"aab"`}, []string{`"b"`, `"abb"`, `"xa"`}},
	{"unanchored pattern", `{"type":"string","pattern":"foo|^bar"}`, []string{`"xfoox"`, `"barx"`}, []string{`"xbar"`, `"fo"`}},
	{"pattern and length", `{"type":"string","pattern":"^a+$","maxLength":2}`, []string{`"a"`, `"aa"`}, []string{`"aaa"`, `""`}},
	{"date", `{"type":"string","format":"date"}`, []string{`"2024-02-29"`}, []string{`"2023-02-29"`, `"2024-13-01"`}},
	{
		"object", `{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},"required":["a"],"additionalProperties":false}`,
		[]string{`{"a":1}`, `{"a":1,"b":"x"}`},
		[]string{`{}`, `{"b":"x"}`, `{"a":1,"c":1}`, `{"a":1,"b":"x",}`, `{"a":"x"}`},
	},
	{
		"additional properties", `{"type":"object","properties":{"ab":{"type":"integer"}},"additionalProperties":{"type":"boolean"}}`,
		[]string{`{}`, `{"x":true}`, `{"ab":1,"abc":true,"a":false}`},
		[]string{`{"x":1}`, `{"ab":true}`, `{"abc":1}`, `{"x":true,"x":false}`},
	},
	{
		"pattern properties", `{"type":"object","patternProperties":{"^n":{"type":"integer"},"s$":{"minimum":3}},"additionalProperties":false}`,
		[]string{`{"n":1}`, `{"ns":3}`, `{"s":"x"}`},
		[]string{`{"x":1}`, `{"n":"x"}`, `{"ns":2}`, `{"s":2}`},
	},
	{"property names", `{"type":"object","propertyNames":{"pattern":"^[a-z]$"}}`, []string{`{"a":1}`}, []string{`{"A":1}`, `{"ab":1}`}},
	{"property counts", `{"type":"object","minProperties":1,"maxProperties":2}`, []string{`{"a":1}`, `{"a":1,"b":2}`}, []string{`{}`, `{"a":1,"b":2,"c":3}`}},
	{
		"dependencies", `{"type":"object","properties":{"a":{},"b":{},"c":{}},"dependentRequired":{"a":["b"]},"dependentSchemas":{"b":{"required":["c"]}}}`,
		[]string{`{"a":1,"b":2,"c":3}`, `{"c":1}`, `{"b":1,"c":2}`},
		[]string{`{"a":1}`, `{"a":1,"b":2}`, `{"b":1}`},
	},
	{"array", `{"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":2}`, []string{`[1]`, `[1,2]`}, []string{`[]`, `[1,2,3]`, `["a"]`}},
	{"tuple", `{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false}`, []string{`[]`, `[1]`, `[1,"a"]`}, []string{`["a"]`, `[1,"a",2]`}},
	{"contains", `{"type":"array","contains":{"type":"string"},"minContains":2,"maxContains":3}`, []string{`["a",1,"b"]`, `["a","b","c",1]`}, []string{`["a"]`, `[]`, `["a","b","c","d"]`}},
	{"unique items", `{"type":"array","items":{"type":["integer","string","boolean"]},"uniqueItems":true}`, []string{`[]`, `[1,2,"1",true,false]`, `["a","b"]`}, []string{`[1,1]`, `["a","a"]`, `[true,true]`}},
	{
		"unique objects", `{"type":"array","items":{"type":"object","properties":{"a":{},"b":{"type":"integer"}}},"uniqueItems":true}`,
		[]string{`[{"a":1},{"a":2},{}]`, `[{"a":1,"b":2},{"b":2,"a":[1,{"x":2}]},{"b":2,"a":[1,{"x":"2"}]}]`, `[{"a":"x","c":null},{"a":"x"}]`},
		[]string{`[{"a":1},{"a":1}]`, `[{},{"a":1},{}]`, `[{"a":1,"b":2},{"b":2.0,"a":1}]`, `[{"a":[{"x":1,"y":"\u0041"}]},{"a":[{"y":"A","x":1e0}]}]`, `[{"c":1,"d":2},{"d":2,"c":1}]`},
	},
	{
		"unique arrays", `{"type":"array","items":{"type":"array","items":{"type":["number","string"]}},"uniqueItems":true}`,
		[]string{`[[1,2],[2,1],[1],[]]`, `[["a"],["b"]]`},
		[]string{`[[1,2],[1,2]]`, `[[],[]]`, `[["1"],[1],["1"]]`, `[[1.50],[1.5]]`},
	},
	{
		"unique of any kind", `{"uniqueItems":true,"type":"array","maxItems":4}`,
		[]string{`[1,"1",[1],{"1":1}]`, `[null,[null],[[null]],{}]`},
		[]string{`[[null],[null]]`, `[{"a":{"b":[]}},1,{"a":{"b":[]}}]`},
	},
	{
		"few unique objects", `{"type":"array","items":{"type":"object","properties":{"a":{"type":"boolean"},"b":{"enum":["x"]}},"required":["a"],"additionalProperties":false},"uniqueItems":true,"minItems":4}`,
		[]string{`[{"a":true},{"a":false,"b":"x"},{"a":true,"b":"x"},{"a":false}]`},
		[]string{`[{"a":true},{"a":false}]`, `[{"a":true},{"a":true}]`, `[{"a":true,"b":"x"},{"b":"x","a":true}]`},
	},
	{"few unique items", `{"type":"array","items":{"enum":[true,"a","b",3]},"uniqueItems":true,"minItems":4}`, []string{`[true,"b",3,"a"]`}, []string{`[true,"a",3]`, `[true,"a","b",3,3]`}},
	{"all of", `{"allOf":[{"type":"integer","minimum":3},{"maximum":5}]}`, []string{`3`, `5`}, []string{`2`, `6`, `"x"`}},
	{"any of", `{"anyOf":[{"type":"integer"},{"type":"string","maxLength":1}]}`, []string{`3`, `"x"`}, []string{`"xx"`, `1.5`}},
	{"one of numbers", `{"oneOf":[{"type":"integer","minimum":3},{"type":"integer","maximum":5}]}`, []string{`2`, `6`}, []string{`3`, `4`, `5`}},
	{
		"one of objects", `{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"oneOf":[{"required":["a"]},{"required":["b"]}]}`,
		[]string{`{"a":1}`, `{"b":1}`},
		[]string{`{}`, `{"a":1,"b":1}`},
	},
	{"negation", `{"type":"string","not":{"enum":["a","b"]}}`, []string{`"c"`, `"ab"`}, []string{`"a"`, `"b"`, `1`}},
	{"negated object", `{"not":{"type":"object","properties":{"a":{"const":1}},"required":["a"]}}`, []string{`1`, `{}`, `{"a":2}`}, []string{`{"a":1}`, `{"a":1,"b":2}`}},
	{"negated items", `{"type":"array","not":{"items":{"type":"integer"}}}`, []string{`["a"]`, `[1,"a"]`}, []string{`[]`, `[1,2]`}},
	{
		"condition", `{"type":"object","properties":{"k":{"enum":["x","y"]},"v":{}},"required":["k"],"if":{"properties":{"k":{"const":"x"}}},"then":{"required":["v"]},"else":{"maxProperties":1}}`,
		[]string{`{"k":"x","v":1}`, `{"k":"y"}`},
		[]string{`{"k":"x"}`, `{"k":"y","v":1}`},
	},
	{
		"recursion", `{"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"next":{"$ref":"#/$defs/t"},"v":{"type":"integer"}},"additionalProperties":false,"required":["v"]}}}`,
		[]string{`{"v":1}`, `{"next":{"next":{"v":1},"v":2},"v":3}`},
		[]string{`{"next":{},"v":1}`},
	},
	{
		"unevaluated properties", `{"$defs":{"base":{"properties":{"a":{"type":"integer"}},"patternProperties":{"^x":{}}}},"allOf":[{"$ref":"#/$defs/base"}],"properties":{"b":{}},"unevaluatedProperties":false}`,
		[]string{`{"a":1,"b":2,"xy":3}`, `{}`, `3`},
		[]string{`{"c":1}`, `{"a":1,"c":2}`},
	},
	{
		"unevaluated properties of a schema", `{"type":"object","allOf":[{"properties":{"a":true}}],"unevaluatedProperties":{"type":"null"}}`,
		[]string{`{"a":1,"b":null}`},
		[]string{`{"b":1}`},
	},
	{
		"unevaluated properties of oneOf", `{"type":"object","oneOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"integer"}},"required":["b"]}],"unevaluatedProperties":false}`,
		[]string{`{"a":1}`, `{"b":1}`},
		[]string{`{}`, `{"a":1,"b":2}`, `{"a":1,"c":2}`, `{"a":1,"b":"x"}`},
	},
	{
		"unevaluated properties of anyOf", `{"type":"object","anyOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"integer"}},"required":["b"]}],"unevaluatedProperties":false}`,
		[]string{`{"a":1}`, `{"b":1}`, `{"a":1,"b":2}`},
		[]string{`{}`, `{"a":1,"b":"x"}`, `{"a":1,"c":2}`},
	},
	{
		"unevaluated properties of a condition", `{"type":"object","properties":{"k":{}},"if":{"properties":{"k":{"const":"x"}},"required":["k"]},"then":{"properties":{"v":{}}},"else":{"properties":{"w":{}}},"unevaluatedProperties":false}`,
		[]string{`{"k":"x","v":1}`, `{"k":"y","w":1}`, `{"w":1}`},
		[]string{`{"k":"x","w":1}`, `{"k":"y","v":1}`, `{"v":1}`},
	},
	{
		"unevaluated properties of dependent schemas", `{"type":"object","properties":{"a":{}},"dependentSchemas":{"a":{"properties":{"b":{}}}},"unevaluatedProperties":false}`,
		[]string{`{"a":1,"b":2}`, `{"a":1}`, `{}`},
		[]string{`{"b":2}`, `{"a":1,"c":2}`},
	},
	{"unevaluated and additional properties", `{"allOf":[{"additionalProperties":{"type":"integer"}}],"unevaluatedProperties":false}`, []string{`{"a":1}`}, []string{`{"a":"x"}`}},
	{"negated unevaluated properties", `{"type":"object","not":{"properties":{"a":{}},"unevaluatedProperties":false}}`, []string{`{"b":1}`, `{"a":1,"b":2}`}, []string{`{"a":1}`, `{}`}},
	{"unevaluated items", `{"type":"array","allOf":[{"prefixItems":[{"type":"integer"},true]}],"prefixItems":[true],"unevaluatedItems":{"type":"string"}}`, []string{`[1,2,"x"]`, `[1]`}, []string{`["x"]`, `[1,2,3]`}},
	{"unevaluated items of oneOf", `{"type":"array","oneOf":[{"prefixItems":[{"const":1}]},{"prefixItems":[{"const":2},true]}],"minItems":1,"unevaluatedItems":false}`, []string{`[1]`, `[2]`, `[2,3]`}, []string{`[1,2]`, `[2,3,4]`, `[3]`}},
	{
		"format of regular expressions", `{"type":"string","format":"regex"}`,
		[]string{`"^[a-zA-Z0-9_-]+$"`, `"a{2,5}(?:b|c)*\\d"`, `"^(([0-9]|[1-9][0-9])\\.){3}[^a-f]?$"`, `""`, `"x|"`, `"[.]+\\.[^\\]]"`, `"\\bfoo\\B"`},
		[]string{`"("`, `")"`, `"*"`, `"a**"`, `"[a"`, `"[]"`, `"[b-a]"`, `"a{3,2}"`, `"\\"`, `"(?<=a)"`, `"^*"`, `"a{"`, `"\\q"`, `"(()"`},
	},
	{"anchor", `{"$ref":"#x","$defs":{"t":{"$anchor":"x","type":"null"}}}`, []string{`null`}, []string{`1`}},
	{"ignored beside $ref", `{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"t":{"type":"integer"}},"properties":{"a":{"$ref":"#/definitions/t","maximum":3}}}`, []string{`{"a":5}`}, []string{`{"a":"x"}`}},
}

func compileValidator(t testing.TB, schema string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	must.NoError(t, err)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	must.NoError(t, c.AddResource("mem:///schema.json", doc))
	s, err := c.Compile("mem:///schema.json")
	must.NoError(t, err)
	return s
}

func validates(t testing.TB, s *jsonschema.Schema, doc []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

func TestSchemaDocuments(t *testing.T) {
	t.Parallel()
	for _, c := range schemaCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.Compile([]byte(c.schema), grammar.Options{Order: grammar.AnyOrder})
			must.NoError(t, err)
			validator := compileValidator(t, c.schema)
			for _, doc := range c.valid {
				must.True(t, g.Accepts([]byte(doc)), must.Sprintf("%s is valid", doc))
				must.NoError(t, validates(t, validator, []byte(doc)))
			}
			for _, doc := range c.invalid {
				must.False(t, g.Accepts([]byte(doc)), must.Sprintf("%s is invalid", doc))
			}
		})
	}
}

func TestSchemaOrder(t *testing.T) {
	t.Parallel()
	schema := `{"type":"object","properties":{"a":{},"b":{},"c":{}},"required":["b"],"dependentRequired":{"c":["a"]}}`
	g, err := grammar.Compile([]byte(schema), grammar.Options{})
	must.NoError(t, err)
	for doc, ok := range map[string]bool{
		`{"a":1,"b":2,"c":3}`: true, `{"b":2}`: true, `{"b":2,"x":1}`: true, `{"b":2,"c":3}`: false,
		`{"b":2,"a":1}`: false, `{"x":1,"b":2}`: false, `{"a":1}`: false,
	} {
		must.EqOp(t, ok, g.Accepts([]byte(doc)), must.Sprint(doc))
	}
}

func TestWhitespace(t *testing.T) {
	t.Parallel()
	doc := []byte(" { \"a\" : [ 1 , 2 ] }\n")
	compact, err := grammar.Compile([]byte(`{}`), grammar.Options{})
	must.NoError(t, err)
	must.False(t, compact.Accepts(doc))
	spaced, err := grammar.Compile([]byte(`{}`), grammar.Options{Whitespace: grammar.AnyWhitespace})
	must.NoError(t, err)
	must.True(t, spaced.Accepts(doc))
}

func TestCompileRefused(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`{"items":`, 5000) + `{}` + strings.Repeat(`}`, 5000)
	for _, c := range []struct{ name, schema, pointer, keyword string }{
		{"not JSON", `{`, "", ""},
		{"not a schema", `3`, "", ""},
		{"nothing satisfies it", `{"allOf":[{"type":"string"},{"type":"null"}]}`, "", ""},
		{"endless value", `{"$ref":"#/$defs/a","$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"},"minItems":1}}}`, "", ""},
		{"unknown reference", `{"properties":{"a/b":{"$ref":"#/nowhere"}}}`, "/properties/a~1b", "$ref"},
		{"remote reference", `{"$ref":"http://example.com/s"}`, "", "$ref"},
		{"reference to itself", `{"$ref":"#"}`, "", "$ref"},
		{"circle of references", `{"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"},{"type":"null"}]},"b":{"allOf":[{"$ref":"#/$defs/a"}]}}}`, "/$defs/a", "$ref"},
		{"backreference", `{"pattern":"(a)\\1"}`, "", "pattern"},
		{"lookbehind", `{"items":{"pattern":"(?<=a)b"}}`, "/items", "pattern"},
		{"unevaluated beside contains", `{"properties":{"x":{"contains":{},"unevaluatedItems":false}}}`, "/properties/x", "unevaluatedItems"},
		{"unevaluated beside nested conditions", `{"anyOf":[{"oneOf":[{"properties":{"a":{}}},{"properties":{"b":{}}}]}],"unevaluatedProperties":false}`, "", "unevaluatedProperties"},
		{"unevaluated beside many conditions", `{"anyOf":[{},{},{},{},{}],"unevaluatedProperties":false}`, "", "unevaluatedProperties"},
		{"more unique items than values", `{"type":"array","items":{"enum":[true,"a",3]},"uniqueItems":true,"minItems":4}`, "", ""},
		{"more unique items than numbers", `{"type":"array","items":{"type":"integer","minimum":1,"maximum":3},"uniqueItems":true,"minItems":4}`, "", ""},
		{"contains what items are not", `{"type":"array","items":{"type":"boolean"},"contains":{"type":"string"}}`, "", ""},
		{"property that no name allows", `{"type":"object","additionalProperties":false,"not":{"propertyNames":{"maxLength":2}}}`, "", ""},
		{"required of required that cannot be", `{"const":{"b":true},"dependentRequired":{"b":["a"]}}`, "", ""},
		{"huge minimum length", `{"minLength":100000000}`, "", "minLength"},
		{"huge minimum of items", `{"minItems":100000000}`, "", "minItems"},
		{"many digits", `{"multipleOf":0.00000000000001234567}`, "", "multipleOf"},
		{"too deep", deep, "", ""},
		{"too many combinations", hostileSchemas()["choices of required properties"], "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := grammar.Compile([]byte(c.schema), grammar.Options{})
			e, ok := errors.AsType[*grammar.Error](err)
			must.True(t, ok, must.Sprintf("error %v", err))
			must.EqOp(t, c.keyword, e.Keyword, must.Sprint(err))
			must.EqOp(t, c.pointer, e.Pointer, must.Sprint(err))
		})
	}
}

// randomDocument generates a document by choosing among the bytes that may come next. It returns
// nil when the document does not end in time.
func randomDocument(g *grammar.Grammar, v *grammar.Vocabulary, rng *rand.Rand) []byte {
	m := g.NewMatcher(v)
	mask := make([]uint64, v.MaskLen())
	var doc []byte
	for len(doc) < 400 {
		if m.Done() && rng.IntN(3) == 0 {
			return doc
		}
		if m.Mask(mask) != nil {
			break
		}
		var can, closing []int
		for b := range 256 {
			if mask[b/64]>>(b%64)&1 == 1 {
				can = append(can, b)
				if strings.IndexByte(`}]",:0tfn`, byte(b)) >= 0 && (len(doc) < 60 || b != ',') {
					closing = append(closing, b)
				}
			}
		}
		if len(closing) > 0 && (len(doc) > 60 || rng.IntN(2) == 0) {
			can = closing
		}
		if len(can) == 0 {
			break
		}
		b := can[rng.IntN(len(can))]
		if m.Accept(b) != nil {
			break
		}
		doc = append(doc, byte(b))
	}
	if m.Done() {
		return doc
	}
	return nil
}

func byteVocabulary() *grammar.Vocabulary {
	tokens := make([][]byte, 257)
	for b := range 256 {
		tokens[b] = []byte{byte(b)}
	}
	return grammar.NewVocabulary(tokens, 256)
}

func TestRandomDocumentsValidate(t *testing.T) {
	t.Parallel()
	v := byteVocabulary()
	finished := 0
	for _, c := range schemaCases {
		validator := compileValidator(t, c.schema)
		for _, order := range []grammar.Order{grammar.SchemaOrder, grammar.AnyOrder} {
			g, err := grammar.Compile([]byte(c.schema), grammar.Options{Order: order})
			must.NoError(t, err)
			rng := rand.New(rand.NewPCG(1, uint64(order)))
			for range 20 {
				doc := randomDocument(g, v, rng)
				if doc == nil {
					continue
				}
				finished++
				must.NoError(t, validates(t, validator, doc), must.Sprintf("%s: %s", c.name, doc))
			}
		}
	}
	must.Greater(t, 20*len(schemaCases), finished)
}

// Go compiles everything that the format allows. It is stricter than ECMA 262 about counts.
func TestFormatRegexCompiles(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"string","format":"regex"}`), grammar.Options{})
	must.NoError(t, err)
	v := byteVocabulary()
	rng := rand.New(rand.NewPCG(5, 5))
	finished := 0
	for range 300 {
		doc := randomDocument(g, v, rng)
		if doc == nil {
			continue
		}
		finished++
		var pattern string
		must.NoError(t, json.Unmarshal(doc, &pattern))
		_, err := regexp.Compile(pattern)
		must.NoError(t, err)
	}
	must.Greater(t, 200, finished)
}

// After the last possible value of unique items, no comma is allowed.
func TestUniqueItemsRunOut(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"array","items":{"type":"boolean"},"uniqueItems":true}`), grammar.Options{})
	must.NoError(t, err)
	m := g.NewMatcher(byteVocabulary())
	must.NoError(t, m.AcceptBytes([]byte(`[true`)))
	must.True(t, m.Try(','))
	must.NoError(t, m.AcceptBytes([]byte(`,false`)))
	must.False(t, m.Try(','))
	must.EqOp(t, "]", string(m.Forced()))
}

// The last item that can count for contains must count.
func TestContainsRunsOut(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"array","prefixItems":[true,{"type":"boolean"}],"items":false,"contains":{"type":"string"}}`), grammar.Options{})
	must.NoError(t, err)
	m := g.NewMatcher(byteVocabulary())
	must.NoError(t, m.AcceptBytes([]byte(`[`)))
	must.EqOp(t, `"`, string(m.Forced()))
	must.NoError(t, m.AcceptBytes([]byte(`"x",true`)))
	must.EqOp(t, "]", string(m.Forced()))
}

// The last property that can satisfy the demand must satisfy it.
func TestDemandedPropertyRunsOut(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"object","properties":{"aa":{"type":["null","boolean"]},"b":{"type":"null"}},"additionalProperties":false,"not":{"patternProperties":{"^a":{"type":"boolean"}}}}`), grammar.Options{})
	must.NoError(t, err)
	m := g.NewMatcher(byteVocabulary())
	must.NoError(t, m.AcceptBytes([]byte(`{`)))
	must.EqOp(t, `"aa":null`, string(m.Forced()))
}

func TestMaskNoToken(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"enum":["ab"]}`), grammar.Options{})
	must.NoError(t, err)
	v := grammar.NewVocabulary([][]byte{[]byte(`"a`), []byte(`"`), nil}, 2)
	m := g.NewMatcher(v)
	mask := make([]uint64, v.MaskLen())
	must.NoError(t, m.Mask(mask))
	must.NoError(t, m.Accept(0))
	must.ErrorIs(t, m.Mask(mask), grammar.ErrNoToken)
	must.NoError(t, m.AcceptBytes([]byte(`b"`)))
	must.NoError(t, m.Mask(mask))
	must.Eq(t, []uint64{1 << 2}, mask)
	must.NoError(t, m.Accept(2))
	must.NoError(t, m.Mask(mask)) // ended
}
