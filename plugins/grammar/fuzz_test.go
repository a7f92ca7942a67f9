package grammar_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// schemaWriter writes random schemas.
type schemaWriter struct {
	rng *rand.Rand
}

func (w *schemaWriter) pick(of ...any) any { return of[w.rng.IntN(len(of))] }

func (w *schemaWriter) schema(depth int) any {
	if w.rng.IntN(12) == 0 {
		return w.rng.IntN(4) > 0
	}
	s := map[string]any{}
	if w.rng.IntN(5) > 0 {
		s["type"] = w.pick("null", "boolean", "integer", "number", "string", "object", "array", []any{"string", "integer"}, []any{"object", "null"})
	}
	for range 1 + w.rng.IntN(3) {
		w.keyword(s, depth)
	}
	return s
}

func (w *schemaWriter) list(depth, n int) []any {
	var out []any
	for range n {
		out = append(out, w.schema(depth-1))
	}
	return out
}

func (w *schemaWriter) name() string { return w.pick("a", "b", "ab", "é", "x\n").(string) }

func (w *schemaWriter) keyword(s map[string]any, depth int) {
	n := w.rng.IntN(4)
	k := w.rng.IntN(32)
	if depth <= 0 {
		k = w.rng.IntN(12)
	}
	switch k {
	case 0:
		s["enum"] = []any{w.pick("a", "ab", 1, 2.5, nil, true), w.pick("b", -3, false, []any{1}, map[string]any{"a": 1})}
	case 1:
		s["const"] = w.pick("a", 7, nil, []any{"a", nil}, map[string]any{"b": true})
	case 2:
		s["minimum"] = w.rng.IntN(20) - 10
	case 3:
		s["exclusiveMaximum"] = float64(w.rng.IntN(400)-200) / 8
	case 4:
		s["multipleOf"] = w.pick(2, 3, 0.5, 7)
	case 5:
		s["minLength"] = n
	case 6:
		s["maxLength"] = n*n + 1
	case 7:
		s["pattern"] = w.pick("^a", "b$", "^[a-c]*$", "a|b", "^(a|bc)+$", "[^x]", `^\w{1,3}$`, `\d`, `^[^b]+$`, `^a[a-é]{2,20}$`, `^(a|bb)*c?$`, `^[^ ]+( [^ ]+)*$`)
	case 8:
		s["required"] = []any{w.name()}
	case 9:
		s["minProperties"] = n
	case 10:
		s["maxItems"] = n
	case 11:
		s["dependentRequired"] = map[string]any{w.name(): []any{w.name()}}
	case 12, 13, 14, 15:
		props := map[string]any{}
		for range 1 + w.rng.IntN(3) {
			props[w.name()] = w.schema(depth - 1)
		}
		s["properties"] = props
	case 16, 17:
		s["additionalProperties"] = w.schema(depth - 1)
	case 18:
		s["patternProperties"] = map[string]any{w.pick("^a", "b", "[^q]").(string): w.schema(depth - 1)}
	case 19:
		s["propertyNames"] = map[string]any{"maxLength": 2}
	case 20, 21:
		s["items"] = w.schema(depth - 1)
	case 22:
		s["prefixItems"] = w.list(depth, 1+n%2)
	case 23:
		s["contains"] = w.schema(depth - 1)
		s["minContains"] = n % 3
		if n > 1 {
			s["maxContains"] = 2
		}
	case 24:
		s["anyOf"] = w.list(depth, 2)
	case 25:
		s["oneOf"] = w.list(depth, 2)
	case 26:
		s["allOf"] = w.list(depth, 2)
	case 27:
		s["not"] = w.schema(depth - 1)
	case 28:
		s["if"], s["then"], s["else"] = w.schema(depth-1), w.schema(depth-1), w.schema(depth-1)
	case 30:
		s["unevaluatedProperties"] = w.schema(0)
		s[w.pick("allOf", "anyOf", "oneOf").(string)] = w.list(depth, 2)
	case 31:
		s["unevaluatedItems"] = w.schema(0)
		s[w.pick("allOf", "anyOf", "oneOf").(string)] = w.list(depth, 2)
	case 29:
		s["type"], s["uniqueItems"] = "array", true
		items := map[string]any{"type": w.pick("integer", "string", "boolean")}
		if w.rng.IntN(2) == 0 {
			items["minLength"], items["maxLength"] = n, n+w.rng.IntN(4)
		}
		s["items"] = items
		switch w.rng.IntN(6) { // of arrays and objects, many with few values
		case 0, 1:
			s["items"] = w.schema(depth - 1)
		case 2, 3:
			small := func() any {
				return w.pick(map[string]any{"enum": []any{"a", 1}}, map[string]any{"type": "boolean"}, map[string]any{"type": "string", "maxLength": 1}, true, map[string]any{"type": "null"})
			}
			s["items"] = map[string]any{
				"type": "object", "properties": map[string]any{"a": small(), "b": small()}, "additionalProperties": w.rng.IntN(4) == 0,
				"required": w.pick([]any{}, []any{"a"}, []any{"b", "a"}),
			}
		case 4:
			s["items"] = map[string]any{"type": "array", "items": w.schema(depth - 2), "maxItems": n, "uniqueItems": w.rng.IntN(2) == 0}
		}
		if w.rng.IntN(3) == 0 {
			s["minItems"] = n
		}
	}
}

