package grammar_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// TestUniqueItemsHaveNoDeadEnds generates arrays of few different objects and arrays at random: an
// item that begins like former ones can always become a different one.
func TestUniqueItemsHaveNoDeadEnds(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{
		`{"type":"array","items":{"type":"object","properties":{"a":{"type":"boolean"},"b":{"enum":["x"]}},"required":["a"],"additionalProperties":false},"uniqueItems":true,"minItems":4}`,
		`{"type":"array","items":{"type":"object","properties":{"a":{"enum":["p","q"]},"b":{"enum":[1,2]}},"required":["a","b"],"additionalProperties":false},"uniqueItems":true,"minItems":4}`,
		`{"type":"array","items":{"type":"array","items":{"enum":[0,1]},"minItems":1,"maxItems":2},"uniqueItems":true,"minItems":6}`,
		`{"type":"array","items":{"type":"object","properties":{"a":{"const":1},"l":{"type":"array","prefixItems":[{"type":"boolean"}],"items":false,"minItems":1}},"required":["l"],"additionalProperties":false},"uniqueItems":true,"minItems":4}`,
		`{"type":"array","items":{"anyOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"],"additionalProperties":false},{"type":"object","properties":{"k":{"const":"b"},"v":{"type":"boolean"}},"required":["k"],"additionalProperties":false}]},"uniqueItems":true,"minItems":4}`,
		`{"type":"array","items":{"type":"object","properties":{"a":{"type":"null"}},"additionalProperties":false},"uniqueItems":true}`,
		`{"type":"array","items":{"anyOf":[{"type":"object","maxProperties":0},{"type":"object","properties":{"b":{}},"required":["b"]}]},"uniqueItems":true}`,
		`{"type":"array","items":{"anyOf":[{"type":"object","properties":{"a":{"const":1}},"required":["a"],"additionalProperties":false},{"type":"object","properties":{"b":{"const":2}},"required":["b"],"additionalProperties":false}]},"uniqueItems":true,"minItems":2}`,
		`{"type":"array","items":{"type":"array","items":{"const":1},"maxItems":1},"uniqueItems":true}`,
		`{"type":"array","items":{"type":"array","items":false,"uniqueItems":true},"uniqueItems":true}`,
	} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			validator := compileValidator(t, schema)
			for seed := range uint64(40) {
				rng := rand.New(rand.NewPCG(seed, 5))
				g, err := grammar.Compile([]byte(schema), grammar.Options{Order: grammar.Order(seed % 2)})
				must.NoError(t, err)
				v, tokens := vocabularyOf(seed)
				if doc := checkMasks(t, g, v, tokens, rng); doc != nil {
					must.NoError(t, validates(t, validator, doc), must.Sprint(string(doc)))
				}
			}
		})
	}
}

// TestManyUniqueItems bounds the cost of recording many items.
func TestManyUniqueItems(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"array","items":{"type":"object"},"uniqueItems":true}`), grammar.Options{})
	must.NoError(t, err)
	doc := []byte("[")
	for i := range 300 {
		doc = fmt.Appendf(doc, `{"id":%d,"tags":["a",{"n":"%d"}]},`, i, i%7)
	}
	must.True(t, g.Accepts(append(slices.Clip(doc), "{}]"...)))
	must.False(t, g.Accepts(append(doc, `{"tags":["a",{"n":"3"}],"id":3}]`...)))
}
