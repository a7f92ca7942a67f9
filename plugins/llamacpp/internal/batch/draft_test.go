package batch

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// drafting returns a function that gives an engine a drafter with the same predictions, except for
// what change changes.
func drafting(t *testing.T, slots int, change func(*fakeDecoder)) func(*fakeDecoder, *Config) {
	t.Helper()
	return func(f *fakeDecoder, conf *Config) {
		small := newFake(t, slots)
		f.memory, small.memory = 0, 0 // so that texts do not repeat themselves
		if change != nil {
			change(small)
		}
		conf.Drafter = NewDrafter(small, slots, conf.SlotTokens, fakeVocab, hclog.NewNullLogger())
	}
}

// Drafts never change an answer, whatever the draft model predicts, not even when it fails.
func TestDraftsChangeNothing(t *testing.T) {
	t.Parallel()
	requests := func() []*run {
		rnd := rand.New(rand.NewPCG(5, 6))
		var runs []*run
		for i := range 10 {
			r := newRun(prompt(i, 3+rnd.IntN(150)), 1+rnd.IntN(200))
			if i%3 == 1 {
				r.chooser.seed = uint64(1 + rnd.IntN(3)*(fakeVocab-1))
			}
			runs = append(runs, r)
		}
		return runs
	}
	want, _ := drafted(t, 0, 3, func(f *fakeDecoder, _ *Config) { f.memory = 0 }, requests)
	for name, c := range map[string]struct {
		change func(*fakeDecoder)
		right  bool
	}{
		"of one mind":    {nil, true},
		"of another one": {func(f *fakeDecoder) { f.memory = 1 }, false},
		"broken":         {func(f *fakeDecoder) { f.fail = errors.New("out of order") }, false},
		"uncut":          {func(f *fakeDecoder) { f.stuck = true }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, st := drafted(t, 32, 3, drafting(t, 3, c.change), requests)
			t.Logf("%d of %d right", st.Accepted, st.Drafted)
			if c.right {
				must.Positive(t, st.Accepted)
			}
			for i := range want {
				must.Eq(t, plain(want[i].events), plain(got[i].events), must.Sprintf("request %d", i))
			}
		})
	}
}

// A draft model that is usually right saves steps.
func TestDraftsSaveSteps(t *testing.T) {
	t.Parallel()
	text := lasting(t)
	var f *fakeDecoder
	_, st := drafted(t, 32, 1, func(d *fakeDecoder, conf *Config) {
		f = d
		drafting(t, 1, nil)(d, conf)
	}, func() []*run { return []*run{newRun(text, 200)} })
	t.Logf("200 tokens in %d steps, %d of %d drafted tokens were right", f.steps, st.Accepted, st.Drafted)
	must.Less(t, 60, f.steps)
}

// lasting returns a prompt with a long answer, on an engine with unlimited memory.
func lasting(t *testing.T) []Token {
	t.Helper()
	for seed := range 1000 {
		if _, _, n := alone(prompt(seed, 5), 0, 250, 600, nil); n == 250 {
			return prompt(seed, 5)
		}
	}
	t.Fatal("no such prompt")
	return nil
}

// The drafter reads a long prompt in parts, as the answers wait for it, and drafts nothing before
// it has read the whole prompt. It does not read again what its sequence already holds.
func TestDrafterReads(t *testing.T) {
	t.Parallel()
	f := newFake(t, 2)
	d := NewDrafter(f, 2, 400, fakeVocab, hclog.NewNullLogger())
	text := prompt(1, 150)
	most := 0
	f.before = func(step []Entry) { most = max(most, len(step)) }
	must.SliceEmpty(t, d.draft(1, text, 4))
	must.SliceEmpty(t, d.draft(1, text, 4))
	must.Len(t, 4, d.draft(1, text, 4))
	must.Eq(t, 150+3, f.decoded)
	must.Eq(t, DraftStep, most)
	must.Len(t, 2, d.draft(1, append(text, 7), 2)) // most likely not the token that it predicted
	must.Eq(t, 150+3+2, f.decoded)
	must.SliceEmpty(t, d.draft(0, prompt(2, 399), 4)) // longer than a sequence
	must.SliceEmpty(t, NewDrafter(newFake(t, 1), 1, 400, 1, hclog.NewNullLogger()).draft(0, text[:20], 4))
}

func TestLikeliest(t *testing.T) {
	t.Parallel()
	best, p := likeliest([]float32{1, 3, 2, -100})
	must.Eq(t, Token(1), best)
	must.InDelta(t, 0.665, p, 0.001)
	_, p = likeliest(nil)
	must.Zero(t, p)
}
