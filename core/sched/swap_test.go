package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// arrival is one request of a trace.
type arrival struct {
	at    time.Duration
	model string
	takes time.Duration
}

const (
	simLoad  = 5 * time.Second // the same for every model
	simSlots = 4
	simStep  = 50 * time.Millisecond
)

// outcome is the result of a trace.
type outcome struct {
	loads int
	waits []time.Duration // per request, until it began
}

func (o outcome) p95() time.Duration {
	sorted := slices.Sorted(slices.Values(o.waits))
	return sorted[len(sorted)*95/100]
}

// fifo answers a trace strictly in its order, with room for one model.
func fifo(trace []arrival) outcome {
	var o outcome
	var ends []time.Duration // end times of running requests
	loaded, now := "", time.Duration(0)
	for _, a := range trace {
		now = max(now, a.at)
		if a.model != loaded {
			for _, e := range ends {
				now = max(now, e)
			}
			ends, loaded, now = nil, a.model, now+simLoad
			o.loads++
		}
		if len(ends) == simSlots {
			slices.Sort(ends)
			now = max(now, ends[0])
			ends = ends[1:]
		}
		ends = append(ends, now+a.takes)
		o.waits = append(o.waits, now-a.at)
	}
	return o
}

// turns answers a trace as Swap decides, with room for that many models.
func (s Swap) turns(trace []arrival, room int) outcome {
	type model struct {
		queue        []arrival
		since        time.Duration // since its load waits; -1: it does not
		ready        time.Duration // -1: not loaded
		loads, going bool
		used         time.Duration
		ends         []time.Duration
	}
	var o outcome
	models := map[string]*model{}
	var names, line []string // line: the waiting loads, in order
	for now := time.Duration(0); ; now += simStep {
		for len(trace) > 0 && trace[0].at <= now {
			a := trace[0]
			trace = trace[1:]
			m := models[a.model]
			if m == nil {
				m = &model{ready: -1, since: -1}
				models[a.model] = m
				names = append(names, a.model)
			}
			m.queue = append(m.queue, a)
		}
		pending := 0
		for _, name := range names {
			m := models[name]
			m.ends = slices.DeleteFunc(m.ends, func(e time.Duration) bool { return e <= now })
			if m.going && len(m.ends) == 0 {
				m.ready, m.going = -1, false
			}
			if m.loads && now >= m.ready {
				m.loads = false
			}
			for len(m.queue) > 0 && m.ready >= 0 && !m.loads && !m.going && len(m.ends) < simSlots {
				a := m.queue[0]
				m.queue = m.queue[1:]
				m.ends = append(m.ends, now+a.takes)
				o.waits = append(o.waits, now-a.at)
			}
			if len(m.ends) > 0 {
				m.used = now
			}
			pending += len(m.queue)
			if len(m.queue) > 0 && m.ready < 0 && m.since < 0 {
				m.since, line = now, append(line, name)
			}
		}
		if len(line) > 0 {
			m := models[line[0]]
			var residents []Resident
			held := 0
			for _, name := range names {
				x := models[name]
				if x.ready < 0 {
					continue
				}
				held++
				r := Resident{Worker: name, Bytes: 1, Ending: x.going, Busy: x.loads || len(x.ends) > 0, Idle: now - x.used, LoadTook: simLoad, Share: 1}
				if !x.loads {
					r.Ready = now - x.ready + 1
				}
				residents = append(residents, r)
			}
			if held < room {
				m.ready, m.loads, m.since, line = now+simLoad, true, -1, line[1:]
				o.loads++
			} else {
				for _, r := range s.Turn(1, now-m.since, residents).Unload {
					models[r.Worker].going = true
				}
			}
		}
		if len(trace) == 0 && pending == 0 {
			break
		}
	}
	return o
}

// mixed returns a trace of n requests for models in random order.
func mixed(seed uint64, n, models int, every, takes time.Duration) []arrival {
	r := rand.New(rand.NewPCG(seed, 17))
	var trace []arrival
	at := time.Duration(0)
	for range n {
		at += time.Duration(r.ExpFloat64() * float64(every))
		trace = append(trace, arrival{at: at, model: fmt.Sprintf("m%d", r.IntN(models)), takes: time.Duration((0.5 + r.Float64()) * float64(takes))})
	}
	return trace
}

var defaultSwap = Swap{MaxWait: 10 * time.Second, MinWarm: 5 * time.Second}

// A B A A C, all at once, loads each model once.
func TestSwapLoadsEachOnce(t *testing.T) {
	t.Parallel()
	var trace []arrival
	for i, model := range []string{"a", "b", "a", "a", "c"} {
		trace = append(trace, arrival{at: time.Duration(i) * 100 * time.Millisecond, model: model, takes: 2 * time.Second})
	}
	must.Eq(t, 3, defaultSwap.turns(trace, 1).loads)
	must.Eq(t, 4, fifo(trace).loads)
}

// Over random traces, taking turns needs at most 0.4 of the loads of strict order, and answers
// everything.
func TestSwapAgainstFIFO(t *testing.T) {
	t.Parallel()
	for _, models := range []int{2, 3} {
		for seed := range uint64(5) {
			trace := mixed(seed, 400, models, 500*time.Millisecond, time.Second)
			f, s := fifo(trace), defaultSwap.turns(trace, 1)
			must.Len(t, len(trace), s.waits)
			must.LessEq(t, 0.4*float64(f.loads), float64(s.loads), must.Sprintf("%d models: %d loads, in order %d", models, s.loads, f.loads))
			must.Less(t, f.p95(), s.p95())
		}
	}
}

// BenchmarkSwapTrace prints the loads and the wait of a trace in strict order and in turns.
func BenchmarkSwapTrace(b *testing.B) {
	for _, models := range []int{2, 3, 5} {
		trace := mixed(1, 400, models, 500*time.Millisecond, time.Second)
		f, s := fifo(trace), defaultSwap.turns(trace, 1)
		b.Run(fmt.Sprintf("models=%d", models), func(b *testing.B) {
			for range b.N {
				defaultSwap.turns(trace, 1)
			}
			b.ReportMetric(float64(f.loads), "loads-fifo")
			b.ReportMetric(float64(s.loads), "loads")
			b.ReportMetric(f.p95().Seconds(), "p95-fifo-s")
			b.ReportMetric(s.p95().Seconds(), "p95-s")
		})
	}
}
