package grammar

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

// textVocabulary has all bytes and tokens of letters, signs and pieces of characters.
func textVocabulary() *Vocabulary {
	rng := rand.New(rand.NewPCG(3, 3))
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	pieces := []string{"a", "b", "z", "A", "1", "-", " ", "\n", `"`, `\`, `\"`, "é", "\xc3", "\xa9", "あ", "\xe3\x81", "\x82", "😀", "\xf0\x9f", "<", "</", "x>", ",", "}", "\x01"}
	for range 3000 {
		var t []byte
		for range 1 + rng.IntN(5) {
			t = append(t, pieces[rng.IntN(len(pieces))]...)
		}
		tokens = append(tokens, t)
	}
	return NewVocabulary(append(tokens, nil), len(tokens))
}

// The tokens of a class of characters come from a walk at its first use, and from then on from the
// vocabulary's runs of the class.
func TestRunsAgreeWithWalk(t *testing.T) {
	t.Parallel()
	rules := func(text string) func() (*Grammar, error) {
		return func() (*Grammar, error) { return CompileGBNF(text, Options{}) }
	}
	regex := func(pattern string) func() (*Grammar, error) {
		return func() (*Grammar, error) { return CompileRegex(pattern, Options{}) }
	}
	schema := func(text string) func() (*Grammar, error) {
		return func() (*Grammar, error) { return Compile([]byte(text), Options{}) }
	}
	for name, c := range map[string]struct {
		compile func() (*Grammar, error)
		before  string
	}{
		"rule":               {rules(`root ::= "x" [^"\\]* "\"" "a"*`), "x"},
		"rule of letters":    {rules("root ::= \"x\" [a-zé-ü]* (\"<\" | \"A\")"), "x"},
		"rule of wide class": {rules("root ::= [ぁ-んァ-ン]* \"あ\" \"1\""), ""},
		"ambiguous rule":     {rules(`root ::= ([a-z]+ " "?)* "-"`), "a"},
		"expression":         {regex(`x[^<]*<a?`), "x"},
		"all but a mark":     {regex(`x[a-zé]*-1`), "x"},
		"second character":   {regex(`[0-9][^0-9]*1`), ""},
		"until": {func() (*Grammar, error) {
			return CompileParts(Sequence(Literal("x"), Until("</x>"), Literal("</x>")), Options{})
		}, "xa"},
		"string": {schema(`{"pattern":"^x[a-zé]*-1$"}`), `"x`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := textVocabulary()
			var masks [2][]uint64
			for i := range masks {
				g, err := c.compile()
				must.NoError(t, err)
				m := g.NewMatcher(v)
				if c.before != "" {
					must.NoError(t, m.AcceptBytes([]byte(c.before)))
				}
				masks[i] = make([]uint64, v.MaskLen())
				must.NoError(t, m.Mask(masks[i]))
				for id := range v.Len() {
					must.EqOp(t, m.Try(id), masks[i][id/64]>>(id%64)&1 == 1, must.Sprintf("token %q, time %d", v.tokens[id], i))
				}
			}
			must.MapLen(t, 1, v.runs, must.Sprint("no run was used"))
			must.True(t, slices.Equal(masks[0], masks[1]))
		})
	}
}
