package grammar

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// wordVocabulary holds bytes, and many words with and without a space before them.
func wordVocabulary() *Vocabulary {
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for i := range 400 {
		word := fmt.Sprintf("%c%c%d", 'a'+i%26, 'a'+i/26, i)
		tokens = append(tokens, []byte(word), []byte(" "+word), []byte(" "+word+" "+word), []byte(word+`",`), []byte(" é"+word))
	}
	return NewVocabulary(append(tokens, []byte("</s>")), len(tokens))
}

// TestBranches compares masks with acceptance while words are counted, and checks that the tokens
// after a space are cached.
func TestBranches(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{
		`{"type":"string","pattern":"^(?:\\S+\\s+){0,9}\\S+$"}`,
		`{"type":"string","pattern":"^(?:\\S+\\s+){0,9}\\S+$","maxLength":60}`,
		`{"type":"array","items":{"type":"string","pattern":"^([^, ]+ ){1,3}[^, ]*$","minLength":3}}`,
	} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			g, err := Compile([]byte(schema), Options{})
			must.NoError(t, err)
			v := wordVocabulary()
			for _, text := range []string{`"`, `"aa`, `"aa b`, `"aa b `, `"aa b cc dd é`, `"a b c d e f g h i`, `"a b c d e f g h i `} {
				m := g.NewMatcher(v)
				if strings.Contains(schema, "array") {
					text = "[" + text
				}
				if m.AcceptBytes([]byte(text)) != nil {
					continue
				}
				mask := make([]uint64, v.MaskLen())
				must.NoError(t, m.Mask(mask))
				for id := range v.tokens {
					if allowed := mask[id/64]>>(id%64)&1 == 1; allowed != m.Try(id) {
						t.Fatalf("after %s: mask says %v of %q", text, allowed, v.tokens[id])
					}
				}
			}
			useful := 0
			for _, b := range v.branches {
				for _, at := range b.at {
					if at != nil {
						useful++
					}
				}
			}
			must.Positive(t, useful)
		})
	}
}

// TestOpen finds expressions without dead ends, within the work of one search.
func TestOpen(t *testing.T) {
	t.Parallel()
	for pattern, open := range map[string]bool{
		"[a-zA-Z0-9_-]{162}": true, // a search for it has a state per character
		"([0-9a-f]{2}:){4}":  true,
		"a|b":                true,
		"^a":                 false,
		"b$":                 true,
		"^[a-z]*$":           false,
		"^(\\S+ ){0,50}$":    false,
	} {
		t.Run(pattern, func(t *testing.T) {
			t.Parallel()
			g, err := Compile(fmt.Appendf(nil, `{"type":"string","pattern":%q}`, pattern), Options{})
			must.NoError(t, err)
			g.set.work = maskWork
			must.Eq(t, open, g.set.open(g.first.leaf.node.str))
		})
	}
}

// TestNamesNeedNoObjects checks that a mask within a name does not create the objects that each
// name would lead to, if all can be completed.
func TestNamesNeedNoObjects(t *testing.T) {
	t.Parallel()
	g, err := Compile([]byte(`{"type":"object","properties":{"a":{},"b":{}},"required":["b"],"patternProperties":{"^x":{"type":"null"}}}`), Options{})
	must.NoError(t, err)
	m := g.NewMatcher(wordVocabulary())
	must.NoError(t, m.AcceptBytes([]byte(`{"b":1,"q`)))
	known := func() (n int) {
		for _, f := range g.frames {
			if f.obj != nil {
				n++
			}
		}
		return n
	}
	before := known()
	must.NoError(t, m.Mask(make([]uint64, m.v.MaskLen())))
	must.Eq(t, before, known())
}
