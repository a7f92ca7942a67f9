package dialogue

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// callTools have arguments that random text completes soon.
var callTools = []Tool{
	{Name: "get_weather", Strict: true, Parameters: []byte(`{"type":"object","properties":{"city":{"enum":["Bern","Paris"],"type":"string"},"days":{"type":"integer","minimum":0,"maximum":99},
		"metric":{"type":"boolean"},"tags":{"type":"array","items":{"$ref":"#/$defs/tag"},"maxItems":2}},"required":["city","days"],"additionalProperties":false,"$defs":{"tag":{"enum":["a","b"]}}}`)},
	{Name: "get_time"},
	{Name: "note", Parameters: []byte(`{"type":"object","properties":{"text":{"type":"string","maxLength":3},"n":{"type":["integer","null"],"maximum":5,"minimum":0}},"additionalProperties":false}`)},
}

// callVocabulary has the bytes, the markers of all families and pieces of calls; the last token is
// the end token.
func callVocabulary(f *Format) *Vocabulary {
	var texts []string
	for b := range 256 {
		texts = append(texts, string([]byte{byte(b)}))
	}
	for _, m := range f.Markers(true) {
		if m != "" && !slices.Contains(texts, m) {
			texts = append(texts, m)
		}
	}
	texts = append(texts, "é", "get_", "weather", `": `, `", "`, `"}`, "}\n", "\n</", `{"name`, "\n\n", "")
	ends := make([]bool, len(texts))
	ends[len(texts)-1] = true
	return NewVocabulary(texts, ends)
}

// speakRandomly chooses random tokens that the guard allows, preferring those of markers.
func speakRandomly(t *testing.T, rng *rand.Rand, v *Vocabulary, g *Guard, text string) (string, bool) {
	t.Helper()
	mask := make([]uint64, v.grammar.MaskLen())
	for step := range 300 {
		must.NoError(t, g.Mask(mask))
		var allowed, likely []int
		for i := range v.texts {
			in := mask[i/64]>>(i%64)&1 == 1
			if step%16 == 0 {
				must.Eq(t, g.Try(i), in, must.Sprintf("token %q after %q", v.texts[i], text))
			}
			if in {
				allowed = append(allowed, i)
				if len(v.texts[i]) > 1 || v.ends[i] || strings.ContainsAny(v.texts[i], "</\"}]") {
					likely = append(likely, i)
				}
			}
		}
		must.SliceNotEmpty(t, allowed, must.Sprintf("after %q", text))
		if len(likely) > 0 && rng.IntN(4) > 0 {
			allowed = likely
		}
		i := allowed[rng.IntN(len(allowed))]
		must.NoError(t, g.Accept(i))
		if v.ends[i] {
			must.True(t, g.ended)
			return text, true
		}
		text += v.texts[i]
	}
	return text, false
}

// checkCalls parses an answer and validates the calls against the schemas.
func checkCalls(t *testing.T, f *Format, text string, opened bool) *answer {
	t.Helper()
	a := parse(t, f, Options{Tools: callTools, Calls: true, Thinking: opened}, text)
	for _, c := range a.calls {
		i := slices.IndexFunc(callTools, func(x Tool) bool { return x.Name == c.name })
		must.True(t, i >= 0, must.Sprintf("%q in %q", c.name, text))
		schema := callTools[i].Parameters
		if schema == nil {
			schema = []byte(empty)
		}
		g, err := grammar.Compile(schema, grammar.Options{Whitespace: grammar.AnyWhitespace, Order: grammar.AnyOrder})
		must.NoError(t, err)
		must.True(t, g.Accepts([]byte(c.args)), must.Sprintf("%s of %q", c.args, text))
	}
	return a
}

func constrained(name string) []*Format {
	f := format(name)
	switch name {
	case "mistral", "deepseek-v3":
		other := *f
		other.oldArray, other.fenced = name == "mistral", name == "deepseek-v3"
		return []*Format{f, &other}
	}
	return []*Format{f}
}

// With required, any sampled answer ends as calls that the family's parser reads and that satisfy
// the schemas.
func TestRequired(t *testing.T) {
	t.Parallel()
	for name := range formats {
		for _, f := range constrained(name) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(1, 2))
				v := callVocabulary(f)
				finished := 0
				for round := range 6 {
					choice := Choice{Required: true, Parallel: round%2 == 0, Thinking: round%3 == 0 && len(f.thinks) > 0}
					c, err := f.Constrain(t.Context(), callTools, choice)
					must.NoError(t, err)
					text, done := speakRandomly(t, rng, v, f.NewGuard(v, c, choice.Thinking, 20), "")
					if !done {
						continue
					}
					finished++
					a := checkCalls(t, f, text, choice.Thinking)
					must.Eq(t, "", a.content, must.Sprintf("%q", text))
					must.Positive(t, len(a.calls), must.Sprintf("%q", text))
					must.True(t, choice.Parallel || len(a.calls) == 1, must.Sprintf("%q", text))
				}
				must.Positive(t, finished)
			})
		}
	}
}

