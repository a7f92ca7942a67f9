package agent

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A starting agent waits for a stopping one, and returns an error at once for a running one.
func TestAwaitDataDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := lockDataDir(dir)
	must.NoError(t, err)
	must.NoError(t, writeRecord(dir, Record{PID: 1}))
	_, err = awaitDataDir(t.Context(), dir)
	must.Eq(t, core.InUse, core.KindOf(err))

	must.NoError(t, writeRecord(dir, Record{PID: 1, Stopping: true}))
	got := make(chan error, 1)
	go func() {
		unlock, err := awaitDataDir(t.Context(), dir)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(3 * stopPoll):
	}
	unlock()
	must.NoError(t, <-got)

	unlock, err = lockDataDir(dir)
	must.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = awaitDataDir(ctx, dir)
	must.Eq(t, core.Cancelled, core.KindOf(err))
}
