package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func worker(id string, change ...func(*Prospect)) Prospect {
	p := Prospect{Worker: &core.Worker{ID: id, Hive: "h1", Model: "m", Slots: 4, State: core.WorkerReady}}
	for _, f := range change {
		f(&p)
	}
	return p
}

func inFlight(n int) func(*Prospect) { return func(p *Prospect) { p.InFlight = n } }
func slots(n int) func(*Prospect)    { return func(p *Prospect) { p.Worker.Slots = n } }
func state(s core.WorkerState) func(*Prospect) {
	return func(p *Prospect) { p.Worker.State = s }
}
func suspect(why string) func(*Prospect) { return func(p *Prospect) { p.Suspect = why } }
func model(m string) func(*Prospect)     { return func(p *Prospect) { p.Worker.Model = m } }
func busy(p *Prospect)                   { p.Busy = true }
func draining(p *Prospect)               { p.Draining = true }
func lacks(what string) func(*Prospect)  { return func(p *Prospect) { p.Lacks = what } }
func shared(n int) func(*Prospect)       { return func(p *Prospect) { p.Shared = n } }
func load(active, queued int) func(*Prospect) {
	return func(p *Prospect) { p.Load = core.Load{Active: active, Queued: queued} }
}

func TestPickWorker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		prospects []Prospect
		draws     []int
		want      []string // ids, best first
		reasons   []string // the candidates' reasons; nil: not compared
		refused   []string
	}{
		{name: "nobody"},
		{
			name: "who read most of the prompt", prospects: []Prospect{worker("a"), worker("b", shared(1)), worker("c", shared(3), inFlight(1)), worker("d", shared(3), inFlight(2))},
			draws: []int{0, 0}, want: []string{"c", "a", "b", "d"}, reasons: []string{"has read the beginning of the prompt", "next: 0 of 4 slots busy", "next: 0 of 4 slots busy", "next: 2 of 4 slots busy"},
		},
		{
			name: "who read it has its share of requests already", prospects: []Prospect{worker("a"), worker("b", shared(3), inFlight(3))},
			want: []string{"a", "b"}, reasons: []string{"least busy of 2", "next: 3 of 4 slots busy"}, draws: []int{0, 0},
		},
		{
			name: "the longest prefix is at a busy worker, a shorter one at an idle one", prospects: []Prospect{worker("a"), worker("b", shared(3), inFlight(3)), worker("c", shared(1))},
			want: []string{"c", "a", "b"}, draws: []int{0, 0},
		},
		{
			name: "who read it has no free slot", prospects: []Prospect{worker("a", inFlight(3)), worker("b", shared(3), inFlight(4))},
			want: []string{"a", "b"},
		},
		{
			name: "who read it is avoided", prospects: []Prospect{worker("a"), worker("b", shared(3), suspect("silent"))},
			want: []string{"a"}, refused: []string{"b is avoided: silent"},
		},
		{name: "another model", prospects: []Prospect{worker("a", model("other"))}},
		{
			name: "only worker", prospects: []Prospect{worker("a"), worker("b", model("other"))},
			want: []string{"a"}, reasons: []string{"only worker"},
		},
		{
			name: "only worker, with as many waiting as it should have", prospects: []Prospect{worker("a", inFlight(5))},
			want: []string{"a"}, reasons: []string{"only worker"},
		},
		{
			name:      "busy by this queen's requests, or by its own word",
			prospects: []Prospect{worker("a", inFlight(6)), worker("b", busy), worker("c", slots(1), inFlight(2)), worker("d", load(9, 9))},
			want:      []string{"d"},
			refused:   []string{"a is busy with 6 requests in 4 slots", "b is busy with 0 requests in 4 slots", "c is busy with 2 requests in 1 slots"},
		},
		{
			name:      "refusals",
			prospects: []Prospect{worker("e", state("odd")), worker("d", suspect("did not answer")), worker("c", state(core.WorkerFailed)), worker("b", state(core.WorkerRetiring)), worker("a", state(core.WorkerLoading)), worker("f", draining), worker("g", draining, suspect("gone"))},
			refused:   []string{"a is still loading", "b is retiring", "c failed to load", "d is avoided: did not answer", `e is in the unknown state "odd"`, "f is on a hive that drains", "g is avoided: gone"},
		},
		{
			// A worker that lacks a capability does not hide those after it, and its refusal names
			// the capability.
			name:      "a capability that some do not have",
			prospects: []Prospect{worker("a", lacks("images")), worker("b"), worker("c", lacks("tools"))},
			want:      []string{"b"}, reasons: []string{"only worker"},
			refused: []string{"a cannot do images", "c cannot do tools"},
		},
		{
			name: "less busy of two, whatever is drawn first", prospects: []Prospect{worker("a", inFlight(2)), worker("b", inFlight(1))}, draws: []int{1, 0},
			want: []string{"b", "a"}, reasons: []string{"least busy of 2", "next: 2 of 4 slots busy"},
		},
		{
			name: "the same from the other draw", prospects: []Prospect{worker("a", inFlight(2)), worker("b", inFlight(1))}, draws: []int{0, 0},
			want: []string{"b", "a"},
		},
		{
			name: "equals: the first drawn", prospects: []Prospect{worker("a"), worker("b"), worker("c")}, draws: []int{2, 0},
			want: []string{"c", "a", "b"}, reasons: []string{"less busy of 2 drawn from 3", "next: 0 of 4 slots busy", "next: 0 of 4 slots busy"},
		},
		{
			name:      "the least busy was not drawn",
			prospects: []Prospect{worker("a"), worker("b", inFlight(1)), worker("c", inFlight(2))}, draws: []int{1, 1},
			want: []string{"b", "a", "c"},
		},
		{
			name: "per slot, not per request", prospects: []Prospect{worker("a", slots(2), inFlight(1)), worker("b", slots(8), inFlight(3))}, draws: []int{0, 0},
			want: []string{"b", "a"},
		},
		{
			name: "full ones only after free ones", prospects: []Prospect{worker("a", slots(1), inFlight(1)), worker("b", slots(4), inFlight(3))},
			want: []string{"b", "a"}, reasons: []string{"only one of 2 with a free slot", "next: 1 of 1 slots busy"},
		},
		{
			name: "all full: the shortest queue", prospects: []Prospect{worker("a", slots(4), inFlight(5)), worker("b", slots(4), inFlight(4))}, draws: []int{0, 0},
			want: []string{"b", "a"},
		},
		{
			name: "reports count where they know more", prospects: []Prospect{worker("a", load(2, 1)), worker("b", inFlight(2))}, draws: []int{0, 0},
			want: []string{"b", "a"},
		},
		{
			name: "a report is not added to what this queen knows", prospects: []Prospect{worker("a", load(2, 0), inFlight(2)), worker("b", inFlight(3))}, draws: []int{1, 0},
			want: []string{"a", "b"},
		},
		{
			name: "the only worker, though it has read the beginning", prospects: []Prospect{worker("a", shared(1))},
			want: []string{"a"}, reasons: []string{"only worker"},
		},
		{
			name: "no slots said", prospects: []Prospect{worker("a", slots(0))},
			want: []string{"a"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			draws := c.draws
			rnd := func(n int) int {
				must.SliceNotEmpty(t, draws, must.Sprint("drew more often than expected"))
				v := draws[0]
				draws = draws[1:]
				must.Less(t, n, v)
				return v
			}
			// Run each case twice, with the input in either order: the answer must not depend on
			// it.
			for range 2 {
				draws = c.draws
				got, refused := PickWorker("m", c.prospects, rnd)
				var ids, reasons, refusals []string
				for _, g := range got {
					ids = append(ids, g.Worker.ID)
					reasons = append(reasons, g.Reason)
				}
				for _, r := range refused {
					must.Eq(t, strings.Contains(r.Reason, "is busy"), r.Busy)
					must.Eq(t, r.Lacks != "", r.Reason == "cannot do "+r.Lacks)
					refusals = append(refusals, r.String())
				}
				must.Eq(t, c.want, ids)
				if c.reasons != nil {
					must.Eq(t, c.reasons, reasons)
				}
				must.Eq(t, c.refused, refusals)
				must.SliceEmpty(t, draws)
				for i, j := 0, len(c.prospects)-1; i < j; i, j = i+1, j-1 {
					c.prospects[i], c.prospects[j] = c.prospects[j], c.prospects[i]
				}
			}
		})
	}
}

