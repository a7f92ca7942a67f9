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

// runStages starts the stages in order and, when ctx ends or one of them fails, stops them in
// reverse order, each waiting for the one after it: the gateway stops accepting requests before the
// hive stops, the hive says goodbye before the registry stops. It returns the first failure; ending
// because of ctx is not a failure.
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
		// A stage outlives ctx until its turn to stop.
		stageCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{cancel: cancel, done: make(chan struct{})}
		started = append(started, r)
		wg.Go(func() {
			defer close(r.done)
			err := s.run(stageCtx)
			if stageCtx.Err() != nil {
				return // it was asked to stop
			}
			if err == nil {
				err = core.Errorf(core.Internal, "stopped unexpectedly")
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
