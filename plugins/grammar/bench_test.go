package grammar_test

import (
	"math/rand/v2"
	"testing"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// benchVocabulary returns 50,000 tokens of letters, digits and JSON.
func benchVocabulary() *grammar.Vocabulary {
	rng := rand.New(rand.NewPCG(1, 1))
	tokens := make([][]byte, 0, 50_000)
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	letters := "etaoin shrdlucmfwypvbgkqjxz ETAOIN"
	ends := []string{"", "", "", "", "", "", `"`, `",`, `":`, `"}`, `\n`, ".", "1"}
	for len(tokens) < cap(tokens) {
		var t []byte
		for range 1 + rng.IntN(8) {
			t = append(t, letters[rng.IntN(len(letters))])
		}
		tokens = append(tokens, append(t, ends[rng.IntN(len(ends))]...))
	}
	return grammar.NewVocabulary(append(tokens, nil), len(tokens))
}

const benchSchema = `{"type":"object","properties":{"name":{"type":"string","minLength":1},"tags":{"type":"array","items":{"enum":["a","b"]}},` +
	`"id":{"type":"string","pattern":"^[a-z]{3,20}-[0-9]+$"},"n":{"type":"integer","minimum":0,"maximum":500}},"required":["name"]}`

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := grammar.Compile([]byte(benchSchema), grammar.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMask computes the masks of a document with a fresh grammar: no mask is cached yet.
func BenchmarkMask(b *testing.B) {
	v := benchVocabulary()
	doc := []byte(`{"name":"some name","tags":["a","b"],"id":"abcdef-12","n":321,"other":{"x":[1,true,"y"]}}`)
	mask := make([]uint64, v.MaskLen())
	masks := 0
	for b.Loop() {
		g, err := grammar.Compile([]byte(benchSchema), grammar.Options{})
		if err != nil {
			b.Fatal(err)
		}
		m := g.NewMatcher(v)
		for _, c := range doc {
			if err := m.Mask(mask); err != nil {
				b.Fatal(err)
			}
			masks++
			if err := m.Accept(int(c)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(masks), "µs/mask")
}

func BenchmarkTry(b *testing.B) {
	v := benchVocabulary()
	g, err := grammar.Compile([]byte(`{"type":"string"}`), grammar.Options{})
	if err != nil {
		b.Fatal(err)
	}
	m := g.NewMatcher(v)
	if err := m.Accept('"'); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !m.Try(400) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkRuleMask computes masks within a string of a GBNF grammar: the first one, and those of a
// new grammar with a known vocabulary.
func BenchmarkRuleMask(b *testing.B) {
	v := benchVocabulary()
	mask := make([]uint64, v.MaskLen())
	for b.Loop() {
		b.StopTimer()
		g, err := grammar.CompileGBNF(jsonGBNF, grammar.Options{})
		if err != nil {
			b.Fatal(err)
		}
		m := g.NewMatcher(v)
		if err := m.AcceptBytes([]byte(`{"a": "x`)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := m.Mask(mask); err != nil {
			b.Fatal(err)
		}
	}
}
