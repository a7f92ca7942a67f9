package admission

import "time"

// windowSlots is the number of slots of a window, which expire one by one.
const windowSlots = 60

// Window counts what happened within a rolling period. It never counts less than what happened in
// that period, and counts at most a sixtieth of the period more, from before it.
type Window struct {
	slot  time.Duration
	at    int64                  // number of the newest slot since the epoch
	slots [windowSlots + 1]int64 // ring, indexed by slot number
	sum   int64                  // sum of all slots
}

// NewWindow returns an empty window over the given period, at least a second.
func NewWindow(per time.Duration) *Window { return &Window{slot: per / windowSlots} }

// Slot is the count of one slot of a Window.
type Slot struct{ At, Count int64 } // At is the slot's number since the epoch

// number returns the number of the slot that t falls in.
func (w *Window) number(t time.Time) int64 { return t.UnixNano() / int64(w.slot) }

// advance drops expired slots. A clock that goes backwards changes nothing.
func (w *Window) advance(now time.Time) {
	at := w.number(now)
	for n := int64(len(w.slots)); w.at < at; w.at++ {
		if at-w.at > n { // every slot has expired
			w.at = at - n
		}
		i := (w.at + 1) % n
		w.sum -= w.slots[i]
		w.slots[i] = 0
	}
}

// Add counts n at a time that is now or earlier. Negative numbers correct what was counted then. A
// time before the window changes nothing.
func (w *Window) Add(n int64, at, now time.Time) {
	w.advance(now)
	w.add(min(w.number(at), w.at), n)
}

func (w *Window) add(number, n int64) {
	size := int64(len(w.slots))
	if number <= w.at-size || number > w.at || number < 0 {
		return
	}
	s := &w.slots[number%size]
	n = max(n, -*s) // a slot never falls below zero
	*s += n
	w.sum += n
}

// Sum returns the total count of the window.
func (w *Window) Sum(now time.Time) int64 {
	w.advance(now)
	return w.sum
}

// Until returns how long it takes for the window's sum to fall to most; 0: it already has.
func (w *Window) Until(most int64, now time.Time) time.Duration {
	w.advance(now)
	sum, size := w.sum, int64(len(w.slots))
	for number := max(0, w.at-size+1); sum > most && number <= w.at; number++ {
		if sum -= w.slots[number%size]; sum <= most {
			return time.Unix(0, (number+size)*int64(w.slot)).Sub(now)
		}
	}
	return 0
}

// Slots returns the slots of the window, oldest first.
func (w *Window) Slots(now time.Time) []Slot {
	w.advance(now)
	var out []Slot
	size := int64(len(w.slots))
	for number := max(0, w.at-size+1); number <= w.at; number++ {
		if n := w.slots[number%size]; n != 0 {
			out = append(out, Slot{number, n})
		}
	}
	return out
}

// Merge adds the slots of another window with the same period.
func (w *Window) Merge(slots []Slot, now time.Time) {
	w.advance(now)
	for _, s := range slots[:min(len(slots), len(w.slots))] {
		w.add(min(s.At, w.at), max(0, s.Count))
	}
}