// vocabularyOf returns one of a few vocabularies. Different grammars share them, as in a server, so
// that masks also come from the vocabulary's cached classes of characters.
func vocabularyOf(seed uint64) (*grammar.Vocabulary, [][]byte) {
	vocabulariesMu.Lock()
	defer vocabulariesMu.Unlock()
	i := seed % uint64(len(vocabularies))
	if vocabularies[i].v == nil {
		w := &schemaWriter{rand.New(rand.NewPCG(i, 3))}
		vocabularies[i].v, vocabularies[i].tokens = w.vocabulary()
	}
	return vocabularies[i].v, vocabularies[i].tokens
}

var (
	vocabulariesMu sync.Mutex // guards below
	vocabularies   [8]struct {
		v      *grammar.Vocabulary
		tokens [][]byte
	}
)

// steps counts the tokens for which a mask and acceptance were compared; exhausted counts the masks
// that exceeded their bounds.
var steps, exhausted atomic.Int64

// vocabulary returns tokens of single bytes, pieces of JSON and random texts.
func (w *schemaWriter) vocabulary() (*grammar.Vocabulary, [][]byte) {
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	pieces := []string{
		`"`, `":`, `","`, `":"`, `"},{"`, `{"`, `["`, `"]`, `a`, `ab`, `b`, `é`, "\xc3", "\xa9", `\n`, `\u00`, `e9`, `\\`, `1`, `12`, `.5`, `-`, `0`, `,`, `}`, `]`, `:`,
		`true`, `null`, `fal`, `se`, ` `, `"a"`, `{}`, `[]`, `"x`, `"b":`, `abc"`, `a","a`, `[1,`, `2,`, "\xf0\x9f", "\x98\x80", `\ud83d`, `\ude00`,
	}
	for range 60 {
		t := ""
		for range 1 + w.rng.IntN(4) {
			t += pieces[w.rng.IntN(len(pieces))]
		}
		tokens = append(tokens, []byte(t))
	}
	for range 120 { // enough after one byte to be cached
		t := w.pick(" ", "a").(string)
		for range 1 + w.rng.IntN(3) {
			t += w.pick("a", "b", "c", " ", "é", `"`, "1", "x").(string)
		}
		tokens = append(tokens, []byte(t))
	}
	tokens = append(tokens, nil, []byte("</s>"))
	return grammar.NewVocabulary(tokens, len(tokens)-1), tokens
}