// Whatever is drawn, every usable worker is a candidate exactly once, and requests spread evenly
// over equal workers.
func TestPickWorkerSpreads(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	prospects := []Prospect{worker("a"), worker("b"), worker("c"), worker("d"), worker("e", state(core.WorkerRetiring))}
	for range 400 {
		got, refused := PickWorker("m", prospects, rng.IntN)
		must.Len(t, 4, got)
		must.Len(t, 1, refused)
		seen := map[string]bool{}
		for _, c := range got {
			must.False(t, seen[c.Worker.ID])
			seen[c.Worker.ID] = true
		}
		for i := range prospects {
			prospects[i].Worker.Slots = 1000
			if prospects[i].Worker.ID == got[0].Worker.ID {
				prospects[i].InFlight++
			}
		}
	}
	for _, p := range prospects[:4] {
		must.Between(t, 95, p.InFlight, 105, must.Sprint(p.Worker.ID))
	}
	must.Eq(t, 0, prospects[4].InFlight)
}

// Many workers are not sorted, but the same rules apply: the first is drawn among those with a free
// slot, the next ones are the least busy.
func TestPickWorkerOfMany(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, full := range []int{0, 30, 199, 200} {
		var prospects []Prospect
		for i := range 200 {
			busy := 4
			if i >= full {
				busy = i % 4
			}
			prospects = append(prospects, worker(fmt.Sprintf("w%03d", i), inFlight(busy)))
		}
		first := map[string]int{}
		for range 200 {
			got, refused := PickWorker("m", slices.Clone(prospects), rng.IntN)
			must.SliceEmpty(t, refused)
			must.Len(t, MaxCandidates, got)
			switch free := 200 - full; free {
			case 0: // drawn among all
				must.Eq(t, "less busy of 2 drawn from 200", got[0].Reason)
			case 1:
				must.Eq(t, "only one of 200 with a free slot", got[0].Reason)
			default:
				must.Eq(t, fmt.Sprintf("less busy of 2 drawn from %d", free), got[0].Reason)
			}
			first[got[0].Worker.ID]++
			seen := map[string]bool{}
			for i, c := range got {
				must.False(t, seen[c.Worker.ID])
				must.NotEq(t, "", c.Reason)
				seen[c.Worker.ID] = true
				if i > 1 {
					must.StrContains(t, c.Reason, "next: ")
				}
			}
			// The others are those that sorting would have put first.
			rest := slices.DeleteFunc(slices.Clone(prospects), func(p Prospect) bool { return p.Worker.ID == got[0].Worker.ID })
			slices.SortFunc(rest, byLoad)
			for i, c := range got[1:] {
				must.Eq(t, rest[i].Worker.ID, c.Worker.ID)
			}
		}
		for id, n := range first {
			if full < 200 {
				// one with a free slot
				must.GreaterEq(t, fmt.Sprintf("w%03d", full), id, must.Sprint(n))
			}
		}
		must.GreaterEq(t, min(max(200-full, 1), 20), len(first))
	}
}

