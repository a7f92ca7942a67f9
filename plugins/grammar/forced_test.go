package grammar_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// merger is a byte-pair tokenizer with random merges.
type merger struct {
	tokens [][]byte
	ids    map[string]int
	cuts   bool // splits text into pieces before merging
	spaced bool // prepends a space to a text, as some tokenizers do
}

func newMerger(rng *rand.Rand, merges int) *merger {
	t := &merger{ids: map[string]int{}, cuts: rng.IntN(2) == 0, spaced: rng.IntN(4) == 0}
	add := func(s string) {
		if _, ok := t.ids[s]; !ok {
			t.ids[s] = len(t.tokens)
			t.tokens = append(t.tokens, []byte(s))
		}
	}
	for b := range 256 {
		add(string([]byte{byte(b)}))
	}
	parts := []string{`"`, `:`, `,`, `{`, `}`, `[`, `]`, `a`, `b`, `n`, `m`, `e`, `_`, `1`, `0`, ` `, "\xc3", "\xa9", `t`, `r`, `u`, `l`, `y`}
	for range merges {
		add(parts[rng.IntN(len(parts))] + parts[rng.IntN(len(parts))])
		parts = append(parts, string(t.tokens[len(t.tokens)-1]))
	}
	t.tokens = append(t.tokens, nil) // ends a text
	return t
}

func (t *merger) encode(text []byte) []int {
	if t.spaced {
		text = append([]byte{' '}, text...)
	}
	var out []int
	for len(text) > 0 {
		n := len(text)
		if t.cuts {
			letter := func(b byte) bool { return b >= 'a' && b <= 'z' || b == '_' || b >= 0x80 }
			for n = 1; n < len(text) && letter(text[n]) == letter(text[n-1]); n++ {
			}
		}
		out = append(out, t.merge(text[:n])...)
		text = text[n:]
	}
	return out
}

func (t *merger) merge(word []byte) []int {
	parts := make([]string, len(word))
	for i := range word {
		parts[i] = string(word[i : i+1])
	}
	for {
		best, at := -1, 0
		for i := 0; i+1 < len(parts); i++ {
			if id, ok := t.ids[parts[i]+parts[i+1]]; ok && (best < 0 || id < best) {
				best, at = id, i
			}
		}
		if best < 0 {
			break
		}
		parts[at] += parts[at+1]
		parts = slices.Delete(parts, at+1, at+2)
	}
	out := make([]int, len(parts))
	for i, p := range parts {
		out[i] = t.ids[p]
	}
	return out
}

// longKeys returns a random schema whose documents leave little choice.
func (w *schemaWriter) longKeys(depth int) any {
	if depth == 0 || w.rng.IntN(4) == 0 {
		return w.pick(map[string]any{"type": "integer"}, map[string]any{"type": "boolean"}, map[string]any{"enum": []any{"name_one", "name_two", "other"}},
			map[string]any{"type": "string", "maxLength": 4}, map[string]any{"const": []any{"blue", 10, nil}})
	}
	props, names := map[string]any{}, []any{}
	for range 1 + w.rng.IntN(3) {
		name := w.pick("name", "name_of_the_bee", "tree", "éa", "number", "a number", "number_1").(string)
		props[name] = w.longKeys(depth - 1)
		if w.rng.IntN(4) > 0 && !slices.Contains(names, any(name)) {
			names = append(names, name)
		}
	}
	return map[string]any{"type": "object", "properties": props, "required": names, "additionalProperties": false}
}

// document returns a random document of g, or nil if it does not end soon.
func document(t testing.TB, g *grammar.Grammar, rng *rand.Rand) []byte {
	t.Helper()
	v, tokens := vocabularyOf(1)
	m := g.NewMatcher(v)
	mask := make([]uint64, v.MaskLen())
	var text []byte
	for range 300 {
		must.NoError(t, m.Mask(mask))
		var can []int
		for id := range 256 { // bytes
			if mask[id/64]>>(id%64)&1 == 1 {
				can = append(can, id)
			}
		}
		if m.Done() && (len(can) == 0 || rng.IntN(3) == 0) {
			return text
		}
		if len(can) == 0 {
			return nil
		}
		id := can[rng.IntN(len(can))]
		must.NoError(t, m.Accept(id))
		text = append(text, tokens[id]...)
	}
	return nil
}

