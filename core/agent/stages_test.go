package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"
)

// recorder creates stages that record when they end.
type recorder struct {
	mu    sync.Mutex // guards below
	ended []string
}

func (r *recorder) stage(name string) stage {
	return stage{name, func(ctx context.Context) error {
		<-ctx.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, name)
		return ctx.Err()
	}}
}

func TestStagesStopInReverseOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- runStages(ctx, []stage{r.stage("registry"), r.stage("hive"), r.stage("gateway")}) }()
		synctest.Wait()
		cancel()
		must.NoError(t, <-done)
		must.Eq(t, []string{"gateway", "hive", "registry"}, r.ended)
	})
}

func TestStagesFailTogether(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"an error": errors.New("disk on fire"), "ending unasked": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r recorder
			broken := stage{"hive", func(context.Context) error { return err }}
			got := runStages(t.Context(), []stage{r.stage("registry"), broken, r.stage("gateway")})
			must.ErrorContains(t, got, "hive: ")
			if err != nil {
				must.ErrorIs(t, got, err)
			}
			must.True(t, slices.Equal(r.ended, []string{"gateway", "registry"}))
		})
	}
}
