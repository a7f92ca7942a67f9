package hive

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// A worker that hangs is told of as silent, and killed after the worker timeout.
func TestHungWorkerIsKilled(t *testing.T) {
	t.Parallel()
	r := run(t, setup{change: func(o *Options) { o.WorkerTimeout = 5 * time.Second }})
	spawned := r.spawn("")
	must.NoError(t, syscall.Kill(spawned.PID, syscall.SIGSTOP))
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || time.Duration(list[0].Load.Silence) < silentAfter {
			return fmt.Errorf("not silent: %+v", list)
		}
		return nil
	})
	r.told(patience, count(0))
	must.Len(t, 0, r.processes())
	coretest.Eventually(t, patience, func() error { // the queens are told first
		if left := entries(t, filepath.Join(r.dir, "hive", "workers")); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	r.nothingLeft()
}
