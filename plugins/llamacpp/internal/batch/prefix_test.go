package batch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// answered returns the tokens of a run that has ended: its prompt and its answer.
func answered(r *run) []Token {
	out := slices.Clone(r.Prompt)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Chosen > 0 {
			out = append(out, e.Chosen)
		}
	}
	return out
}

// say runs a request to its end and returns it.
func say(t *testing.T, s *Scheduler, conf Config, prompt []Token, maxTokens int) *run {
	t.Helper()
	r := newRun(prompt, maxTokens)
	must.NoError(t, s.Submit(r.Request))
	asAlone(t, r, conf)
	return r
}

func reusedBy(r *run) int {
	_, e := r.last()
	return e.Reused
}

// A conversation is read once: each turn evaluates only its new tokens and the last token of the
// previous answer, which was chosen but never evaluated.
func TestConversationIsReadOnce(t *testing.T) {
	t.Parallel()
	for name, saved := range map[string]int64{"slots only": 0, "with a store": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, conf := newFake(t, 2), fakeConfig(2)
			conf.SlotTokens, conf.SavedBytes = 2000, saved
			bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
				history := long(t, 40, 5)
				for turn := range 20 {
					before := s.Stats()
					r := say(t, s, conf, history, 0)
					now := s.Stats()
					if turn > 0 {
						must.Eq(t, int64(21), now.PromptEvaluated-before.PromptEvaluated)
						must.Eq(t, len(history)-21, reusedBy(r))
						must.Eq(t, int64(len(history)-21), now.PromptReused-before.PromptReused)
					}
					history = append(answered(r), prompt(turn, 20)...)
				}
			})
		})
	}
}

// A repeated prompt evaluates only its last token, for its logits.
func TestSamePromptAgain(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		p := long(t, 40, 20)
		say(t, s, conf, p, 20)
		must.Eq(t, 39, reusedBy(say(t, s, conf, p, 20)))
		must.Eq(t, 29, reusedBy(say(t, s, conf, p[:30], 20)))
	})
}

// Four conversations with the same instructions share two slots: the instructions are evaluated
// once, and with a store every turn evaluates only its new tokens.
func TestSharedBeginning(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	conf.SlotTokens, conf.SavedBytes = 2000, 1<<20
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		system := prompt(77, 300)
		var talks [4][]Token
		fresh := 0
		for i := range talks {
			talks[i] = append(slices.Clone(system), prompt(i+1, 30)...)
			talks[i][300] = Token(i + 1)
		}
		for turn := range 5 {
			for i := range talks {
				r := say(t, s, conf, talks[i], 25)
				if turn == 0 {
					fresh += 30
				} else {
					fresh += 21
				}
				talks[i] = append(answered(r), prompt(turn*4+i, 20)...)
			}
		}
		must.Eq(t, int64(300+fresh), s.Stats().PromptEvaluated)
		must.Positive(t, f.loaded)
	})
}

// A prompt copies its prefix from a slot that is busy with an answer.
func TestCopyFromBusySlot(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 3), fakeConfig(3)
	f.perStep = time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first := newRun(long(t, 60, 100), 100)
		must.NoError(t, s.Submit(first.Request))
		time.Sleep(10 * time.Millisecond)
		second := newRun(append(slices.Clone(first.Prompt[:50]), prompt(9, 20)...), 20)
		second.Prompt[50] = first.Prompt[50]%25 + 1
		must.NoError(t, s.Submit(second.Request))
		asAlone(t, second, conf)
		must.Eq(t, 50, reusedBy(second))
		must.Eq(t, 1, f.copied)
		asAlone(t, first, conf)

		// A prefix too short to copy is evaluated.
		third := newRun(append(slices.Clone(first.Prompt[:10]), prompt(10, 20)...), 20)
		must.NoError(t, s.Submit(third.Request))
		asAlone(t, third, conf)
		must.Eq(t, 1, f.copied)
	})
}

