package grammar

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// hardSchema has far more states than one mask may explore.
const hardSchema = `{"pattern":"^(?!.*://)(?=.{1,255}$)((.{1,63}\\.){1,127}(?![0-9]*$)[a-z0-9-]+\\.?)$"}`

func TestMaskExhausted(t *testing.T) {
	t.Parallel()
	g := compileSchema(t, hardSchema, Options{})
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for i := range 20_000 {
		tokens = append(tokens, fmt.Appendf(nil, "%s.%c%s.%d", strings.Repeat("a", i%9), 'a'+i/26%26, strings.Repeat(".b-", i%5), i))
	}
	v := NewVocabulary(append(tokens, nil), len(tokens))
	m := g.NewMatcher(v)
	must.NoError(t, m.Accept('"'))
	mask := make([]uint64, v.MaskLen())
	mask[0] = 1
	generation := g.generation
	must.ErrorIs(t, m.Mask(mask), ErrExhausted)
	must.Eq(t, make([]uint64, v.MaskLen()), mask)
	must.Greater(t, generation, g.generation) // the results so far were dropped

	// The text continues where it was.
	must.NoError(t, m.Err())
	must.True(t, m.Try('b'))
	for _, b := range []byte(`bc.de"`) {
		must.NoError(t, m.Accept(int(b)))
	}
	must.True(t, m.Done())
	must.NoError(t, m.Rollback(7))
	must.False(t, m.Done())
}

func TestWorkIsBoundedByCall(t *testing.T) {
	t.Parallel()
	g := compileSchema(t, `{"type":"string"}`, Options{})
	m := g.NewMatcher(bytesVocabulary())
	mask := make([]uint64, m.v.MaskLen())
	for range 3 {
		g.set.work = 0 // earlier calls have used up their work
		must.NoError(t, m.Mask(mask))
		g.set.work = 0
		must.NoError(t, m.AcceptBytes([]byte(`"`+strings.Repeat("é", 9)+`"`)))
		must.NoError(t, m.Rollback(1))
	}
}

func TestMemoryDropAndReplay(t *testing.T) {
	t.Parallel()
	g := compileSchema(t, `{"type":"object","additionalProperties":{"type":"array","uniqueItems":true,"items":{"type":"string"}}}`, Options{MaxMemory: 1 << 20})
	v := bytesVocabulary()
	m := g.NewMatcher(v)
	feed(t, m, `{"name":["a","b"],"x":["y"`)
	clone := m.Clone()
	for i := 0; g.generation < 4; i++ {
		must.Less(t, 1000, i, must.Sprint("nothing is forgotten"))
		other := g.NewMatcher(v)
		feed(t, other, fmt.Sprintf(`{"name %d":["a%d","b%d"],"y":[]}`, i, i, i))
		must.True(t, other.Done())
		must.NoError(t, other.Accept(256))
	}
	for _, x := range []*Matcher{clone, m} {
		must.Error(t, x.AcceptBytes([]byte(`],"x"`))) // x is already used
		must.Error(t, x.AcceptBytes([]byte(`,"y"`)))  // and so is y within x
	}
	must.NoError(t, m.Rollback(3))
	feed(t, m, `"x"]}`)
	must.True(t, m.Done())
	feed(t, clone, `]}`)
	must.True(t, clone.Done())
}

func TestMemoryOfOneTextExhausted(t *testing.T) {
	t.Parallel()
	g := compileSchema(t, `{"type":"array","uniqueItems":true,"items":{"type":"string"}}`, Options{MaxMemory: 1 << 18})
	m := g.NewMatcher(bytesVocabulary())
	var err error
	for i := 0; err == nil && i < 10_000; i++ {
		err = m.AcceptBytes(fmt.Appendf(nil, `%c"item %d"`, "[,"[min(i, 1)], i))
	}
	must.ErrorIs(t, err, ErrExhausted)
	must.ErrorIs(t, m.Err(), ErrExhausted)
	must.ErrorIs(t, m.Mask(make([]uint64, m.v.MaskLen())), ErrExhausted)
	must.False(t, m.Try(']'))
	must.True(t, g.Accepts([]byte(`["a","b"]`)))
}

// A position may have hundreds of alternatives: their stacks are joined at once.
func TestManyAlternatives(t *testing.T) {
	t.Parallel()
	var list []string
	for i := range 600 {
		list = append(list, fmt.Sprintf(`{"type":"object","properties":{"kind":{"enum":["k%d"]},"v":{"type":"integer","minimum":%d},"w":{}},"required":["kind","v"]}`, i, i))
	}
	g := compileSchema(t, `{"type":"array","items":{"oneOf":[`+strings.Join(list, ",")+`]}}`, Options{})
	m := g.NewMatcher(bytesVocabulary())
	feed(t, m, `[{"kind":"k599","v":600,"w":{}},{"kind":"k7","v":9`)
	must.NoError(t, m.AcceptBytes([]byte(`},{"kind":"k12","v":1`)))
	must.False(t, m.Try('}')) // below the minimum
	must.NoError(t, m.AcceptBytes([]byte(`2}]`)))
	must.True(t, m.Done())
	must.False(t, g.Accepts([]byte(`[{"kind":"k600","v":600}]`)))
}
