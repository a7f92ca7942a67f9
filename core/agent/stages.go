package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// stage is one part of the process that runs until its context ends.
type stage struct {
	name string
	run  func(ctx context.Context) error
}

// runStages starts the stages in order and, when ctx ends or one of them fails, stops them in the
// opposite order, each waiting for the one after it: the gateway takes no more requests before the
// hive goes, the hive says goodbye before the registry goes. It returns the first failure; ending
// with ctx is none.
func runStages(ctx context.Context, stages []stage) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	type running struct {
		cancel context.CancelFunc
		done   chan struct{}
	}
	var wg sync.WaitGroup
	started := make([]running, 0, len(stages))
	for _, s := range stages {
		// A stage outlives ctx until its turn to stop has come.
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{cancel: cancel, done: make(chan struct{})}
		started = append(started, r)
		wg.Go(func() {
			defer close(r.done)
			err := s.run(stageCtx)
			if stageCtx.Err() != nil {
				return // it was told to stop
			}
			if err == nil {
				err = core.Errorf(core.Internal, "ended unasked")
			}
			fail(fmt.Errorf("%s: %w", s.name, err))
		})
	}
	<-ctx.Done()
	for _, r := range slices.Backward(started) {
		r.cancel()
		<-r.done
	}
	wg.Wait()
	if cause := context.Cause(ctx); core.KindOf(cause) != core.Cancelled {
		return cause
	}
	return nil
}
