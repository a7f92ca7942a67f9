package hive

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// busyHost is a plugin host whose executables are held open for writing for a while.
type busyHost struct {
	pluginHost
	until time.Time
	tries int
}

func (b *busyHost) LaunchWorker(context.Context, pluginhost.WorkerLaunch) (workerProcess, error) {
	b.tries++
	if time.Now().Before(b.until) {
		return nil, core.Errorf(core.Unavailable, "launch: fork/exec: %w", syscall.ETXTBSY)
	}
	return nil, fmt.Errorf("reached")
}

func TestBusyExecutableIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &busyHost{until: time.Now().Add(100 * time.Millisecond)}
		ts := &typeSet{plugins: b, log: hclog.NewNullLogger()}
		_, err := ts.launch(t.Context(), pluginhost.WorkerLaunch{})
		must.ErrorContains(t, err, "reached")
		must.Eq(t, 6, b.tries)

		b.until = time.Now().Add(time.Hour)
		_, err = ts.launch(t.Context(), pluginhost.WorkerLaunch{})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		_, err = ts.launch(ctx, pluginhost.WorkerLaunch{})
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
	})
}
