package batch

import (
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// pacedConfig returns the config of an engine that takes 10 ms for a step and 1 ms for each of its
// tokens.
func pacedConfig(f *fakeDecoder, slots int) Config {
	f.perStep, f.perToken = 10*time.Millisecond, time.Millisecond
	conf := fakeConfig(slots)
	conf.SlotTokens, conf.StepTokens, conf.PromptChunk, conf.PromptPause = 5000, 512, 0, 50*time.Millisecond
	return conf
}

// timed returns a run that records the arrival times of its tokens.
func timed(prompt []Token, maxTokens int) (*run, *[]time.Time) {
	r := newRun(prompt, maxTokens)
	at := new([]time.Time)
	emit := r.Emit
	r.Emit = func(e Event) {
		*at = append(*at, time.Now())
		emit(e)
	}
	return r, at
}

func gaps(at []time.Time) []time.Duration {
	var out []time.Duration
	for i := range len(at) - 1 {
		out = append(out, at[i+1].Sub(at[i]))
	}
	slices.Sort(out)
	return out
}

// A stream keeps its pace while a long prompt is read: its steps take longer by the allowed pause.
func TestStreamKeepsItsPace(t *testing.T) {
	t.Parallel()
	f := newFake(t, 2)
	conf := pacedConfig(f, 2)
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		stream, at := timed(long(t, 20, 100), 100)
		must.NoError(t, s.Submit(stream.Request))
		time.Sleep(200 * time.Millisecond)
		reader, _ := timed(prompt(5, 2000), 1)
		began := time.Now()
		must.NoError(t, s.Submit(reader.Request))
		asAlone(t, reader, conf)
		took := time.Since(began)
		asAlone(t, stream, conf)
		all := gaps(*at)
		must.LessEq(t, 80*time.Millisecond, all[len(all)-1]) // 11 ms, 50 ms, and a first draft token
		must.LessEq(t, 62*time.Millisecond, all[len(all)-3])
		must.LessEq(t, 2800*time.Millisecond, took) // 2000 tokens in steps of 50 and 11 ms
	})
}

// On a slow machine a step may last longer, by a number of plain steps.
func TestSlowMachine(t *testing.T) {
	t.Parallel()
	f := newFake(t, 2)
	conf := pacedConfig(f, 2)
	f.perStep, f.perToken = 100*time.Millisecond, 5*time.Millisecond
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		stream, at := timed(long(t, 20, 100), 100)
		must.NoError(t, s.Submit(stream.Request))
		time.Sleep(2 * time.Second)
		reader := newRun(prompt(5, 1000), 1)
		began := time.Now()
		must.NoError(t, s.Submit(reader.Request))
		asAlone(t, reader, conf)
		must.LessEq(t, 8*time.Second, time.Since(began)) // with steps that are 50 ms longer it would take 15 s
		asAlone(t, stream, conf)
		all := gaps(*at)
		must.LessEq(t, 450*time.Millisecond, all[len(all)-1])
	})
}

// When many requests wait for their first token beside one stream, the stream waits longer for
// their sake.
func TestManyWaitersGetMore(t *testing.T) {
	t.Parallel()
	f := newFake(t, 8)
	conf := pacedConfig(f, 8)
	var most int
	f.before = func(step []Entry) { most = max(most, len(step)) }
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		stream, at := timed(long(t, 20, 100), 100)
		must.NoError(t, s.Submit(stream.Request))
		time.Sleep(200 * time.Millisecond)
		var waiters []*run
		for i := range 7 {
			p := prompt(i, 60)
			p[0] = Token(i + 1)
			waiters = append(waiters, newRun(p, 1))
			must.NoError(t, s.Submit(waiters[i].Request))
		}
		for _, r := range waiters {
			asAlone(t, r, conf)
		}
		asAlone(t, stream, conf)
		must.Between(t, 130, most, 220)
		all := gaps(*at)
		must.LessEq(t, 230*time.Millisecond, all[len(all)-1])
	})
}

