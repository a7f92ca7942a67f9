package batch

import (
	"hash/fnv"
	"iter"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"
)

// A scheduler that ends hands over the contents of slots and store, and a later one continues with
// them: the next turn of each conversation evaluates only its new tokens.
func TestSequencesSurvive(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]int{"cut anywhere": 0, "recurrent": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, conf := newFake(t, 2), fakeConfig(2)
			conf.SlotTokens, conf.SavedBytes, conf.Checkpoints = 2000, 1<<20, window < 0
			f.window = window
			var kept []Sequence
			conf.Parting = func(all iter.Seq[Sequence]) {
				for q := range all {
					kept = append(kept, Sequence{Tokens: slices.Clone(q.Tokens), Adapters: q.Adapters, Floor: q.Floor, State: fakeStateOf(q.State.Data())})
				}
			}
			var turns [][]Token
			bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
				for i := range 3 { // one more than the slots
					turns = append(turns, answered(say(t, s, conf, long(t, 100+i, 8), 8)))
				}
			})
			must.SliceNotEmpty(t, kept)
			must.Eq(t, turns[2][:len(turns[2])-1], kept[0].Tokens) // most recently used; the last token of an answer was never read
			slices.Reverse(kept)

			next := newFake(t, 2)
			next.window = window
			for _, q := range kept {
				st, ok := q.State.(*fakeState)
				must.True(t, ok)
				st.f = next
				next.states.Add(1)
				next.bytes.Add(st.Bytes())
			}
			conf.Parting, conf.Restored = nil, kept
			bubble(t, next, conf, func(t *testing.T, s *Scheduler) {
				for _, text := range turns {
					before := s.Stats().PromptEvaluated
					say(t, s, conf, append(slices.Clone(text), prompt(7, 5)...), 4)
					must.Eq(t, int64(6), s.Stats().PromptEvaluated-before)
				}
			})
			must.Zero(t, next.states.Load())
		})
	}
}

// After an engine failure nothing is kept, as the contents of its cache cannot be trusted.
func TestFailedEngineKeepsNothing(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	conf.SlotTokens, conf.SavedBytes = 2000, 1<<20
	conf.Parting = func(iter.Seq[Sequence]) { t.Error("it keeps something") }
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		say(t, s, conf, long(t, 100, 8), 8)
		f.fail = errBroken
		r := newRun(prompt(2, 50), 8)
		must.NoError(t, s.Submit(r.Request))
		synctest.Wait()
		must.NotEq(t, "", s.Stats().Failure)
	})
}

// fakeHash is a hash without a key.
func fakeHash(before uint64, adapters string, block []Token) uint64 {
	h := fnv.New64a()
	for range 8 {
		_, _ = h.Write([]byte{byte(before)})
		before >>= 8
	}
	_, _ = h.Write([]byte(adapters))
	for _, x := range block {
		_, _ = h.Write([]byte{byte(x), byte(x >> 8)})
	}
	return h.Sum64()
}

// Blocks lists the complete blocks of held texts, each once, and none of forgotten texts. Texts
// with a common prefix share its blocks and differ in all later ones.
func TestBlocks(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	conf.SlotTokens, conf.Hash = 2000, fakeHash
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		must.SliceEmpty(t, s.Blocks())
		first := long(t, 3*BlockTokens+5, 4)
		a := answered(say(t, s, conf, first, 4))
		must.Eq(t, s.chain(a[:len(a)-1], ""), s.Blocks())
		must.Len(t, 3, s.Blocks())

		second := append(slices.Clone(first[:BlockTokens]), prompt(2, 2*BlockTokens)...)
		b := answered(say(t, s, conf, second, 4))
		list := s.Blocks()
		must.Eq(t, s.chain(b[:len(b)-1], ""), list[:3])
		must.Len(t, 5, list) // they share one block
		must.Eq(t, s.chain(a, "")[1:], list[3:])

		third := prompt(3, 2*BlockTokens) // replaces the first one, as there is no store
		c := answered(say(t, s, conf, third, 4))
		must.Eq(t, slices.Concat(s.chain(c[:len(c)-1], ""), s.chain(b[:len(b)-1], "")), s.Blocks())
		must.NotEq(t, s.chain(b, ""), s.chain(b, "1"))
	})
}

func TestBlocksAreBounded(t *testing.T) {
	t.Parallel()
	conf := fakeConfig(1)
	conf.Hash = fakeHash
	s := New(newFake(t, 1), conf)
	text := make([]Token, (MostBlocks+10)*BlockTokens)
	must.Len(t, MostBlocks, s.chain(text, ""))
	for i := range 3 {
		s.saved.list = append(s.saved.list, &saved{chain: s.chain(text, string(rune('a'+i))), used: int64(i)})
	}
	s.publish()
	must.Eq(t, s.chain(text, "c"), s.Blocks())
}