// Forced tokens equal the tokenizer's tokens of the whole document, whatever follows.
func TestForcedTokens(t *testing.T) {
	t.Parallel()
	forced, all := 0, 0
	for seed := range uint64(60) {
		forced, all = checkForced(t, seed, forced, all)
	}
	t.Logf("%d of %d tokens are forced", forced, all)
	must.Greater(t, all/4, forced)
}

func FuzzForcedTokens(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(func(t *testing.T, seed uint64) { checkForced(t, seed, 0, 0) })
}

func checkForced(t testing.TB, seed uint64, forced, all int) (int, int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 9))
	w := &schemaWriter{rng}
	schema := w.longKeys(3)
	if rng.IntN(3) == 0 {
		schema = w.schema(3)
	}
	text, err := json.Marshal(schema)
	must.NoError(t, err)
	g, err := grammar.Compile(text, grammar.Options{})
	if err != nil {
		return forced, all
	}
	tok := newMerger(rng, rng.IntN(200))
	v := grammar.NewVocabulary(tok.tokens, len(tok.tokens)-1)
	for range 3 {
		doc := document(t, g, rng)
		if doc == nil {
			continue
		}
		prompt := "as json:\n"
		tokens := tok.encode([]byte(prompt + string(doc)))
		answer := len(tokens) - len(tok.encode(doc))
		if tok.spaced {
			answer++
		}
		if answer < 0 || string(bytesOf(tok, tokens[:answer])) != map[bool]string{true: " "}[tok.spaced]+prompt {
			continue // the end of the prompt was merged with the answer
		}
		m := g.NewMatcher(v)
		for i := answer; i < len(tokens); i++ {
			list := m.ForcedTokens(tokens[:i], tok.encode)
			left := tokens[i:]
			must.True(t, len(list) <= len(left) && slices.Equal(list, left[:len(list)]), must.Sprint(fmt.Sprintf("%s: %s behind %q: %q forced, %q follow (cuts %v)",
				text, doc, bytesOf(tok, tokens[:i]), pieces(tok, list), pieces(tok, left), tok.cuts)))
			for _, id := range append(list, left[len(list):min(len(list)+1, len(left))]...) {
				must.NoError(t, m.Accept(id))
			}
			forced += len(list)
			i += len(list)
		}
		must.True(t, m.Done())
		all += len(tokens) - answer
	}
	return forced, all
}

func bytesOf(t *merger, list []int) []byte {
	var out []byte
	for _, id := range list {
		out = append(out, t.tokens[id]...)
	}
	return out
}

func pieces(t *merger, list []int) []string {
	var out []string
	for _, id := range list {
		out = append(out, string(t.tokens[id]))
	}
	return out
}

// After tokens that the tokenizer would not have written, no tokens are forced.
func TestForcedTokensBehindOthers(t *testing.T) {
	t.Parallel()
	tok := &merger{ids: map[string]int{}}
	for b := range 256 {
		tok.ids[string([]byte{byte(b)})] = b
		tok.tokens = append(tok.tokens, []byte{byte(b)})
	}
	for _, s := range []string{`{"`, "na", "me", `":`, "name", `":"`, "tr", "ue", "true"} {
		tok.ids[s] = len(tok.tokens)
		tok.tokens = append(tok.tokens, []byte(s))
	}
	tok.tokens = append(tok.tokens, nil)
	v := grammar.NewVocabulary(tok.tokens, len(tok.tokens)-1)
	for schema, want := range map[string][]string{
		`{"properties":{"name":{"type":"boolean"}}}`:                    {"name", `":`},
		`{"properties":{"name":{"type":"string"}}}`:                     {"name"}, // ":": is allowed, and takes two tokens
		`{"properties":{"name":{"type":["string","null"]}}}`:            {"name"},
		`{"properties":{"name":{"const":true}}}`:                        {"name", `":`, "true", "}"},
		`{"properties":{"name":{"const":"tru"},"namely":{"const":""}}}`: {"name"},
	} {
		var s map[string]any
		must.NoError(t, json.Unmarshal([]byte(schema), &s))
		s["type"], s["additionalProperties"], s["minProperties"] = "object", false, 1
		text, err := json.Marshal(s)
		must.NoError(t, err)
		g, err := grammar.Compile(text, grammar.Options{})
		must.NoError(t, err)
		m := g.NewMatcher(v)
		must.NoError(t, m.Accept(tok.ids[`{"`]))
		must.Eq(t, want, pieces(tok, m.ForcedTokens([]int{tok.ids[`{"`]}, tok.encode)), must.Sprint(schema))
		must.SliceEmpty(t, m.ForcedTokens([]int{'{', '"'}, tok.encode))
	}
}
