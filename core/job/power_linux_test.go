package job_test

import (
	"context"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/job"
)

// The end of a job whose file could not be written for a while is on the disk as well.
func TestPowerLossJobAfterTrouble(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		signal.Ignore(syscall.SIGXFSZ) // the scenario has this process for itself
		var free syscall.Rlimit
		must.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &free))
		limit := func(bytes uint64) {
			must.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: free.Max}))
		}
		trouble := make(chan error, 10)
		m := open(t, filepath.Join(dir, "jobs"), job.Options{Trouble: func(_ string, err error) { trouble <- err }})
		j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
			limit(1000)
			r.Log("%s", strings.Repeat("x", 4000))
			must.Error(t, <-trouble)
			limit(free.Cur)
			return result{42}, nil
		})
		must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
		ack("a job that ended")
	}})
}
