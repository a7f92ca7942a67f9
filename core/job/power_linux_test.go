package job_test

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/job"
)

// limited makes writes to this process's files fail beyond so many bytes, as on a full disk; a
// negative number lifts the limit. The process must run only this test.
func limited(t *testing.T) (limit func(bytes int64)) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var free syscall.Rlimit
	must.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &free))
	return func(bytes int64) {
		now := free
		if bytes >= 0 {
			now.Cur = uint64(bytes)
		}
		must.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &now))
	}
}

// The end of a job whose file could not be written for a while is also on disk.
func TestPowerLossJobAfterTrouble(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		limit := limited(t)
		trouble := make(chan error, 10)
		m := open(t, filepath.Join(dir, "jobs"), job.Options{Trouble: func(_ string, err error) { trouble <- err }})
		j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
			limit(1000)
			r.Log("%s", strings.Repeat("x", 4000))
			must.Error(t, <-trouble)
			limit(-1)
			return result{42}, nil
		})
		must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
		ack("a job that ended")
	}})
}

// A full disk only costs a job its file, at its beginning or at its end: the job ends as usual, and
// neither a partial file nor an open one remains.
func TestFullDiskLeavesNothing(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		debug.SetGCPercent(-1) // the collector would close what leaks
		limit := limited(t)
		dir = filepath.Join(dir, "jobs")
		trouble := make(chan error, 10)
		m := open(t, dir, job.Options{Trouble: func(_ string, err error) { trouble <- err }})
		for name, fill := range map[string]func(r *job.Run){
			"at its beginning": nil,
			"at its end": func(r *job.Run) {
				limit(1000)
				r.Log("%s", strings.Repeat("x", 4000))
			},
		} {
			if fill == nil {
				limit(0)
			}
			j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
				if fill != nil {
					fill(r)
				}
				must.Error(t, <-trouble)
				return result{42}, nil
			})
			must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
			limit(-1)
			got, err := m.Get(j.ID)
			must.NoError(t, err)
			must.Eq(t, core.JobSucceeded, got.State, must.Sprint(name))
		}
		must.NoError(t, m.Close(t.Context()))
		must.SliceEmpty(t, coretest.OpenBelow(t, dir))
		entries, err := os.ReadDir(dir)
		must.NoError(t, err)
		must.SliceEmpty(t, entries)
		ack("nothing")
	}})
}
