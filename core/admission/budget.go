package admission

import "time"

const (
	budgetSlot  = 3 * time.Second
	budgetSlots = 10 // 30 seconds in all
)

// Budget bounds retries to a share of the recent requests, so that a failure does not multiply the
// load. A reserve allows a few retries when requests are few.
type Budget struct {
	ratio   float64
	reserve int
	slots   [budgetSlots]struct {
		at                int64 // number of the slot since the epoch
		requests, retries int
	}
}

// NewBudget returns a Budget that allows reserve retries plus ratio retries per request, both
// within 30 seconds.
func NewBudget(ratio float64, reserve int) *Budget { return &Budget{ratio: ratio, reserve: reserve} }

// Request counts a request.
func (b *Budget) Request(now time.Time) { b.slots[b.slot(now)].requests++ }

// Retry reports whether a request may be retried, and counts the retry if so.
func (b *Budget) Retry(now time.Time) bool {
	i := b.slot(now)
	requests, retries := 0, 0
	for _, s := range b.slots {
		if age := b.slots[i].at - s.at; age >= 0 && age < budgetSlots {
			requests, retries = requests+s.requests, retries+s.retries
		}
	}
	if float64(retries+1) > float64(b.reserve)+b.ratio*float64(requests) {
		return false
	}
	b.slots[i].retries++
	return true
}

// slot returns the index of the current slot, cleared if it held an earlier time.
func (b *Budget) slot(now time.Time) int {
	at := now.UnixNano() / int64(budgetSlot)
	s := &b.slots[at%budgetSlots]
	if s.at != at {
		s.at, s.requests, s.retries = at, 0, 0
	}
	return int(at % budgetSlots)
}