// Strings of a strict tool satisfy its schema, also in families that write them raw between
// markers.
func TestStrictStrings(t *testing.T) {
	t.Parallel()
	tool := []Tool{{Name: "f", Strict: true, Parameters: []byte(`{"type":"object","properties":{
		"code":{"type":"string","pattern":"^[a-c]{2,3}$"},"long":{"type":"string","minLength":2,"maxLength":3},"maybe":{"type":["string","null"],"maxLength":2},
		"mixed":{"anyOf":[{"type":"string","maxLength":2},{"type":"integer","minimum":5,"maximum":7}]},"kind":{"enum":["x","</parameter>","12",3,null]},"free":{"maxLength":2},
		"not":{"type":"string","maxLength":2,"not":{"const":"a"}},"ref":{"$ref":"#/$defs/r"}},
		"required":["code","long","maybe","mixed","kind","free","not","ref"],"additionalProperties":false,"$defs":{"r":{"type":"string","enum":["1","null"]}}}`)}}
	whole, err := grammar.Compile(tool[0].Parameters, grammar.Options{Whitespace: grammar.AnyWhitespace, Order: grammar.AnyOrder})
	must.NoError(t, err)
	for name, f := range formats {
		if f.syntax != xmlCalls {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := format(name)
			rng := rand.New(rand.NewPCG(7, 8))
			v := callVocabulary(f)
			c, err := f.Constrain(t.Context(), tool, Choice{Required: true})
			must.NoError(t, err)
			finished := 0
			for round := 0; round < 8 || round < 60 && finished == 0; round++ {
				text, done := speakRandomly(t, rng, v, f.NewGuard(v, c, false, 5), "")
				if !done {
					continue
				}
				finished++
				a := parse(t, f, Options{Tools: tool, Calls: true}, text)
				must.SliceLen(t, 1, a.calls, must.Sprintf("%q", text))
				must.True(t, whole.Accepts([]byte(a.calls[0].args)), must.Sprintf("%s of %q", a.calls[0].args, text))
			}
			must.Positive(t, finished)
		})
	}
}

// A schema that a family cannot guarantee is refused for a strict tool and relaxed for others.
func TestStrictRefused(t *testing.T) {
	t.Parallel()
	for schema, keyword := range map[string]string{
		`{"type":"object","properties":{"a":{"type":"string"}},"minProperties":1}`:                                  "",
		`{"type":"object","additionalProperties":{"type":"integer"},"patternProperties":{"^x":{"type":"integer"}}}`: "",
		`{"type":"object","properties":{"a b":{"type":"string"}}}`:                                                  "",
		`{"type":"object","properties":{"a":{"type":"string","const":"</arg_value>"}},"required":["a"]}`:            "",
		`{"type":"object","properties":{"a":{"type":"string","pattern":"(?<=x)y"}}}`:                                "pattern",
	} {
		tool := []Tool{{Name: "f", Strict: true, Parameters: []byte(schema)}}
		_, err := format("glm-4").Constrain(t.Context(), tool, Choice{Required: true})
		_, ok := errors.AsType[*ToolError](err)
		must.True(t, ok, must.Sprint(schema, err))
		_, found, _, ok := Explain(err)
		must.True(t, ok)
		must.Eq(t, keyword, found)
		tool[0].Strict = false
		_, err = format("glm-4").Constrain(t.Context(), tool, Choice{Required: true})
		must.NoError(t, err)
		if keyword == "" && !strings.Contains(schema, "arg_value") { // enforceable as JSON
			tool[0].Strict = true
			_, err = format("hermes").Constrain(t.Context(), tool, Choice{Required: true})
			must.NoError(t, err)
		}
	}
}