// When prompts with a common prefix arrive at once, the prefix is read once.
func TestAlikeAtOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		shared, own int // tokens
		apart       time.Duration
	}{
		"the same prompt":            {100, 0, 0},
		"the same instructions":      {100, 30, 0},
		"while the first is read":    {100, 30, 2 * time.Millisecond},
		"a few tokens are no matter": {10, 30, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, conf := newFake(t, 4), fakeConfig(4)
			f.perStep = time.Millisecond
			bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
				var runs []*run
				for i := range 4 {
					p := prompt(40, c.shared)
					if c.own > 0 {
						p = append(append(p, Token(i+1)), prompt(i, c.own-1)...)
					}
					r := newRun(p, 20)
					r.chooser.seed = uint64(i + 1)
					runs = append(runs, r)
					must.NoError(t, s.Submit(r.Request))
					time.Sleep(c.apart)
				}
				for _, r := range runs {
					asAlone(t, r, conf)
				}
				want := c.shared + 4*c.own
				switch {
				case c.own == 0:
					want += 3 // the last token of each, for its logits
				case c.shared < s.worth():
					want += 3 * c.shared
				}
				must.Eq(t, int64(want), s.Stats().PromptEvaluated)
			})
		})
	}
}

// A request that waits for another one's prompt is admitted when that request is cancelled.
func TestPutOffForCancelledRequest(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.perStep, conf.StepTokens = time.Millisecond, 8
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first, second := newRun(prompt(40, 100), 20), newRun(prompt(40, 100), 20)
		must.NoError(t, s.Submit(first.Request))
		must.NoError(t, s.Submit(second.Request))
		time.Sleep(5*time.Millisecond + 1)
		synctest.Wait()
		must.Eq(t, 1, s.Stats().Queued)
		s.Cancel(first.Request)
		asAlone(t, second, conf)
		must.Between(t, 32, reusedBy(second), 56)
	})
}

// A request waits for the shared prefix and not for the rest of the other prompt, and no later
// request takes its slot meanwhile.
func TestPutOffKeepsItsPlace(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.perStep, conf.StepTokens, conf.SlotTokens = time.Millisecond, 8, 5000
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		system := prompt(40, 100)
		first := newRun(append(slices.Clone(system), prompt(41, 2000)...), 1)
		second := newRun(append(slices.Clone(system), 3, 4, 5), 5)
		third := newRun(long(t, 20, 100), 100)
		for _, r := range []*run{first, second, third} {
			must.NoError(t, s.Submit(r.Request))
		}
		asAlone(t, second, conf)
		must.Eq(t, 0, first.count())
		must.Eq(t, 0, third.count())
		must.Eq(t, 100, reusedBy(second))
		asAlone(t, first, conf)
		asAlone(t, third, conf)
	})
}

// A new conversation takes the least recently used slot, not one that shares a few tokens with it.
func TestLeastRecentlyUsedSlot(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 3), fakeConfig(3)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		var talks []*run
		for i := range 3 {
			talks = append(talks, say(t, s, conf, long(t, 40+i, 30), 30))
		}
		must.Positive(t, reusedBy(say(t, s, conf, append(answered(talks[0]), 3, 4), 5)))
		stranger := append(slices.Clone(talks[2].Prompt[:8]), prompt(5, 30)...)
		stranger[8] = talks[2].Prompt[8]%25 + 1
		must.Eq(t, 0, reusedBy(say(t, s, conf, stranger, 5)))
		must.Eq(t, 0, reusedBy(say(t, s, conf, append(answered(talks[1]), 3, 4), 5))) // it was evicted
		must.Positive(t, reusedBy(say(t, s, conf, append(answered(talks[0]), 3, 4, 5), 5)))
	})
}

// A next turn that omits the last tokens of the previous prompt stays in its slot; another question
// leaves that slot alone.
func TestTurnStaysInItsSlot(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first := say(t, s, conf, long(t, 40, 30), 30)
		next := append(slices.Clone(first.Prompt[:37]), 3, 4, 5, 6)
		next[37] = first.Prompt[37]%25 + 1
		must.Eq(t, 37, reusedBy(say(t, s, conf, next, 1)))
		must.Eq(t, 0, f.copied)
		other := append(slices.Clone(next[:35]), 7, 8, 9, 10, 11, 12)
		other[35] = next[35]%25 + 1
		must.Eq(t, 35, reusedBy(say(t, s, conf, other, 1)))
		must.Eq(t, 1, f.copied)
		must.Eq(t, 40, reusedBy(say(t, s, conf, next, 1)))
	})
}

