package client

import (
	"sync"
	"time"
)

const (
	firstCool   = time.Second      // after the first failure of a queen
	longestCool = 30 * time.Second // after many in a row
)

// health is which queens are worth asking first.
type health struct {
	mu      sync.Mutex // guards below
	current int        // that answered last
	until   []time.Time
	failed  []int // in a row
}

func newHealth(n int) *health {
	return &health{until: make([]time.Time, n), failed: make([]int, n)}
}

func (h *health) best() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// order is all queens in the order to ask them: the one that answered last, the others in turn, and
// those that failed lately in the end.
func (h *health) order(now time.Time) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	order := make([]int, 0, len(h.until))
	for _, cooling := range []bool{false, true} {
		for i := range h.until {
			if n := (h.current + i) % len(h.until); now.Before(h.until[n]) == cooling {
				order = append(order, n)
			}
		}
	}
	return order
}

// answered notes that a queen did what was asked, or said why not.
func (h *health) answered(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current, h.failed[n], h.until[n] = n, 0, time.Time{}
}

// fails notes that a queen is not worth asking first for a while.
func (h *health) fails(n int, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until[n] = now.Add(min(firstCool<<min(h.failed[n], 10), longestCool))
	h.failed[n]++
}
