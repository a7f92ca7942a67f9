package batch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

func TestAnswerAlone(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		for seed := range 20 {
			r := newRun(prompt(seed, 1+seed*5), 0)
			must.NoError(t, s.Submit(r.Request))
			asAlone(t, r, conf)
		}
		r := newRun(long(t, 10, 20), 20)
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
		for i, e := range r.events {
			must.Eq(t, i+1, e.Tokens)
			must.Eq(t, []LogProb{{e.Chosen, -float32(i + 1)}}, e.LogProbs)
		}
		must.Len(t, 20, r.events)
	})
}

func TestStopStringEnds(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		p := long(t, 10, 30)
		text, _, _ := alone(p, 0, 30, conf.SlotTokens, nil)
		r := newRun(p, 30)
		r.Stops = []string{text[10:13]}
		must.NoError(t, s.Submit(r.Request))
		got, e := r.last()
		must.Eq(t, text[:10], got)
		must.Eq(t, FinishStop, e.Finish)
		asAlone(t, r, conf)
	})
}

// A slot is filled to its last position and no further.
func TestSlotEnds(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	conf.SlotTokens = 30
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		r := newRun(long(t, 10, 40), 0)
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
		_, e := r.last()
		must.Eq(t, 20, e.Tokens)
		must.Eq(t, FinishLength, e.Finish)
		must.Less(t, 30, f.decoded)
	})
}

func TestManyShareSteps(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 4), fakeConfig(4)
	f.perStep = time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		var runs []*run
		for seed := range 4 {
			runs = append(runs, newRun(long(t, 5+seed, 50), 50))
		}
		for _, r := range runs {
			must.NoError(t, s.Submit(r.Request))
		}
		for _, r := range runs {
			asAlone(t, r, conf)
		}
		must.Less(t, 60, f.steps) // instead of 200
	})
}

// Prompts are read in chunks while others are being answered, and whole otherwise.
func TestPromptChunks(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.perStep = time.Millisecond
	var sizes, both []int // tokens of all steps, and of those with both requests
	f.before = func(step []Entry) {
		sizes = append(sizes, len(step))
		if step[len(step)-1].Seq == 1 {
			both = append(both, len(step))
		}
	}
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first, second := newRun(long(t, 50, 40), 40), newRun(long(t, 30, 5), 5)
		must.NoError(t, s.Submit(first.Request))
		time.Sleep(10 * time.Millisecond)
		must.NoError(t, s.Submit(second.Request))
		asAlone(t, second, conf)
		asAlone(t, first, conf)
		must.Eq(t, []int{32, 18, 1}, sizes[:3])
		must.Eq(t, []int{9, 9, 9, 7, 2, 2, 2, 2}, both)
	})
}

func TestQueueBound(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	conf.Queue, f.perStep = 2, time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		var runs []*run
		for range 3 {
			r := newRun(long(t, 5, 30), 30)
			runs = append(runs, r)
			must.NoError(t, s.Submit(r.Request))
		}
		synctest.Wait()
		st := s.Stats()
		must.Eq(t, 1, st.Active)
		must.Eq(t, 2, st.Queued)
		r := newRun(prompt(1, 5), 1)
		must.Eq(t, error(&BusyError{Slots: 1, Waiting: 2}), s.Submit(r.Request))
		must.Eq(t, 1, r.chooser.closed)
		for _, r := range runs {
			asAlone(t, r, conf)
		}
		r = newRun(prompt(1, 5), 1)
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
	})
}

// Requests that are submitted together are accepted together, or not at all.
func TestSubmitAllOrNone(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	conf.Queue, f.perStep = 2, time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		must.Eq(t, 4, s.Room())
		first := newRun(long(t, 5, 30), 30)
		must.NoError(t, s.Submit(first.Request))
		synctest.Wait()
		runs := make([]*run, 4)
		list := make([]*Request, 4)
		for i := range runs {
			runs[i] = newRun(long(t, 5, 30), 30)
			list[i] = runs[i].Request
		}
		must.Eq(t, error(&BusyError{Slots: 2}), s.Submit(list...))
		st := s.Stats()
		must.Eq(t, 1, st.Active)
		must.Eq(t, 0, st.Queued)
		for i, r := range runs {
			must.Eq(t, 1, r.chooser.closed)
			runs[i] = newRun(r.Prompt, 30)
			list[i] = runs[i].Request
		}
		must.NoError(t, s.Submit(list[:3]...))
		for _, r := range append(runs[:3], first) {
			asAlone(t, r, conf)
		}
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prompt int
		after  time.Duration // from its submission to its cancellation
		events bool          // it had received events
	}{
		"at once":    {50, 0, false},
		"in prefill": {150, 3 * time.Millisecond, false},
		"in decode":  {20, 20 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, conf := newFake(t, 2), fakeConfig(2)
			conf.SlotTokens, f.perStep = 2000, time.Millisecond
			bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
				other := newRun(long(t, 5, 100), 100)
				must.NoError(t, s.Submit(other.Request))
				time.Sleep(2500 * time.Microsecond)
				r := newRun(long(t, c.prompt, 150), 0)
				must.NoError(t, s.Submit(r.Request))
				time.Sleep(c.after)
				s.Cancel(r.Request)
				time.Sleep(2 * time.Millisecond) // the current step
				synctest.Wait()
				must.Eq(t, 1, s.Stats().Active)
				must.Eq(t, 1, r.chooser.closed)
				must.Eq(t, c.events, r.count() > 0)
				n := r.count()
				asAlone(t, other, conf)
				must.Eq(t, n, r.count()) // no further event
				must.Eq(t, 0, s.Stats().CacheTokens)
			})
		})
	}
}