// With a form, an answer is a call or has the form.
func TestForm(t *testing.T) {
	t.Parallel()
	const schema = `{"type":"object","properties":{"bees":{"type":"integer","minimum":0,"maximum":99}},"required":["bees"],"additionalProperties":false}`
	content, err := grammar.Compile([]byte(schema), grammar.Options{})
	must.NoError(t, err)
	for name := range formats {
		for _, f := range constrained(name) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(5, 6))
				v := callVocabulary(f)
				calls, contents := 0, 0
				for round := 0; round < 4 || round < 100 && (calls == 0 || contents == 0); round++ {
					choice := Choice{Thinking: round%3 == 0 && len(f.thinks) > 0, Form: Form{Schema: schema}}
					c, err := f.Constrain(t.Context(), callTools, choice)
					must.NoError(t, err)
					text, done := speakRandomly(t, rng, v, f.NewGuard(v, c, choice.Thinking, 20), "")
					if !done {
						continue
					}
					a := parse(t, f, Options{Tools: callTools, Calls: true, Thinking: choice.Thinking, Formed: true}, text)
					if len(a.calls) > 0 {
						calls++
						must.Eq(t, "", a.content, must.Sprintf("%q", text))
						checkCalls(t, f, text, choice.Thinking)
						continue
					}
					contents++
					must.True(t, content.Accepts([]byte(a.content)), must.Sprintf("%q of %q", a.content, text))
				}
				must.Positive(t, calls)
				must.Positive(t, contents)
			})
		}
	}
}

// With auto, any text is allowed, but whatever begins as a call completes as one.
func TestAuto(t *testing.T) {
	t.Parallel()
	for name := range formats {
		for _, f := range constrained(name) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(3, 4))
				v := callVocabulary(f)
				finished := 0
				for round := range 4 {
					choice := Choice{Parallel: round%2 == 0}
					c, err := f.Constrain(t.Context(), callTools, choice)
					must.NoError(t, err)
					g := f.NewGuard(v, c, false, -1)
					begin := "Ok.\n" + c.triggers[0].text
					if c.triggers[0].begins {
						begin = c.triggers[0].text
					}
					if f.syntax == harmony {
						begin = "<|channel|>commentary" + begin[4:]
					}
					said := ""
					for said != begin { // in tokens, the longest first
						best := -1
						for i, x := range v.texts {
							if x != "" && strings.HasPrefix(begin[len(said):], x) && (best < 0 || len(x) > len(v.texts[best])) {
								best = i
							}
						}
						must.True(t, g.Try(best), must.Sprintf("%q after %q", v.texts[best], said))
						must.NoError(t, g.Accept(best))
						said += v.texts[best]
					}
					must.NotNil(t, g.matcher)
					text, done := speakRandomly(t, rng, v, g, said)
					if done && !choice.Parallel {
						finished++
						a := checkCalls(t, f, text, false)
						must.SliceLen(t, 1, a.calls, must.Sprintf("%q", text))
					}
				}
				must.Positive(t, finished)
			})
		}
	}
}

func TestThinkingBudget(t *testing.T) {
	t.Parallel()
	f := format("hermes")
	v := callVocabulary(f)
	token := func(s string) int { return slices.Index(v.texts, s) }
	say := func(g *Guard, text string) {
		for _, r := range text {
			must.NoError(t, g.Accept(token(string(r))), must.Sprint(text))
		}
	}
	g := f.NewGuard(v, nil, true, 3)
	say(g, "a<")
	must.True(t, g.Try(token("b")))
	say(g, "/")
	must.False(t, g.Try(token("b")))
	must.False(t, g.Try(len(v.texts)-1))
	say(g, "think>")
	must.True(t, g.Try(token("b")))
	must.Eq(t, "", g.forced)

	g = f.NewGuard(v, nil, false, 0)
	must.NoError(t, g.Accept(token("<think>")))
	must.False(t, g.Try(token("b")))
	must.NoError(t, g.Accept(token("</think>")))
	must.True(t, g.Try(token("b")))

	g = f.NewGuard(v, nil, false, 0)
	say(g, "Hello <think> x")
	must.True(t, g.Try(token("b")))
}

func TestConstrainRefuses(t *testing.T) {
	t.Parallel()
	bad := []byte(`{"type":"object","properties":{"a":{"pattern":"(?<=x)y"}}}`)
	tools := []Tool{{Name: "f"}, {Name: "g", Parameters: bad, Strict: true}}
	_, err := format("hermes").Constrain(t.Context(), tools, Choice{Required: true})
	e, ok := errors.AsType[*ToolError](err)
	must.True(t, ok)
	must.Eq(t, 1, e.Index)
	_, keyword, _, ok := Explain(err)
	must.True(t, ok)
	must.Eq(t, "pattern", keyword)
	tools[1].Strict = false
	_, err = format("hermes").Constrain(t.Context(), tools, Choice{Required: true})
	must.NoError(t, err)
}
