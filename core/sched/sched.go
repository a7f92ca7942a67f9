// Package sched decides which worker answers a request and which hive gets a new worker, and gives
// the reasons against the others.
//
// Its functions are pure: the same arguments give the same answer. They read no clock and take
// randomness as an argument.
package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/rbee-project/rbee/core"
)

// Prospect is a worker, with facts that only the deciding queen knows.
type Prospect struct {
	Worker   *core.Worker // the registry's own entry, read-only
	Load     core.Load    // as last reported by its hive; zero: no report yet
	Suspect  string       // why it is avoided for now; empty if it is not
	Draining bool         // its hive gets no new request
	// InFlight is the number of unfinished requests that this queen has sent to it. Reports of the
	// hive lag behind; this does not.
	InFlight int
	// Busy reports that the worker has just refused a request because it is full.
	Busy bool
	// Lacks is a capability that the request needs and the worker does not have; empty: none.
	Lacks string
	// Shared is how much of the prompt the worker has been sent before, in marks: see
	// inference.Terms.
	Shared int
}

// busy returns the worker's number of requests, as far as known: what the hive reported (which
// counts other queens' requests too) or this queen's own count if higher.
func (p Prospect) busy() int { return max(p.InFlight, p.Load.Active+p.Load.Queued, 0) }

// full reports whether the worker gets no further request from this queen. Requests for half its
// slots again may wait at the worker, so that a freed slot is not idle until the next request
// arrives. Reports do not count: their requests may have ended. The worker itself refuses requests
// when other queens have filled it.
func (p Prospect) full() bool {
	return p.Busy || p.InFlight >= p.slots()+max(p.slots()/2, 1)
}

// slots returns at least 1, so that a worker that reports 0 does not cause a division by zero.
func (p Prospect) slots() int { return max(p.Worker.Slots, 1) }

func (p Prospect) free() bool { return p.busy() < p.slots() }

// byLoad orders by requests per slot, then by name, so that the order does not depend on the order
// of the input.
func byLoad(a, b Prospect) int {
	return cmp.Or(
		cmp.Compare(a.busy()*b.slots(), b.busy()*a.slots()),
		cmp.Compare(a.Worker.ID, b.Worker.ID),
	)
}

// Refusal tells why a worker or a hive was not chosen.
type Refusal struct {
	Name   string // worker id or hive name
	Reason string // for people: "is retiring", "cuda:0 lacks 1024 bytes"
	// MissingBytes is what the best device lacks; 0: refused for another reason.
	MissingBytes int64
	// Busy reports that only its running requests prevent its use.
	Busy bool
	// Lacks is the capability without which the worker cannot answer this request.
	Lacks string
}

func (r Refusal) String() string { return r.Name + " " + r.Reason }

// PickWorker ranks the workers that serve the model (an exact core.Model.ID), best first, each with
// the reason for its rank, and returns for each of the model's other workers why it cannot be used.
// Workers of other models are in neither list. It ranks at most MaxCandidates: no caller tries
// more.
//
// The first is the less busy, in requests per slot, of two drawn among those with a free slot
// (among all if no slot is free): the power of two choices, which keeps several queens with reports
// of the same age from all choosing the same worker. The rest follow by load.
//
// A worker that has read the beginning of the prompt ranks before all of them, as long as it has a
// free slot and no more than its share of the requests: see holder.
//
// rnd(n) returns a number in [0, n); it is called only if there is a choice to make.
func PickWorker(model string, prospects []Prospect, rnd func(n int) int) ([]core.Candidate, []Refusal) {
	able := make([]Prospect, 0, len(prospects))
	var refused []Refusal
	for _, p := range prospects {
		if p.Worker.Model != model {
			continue
		}
		if reason := unfit(p); reason != "" {
			refused = append(refused, Refusal{Name: p.Worker.ID, Reason: reason})
			continue
		}
		if p.Lacks != "" {
			refused = append(refused, Refusal{Name: p.Worker.ID, Reason: "cannot do " + p.Lacks, Lacks: p.Lacks})
			continue
		}
		if p.full() {
			refused = append(refused, Refusal{Name: p.Worker.ID, Busy: true, Reason: fmt.Sprintf("is busy with %d requests in %d slots", p.busy(), p.slots())})
			continue
		}
		able = append(able, p)
	}
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Compare(a.Name, b.Name) })
	if len(able) == 0 {
		return nil, refused
	}
	if i := holder(able); i >= 0 {
		first := able[i]
		rest, _ := order(slices.Delete(able, i, i+1), rnd)
		return candidates(slices.Insert(rest[:min(len(rest), MaxCandidates-1)], 0, first), "has read the beginning of the prompt"), refused
	}
	ranked, reason := order(able, rnd)
	return candidates(ranked, reason), refused
}