func TestCancelInQueue(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	f.perStep = time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first, second, third := newRun(long(t, 5, 50), 50), newRun(prompt(2, 5), 5), newRun(prompt(3, 5), 5)
		for _, r := range []*run{first, second, third} {
			must.NoError(t, s.Submit(r.Request))
		}
		synctest.Wait()
		must.Eq(t, 2, s.Stats().Queued)
		s.Cancel(second.Request)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		must.Eq(t, 1, s.Stats().Queued)
		must.Eq(t, 1, second.chooser.closed)
		asAlone(t, first, conf)
		asAlone(t, third, conf)
		must.Eq(t, 0, second.count())
	})
}

// A client that sees the end of an answer finds the slot free.
func TestSlotFreeBeforeLastEvent(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	conf.Queue = 0
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		r := newRun(prompt(1, 5), 5)
		next := newRun(prompt(2, 5), 5)
		emit := r.Emit
		r.Emit = func(e Event) {
			if e.Last() {
				must.Eq(t, 0, s.Stats().Active)
				must.NoError(t, s.Submit(next.Request))
			}
			emit(e)
		}
		must.NoError(t, s.Submit(r.Request))
		asAlone(t, r, conf)
		asAlone(t, next, conf)
	})
}

func TestFullCache(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	f.cells, f.perStep = 100, time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		first := newRun(long(t, 40, 45), 45)
		must.NoError(t, s.Submit(first.Request))
		time.Sleep(5 * time.Millisecond)
		second := newRun(prompt(5, 60), 5)
		must.NoError(t, s.Submit(second.Request))
		_, e := second.last()
		must.ErrorIs(t, e.Err, ErrCacheFull) // the younger one
		asAlone(t, first, conf)
	})
}

func TestStop(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	f.perStep = time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		running, waiting := newRun(long(t, 5, 100), 100), newRun(prompt(1, 5), 5)
		must.NoError(t, s.Submit(running.Request))
		must.NoError(t, s.Submit(waiting.Request))
		time.Sleep(10 * time.Millisecond)
		s.Stop()
		<-s.Done()
		for _, r := range []*run{running, waiting} {
			_, e := r.last()
			must.ErrorIs(t, e.Err, ErrStopping)
			must.Eq(t, 1, r.chooser.closed)
		}
		late := newRun(prompt(1, 5), 5)
		must.ErrorIs(t, s.Submit(late.Request), ErrStopping)
		must.Eq(t, 1, late.chooser.closed)
	})
}

func TestDecoderFails(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 1), fakeConfig(1)
	f.perStep = time.Millisecond
	f.before = func([]Entry) {
		if f.steps == 10 {
			f.fail = errBroken
		}
	}
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		running, waiting := newRun(long(t, 5, 100), 100), newRun(prompt(1, 5), 5)
		must.NoError(t, s.Submit(running.Request))
		must.NoError(t, s.Submit(waiting.Request))
		for _, r := range []*run{running, waiting} {
			_, e := r.last()
			must.Eq(t, error(&FailedError{errBroken.Error()}), e.Err)
			must.Eq(t, 1, r.chooser.closed)
		}
		must.Eq(t, errBroken.Error(), s.Stats().Failure)
		late := newRun(prompt(1, 5), 5)
		must.Eq(t, error(&FailedError{errBroken.Error()}), s.Submit(late.Request))
	})
}

// A chooser that finds no token ends only its own request.
func TestChooserFails(t *testing.T) {
	t.Parallel()
	f, conf := newFake(t, 2), fakeConfig(2)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		bad, good := newRun(prompt(1, 5), 5), newRun(prompt(2, 5), 5)
		bad.chooser.err = errBroken
		must.NoError(t, s.Submit(bad.Request))
		must.NoError(t, s.Submit(good.Request))
		_, e := bad.last()
		must.ErrorIs(t, e.Err, errBroken)
		asAlone(t, good, conf)
		must.Eq(t, "", s.Stats().Failure)
	})
}