// A short prompt that arrives after a long one is answered first, with or without a running stream.
func TestShortPromptFirst(t *testing.T) {
	t.Parallel()
	for name, streams := range map[string]int{"beside a stream": 1, "alone": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 3)
			conf := pacedConfig(f, 3)
			bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
				stream := newRun(long(t, 20, 200), 200)
				if streams > 0 {
					must.NoError(t, s.Submit(stream.Request))
					time.Sleep(200 * time.Millisecond)
				}
				slow := newRun(prompt(5, 3000), 1)
				must.NoError(t, s.Submit(slow.Request))
				time.Sleep(100 * time.Millisecond)
				quick := newRun(prompt(6, 30), 1)
				began := time.Now()
				must.NoError(t, s.Submit(quick.Request))
				asAlone(t, quick, conf)
				must.LessEq(t, 700*time.Millisecond, time.Since(began))
				must.Eq(t, 0, slow.count())
				asAlone(t, slow, conf)
				s.Cancel(stream.Request)
			})
		})
	}
}

// Short prompts that keep arriving do not starve a long one.
func TestLongPromptGetsItsTurn(t *testing.T) {
	t.Parallel()
	f := newFake(t, 4)
	conf := pacedConfig(f, 4)
	conf.PromptPause = 20 * time.Millisecond // at most 80 tokens with many waiting: less than a short prompt
	bubble(t, f, conf, func(t *testing.T, s *Scheduler) {
		stream := newRun(long(t, 20, 1000), 1000)
		must.NoError(t, s.Submit(stream.Request))
		time.Sleep(200 * time.Millisecond)
		slow := newRun(prompt(5, 1000), 1)
		must.NoError(t, s.Submit(slow.Request))
		short := 0
		var before *run
		for ; short < 200 && slow.count() == 0; short++ { // one of two is always waiting
			p := prompt(short, 100)
			p[0], p[1] = Token(short%25+1), Token(short/25+1)
			r := newRun(p, 1)
			must.NoError(t, s.Submit(r.Request))
			if before != nil {
				asAlone(t, before, conf)
			}
			before = r
		}
		must.Positive(t, slow.count())
		must.Between(t, 5, short, 40)
		s.Cancel(stream.Request)
	})
}

// One held-up step with draft tokens does not end drafting: drafts are tried again, and their price
// falls back to its true value.
func TestPriceForgivesHiccups(t *testing.T) {
	t.Parallel()
	p := pace{answers: make([]time.Duration, 2)}
	p.measured(10*time.Millisecond, 1, 0, 0)
	p.measured(5*time.Second, 1, 4, 0)
	must.Eq(t, 1, p.price(1, false))
	var o odds
	tries := 0
	for range 500 {
		if n := o.worth(2, p.price(1, false)); n > 0 {
			tries += n
			p.measured(10*time.Millisecond+time.Duration(n)*time.Millisecond, 1, n, 0)
			o.learn(n, n)
		}
	}
	must.Greater(t, 1000, tries)
	must.Less(t, 0.15, p.price(1, false))
}

// One held-up step does not make the next ones tiny.
func TestPaceForgivesHiccups(t *testing.T) {
	t.Parallel()
	p := pace{answers: make([]time.Duration, 2)}
	must.Eq(t, firstChunk, p.within(time.Second, 1))
	for range 20 {
		p.measured(10*time.Millisecond, 1, 0, 0)
		p.measured(60*time.Millisecond, 1, 0, 50)
	}
	must.Between(t, 90, p.within(100*time.Millisecond, 1), 110)
	p.measured(5*time.Second, 1, 0, 100)
	must.Between(t, 50, p.within(100*time.Millisecond, 1), 60)
	for range 5 {
		p.measured(110*time.Millisecond, 1, 0, 100)
	}
	must.Between(t, 80, p.within(100*time.Millisecond, 1), 110)
	must.Eq(t, 8, p.within(time.Microsecond, 8))
	p.measured(0, 1, 0, 100) // a clock that does not advance
	p.measured(0, 1, 0, 100)
}
