package job_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/job"
)

// C-08: the end of a job that a reader has seen is on disk, even if its file grew so long that it
// was renamed.
func TestPowerLossJob(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		m := open(t, filepath.Join(dir, "jobs"), job.Options{})
		for _, lines := range []int{1, 600} {
			j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
				for range lines {
					r.Log("%s", strings.Repeat("x", 4000))
				}
				return result{42}, nil
			})
			must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
			ack("a job that ended")
		}
	}})
}
