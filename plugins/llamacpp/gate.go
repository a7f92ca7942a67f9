package llamacpp

import (
	"context"
	"sync"
)

// gate counts running requests and can be closed to new ones.
type gate struct {
	mu     sync.Mutex // guards below
	inside int
	closed bool
	empty  []chan struct{} // closed when the last one leaves
}

// enter reports whether a request is admitted; it must then call leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 {
		for _, c := range g.empty {
			close(c)
		}
		g.empty = nil
	}
}

// close admits no further requests.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// wait returns when no request is running, or with ctx's error.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	c := make(chan struct{})
	g.empty = append(g.empty, c)
	g.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
