package sched

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Resident is a worker that holds memory on a device.
type Resident struct {
	Worker string // Worker.ID
	Model  string // for messages
	Bytes  int64  // device memory that is freed when it ends
	// Fixed reports that it must not make room: it is pinned, or serves the model that is to be
	// loaded.
	Fixed bool
	// Stays reports that it does not unload by itself: others are unloaded first.
	Stays  bool
	Ending bool          // it is already ending
	Busy   bool          // it is loading, or has requests
	Ready  time.Duration // how long it has been ready; 0 while it loads
	Idle   time.Duration // time since its last request
	// LoadTook is how long its start took; Share is the fraction of the recent time in which it had
	// requests, from 0 to 1. Together they are the cost of losing it.
	LoadTook time.Duration
	Share    float64
}

func (r Resident) cost() float64 { return r.LoadTook.Seconds() * r.Share }

// cheaper orders residents by the cost of unloading them, cheapest first. The order does not depend
// on the order of the input.
func cheaper(a, b Resident) int {
	return cmp.Or(
		cmp.Compare(rank(!a.Busy), rank(!b.Busy)),
		cmp.Compare(rank(!a.Stays), rank(!b.Stays)),
		cmp.Compare(a.cost(), b.cost()),
		cmp.Compare(b.Idle, a.Idle),
		cmp.Compare(a.Worker, b.Worker),
	)
}

// Evict returns the residents that free the missing bytes, chosen from those that may allows: the
// cheapest first, and none that the others make unnecessary. short is what is missing even if all
// of them end; then none is returned.
func Evict(missing int64, residents []Resident, may func(Resident) bool) (gone []Resident, short int64) {
	able := make([]Resident, 0, len(residents))
	for _, r := range residents {
		if !r.Fixed && !r.Ending && r.Bytes > 0 && may(r) {
			able = append(able, r)
		}
	}
	slices.SortFunc(able, cheaper)
	freed, n := int64(0), 0
	for ; n < len(able) && freed < missing; n++ {
		freed += able[n].Bytes
	}
	if freed < missing {
		return nil, missing - freed
	}
	chosen := able[:n]
	spared := map[string]bool{}
	for _, r := range slices.Backward(chosen) { // the most costly are spared first
		if freed-r.Bytes >= missing {
			freed -= r.Bytes
			spared[r.Worker] = true
		}
	}
	return slices.DeleteFunc(chosen, func(r Resident) bool { return spared[r.Worker] }), 0
}

// Swap decides how models that cannot be loaded together take turns. Requests for a loaded model
// are answered as they arrive; those for another model wait together. Each turn is one load,
// however many requests it answers.
type Swap struct {
	MaxWait time.Duration // how long a load waits for busy workers; then they take no new requests
	MinWarm time.Duration // how long a worker serves, at least, before it makes room
}

// Turn is the next step of a load that does not fit.
type Turn struct {
	Unload []Resident // they unload now, and the load waits until they end
	// Wait is how long to wait, at most, before the next decision if nothing unloads now. 0: it can
	// never fit.
	Wait time.Duration
	// For names what the load waits for, for people.
	For string
	// Missing is the memory that is missing even if everything that may unload has ended.
	Missing int64
}

// Never reports whether waiting is pointless.
func (t Turn) Never() bool { return t.Missing > 0 }

// turnPoll is how often to decide again when no event announces a change.
const turnPoll = time.Second

// Turn decides for the load whose turn it is: it lacks missing bytes on a device, and has waited
// for waited. Idle workers unload at once if they have served for MinWarm, the cheapest first. Busy
// ones unload when the load has waited for MaxWait: their running requests finish, and further ones
// wait for the next turn. No worker unloads unless the load then fits.
func (s Swap) Turn(missing int64, waited time.Duration, residents []Resident) Turn {
	ending, wait := int64(0), turnPoll
	for _, r := range residents {
		if r.Ending {
			ending += r.Bytes
		}
	}
	if missing <= ending {
		return Turn{Wait: wait, For: "a worker that is ending"}
	}
	missing -= ending
	warm := func(r Resident) bool { return r.Ready >= s.MinWarm && r.Ready > 0 }
	idle := func(r Resident) bool { return warm(r) && !r.Busy }
	if unload, short := Evict(missing, residents, idle); short == 0 {
		return Turn{Unload: unload, For: "idle workers to unload"}
	}
	all, short := Evict(missing, residents, func(Resident) bool { return true })
	if short > 0 {
		return Turn{Missing: short}
	}
	if waited >= s.MaxWait {
		if unload, short := Evict(missing, residents, warm); short == 0 {
			return Turn{Unload: unload, For: "requests that are running"}
		}
	} else {
		wait = min(wait, s.MaxWait-waited)
	}
	for _, r := range residents {
		if r.Ready > 0 && r.Ready < s.MinWarm {
			wait = min(wait, s.MinWarm-r.Ready)
		}
	}
	return Turn{Wait: wait, For: s.reason(all)}
}

// reason explains why the residents that must unload do not unload yet.
func (s Swap) reason(all []Resident) string {
	for _, r := range all {
		switch {
		case r.Ready == 0:
			return fmt.Sprintf("worker %s, which loads %s", r.Worker, r.Model)
		case r.Ready < s.MinWarm:
			return fmt.Sprintf("worker %s, which has just loaded %s", r.Worker, r.Model)
		case r.Busy:
			return fmt.Sprintf("worker %s, which answers requests with %s", r.Worker, r.Model)
		}
	}
	return "workers that are busy"
}
