package batch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// drafted runs requests on an engine whose texts repeat themselves, and returns the events of each.
func drafted(t *testing.T, drafts, slots int, change func(*fakeDecoder, *Config), requests func() []*run) ([]*run, Stats) {
	t.Helper()
	f := newFake(t, slots)
	f.memory = 2
	conf := pacedConfig(f, slots)
	conf.SlotTokens, conf.DraftTokens, conf.LookUp = 600, drafts, true
	if change != nil {
		change(f, &conf)
	}
	var runs []*run
	var st Stats
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		runs = requests()
		for _, r := range runs {
			must.NoError(t, s.Submit(r.Request))
		}
		for _, r := range runs {
			r.last()
			must.Eq(t, 1, r.chooser.closed)
		}
		st = s.Stats()
	})
	must.LessEq(t, st.Drafted, st.Accepted)
	return runs, st
}

// plain strips the traces of draft tokens from events.
func plain(events []Event) []Event {
	out := make([]Event, len(events))
	for i, e := range events {
		e.Drafted, e.Accepted = 0, 0
		out[i] = e
	}
	return out
}

// Draft tokens never change an answer: neither its tokens and their log probabilities nor where and
// why it ends.
func TestDraftTokensChangeNothing(t *testing.T) {
	t.Parallel()
	requests := func(seeds bool) func() []*run {
		return func() []*run {
			rnd := rand.New(rand.NewPCG(1, 2))
			var runs []*run
			for i := range 12 {
				r := newRun(prompt(i, 3+rnd.IntN(60)), rnd.IntN(300))
				if seeds && i%2 == 1 {
					r.chooser.seed = uint64(1 + rnd.IntN(3)*(fakeVocab-1)) // often the same token
				}
				if i%3 == 0 {
					r.Stops = []string{"abc", string(rune('a'+rnd.IntN(25))) + string(rune('a'+rnd.IntN(25)))}
				}
				runs = append(runs, r)
			}
			return runs
		}
	}
	for name, c := range map[string]struct {
		slots  int
		change func(*fakeDecoder, *Config)
	}{
		"one slot":          {1, nil},
		"four slots":        {4, nil},
		"little room":       {4, func(_ *fakeDecoder, c *Config) { c.DraftTokens = 3 }},
		"a small cache":     {2, func(f *fakeDecoder, _ *Config) { f.cells = 700 }},
		"a sliding window":  {2, func(f *fakeDecoder, _ *Config) { f.window = 20 }},
		"short slots":       {2, func(_ *fakeDecoder, c *Config) { c.SlotTokens = 90 }},
		"what is cut fails": {2, func(f *fakeDecoder, _ *Config) { f.stuck = true }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, seeds := range []bool{false, true} {
				change := func(f *fakeDecoder, conf *Config) {
					if c.change != nil {
						c.change(f, conf)
					}
				}
				without := func(f *fakeDecoder, conf *Config) {
					change(f, conf)
					conf.DraftTokens, f.stuck = 0, false
				}
				want, none := drafted(t, 0, c.slots, without, requests(seeds))
				must.Zero(t, none.Drafted)
				got, st := drafted(t, 32, c.slots, change, requests(seeds))
				must.Positive(t, st.Accepted)
				right, all := 0, 0
				for i := range want {
					must.Eq(t, plain(want[i].events), plain(got[i].events), must.Sprintf("request %d", i))
					e := got[i].events[len(got[i].events)-1]
					right, all = right+e.Accepted, all+e.Drafted
				}
				must.Eq(t, st.Accepted, int64(right))
				must.Eq(t, st.Drafted, int64(all))
			}
		})
	}
}

// A text that repeats itself takes fewer steps.
func TestDraftTokensSaveSteps(t *testing.T) {
	t.Parallel()
	steps := map[int]int{}
	for _, drafts := range []int{0, 32} {
		var f *fakeDecoder
		_, st := drafted(t, drafts, 1, func(d *fakeDecoder, _ *Config) { f = d }, func() []*run {
			return []*run{newRun(repeating(t), 300)}
		})
		steps[drafts] = f.steps
		t.Logf("%d draft tokens in a step at most: %d steps, %d of %d right", drafts, f.steps, st.Accepted, st.Drafted)
	}
	must.Less(t, steps[0]/3, steps[32])
}

// repeating returns a prompt whose answer goes round in a circle, on an engine that remembers two
// tokens.
func repeating(t *testing.T) []Token {
	t.Helper()
	for seed := range 1000 {
		text := prompt(seed, 5)
		for len(text) < 400 && text[len(text)-1] != 0 {
			best := Token(0)
			logits := fakeLogits(text[len(text)-2:])
			for i, l := range logits {
				if l > logits[best] {
					best = Token(i)
				}
			}
			text = append(text, best)
		}
		if len(text) == 400 {
			return prompt(seed, 5)
		}
	}
	t.Fatal("no such prompt")
	return nil
}

// No token is drafted when a sequence cannot be cut, as a wrong draft could not be removed.
func TestNoDraftTokensWithoutCuts(t *testing.T) {
	t.Parallel()
	_, st := drafted(t, 32, 1, func(f *fakeDecoder, _ *Config) { f.window = -1 }, func() []*run {
		return []*run{newRun(repeating(t), 300)}
	})
	must.Zero(t, st.Drafted)
}

