package inference

import (
	"sync"
	"time"
)

const (
	noteEvery = 10 * time.Second // between two log lines about the same thing
	maxNotes  = 1024
)

// notes limits repeated log lines: at most one line per key in ten seconds, with the number of
// lines skipped. The zero value is ready. It is safe for concurrent use.
type notes struct {
	mu sync.Mutex // guards below
	m  map[string]*note
}

type note struct {
	last    time.Time
	skipped int
}

// due reports whether a line about key may be logged now, and how many were skipped since the last
// one.
func (n *notes) due(key string, now time.Time) (skipped int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.m[key]
	if e != nil && now.Sub(e.last) < noteEvery {
		e.skipped++
		return 0, false
	}
	if e == nil {
		if n.m == nil || len(n.m) >= maxNotes {
			n.m = map[string]*note{}
		}
		e = &note{}
		n.m[key] = e
	}
	skipped = e.skipped
	e.last, e.skipped = now, 0
	return skipped, true
}
