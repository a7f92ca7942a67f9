package worker

import (
	"context"
	"time"
)

// Look calls look at once and then at every interval, and emits each result until ctx ends or emit
// fails. It implements a Backend's Fingerprint, whose interval is at most 30 s.
func Look(ctx context.Context, interval time.Duration, look func(context.Context) Fingerprint, emit func(Fingerprint) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := emit(look(ctx)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
