package hive

import (
	"context"
	"fmt"

	"github.com/rbee-project/rbee/core"
)

// life tracks a hive's Run: the tasks it runs for others, and its phase.
type life struct {
	tasks   chan func(ctx context.Context) // run by Run, which waits for them
	adopted chan struct{}                  // closed when the workers of an earlier agent are adopted
	ending  chan struct{}                  // closed when Run begins to end
	over    chan struct{}                  // closed when Run accepts no more tasks
}

func newLife() *life {
	return &life{tasks: make(chan func(context.Context)), adopted: make(chan struct{}), ending: make(chan struct{}), over: make(chan struct{})}
}

// task makes Run run f and wait for it. Errors: Unavailable when Run ends.
func (l *life) task(f func(ctx context.Context)) error {
	select {
	case l.tasks <- f:
		return nil
	case <-l.over:
		return core.Errorf(core.Unavailable, "the hive is shutting down")
	}
}

// settled waits until the workers of an earlier agent are adopted. Errors: Unavailable, ctx's.
func (l *life) settled(ctx context.Context) error {
	select {
	case <-l.adopted:
		return nil
	case <-l.over:
		return core.Errorf(core.Unavailable, "the hive is shutting down")
	case <-ctx.Done():
		return fmt.Errorf("wait for the hive: %w", core.FromContext(ctx))
	}
}