func TestStoreIsBounded(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	conf.SavedBytes = 150
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		var talks []*run
		for i := range 5 {
			talks = append(talks, say(t, s, conf, long(t, 40+i, 20), 20)) // 59 to 63 tokens in the cache
			must.LessEq(t, 150, f.bytes.Load())
		}
		must.Eq(t, 2, f.states.Load())
		must.Eq(t, 0, reusedBy(say(t, s, conf, append(answered(talks[0]), 3), 1)))
		// It replaced a third state. The most recently saved one is still held.
		must.Eq(t, 63, reusedBy(say(t, s, conf, append(answered(talks[4]), 3), 1)))
	})
}

// A cache that cannot be cut is reused only at the end of a sequence.
func TestUncuttableCache(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.window, conf.SavedBytes = -1, 1<<20
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		r := say(t, s, conf, long(t, 40, 20), 20)
		must.Eq(t, 59, reusedBy(say(t, s, conf, append(answered(r), 3, 4), 1)))
		must.Eq(t, 0, reusedBy(say(t, s, conf, r.Prompt, 20)))
		must.Eq(t, 0, reusedBy(say(t, s, conf, append(slices.Clone(r.Prompt[:35]), 5, 6, 7), 20)))
		// A short sequence that can be continued beats a long one that would need a cut.
		short := say(t, s, conf, r.Prompt[:20], 1)
		must.Eq(t, 20, reusedBy(say(t, s, conf, append(slices.Clone(short.Prompt), r.Prompt[20:30]...), 1)))
	})
}

// When a cache cannot be cut, a prompt leaves a checkpoint near its end. Later prompts with the
// same prefix continue from it, any number of times.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.window, conf.SavedBytes, conf.Checkpoints = -1, 1<<20, true
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		say(t, s, conf, long(t, leastMoved+turnSlack-1, 5), 1)
		must.Eq(t, 0, f.states.Load()) // too short for a checkpoint
		first := say(t, s, conf, long(t, 40, 20), 20)
		must.Eq(t, 1, f.states.Load())
		must.Eq(t, 36, f.bytes.Load())
		for range 3 { // the same again, and with another end
			must.Eq(t, 36, reusedBy(say(t, s, conf, first.Prompt, 20)))
			must.Eq(t, 36, reusedBy(say(t, s, conf, append(slices.Clone(first.Prompt[:37]), 5, 6, 7), 20)))
		}
		next := say(t, s, conf, slices.Concat(first.Prompt[:38], long(t, 30, 90)), 20) // a turn whose answer is spelled differently
		must.Eq(t, 36, reusedBy(next))
		must.Eq(t, 64, reusedBy(say(t, s, conf, append(slices.Clone(next.Prompt[:66]), 3, 3, 3), 1))) // it has its own checkpoint
		must.Eq(t, 36, reusedBy(say(t, s, conf, first.Prompt, 1)))
	})
	must.Eq(t, 0, f.states.Load())
}

// Concurrent requests find the checkpoints of each other.
func TestCheckpointsOfMany(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 3), fakeConfig(3)
	f.window, f.perStep, conf.SavedBytes, conf.Checkpoints = -1, time.Millisecond, 200, true
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		shared := long(t, 50, 4)
		var runs []*run
		for i := range 24 {
			r := newRun(slices.Concat(shared[:20+i], long(t, 10+i%5, 12)), 10)
			must.NoError(t, s.Submit(r.Request))
			runs = append(runs, r)
			if i%4 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		for _, r := range runs {
			asAlone(t, r, conf)
		}
		must.LessEq(t, 200, f.bytes.Load())
	})
	must.Eq(t, 0, f.states.Load())
}

// A deferred copy is neither saved nor overwritten by a load.
func TestDeferredCopy(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.perStep, conf.SavedBytes = time.Millisecond, 1<<20
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first := newRun(long(t, 60, 100), 100)
		must.NoError(t, s.Submit(first.Request))
		time.Sleep(10*time.Millisecond + 1)
		synctest.Wait()
		second := newRun(append(slices.Clone(first.Prompt), 3, 4, 5), 20)
		third := newRun(long(t, 61, 20), 20)
		refused := false
		f.before = func(step []Entry) {
			if !refused && len(f.copies) > 0 { // no room, and its client disconnects
				refused, f.cells = true, 1
				s.Cancel(second.Request)
				_ = s.Submit(third.Request)
				return
			}
			f.cells = 0
		}
		must.NoError(t, s.Submit(second.Request))
		asAlone(t, third, conf)
		must.True(t, refused)
		asAlone(t, first, conf)
		fourth := say(t, s, conf, append(slices.Clone(first.Prompt), 3, 4, 6), 20)
		must.Positive(t, reusedBy(fourth))
	})
}

