package sched

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Resident is a worker that holds memory of a device.
type Resident struct {
	Worker string // Worker.ID
	Model  string // for messages
	Bytes  int64  // of the device, that its end frees
	// Fixed says that it is not to make room: it is pinned, or serves the model that wants in.
	Fixed bool
	// Stays says that it does not unload by itself: others go first.
	Stays  bool
	Ending bool          // it is on its way out already
	Busy   bool          // it loads, or has requests
	Ready  time.Duration // for how long it has served; 0 while it loads
	Idle   time.Duration // since its last request
	// LoadTook is what its start took, Share the part of the recent time in which it had requests,
	// from 0 to 1: together what it costs to lose it.
	LoadTook time.Duration
	Share    float64
}

func (r Resident) cost() float64 { return r.LoadTook.Seconds() * r.Share }

// cheaper orders residents by what it costs to unload them, the least first. The order never
// depends on the input's.
func cheaper(a, b Resident) int {
	return cmp.Or(
		cmp.Compare(rank(!a.Busy), rank(!b.Busy)),
		cmp.Compare(rank(!a.Stays), rank(!b.Stays)),
		cmp.Compare(a.cost(), b.cost()),
		cmp.Compare(b.Idle, a.Idle),
		cmp.Compare(a.Worker, b.Worker),
	)
}

// Evict returns the residents, of those that may go, whose ends free the missing bytes: the
// cheapest first, and none that the others make unnecessary. short is what is missing even when all
// have gone; then nobody goes.
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

// Swap is how models that cannot be loaded together take turns. Requests for a model that is loaded
// are answered as they come, those for another one wait together: each turn is one load, however
// many requests it answers.
type Swap struct {
	MaxWait time.Duration // a load waits for busy workers so long; then they take no new request
	MinWarm time.Duration // a worker serves at least so long before it makes room
}

// Turn is what a load that does not fit does next.
type Turn struct {
	Unload []Resident // they go now, and the load waits for their end
	// Wait is when to look again, at the latest, where nobody goes now. 0: it can never fit.
	Wait time.Duration
	// For says what it waits for, for people.
	For string
	// Missing is what lacks even when everything that may go has gone.
	Missing int64
}

// Never reports whether waiting is in vain.
func (t Turn) Never() bool { return t.Missing > 0 }

// turnPoll is when to look again for what nobody announces.
const turnPoll = time.Second

// Turn decides for the load whose turn it is: it lacks missing bytes of a device, and has waited so
// long. Idle workers go at once when they have served for MinWarm, the cheapest first. Busy ones go
// when the load has waited for MaxWait: their requests finish, further ones wait for the next turn.
// Nobody goes in vain.
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

// reason says why the residents that have to go do not go yet.
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
