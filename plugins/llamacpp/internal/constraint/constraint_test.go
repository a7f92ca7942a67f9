package constraint

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// testVocabulary has all bytes, a few longer tokens, two control tokens around thinking and an end
// token.
func testVocabulary() (*Vocabulary, []string) {
	var spelled []string
	for b := range 256 {
		spelled = append(spelled, string([]byte{byte(b)}))
	}
	spelled = append(spelled, `{"`, `":`, `"}`, "true", "\n\n", "  ", "nk>", "nk>{", "nk>\n{", "nk>x", "[TH", "<think>", "</think>", "<end>")
	pieces, ends := make([]string, len(spelled)), make([]bool, len(spelled))
	copy(pieces, spelled)
	for i := len(spelled) - 3; i < len(spelled); i++ {
		pieces[i] = ""
	}
	ends[len(ends)-1] = true
	return NewVocabulary(pieces, ends, func(t int32) string { return spelled[t] }), spelled
}

func compile(t testing.TB, s Spec) *grammar.Grammar {
	t.Helper()
	g, err := NewCompiler().Compile(t.Context(), s)
	must.NoError(t, err)
	return g
}

// feed accepts a text, one token for each byte except for the token names in <…>.
func feed(c *Constraint, spelled []string, tokens ...string) error {
	for _, name := range tokens {
		for i, s := range spelled {
			if s != name {
				continue
			}
			if !c.Try(i) {
				return fmt.Errorf("%q is refused", name)
			}
			if err := c.Accept(i); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

func TestThinking(t *testing.T) {
	t.Parallel()
	v, spelled := testVocabulary()
	g := compile(t, Spec{Kind: Schema, Text: `{"type":"object"}`})
	think := Thinking{Open: "<think>", Close: "</think>"}
	opened := Thinking{Open: "<think>", Close: "</think>", Opened: true}
	onlyClose := Thinking{Close: "</think>", Opened: true}
	for name, c := range map[string]struct {
		thinking Thinking
		tokens   []string
		ok, done bool
	}{
		"none":                      {Thinking{}, []string{"{", "}"}, true, true},
		"none, with a space":        {Thinking{}, []string{" ", "{", "}"}, false, false},
		"none, wakes at once":       {Thinking{}, []string{"x"}, false, false},
		"does not think":            {think, []string{"{", "}", "<end>"}, true, true},
		"speaks instead":            {think, []string{"S"}, false, false},
		"thinks":                    {think, []string{"<think>", "h", "m", "}", "</think>", "\n\n", "{", "}"}, true, true},
		"blank in front":            {think, []string{"\n", "<think>", "h", "</think>", "{", "}"}, true, true},
		"many blanks":               {think, []string{"<think>", "</think>", " ", " ", " ", " ", " "}, false, false},
		"marker in pieces":          {think, []string{"<", "t", "h", "i", "n", "k", ">", "x", "<", "/", "t", "h", "i", "nk>{", "}"}, true, true},
		"half a marker":             {think, []string{"<", "t", "{"}, false, false},
		"marker and a blank":        {opened, []string{"<", "/", "t", "h", "i", "nk>\n{", "}"}, true, true},
		"marker and what is wrong":  {opened, []string{"<", "/", "t", "h", "i", "nk>x"}, false, false},
		"ends while thinking":       {opened, []string{"h", "<end>"}, false, false},
		"ends before the answer":    {think, []string{"<end>"}, false, false},
		"opened by the prompt":      {opened, []string{"{", "x", "</think>", "{", "}"}, true, true},
		"no marker to open":         {onlyClose, []string{"x", "</think>", "{", "}"}, true, true},
		"blanks end with the value": {opened, []string{"</think>", "\n", "{", "}", "\n"}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := New(g, v, c.thinking)
			err := feed(k, spelled, c.tokens...)
			must.Eq(t, c.ok, err == nil, must.Sprint(err))
			if c.ok {
				must.Eq(t, c.done, k.Done())
			}
		})
	}
	// A grammar that begins like the marker takes precedence.
	k := New(compile(t, Spec{Kind: Regex, Text: `<t.*`}), v, think)
	must.NoError(t, feed(k, spelled, "<", "t", "x"))
}

// TestMaskAgrees generates random answers: a token is in the mask exactly when Try allows it, and
// complete answers are valid.
func TestMaskAgrees(t *testing.T) {
	t.Parallel()
	v, spelled := testVocabulary()
	g := compile(t, Spec{Kind: Schema, Text: `{"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"string","maxLength":3}},"required":["a"],"additionalProperties":false}`})
	finished := 0
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		thinking := []Thinking{{}, {Open: "<think>", Close: "</think>"}, {Open: "[THINK]", Close: "</think>", Opened: true}}[seed%3]
		k := New(g, v, thinking)
		mask := make([]uint64, (len(spelled)+63)/64)
		text := ""
		for range 200 {
			must.NoError(t, k.Mask(mask))
			var allowed []int
			for i := range spelled {
				may := mask[i/64]>>(i%64)&1 != 0
				must.Eq(t, may, k.Try(i), must.Sprintf("token %q after %q", spelled[i], text))
				if may {
					allowed = append(allowed, i)
				}
			}
			must.SliceNotEmpty(t, allowed)
			next := allowed[rng.IntN(len(allowed))]
			if c := len(spelled) - 2; mask[c/64]>>(c%64)&1 != 0 && rng.IntN(5) == 0 { // stop thinking
				next = c
			}
			must.NoError(t, k.Accept(next))
			if v.ends[next] {
				_, after, found := strings.Cut(text, "</think>")
				if !found {
					after = text
				}
				must.True(t, json.Valid([]byte(after)), must.Sprint(text))
				finished++
				break
			}
			text += spelled[next]
		}
	}
	must.Greater(t, 30, finished)
}

func TestAcceptRefuses(t *testing.T) {
	t.Parallel()
	v, _ := testVocabulary()
	g := compile(t, Spec{Kind: Choice, Choices: []string{"ab", "ac"}})
	k := New(g, v, Thinking{})
	must.Error(t, k.Accept('x'))
	must.NoError(t, k.Accept('a'))
	other := k.Clone()
	must.NoError(t, k.Accept('b'))
	must.NoError(t, other.Accept('c'))
	must.True(t, k.Done() && other.Done())
	k = New(g, v, Thinking{Close: "</think>", Opened: true})
	must.ErrorIs(t, k.Accept(len(v.pieces)-1), errRefused)
}

func TestCompilerKeeps(t *testing.T) {
	t.Parallel()
	c := NewCompiler()
	specs := []Spec{
		{Kind: Schema, Text: `{"type":"object"}`},
		{Kind: Schema, Text: `{"type":"object"}`, Whitespace: true},
		{Kind: Regex, Text: `a`},
		{Kind: GBNF, Text: `root ::= "a"`},
		{Kind: Choice, Choices: []string{"a"}},
		{Kind: Choice, Choices: []string{"a", "b"}},
		{Kind: Choice, Choices: []string{"a b"}},
	}
	var all []*grammar.Grammar
	for i, s := range specs {
		g, err := c.Compile(t.Context(), s)
		must.NoError(t, err)
		for _, other := range all {
			must.NotEq(t, fmt.Sprintf("%p", other), fmt.Sprintf("%p", g), must.Sprint(i))
		}
		all = append(all, g)
	}
	var wg sync.WaitGroup
	for i, s := range specs {
		wg.Go(func() {
			g, err := c.Compile(t.Context(), s)
			if err != nil || g != all[i] {
				t.Errorf("%v was compiled anew (%v)", s, err)
			}
		})
	}
	wg.Wait()
	for i := range cacheEntries {
		_, err := c.Compile(t.Context(), Spec{Kind: Regex, Text: fmt.Sprintf("x{%d}", i+1)})
		must.NoError(t, err)
		_, err = c.Compile(t.Context(), specs[0]) // stays cached, as it is used
		must.NoError(t, err)
	}
	must.Eq(t, cacheEntries, c.order.Len())
	must.MapLen(t, cacheEntries, c.known)
	g, err := c.Compile(t.Context(), specs[0])
	must.NoError(t, err)
	must.True(t, g == all[0])
	g, err = c.Compile(t.Context(), specs[2])
	must.NoError(t, err)
	must.True(t, g != all[2])
}

func TestCompilerRefuses(t *testing.T) {
	t.Parallel()
	c := NewCompiler()
	for _, s := range []Spec{
		{Kind: Schema, Text: `{"$ref":"https://example.com/x"}`},
		{Kind: Schema, Text: `{`},
		{Kind: Regex, Text: `(`},
		{Kind: GBNF, Text: `root ::= x`},
		{Kind: Choice},
		{Kind: "other"},
		{},
	} {
		_, err := c.Compile(t.Context(), s)
		must.Error(t, err, must.Sprint(s))
	}
	must.MapEmpty(t, c.known)
	// A caller that waits for its turn can give up.
	for range compileSlots {
		c.turns <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Compile(ctx, Spec{Kind: Regex, Text: "a"})
	must.ErrorIs(t, err, context.Canceled)
}
