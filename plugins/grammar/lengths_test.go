package grammar

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func compileSchema(t testing.TB, schema string, opts Options) *Grammar {
	t.Helper()
	g, err := Compile([]byte(schema), opts)
	must.NoError(t, err)
	return g
}

// bytesVocabulary has a token for each byte, with the same number, and an end token.
func bytesVocabulary() *Vocabulary {
	tokens := make([][]byte, 257)
	for b := range 256 {
		tokens[b] = []byte{byte(b)}
	}
	return NewVocabulary(tokens, 256)
}

// feed accepts text byte by byte and computes the mask before each.
func feed(t testing.TB, m *Matcher, text string) {
	t.Helper()
	mask := make([]uint64, m.v.MaskLen())
	for i, b := range []byte(text) {
		must.NoError(t, m.Mask(mask))
		must.True(t, mask[b/64]>>(b%64)&1 == 1, must.Sprintf("%q after %q", b, text[:i]))
		must.NoError(t, m.Accept(int(b)))
	}
}

func TestLengthsShareMasks(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{
		`{"type":"string","maxLength":5000}`,
		`{"type":"string","maxLength":5000,"pattern":"^\\S+( \\S+)*$"}`,
		`{"type":"string","pattern":"^[a-z][a-z ]{20,3000}$"}`,
	} {
		g := compileSchema(t, schema, Options{})
		m := g.NewMatcher(bytesVocabulary())
		feed(t, m, `"`+strings.Repeat("abcd efg", 300)+`"`)
		must.Less(t, 20, len(g.masks), must.Sprint(schema))
		must.True(t, m.Done())
	}
}

func TestLengthsNearBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		schema         string
		accept, refuse []string
	}{
		{`{"type":"string","minLength":3,"maxLength":5,"pattern":"^(ab)+c?$"}`, []string{"abc", "abab", "ababc"}, []string{"ab", "ababab", "aba"}},
		{`{"type":"string","maxLength":6,"pattern":"^[a-z]+@[a-z]{2,3}$"}`, []string{"a@bc", "abc@de", "ab@cde"}, []string{"abcd@ef", "abc@def"}},
		{`{"type":"string","pattern":"^x[0-9]{2,40}y$","maxLength":20}`, []string{"x12y", "x" + strings.Repeat("1", 18) + "y"}, []string{"x1y", "x" + strings.Repeat("1", 19) + "y"}},
		{`{"type":"string","minLength":2,"not":{"maxLength":3}}`, []string{"abcd", "äöüß"}, []string{"abc", "a"}},
		{`{"anyOf":[{"type":"string","maxLength":2},{"type":"string","pattern":"^a{4}$"}]}`, []string{"", "xy", "aaaa"}, []string{"aaa", "aaaaa", "xyz"}},
		{`{"type":"string","maxLength":4,"enum":["a","abcd","abcde"]}`, []string{"a", "abcd"}, []string{"abcde", "ab"}},
		{`{"type":"string","minLength":1,"maxLength":2,"pattern":"^[^b]*$"}`, []string{`\n`, "é😀"}, []string{"", "b", "aaa", `\n\n\n`}},
		{`{"type":"string","minLength":1,"maxLength":2}`, []string{`\n`, `\ud83d\ude00x`, "é😀"}, []string{"", "aaa", `\n\n\n`, `\ud83d\ude00ab`}},
	} {
		g := compileSchema(t, c.schema, Options{})
		for _, s := range c.accept {
			feed(t, g.NewMatcher(bytesVocabulary()), `"`+s+`"`)
		}
		for _, s := range c.refuse {
			must.False(t, g.Accepts([]byte(`"`+s+`"`)), must.Sprintf("%s of %s", s, c.schema))
		}
	}
}
