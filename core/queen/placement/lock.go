package placement

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// lock waits for the lock of a model and returns its release function. Only models that hives have
// get here, so their number is bounded.
func (s *Starter) lock(ctx context.Context, model string) (unlock func(), err error) {
	s.mu.Lock()
	l, ok := s.locks[model]
	if !ok {
		l = make(chan struct{}, 1)
		s.locks[model] = l
	}
	s.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, core.FromContext(ctx)
	}
}