// holder returns the index of the worker that has read most of the prompt, of those with a free
// slot, or -1 if there is none. It must have at most one request more than 1.25 times the mean of
// all, for its slots: many prompts may begin alike, and one worker should not answer them all while
// others are idle.
func holder(able []Prospect) int {
	if len(able) < 2 || !slices.ContainsFunc(able, func(p Prospect) bool { return p.Shared > 0 }) {
		return -1
	}
	busy, slots := 0, 0
	for _, p := range able {
		busy, slots = busy+p.busy(), slots+p.slots()
	}
	best := -1
	for i, p := range able {
		if p.Shared == 0 || !p.free() || 4*slots*(p.busy()-1) > 5*busy*p.slots() {
			continue
		}
		if best < 0 || cmp.Or(cmp.Compare(able[best].Shared, p.Shared), byLoad(p, able[best])) < 0 { // the least busy of equals
			best = i
		}
	}
	return best
}

// order returns at most MaxCandidates workers, best first, and the reason for the first.
func order(able []Prospect, rnd func(n int) int) ([]Prospect, string) {
	if len(able) > MaxCandidates {
		return fewOf(able, rnd)
	}
	slices.SortFunc(able, byLoad)

	// Those with a free slot form a prefix: all of them are below one request per slot, and all
	// others are not.
	pool := len(able)
	if n := slices.IndexFunc(able, func(p Prospect) bool { return !p.free() }); n > 0 {
		pool = n
	}
	best, reason := 0, "only worker"
	switch {
	case pool == 1 && len(able) > 1:
		reason = fmt.Sprintf("only one of %d with a free slot", len(able))
	case pool == 2:
		best, reason = draw(able[:pool], rnd), "least busy of 2"
	case pool > 2:
		best, reason = draw(able[:pool], rnd), fmt.Sprintf("less busy of 2 drawn from %d", pool)
	}
	first := able[best]
	copy(able[1:], able[:best])
	able[0] = first
	return able, reason
}

// MaxCandidates is the most workers that PickWorker returns.
const MaxCandidates = 16

// fewOf does what order does, for so many workers that sorting them would cost more than it helps.
// It draws in the same way, among the workers in their input order.
func fewOf(able []Prospect, rnd func(n int) int) ([]Prospect, string) {
	// Move those with a free slot to the front.
	pool := 0
	for i := range able {
		if able[i].free() {
			able[pool], able[i] = able[i], able[pool]
			pool++
		}
	}
	best, reason := 0, fmt.Sprintf("only one of %d with a free slot", len(able))
	if pool == 0 {
		pool = len(able)
	}
	if pool > 1 {
		best, reason = draw(able[:pool], rnd), fmt.Sprintf("less busy of 2 drawn from %d", pool)
	}
	able[0], able[best] = able[best], able[0]
	// Select the least busy of the rest in one pass.
	few := append(make([]Prospect, 0, MaxCandidates), able[0])
	for _, p := range able[1:] {
		if len(few) == MaxCandidates && byLoad(p, few[MaxCandidates-1]) >= 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(few[1:], p, byLoad)
		if len(few) == MaxCandidates {
			few = few[:MaxCandidates-1]
		}
		few = slices.Insert(few, 1+at, p)
	}
	return few, reason
}

// candidates returns the ranked workers; reason applies to the first.
func candidates(able []Prospect, reason string) []core.Candidate {
	out := make([]core.Candidate, len(able))
	for i, p := range able {
		if i > 0 {
			reason = "next: " + strconv.Itoa(p.busy()) + " of " + strconv.Itoa(p.slots()) + " slots busy"
		}
		out[i] = core.Candidate{Worker: *p.Worker, Reason: reason}
		out[i].Worker.Load = p.Load
	}
	return out
}

// draw picks two different members of the pool, which is sorted by load and has at least two, and
// returns the index of the less busy; of two that are equally busy, the first drawn.
func draw(pool []Prospect, rnd func(n int) int) int {
	i := rnd(len(pool))
	j := rnd(len(pool) - 1)
	if j >= i {
		j++
	}
	if a, b := pool[i], pool[j]; b.busy()*a.slots() < a.busy()*b.slots() {
		return j
	}
	return i
}

// unfit returns why a worker cannot take requests; empty: it can.
func unfit(p Prospect) string {
	switch p.Worker.State {
	case core.WorkerReady:
	case core.WorkerLoading:
		return "is still loading"
	case core.WorkerRetiring:
		return "is retiring"
	case core.WorkerFailed:
		return "failed to load"
	default:
		return fmt.Sprintf("is in the unknown state %q", p.Worker.State)
	}
	switch {
	case p.Suspect != "":
		return "is avoided: " + p.Suspect
	case p.Draining:
		return "is on a hive that drains"
	}
	return ""
}
