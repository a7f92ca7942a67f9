package admission

import "time"

// windowSlots is how many parts a window is cut into: what it holds is let go part by part.
const windowSlots = 60

// Window counts what happened within a rolling time. It never counts less than there was in any
// such time, and what happened up to a sixtieth of the time before it as well.
type Window struct {
	slot  time.Duration
	at    int64                  // number of the newest slot since the epoch
	slots [windowSlots + 1]int64 // by number, around
	sum   int64                  // of all slots
}

// NewWindow returns an empty window of some time, a second or more.
func NewWindow(per time.Duration) *Window { return &Window{slot: per / windowSlots} }

// Slot is what a window holds of one part of its time.
type Slot struct{ At, Count int64 } // At is the number of the part since the epoch

// number returns the number of the slot of a time.
func (w *Window) number(t time.Time) int64 { return t.UnixNano() / int64(w.slot) }

// advance lets go what is too old. A clock that goes back changes nothing.
func (w *Window) advance(now time.Time) {
	at := w.number(now)
	for n := int64(len(w.slots)); w.at < at; w.at++ {
		if at-w.at > n { // all of it is old
			w.at = at - n
		}
		i := (w.at + 1) % n
		w.sum -= w.slots[i]
		w.slots[i] = 0
	}
}

// Add counts n at a time in the window, now or before. Negative numbers correct what was counted
// then; before the window they change nothing.
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
	n = max(n, -*s) // nothing is corrected below zero
	*s += n
	w.sum += n
}

// Sum returns what the window holds.
func (w *Window) Sum(now time.Time) int64 {
	w.advance(now)
	return w.sum
}

// Until returns how long it takes until the window holds at most most; 0: it does.
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

// Slots returns what the window holds, part by part, the oldest first.
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

// Merge adds what another window of the same time held.
func (w *Window) Merge(slots []Slot, now time.Time) {
	w.advance(now)
	for _, s := range slots[:min(len(slots), len(w.slots))] {
		w.add(min(s.At, w.at), max(0, s.Count))
	}
}