// checkMasks follows a random text and compares every mask with what is accepted. It returns the
// text if it ended.
func checkMasks(t testing.TB, g *grammar.Grammar, v *grammar.Vocabulary, tokens [][]byte, rng *rand.Rand) []byte {
	t.Helper()
	m := g.NewMatcher(v)
	mask := make([]uint64, v.MaskLen())
	var text []byte
	for range 30 {
		err := m.Mask(mask)
		if errors.Is(err, grammar.ErrExhausted) { // for very ambiguous rules
			exhausted.Add(1)
			return nil
		}
		if err != nil { // a dead end
			t.Fatalf("after %q: %v", text, err)
		}
		steps.Add(int64(len(tokens)))
		var can []int
		for id := range tokens {
			allowed := mask[id/64]>>(id%64)&1 == 1
			if m.Try(id) != allowed {
				t.Fatalf("after %q: token %q: mask says %v", text, tokens[id], allowed)
			}
			if allowed {
				can = append(can, id)
			}
		}
		end := len(tokens) - 1
		if m.Done() != (mask[end/64]>>(end%64)&1 == 1) {
			t.Fatalf("after %q: done is %v", text, m.Done())
		}
		if forced := m.Forced(); len(forced) > 0 {
			for _, id := range can {
				if k := min(len(forced), len(tokens[id])); string(tokens[id][:k]) != string(forced[:k]) {
					t.Fatalf("after %q: %q is forced, but %q is allowed", text, forced, tokens[id])
				}
			}
		}
		if m.Done() && rng.IntN(3) == 0 || len(can) == 0 {
			break
		}
		id := can[rng.IntN(len(can))]
		if len(text) > 40 || rng.IntN(2) == 0 {
			for _, c := range []byte(`}]":,0`) {
				if mask[0]>>c&1 == 1 && c < 64 && rng.IntN(2) == 0 || c >= 64 && mask[1]>>(c-64)&1 == 1 && rng.IntN(2) == 0 {
					id = int(c)
				}
			}
		}
		if id == end {
			break
		}
		if err := m.Accept(id); err != nil {
			t.Fatalf("after %q: mask allows %q: %v", text, tokens[id], err)
		}
		text = append(text, tokens[id]...)
	}
	if !m.Done() {
		return nil
	}
	return text
}

var hugeExponent = regexp.MustCompile(`[eE][-+]?\d{4,}`)

func FuzzSchema(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { checkSchema(t, seed) })
}

// checkSchema compares a random schema with an independent validator. It returns the number of
// completed documents, or -1 when the schema was refused.
func checkSchema(t testing.TB, seed uint64) int {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &schemaWriter{rng}
	text, err := json.Marshal(w.schema(3))
	must.NoError(t, err)
	opts := grammar.Options{Order: grammar.Order(rng.IntN(2)), Whitespace: grammar.Whitespace(rng.IntN(2))}
	g, err := grammar.Compile(text, opts)
	if err != nil {
		if _, ok := errors.AsType[*grammar.Error](err); !ok {
			t.Fatalf("%s: %v", text, err)
		}
		return -1
	}
	validator := compileValidator(t, string(text))
	v, tokens := vocabularyOf(seed)
	finished := 0
	if os.Getenv("RBEE_GRAMMAR_SHOW") != "" {
		t.Logf("%s %+v", text, opts)
	}
	for range 4 {
		doc := checkMasks(t, g, v, tokens, rng)
		if doc == nil {
			continue
		}
		finished++
		if !g.Accepts(doc) {
			t.Fatalf("%s: %s was masked, but is not accepted", text, doc)
		}
		if hugeExponent.Match(doc) {
			continue // beyond the validator's limits
		}
		if err := validates(t, validator, doc); err != nil {
			t.Fatalf("%s\naccepts %s\n%v", text, doc, err)
		}
	}
	return finished
}

func TestRandomSchemas(t *testing.T) {
	t.Parallel()
	refused, finished := 0, 0
	n := 400
	if testing.Short() {
		n = 50
	}
	for seed := range uint64(n) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if k := checkSchema(t, seed); k < 0 {
				refused++
			} else {
				finished += k
			}
		})
	}
	must.Less(t, n/2, refused)
	must.Greater(t, n, finished)
}

