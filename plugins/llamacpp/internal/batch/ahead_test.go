package batch

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// Forced tokens are evaluated together with the choice before them, and the answer equals that with
// one step per token.
func TestAhead(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 3), fakeConfig(3)
	conf.DraftTokens = 8
	f.perStep, f.perToken = 10*time.Millisecond, time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		for seed := range 40 {
			var runs []*run
			for i := range 3 { // one more than the bounds of a step, an answer and a slot
				r := newRun(prompt(seed*3+i, 1+seed%7*9), seed%5*11)
				r.chooser.seed, r.chooser.ahead = uint64(seed*3+i), (seed*i)%50
				r.AllLogits = seed%4 == 3
				if seed%6 == 5 {
					text, _, _ := aloneAhead(r.Prompt, r.chooser.seed, r.chooser.ahead, r.MaxTokens, conf.SlotTokens, nil)
					if len(text) > 12 {
						r.Stops = []string{text[9:12]}
					}
				}
				runs = append(runs, r)
			}
			for _, r := range runs {
				must.NoError(t, s.Submit(r.Request))
			}
			for _, r := range runs {
				asAlone(t, r, conf)
				for _, had := range r.chooser.logits {
					must.True(t, had || !r.AllLogits)
				}
			}
		}
	})
}

func TestAheadTakesFewSteps(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	f.perStep, f.perToken = 10*time.Millisecond, time.Millisecond
	largest := 0
	f.before = func(step []Entry) { largest = max(largest, len(step)) }
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		r := newRun(prompt(3, 5), 120)
		r.chooser.ahead = 19
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
		_, e := r.last()
		must.Eq(t, 120, e.Tokens)
		must.Between(t, 7, f.steps, 9) // the prompt, two to measure the pace, and six of twenty tokens each
		must.Eq(t, 5+119, f.decoded)
		r = newRun(prompt(4, 5), 120) // one that does not fit into a step
		r.chooser.ahead = 70
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
		must.Eq(t, conf.StepTokens, largest)
		st := s.Stats()
		must.Eq(t, 240, int(st.TokensTotal))
	})
}

// Where a token costs as much in a shared step as in its own, it gets its own.
func TestAheadOneByOne(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		perStep, perToken time.Duration
		steps             int // for about a hundred tokens
	}{{10 * time.Millisecond, time.Millisecond, 10}, {0, 10 * time.Millisecond, 80}} {
		f, conf := newFake(t, 1), fakeConfig(1)
		f.perStep, f.perToken = c.perStep, c.perToken
		bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
			warm := newRun(long(t, 20, 20), 20)
			must.NoError(t, s.Submit(warm.Request))
			asAlone(t, warm, conf)
			before := f.steps
			r := newRun(long(t, 10, 12), 100)
			r.chooser.ahead = 9
			must.NoError(t, s.Submit(r.Request))
			asAlone(t, r, conf)
			_, e := r.last()
			must.Eq(t, 100, e.Tokens)
			must.Between(t, c.steps, f.steps-before, c.steps+5) // measured on the way
		})
	}
}
