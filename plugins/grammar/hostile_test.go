package grammar_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// hostileSchemas are designed to be expensive. Each is refused, or compiles and stays within its
// bounds.
func hostileSchemas() map[string]string {
	list := func(n int, f func(i int) string) string {
		parts := make([]string, n)
		for i := range n {
			parts[i] = f(i)
		}
		return strings.Join(parts, ",")
	}
	return map[string]string{
		"thousands of required properties": `{"type":"object","required":[` + list(3000, func(i int) string { return fmt.Sprintf("%q", fmt.Sprint("p", i)) }) + `]}`,
		"choices of required properties": `{"allOf":[` + list(40, func(i int) string {
			return fmt.Sprintf(`{"anyOf":[{"required":["a%d"]},{"properties":{"b%d":{"type":"null"}}}]}`, i, i)
		}) + `]}`,
		"doubling references": `{"$ref":"#/$defs/a0","$defs":{` + list(40, func(i int) string {
			return fmt.Sprintf(`"a%d":{"allOf":[{"properties":{"x":{"$ref":"#/$defs/a%d"}}},{"properties":{"y":{"$ref":"#/$defs/a%d"}}}]}`, i, i+1, i+1)
		}) + `,"a40":{}}}`,
		"many alternatives":        `{"oneOf":[` + list(900, func(i int) string { return fmt.Sprintf(`{"minimum":%d,"maximum":%d}`, i, i+400) }) + `]}`,
		"exponential pattern":      `{"pattern":"^(.*a.{40})(.*b.{40})$"}`,
		"intersection of counts":   `{"allOf":[{"pattern":"^(a{7})*$"},{"pattern":"^(a{11})*$"},{"pattern":"^(a{13})*$"},{"pattern":"^(a{17})*b$"}]}`,
		"nested counts":            `{"pattern":"^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"}`,
		"many patterns of names":   `{"patternProperties":{` + list(60, func(i int) string { return fmt.Sprintf(`"a.*%d":{"type":"integer"}`, i) }) + `}}`,
		"long chain of references": `{"$ref":"#/$defs/a0","$defs":{` + list(5000, func(i int) string { return fmt.Sprintf(`"a%d":{"$ref":"#/$defs/a%d"}`, i, i+1) }) + `,"a5000":{}}}`,
		"multiples without end":    `{"type":"integer","multipleOf":999983,"minimum":1,"maximum":999982}`,
		"many contains":            `{"allOf":[` + list(8, func(i int) string { return fmt.Sprintf(`{"contains":{"const":%d},"minContains":100}`, i) }) + `]}`,
	}
}

func TestHostileSchemas(t *testing.T) {
	t.Parallel()
	v := byteVocabulary()
	for name, schema := range hostileSchemas() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.Compile([]byte(schema), grammar.Options{})
			if err != nil {
				_, ok := errors.AsType[*grammar.Error](err)
				must.True(t, ok, must.Sprint(err))
				return
			}
			m := g.NewMatcher(v)
			mask := make([]uint64, v.MaskLen())
			for range 200 {
				if err := m.Mask(mask); err != nil {
					must.ErrorIs(t, err, grammar.ErrExhausted)
					must.Eq(t, make([]uint64, len(mask)), mask)
					break
				}
				next := -1
				for b := 255; b >= 0; b-- {
					if mask[b/64]>>(b%64)&1 == 1 {
						next = b
					}
				}
				if next < 0 || m.Accept(next) != nil {
					break
				}
			}
		})
	}
}

func TestMatchersShareOneGrammar(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(benchSchema), grammar.Options{})
	must.NoError(t, err)
	v := byteVocabulary()
	doc := []byte(`{"name":"x","tags":["a"],"id":"abc-1","n":7}`)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			m := g.NewMatcher(v)
			mask := make([]uint64, v.MaskLen())
			for _, b := range doc {
				if m.Mask(mask) != nil || mask[b/64]>>(b%64)&1 == 0 || m.Accept(int(b)) != nil {
					t.Errorf("%q is refused", b)
					return
				}
			}
			if !m.Done() {
				t.Error("not done")
			}
		})
	}
	wg.Wait()
}

func TestRollback(t *testing.T) {
	t.Parallel()
	g, err := grammar.Compile([]byte(`{"type":"object","additionalProperties":{"type":"boolean"}}`), grammar.Options{})
	must.NoError(t, err)
	v := byteVocabulary()
	m := g.NewMatcher(v)
	accept := func(m *grammar.Matcher, text string) {
		t.Helper()
		for _, b := range []byte(text) {
			must.NoError(t, m.Accept(int(b)))
		}
	}
	accept(m, `{"ab":true,"a`)
	c := m.Clone()
	accept(m, `b`)
	must.False(t, m.Try('"')) // ab is already used
	must.NoError(t, m.Rollback(1))
	accept(m, `c":false}`)
	must.True(t, m.Done())
	must.NoError(t, m.Accept(256))
	must.Error(t, m.Accept('1'))
	must.NoError(t, m.Rollback(2))
	must.False(t, m.Done())
	must.Error(t, m.Rollback(1000))
	accept(c, `d":true}`)
	must.True(t, c.Done())
}