func FuzzCompile(f *testing.F) {
	for _, c := range schemaCases {
		f.Add(c.schema)
	}
	f.Fuzz(func(t *testing.T, schema string) {
		if strings.Count(schema, "") > 2000 {
			t.Skip()
		}
		g, err := grammar.Compile([]byte(schema), grammar.Options{})
		if err != nil {
			return
		}
		g.Accepts([]byte(`{"a":1}`))
	})
}

// randomRules returns a grammar of three rules.
func randomRules(rng *rand.Rand) string {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	var sequence func(depth int, names ...string) string
	sequence = func(depth int, names ...string) string {
		var b strings.Builder
		for range 1 + rng.IntN(3) {
			switch k := rng.IntN(8); {
			case k < 3:
				b.WriteString(pick(`"a"`, `"ab"`, `"\\""`, `"{"`, `"é"`, `","`))
			case k < 5:
				b.WriteString(pick(`[a-c]`, `[^"]`, `[^"\\]`, `[0-9]`, `[é-ö1]`, `.`))
			case k < 6 && depth > 0:
				b.WriteString("(" + sequence(depth-1, names...) + " | " + sequence(depth-1, names...) + ")")
			case len(names) > 0:
				b.WriteString(pick(names...))
			default:
				b.WriteString(`"b"`)
			}
			b.WriteString(pick("", "", "", "*", "?", "+", "{1,2}") + " ")
		}
		return b.String()
	}
	return "root ::= " + sequence(2, "one", "two") + "\none ::= " + sequence(1, "two") + "\ntwo ::= " + sequence(1) + " | \"[\" root \"]\""
}

// checkRules compares the masks of random rules, or of an expression, with what is accepted.
func checkRules(t testing.TB, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 4))
	var g *grammar.Grammar
	var err error
	var text string
	if rng.IntN(2) == 0 {
		text = randomRules(rng)
		g, err = grammar.CompileGBNF(text, grammar.Options{})
	} else {
		text = randomPattern(rng, 3)
		g, err = grammar.CompileRegex(text, grammar.Options{})
	}
	if err != nil {
		if _, ok := errors.AsType[*grammar.Error](err); !ok {
			t.Fatalf("%s: %v", text, err)
		}
		return
	}
	v, tokens := vocabularyOf(seed)
	for range 3 {
		if doc := checkMasks(t, g, v, tokens, rng); doc != nil && !g.Accepts(doc) {
			t.Fatalf("%s: %q was masked, but is not accepted", text, doc)
		}
	}
}

func TestRandomRules(t *testing.T) {
	t.Parallel()
	n := uint64(300)
	if testing.Short() {
		n = 50
	}
	for seed := range n {
		checkRules(t, seed)
	}
}

func FuzzRules(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { checkRules(t, seed) })
}

// TestSteps compares masks and acceptance over RBEE_GRAMMAR_STEPS tokens, with grammars from the
// seed RBEE_GRAMMAR_SEED on.
func TestSteps(t *testing.T) {
	t.Parallel()
	want, err := strconv.ParseFloat(os.Getenv("RBEE_GRAMMAR_STEPS"), 64)
	if err != nil {
		t.Skip("RBEE_GRAMMAR_STEPS is not set")
	}
	seed, _ := strconv.ParseUint(os.Getenv("RBEE_GRAMMAR_SEED"), 10, 64)
	first := seed
	finished, refused := 0, 0
	for ; float64(steps.Load()) < want; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if k := checkSchema(t, seed); k < 0 {
				refused++
			} else {
				finished += k
			}
			checkRules(t, seed)
			checkPattern(t, seed)
		})
		if (seed-first)%1000 == 999 {
			t.Logf("seed %d: %d steps, %d masks exhausted, %d documents validate, %d schemas refused", seed, steps.Load(), exhausted.Load(), finished, refused)
		}
	}
	t.Logf("seed %d: %d steps, %d masks exhausted, %d documents validate, %d schemas refused", seed, steps.Load(), exhausted.Load(), finished, refused)
}
