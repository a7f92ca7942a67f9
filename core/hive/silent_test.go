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

// A worker that hangs is reported as silent, and killed after the worker timeout.
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
	coretest.Eventually(t, patience, func() error { // the queens are notified first
		if left := entries(t, filepath.Join(r.dir, "hive", "workers")); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	r.nothingLeft()
}

// A silent worker is killed after the worker timeout, one that uses its processor after ten
// timeouts.
func TestVigilHangs(t *testing.T) {
	t.Parallel()
	const timeout = time.Minute
	for name, tt := range map[string]struct {
		share float64       // of one core
		after time.Duration // until it is killed
	}{
		"idle":                    {0, timeout},
		"less than a worker uses": {busyShare / 2, timeout},
		"at work":                 {1, deafFactor * timeout},
		"starved at work":         {2 * busyShare, deafFactor * timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var v vigil
			start := time.Now()
			for silence := silentAfter; ; silence += time.Second {
				cpu := time.Duration(tt.share * float64(silence))
				if v.hangs(silence, cpu, start.Add(silence), timeout) {
					must.Eq(t, tt.after, silence)
					return
				}
				must.Less(t, 20*timeout, silence)
			}
		})
	}

	// It worked once and now hangs.
	var v vigil
	start := time.Now()
	must.False(t, v.hangs(timeout, time.Second, start, timeout))
	must.False(t, v.hangs(timeout+time.Second, 2*time.Second, start.Add(time.Second), timeout))
	must.True(t, v.hangs(timeout+2*time.Second, 2*time.Second, start.Add(2*time.Second), timeout))
}
