package batch

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/shoenig/test/must"
)

// Concurrent requests with different adapters get the same answers as alone, though many begin with
// the same tokens: no step mixes adapters, and no request reuses a prefix read with others.
func TestAdaptersAreNotMixed(t *testing.T) {
	t.Parallel()
	type key struct{ prompt, adapters int }
	ask := func(k key) *run {
		r := newRun(prompt(k.prompt, 20+10*k.prompt), 60)
		if k.adapters > 0 {
			r.Adapters = fmt.Sprint(k.adapters)
		}
		return r
	}
	alone := map[key]string{}
	for p := range 4 {
		for a := range 3 {
			f := newFake(t, 1)
			bubble(t, f, fakeConfig(1), func(t *testing.T, s *Scheduler) {
				r := ask(key{p, a})
				must.NoError(t, s.Submit(r.Request))
				alone[key{p, a}], _ = r.last()
			})
		}
	}
	must.NotEq(t, alone[key{0, 0}], alone[key{0, 1}])
	for _, checkpoints := range []bool{false, true} {
		f := newFake(t, 3)
		conf := pacedConfig(f, 3)
		conf.Queue, conf.SavedBytes, conf.LookUp, conf.DraftTokens, conf.Checkpoints = 100, 1000, true, 8, checkpoints
		if checkpoints {
			f.window = -1
		}
		bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
			f.before = func(step []Entry) {
				for _, e := range step {
					must.Eq(t, s.slots[step[0].Seq].req.Adapters, s.slots[e.Seq].req.Adapters)
				}
			}
			rnd := rand.New(rand.NewPCG(7, 8))
			keys, runs := []key{}, []*run{}
			for range 60 {
				k := key{rnd.IntN(4), rnd.IntN(3)}
				keys, runs = append(keys, k), append(runs, ask(k))
				must.NoError(t, s.Submit(runs[len(runs)-1].Request))
			}
			for i, r := range runs {
				text, e := r.last()
				must.NoError(t, e.Err)
				must.Eq(t, alone[keys[i]], text, must.Sprintf("request %d: %v", i, keys[i]))
			}
			must.Positive(t, s.Stats().PromptReused) // by requests with the same adapters
		})
	}
}

// Requests with different adapters take turns: a lone one does not wait for the others to end.
func TestAdaptersTakeTurns(t *testing.T) {
	t.Parallel()
	f := newFake(t, 3)
	conf := pacedConfig(f, 3)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		text := lasting(t)
		var runs []*run
		for i := range 3 {
			r := newRun(append(prompt(50+i, 3), text...), 40)
			r.Adapters = fmt.Sprint(1 + i/2) // two with the same adapters, and another one
			r.Chooser = &script{text: prompt(9, 40)}
			runs = append(runs, r)
		}
		said, emit := 0, runs[0].Emit // tokens of the lone one when another one ends
		runs[0].Emit = func(e Event) {
			if e.Last() {
				said = s.slots[2].generated
			}
			emit(e)
		}
		must.NoError(t, s.Submit(runs[0].Request, runs[1].Request, runs[2].Request))
		for _, r := range runs {
			_, e := r.last()
			must.NoError(t, e.Err)
			must.Eq(t, 40, e.Tokens)
		}
		must.Between(t, 80, f.steps, 90) // the two share their steps
		must.Between(t, 30, said, 40)
	})
}