// No token is drafted when an extra token costs as much as an answer's own, except to measure the
// cost.
func TestNoDraftTokensAtCost(t *testing.T) {
	t.Parallel()
	_, st := drafted(t, 32, 1, func(f *fakeDecoder, _ *Config) { f.perStep, f.perToken = 0, 10*time.Millisecond }, func() []*run {
		return []*run{newRun(repeating(t), 500)}
	})
	t.Logf("%d draft tokens", st.Drafted)
	must.LessEq(t, 2*mostDraft, st.Drafted)
}

// A text in which the same pairs of tokens continue differently each time is slowed down only
// slightly.
func TestWrongDraftTokensStop(t *testing.T) {
	t.Parallel()
	f := newFake(t, 1)
	conf := pacedConfig(f, 1)
	conf.DraftTokens, conf.LookUp = 32, true
	f.perStep, f.perToken = 7*time.Millisecond, 3*time.Millisecond
	rnd := rand.New(rand.NewPCG(3, 4))
	text := make([]Token, 3000)
	for i := range text {
		text[i] = Token(1 + rnd.IntN(16))
	}
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		r := newRun(prompt(1, 100), 3000)
		r.Chooser = &script{text: text}
		began := time.Now()
		must.NoError(t, s.Submit(r.Request))
		_, e := r.last()
		must.NoError(t, e.Err)
		must.Eq(t, 3000, e.Tokens)
		took, plain := time.Since(began), 3000*10*time.Millisecond
		t.Logf("%d draft tokens, %d right; %.3f of the time without them", e.Drafted, e.Accepted, float64(took)/float64(plain))
		must.LessEq(t, plain*102/100, took-100*3*time.Millisecond)
	})
}

// script chooses the tokens of a given text, whatever the logits.
type script struct {
	text []Token
	at   int
}

func (s *script) Choose([]float32) (Choice, error) {
	s.at++
	return Choice{Token: s.text[s.at-1]}, nil
}

func (*script) Follow(Token, []float32) []LogProb { return nil }

func (*script) Close() {}

// Draft tokens never evict anything: neither a request nor a kept sequence.
func TestDraftTokensEvictNothing(t *testing.T) {
	t.Parallel()
	f := newFake(t, 2)
	f.memory = 2
	conf := pacedConfig(f, 2)
	conf.DraftTokens, conf.LookUp = 32, true
	p := repeating(t)
	f.cells = 199 + len(p) + 59 // the first request's, and the second one's as far as it gets
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		kept := newRun(prompt(77, 199), 1)
		must.NoError(t, s.Submit(kept.Request))
		kept.last()
		r := newRun(p, 0)
		enough := make(chan struct{})
		r.Emit = func(e Event) {
			must.NoError(t, e.Err)
			if e.Tokens == 60 {
				s.Cancel(r.Request)
				close(enough)
			}
		}
		must.NoError(t, s.Submit(r.Request))
		<-enough
		must.Positive(t, s.Stats().Accepted)
		again := newRun(prompt(77, 199), 1)
		must.NoError(t, s.Submit(again.Request))
		_, e := again.last()
		must.Eq(t, 198, e.Reused)
	})
}

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text       []Token
		at, length int
	}{
		{nil, 0, 0},
		{[]Token{1}, 0, 0},
		{[]Token{1, 2, 3}, 0, 0},
		{[]Token{1, 2, 3, 1, 2}, 2, 2},
		{[]Token{1, 2, 3, 9, 2, 7, 1, 2}, 2, 2},           // the longer match
		{[]Token{1, 2, 3, 1, 2, 4, 1, 2}, 5, 2},           // the later match
		{[]Token{5, 5, 5, 5}, 3, 3},                       // the match continues into the draft
		{[]Token{1, 2, 1, 2, 1, 2}, 4, 4},                 //
		{append(prompt(1, 30), prompt(1, 20)...), 20, 16}, // bounded length of the match
	} {
		t.Run(fmt.Sprint(c.text), func(t *testing.T) {
			t.Parallel()
			at, length := match(c.text)
			must.Eq(t, c.at, at)
			must.Eq(t, c.length, length)
		})
	}
}

// A draft token that costs as much as it can save, or a doubtful one, is tried now and then; a good
// one is drafted as long as it is likely to be right.
func TestWorth(t *testing.T) {
	t.Parallel()
	tries := func(o odds, price float64) (n int) {
		for range 10000 {
			n += o.worth(0, price)
		}
		return n
	}
	must.Between(t, 10, tries(odds{}, 1), 60)
	must.Between(t, 10, tries(odds{}, 3), 60)
	var o odds
	o.worth(0, 0.5)
	for range 10 {
		o.learn(0, 1)
	}
	must.Between(t, 10, tries(o, 0.5), 60)
	for range 50 {
		o.learn(4, 4)
	}
	must.Eq(t, mostDraft, o.worth(0, 0.1))
	must.Eq(t, 1, (&odds{}).worth(0, 0.3))
	must.Eq(t, 5, (&odds{}).worth(2, 0.3)) // 0.8 to the fifth is 0.33
}
