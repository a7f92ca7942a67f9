package job_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// Prompts to a model and its answers are never on disk, and do not appear in lists of jobs.
func TestPrivateJobsAreInMemoryOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	m := open(t, dir, job.Options{})
	j := m.Start(core.OpInfer, "request", func(_ context.Context, r *job.Run) (any, error) {
		r.Progress(core.Progress{Phase: "generate", Done: 1})
		return core.InferResult{Text: "a secret"}, nil
	})
	must.Len(t, 3, follow(t, m, j.ID, 0))
	got, err := m.Get(j.ID)
	must.NoError(t, err)
	must.StrContains(t, string(got.Result), "a secret")
	must.Len(t, 1, m.List())
	must.Eq(t, "", string(m.List()[0].Result))
	must.NoError(t, m.Close(t.Context()))
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, entries)
}
