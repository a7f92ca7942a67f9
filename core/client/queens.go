package client

import (
	"sync"
	"time"
)

const (
	firstCool   = time.Second      // after a queen's first failure
	longestCool = 30 * time.Second // after many failures in a row
)

// health tracks which queens to ask first.
type health struct {
	mu      sync.Mutex // guards below
	current int        // the queen that answered last
	until   []time.Time
	failed  []int // failures in a row
}

func newHealth(n int) *health {
	return &health{until: make([]time.Time, n), failed: make([]int, n)}
}

func (h *health) best() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// order returns all queens in the order in which to ask them: the one that answered last, then the
// others in turn, and at the end those that failed recently.
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

// answered records that a queen did what was asked or explained why not.
func (h *health) answered(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current, h.failed[n], h.until[n] = n, 0, time.Time{}
}

// fails records that a queen should not be asked first for a while.
func (h *health) fails(n int, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until[n] = now.Add(min(firstCool<<min(h.failed[n], 10), longestCool))
	h.failed[n]++
}
