package grammar_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// callGrammar is a call of one of two functions, as a model's chat template writes it.
func callGrammar() grammar.Part {
	call := func(name, schema string) grammar.Part {
		return grammar.Sequence(grammar.Literal(`{"name": "`+name+`", "arguments": `), grammar.JSON([]byte(schema)), grammar.Literal("}"))
	}
	one := grammar.Sequence(
		grammar.Literal("<call>\n"),
		grammar.OneOf(
			call("add", `{"type":"object","properties":{"a":{"$ref":"#/$defs/n"}},"required":["a"],"additionalProperties":false,"$defs":{"n":{"type":"integer"}}}`),
			call("all", `{"type":"object","properties":{"a":{"$ref":"#/$defs/n"}},"required":["a"],"additionalProperties":false,"$defs":{"n":{"type":"array","uniqueItems":true,"items":{"enum":["x","y"]}}}}`),
		),
		grammar.Literal("\n</call>"),
	)
	return grammar.Sequence(one, grammar.Repeat(grammar.Sequence(grammar.Literal("\n"), one), 0, -1))
}

func TestParts(t *testing.T) {
	t.Parallel()
	number := grammar.JSON([]byte(`{"type":"number"}`))
	for _, c := range []struct {
		name           string
		part           grammar.Part
		accept, refuse []string
	}{
		{"empty", grammar.Part{}, []string{""}, []string{"a"}},
		{"literal", grammar.Literal("é<|x|>"), []string{"é<|x|>"}, []string{"", "é", "é<|x|>a"}},
		{"number before text", grammar.Sequence(number, grammar.Literal(";0")), []string{"10;0", "-1.5;0"}, []string{";0", "1;"}},
		{"number at the end", grammar.Sequence(grammar.Literal("n="), number), []string{"n=1", "n=-1.5"}, []string{"n=", "n=-", "n=1x"}},
		{"two values", grammar.Sequence(number, grammar.JSON([]byte(`{"type":["array","boolean"]}`))), []string{"12true", "1[]"}, []string{"1", "-", "true", "1{}"}},
		{"value or text", grammar.OneOf(grammar.JSON([]byte(`{"type":"object"}`)), grammar.Regex(`\{[a-z]*\}?`)), []string{"{}", `{"a":[1]}`, "{ab", "{ab}"}, []string{`{"a"`, `{a"`}},
		{"text up to a marker", grammar.Sequence(grammar.Until("</p>"), grammar.Literal("</p>")), []string{"</p>", "a<\n</p</p>"}, []string{"a</p", "</p></p>"}},
		{"text up to either of two markers", grammar.Sequence(grammar.Until("</p>", "</q>"), grammar.Literal("</q>")), []string{"</q>", "a</</q>"}, []string{"</p></q>", "</q></q>"}},
		{"any text", grammar.Until(), []string{"", "a"}, []string{"\xff"}},
		{"repeated", grammar.Repeat(grammar.Literal("ab"), 1, 2), []string{"ab", "abab"}, []string{"", "ababab", "aba"}},
		{"repeated exactly", grammar.Repeat(grammar.Literal("ab"), 2, 2), []string{"abab"}, []string{"ab", "ababab"}},
		{"repeated without end", grammar.Repeat(grammar.OneOf(grammar.Literal(""), grammar.Literal("a")), 0, -1), []string{"", "aaa"}, []string{"b"}},
		{"calls", callGrammar(), []string{
			"<call>\n{\"name\": \"add\", \"arguments\": {\"a\":12}}\n</call>",
			"<call>\n{\"name\": \"all\", \"arguments\": {\"a\":[\"x\",\"y\"]}}\n</call>\n<call>\n{\"name\": \"add\", \"arguments\": {\"a\":0}}\n</call>",
		}, []string{
			"<call>\n{\"name\": \"add\", \"arguments\": {\"a\":[]}}\n</call>",
			"<call>\n{\"name\": \"all\", \"arguments\": {\"a\":[\"x\",\"x\"]}}\n</call>",
			"<call>\n{\"name\": \"all\", \"arguments\": {\"a\":[]}\n</call>",
			"<call>\n{\"name\": \"add\", \"arguments\": {\"a\":1}}}\n</call>",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.CompileParts(c.part, grammar.Options{})
			must.NoError(t, err)
			for _, s := range c.accept {
				must.True(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
			for _, s := range c.refuse {
				must.False(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
		})
	}
}

func TestPartsRefused(t *testing.T) {
	t.Parallel()
	deep := grammar.Literal("a")
	for range 300 {
		deep = grammar.Sequence(deep)
	}
	for name, c := range map[string]struct {
		part grammar.Part
		want string
	}{
		"a bad schema":         {grammar.JSON([]byte(`{"type":`)), "schema"},
		"an impossible schema": {grammar.JSON([]byte(`{"type":"string","minLength":2,"maxLength":1}`)), "no value"},
		"an unknown reference": {grammar.JSON([]byte(`{"$ref":"#/$defs/x"}`)), "$ref"},
		"no choice":            {grammar.OneOf(), "empty"},
		"a bad expression":     {grammar.Regex("("), "regular expression"},
		"no text":              {grammar.Regex(`[^\s\S]`), "no text"},
		"invalid UTF-8":        {grammar.Literal("\xff"), "UTF-8"},
		"a bad repetition":     {grammar.Repeat(grammar.Literal("a"), 2, 1), "order"},
		"nesting":              {deep, "deeply"},
		"many states":          {grammar.Repeat(grammar.Repeat(grammar.Literal("abcd"), 1000, 1000), 1000, 1000), "too large"},
		"many bytes":           {grammar.Regex(strings.Repeat("a", 5<<20)), "larger"},
		"an empty marker":      {grammar.Until(""), "marker"},
	} {
		_, err := grammar.CompileParts(c.part, grammar.Options{})
		e, ok := errors.AsType[*grammar.Error](err)
		must.True(t, ok, must.Sprintf("%s: %v", name, err))
		must.StrContains(t, e.Error(), c.want, must.Sprint(name))
	}
}

// Masks and acceptance agree wherever a part ends within a token, and completely sampled texts are
// accepted.
func TestPartsMasks(t *testing.T) {
	t.Parallel()
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for _, s := range []string{"<call>", "</call>", "}}\n", `"]}}`, "1}}\n<", "}\n", `{"name": "a`, `dd", "arg`, "12", `","`, `"x"`, `\n`, "<call>\n{", `{"a":`, `]}`, "é", "\xc3"} {
		tokens = append(tokens, []byte(s))
	}
	end := len(tokens)
	v := grammar.NewVocabulary(append(tokens, nil), end)
	parts := map[string]grammar.Part{
		"calls": callGrammar(),
		"value or text": grammar.Sequence(grammar.OneOf(
			grammar.JSON([]byte(`{"type":"object","properties":{"a":{"type":"array","uniqueItems":true,"items":{"type":"string","maxLength":3}}}}`)),
			grammar.Regex(`\{"[ab]":.*`)), grammar.Literal("\n</call>")),
		"raw": grammar.Sequence(grammar.Literal("<call>"), grammar.Until("</call>"), grammar.Literal("</call>")),
	}
	for name, p := range parts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.CompileParts(p, grammar.Options{MaxMemory: 1 << 19})
			must.NoError(t, err)
			rng := rand.New(rand.NewPCG(1, 2))
			finished := 0
			for range 20 {
				m := g.NewMatcher(v)
				var text []byte
				mask := make([]uint64, v.MaskLen())
				for range 60 {
					must.NoError(t, m.Mask(mask))
					var allowed []int
					for id := range end + 1 {
						in := mask[id/64]>>(id%64)&1 == 1
						must.Eq(t, m.Try(id), in, must.Sprintf("token %d after %q", id, text))
						if in {
							allowed = append(allowed, id)
						}
					}
					must.SliceNotEmpty(t, allowed, must.Sprintf("after %q", text))
					id := allowed[rng.IntN(len(allowed))]
					must.NoError(t, m.Accept(id))
					if id == end {
						must.True(t, g.Accepts(text), must.Sprintf("%q", text))
						finished++
						break
					}
					text = append(text, tokens[id]...)
				}
			}
			must.Positive(t, finished)
		})
	}
}