// Kept sequences make room for running requests, as both share the memory.
func TestKeptGoesFirst(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 3), fakeConfig(3)
	f.cells = 100
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		say(t, s, conf, long(t, 30, 10), 10)
		say(t, s, conf, long(t, 31, 10), 10)
		say(t, s, conf, long(t, 60, 30), 30) // 169 together
	})
}

// TestAnswersDoNotDependOnReuse finds wrong reuse: whatever is kept, copied, cut, saved, dropped
// and cancelled, each answer equals the one that its request gets alone.
func TestAnswersDoNotDependOnReuse(t *testing.T) {
	t.Parallel()
	rounds := 200
	if testing.Short() {
		rounds = 40
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			randomRequests(t, rand.New(rand.NewPCG(uint64(seed), 14)))
		})
	}
}

func randomRequests(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	pick := func(values ...int) int { return values[rnd.IntN(len(values))] }
	slots := 1 + rnd.IntN(4)
	f, conf := newFake(t, slots), fakeConfig(slots)
	f.window, f.cells = pick(0, 0, 0, -1, 5, 30), pick(0, 0, 150*slots, 220)
	f.perStep, f.perToken = time.Millisecond, time.Duration(rnd.IntN(2))*100*time.Microsecond
	conf.SavedBytes = int64(pick(0, 100, 400, 1<<20))
	conf.StepTokens, conf.PromptChunk = pick(8, 32, 200), pick(4, 8, 100)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		known := [][]Token{prompt(rnd.IntN(50), 60), prompt(rnd.IntN(50), 100)} // prefixes of prompts
		var open []*run
		for range 60 {
			// A prefix of something known, cut anywhere, followed by something new.
			base := known[rnd.IntN(len(known))]
			p := slices.Clone(base[:min(len(base), pick(0, 5, 30, 60, len(base), len(base), rnd.IntN(len(base)+1)))])
			p = append(p, prompt(rnd.IntN(1000), 1+rnd.IntN(pick(2, 30)))...)
			p = p[:min(len(p), conf.SlotTokens-1)]
			r := newRun(p, pick(1, 5, 20, 0))
			r.chooser.seed = uint64(pick(0, 1, 2, 3))
			if pick(0, 0, 1) == 1 {
				r.Stops = []string{"ab", "q"}
			}
			must.NoError(t, s.Submit(r.Request))
			open = append(open, r)
			if pick(0, 0, 1) == 1 { // several at once
				continue
			}
			time.Sleep(time.Duration(rnd.IntN(pick(2, 20, 100))) * time.Millisecond)
			synctest.Wait()
			if pick(0, 0, 0, 1) == 1 {
				s.Cancel(open[rnd.IntN(len(open))].Request) // it may have ended already
			}
			if one := open[rnd.IntN(len(open))]; len(answered(one)) < conf.SlotTokens-30 {
				known = append(known, answered(one))
			}
		}
		cancelled, full := 0, 0
		for _, r := range open {
			if r.cancelled.Load() {
				cancelled++
				continue
			}
			if _, e := r.last(); e.Err != nil && f.cells > 0 {
				must.ErrorIs(t, e.Err, ErrCacheFull)
				full++
				continue
			}
			asAlone(t, r, conf)
		}
		for s.Stats().Active+s.Stats().Queued > 0 {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		for _, r := range open {
			must.Eq(t, 1, r.chooser.closed)
		}
		for _, x := range s.slots { // the scheduler's view of the cache is true
			must.Eq(t, f.length[x.seq], len(x.held))
			must.True(t, slices.Equal(f.data[x.seq][:len(x.held)], x.held))
		}
		st := s.Stats()
		must.Eq(t, 0, st.CacheTokens)
		must.LessEq(t, conf.SavedBytes, f.bytes.Load())
		t.Logf("%d slots, %d cancelled, %d without room, %d prompt tokens evaluated, %d reused, %d copies, %d loads, %d saved",
			slots, cancelled, full, st.PromptEvaluated, st.PromptReused, f.copied, f.loaded, f.states.Load())
	})
}
