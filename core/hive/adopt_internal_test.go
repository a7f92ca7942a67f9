package hive

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// A worker of an earlier agent that makes progress is waited for, however busy the machine is; one
// that hangs is given less time.
func TestIdle(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		used  func(since time.Duration) time.Duration
		after time.Duration // at least; it returns within two checks of this
	}{
		"it hangs":                   {func(time.Duration) time.Duration { return time.Minute }, adoptSilence},
		"it works slowly":            {func(since time.Duration) time.Duration { return since.Truncate(8*time.Second) / 100 }, adoptTimeout},
		"it works, then it does not": {func(since time.Duration) time.Duration { return min(since, 9*time.Second) }, 9*time.Second + adoptSilence},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				must.Error(t, idle(t.Context(), func() time.Duration { return tc.used(time.Since(began)) }))
				must.GreaterEq(t, tc.after, time.Since(began))
				must.LessEq(t, tc.after+2*adoptLook, time.Since(began))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.NoError(t, idle(ctx, func() time.Duration { return 0 })) // it has answered
		must.Greater(t, 2*time.Second, adoptSilence)
	})
}