// Of many workers, one that has read the beginning is among the candidates, whose number stays the
// same.
func TestPickWorkerOfManySharedPrompt(t *testing.T) {
	t.Parallel()
	var prospects []Prospect
	for i := range 2 * MaxCandidates {
		prospects = append(prospects, worker(fmt.Sprintf("w%02d", i)))
	}
	prospects[7].Shared = 1
	got, _ := PickWorker("m", prospects, func(int) int { return 0 })
	must.Len(t, MaxCandidates, got)
	must.Eq(t, "w07", got[0].Worker.ID)
	must.Eq(t, "has read the beginning of the prompt", got[0].Reason)
}

// Two different workers are drawn of many, too, and the first drawn need not be the less busy one.
func TestPickWorkerOfManyDrawsTwo(t *testing.T) {
	t.Parallel()
	prospects := []Prospect{worker("busy", inFlight(2)), worker("idle")}
	for i := range MaxCandidates {
		prospects = append(prospects, worker(fmt.Sprintf("w%02d", i), inFlight(3)))
	}
	got, _ := PickWorker("m", prospects, func(int) int { return 0 })
	must.Eq(t, "idle", got[0].Worker.ID)
}

func BenchmarkPickWorker(b *testing.B) {
	for _, n := range []int{4, 80, 400} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			var prospects []Prospect
			for i := range n {
				prospects = append(prospects, worker(fmt.Sprintf("w%03d", i), inFlight(i%4)))
			}
			given := make([]Prospect, n)
			b.ReportAllocs()
			for b.Loop() {
				copy(given, prospects)
				_, _ = PickWorker("m", given, rng.IntN)
			}
		})
	}
}

// However many requests begin alike, no worker gets much more than its share of them while others
// have free slots.
func TestPickWorkerSharedPrompts(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	prospects := []Prospect{worker("a", slots(16), shared(9)), worker("b", slots(16)), worker("c", slots(16)), worker("d", slots(16))}
	for n := 1; n <= 60; n++ {
		got, _ := PickWorker("m", prospects, rng.IntN)
		for i := range prospects {
			if p := &prospects[i]; p.Worker.ID == got[0].Worker.ID {
				p.InFlight++
			}
			must.LessEq(t, n*5/16+2, prospects[i].InFlight, must.Sprint(n))
		}
	}
}
