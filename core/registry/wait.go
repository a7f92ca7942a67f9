package registry

import (
	"context"
	"reflect"
	"time"

	"github.com/rbee-project/rbee/core"
)

// WatchSet collects the channels of queries of a View: each is closed when the result may have
// changed. It has the structure of memdb's WatchSet, so that callers need not know the database.
type WatchSet = map[<-chan struct{}]struct{}

// Wait returns nil at the next change, or the error of ctx.
func Wait(ctx context.Context, ws WatchSet) error {
	cases := make([]reflect.SelectCase, 1, len(ws)+1)
	cases[0] = reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}
	for ch := range ws {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)})
	}
	if chosen, _, _ := reflect.Select(cases); chosen == 0 {
		return core.FromContext(ctx)
	}
	return nil
}

// WaitUntil is Wait with a deadline.
func WaitUntil(ctx context.Context, ws WatchSet, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return Wait(ctx, ws)
}
