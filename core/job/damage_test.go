package job_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/job"
)

// An ended job leaves no file open, even if its file grew so long that it was replaced; neither
// does a restored job.
func TestJobsLeaveNoFileOpen(t *testing.T) { // not parallel: the collector would close what leaks
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must.NoError(t, err)
	dir = filepath.Join(dir, "jobs")
	m := open(t, dir, job.Options{})
	j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
		for range 600 {
			r.Log("%s", strings.Repeat("x", 4000))
		}
		return nil, nil
	})
	must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
	must.NoError(t, m.Close(context.Background())) // waits for the writers
	must.Eq(t, 0, len(coretest.OpenBelow(t, dir)))
	again := open(t, dir, job.Options{})
	_, err = again.Get(j.ID)
	must.NoError(t, err)
	must.Eq(t, 0, len(coretest.OpenBelow(t, dir)))
	must.NoError(t, again.Close(context.Background()))
	must.NoError(t, os.WriteFile(onlyFile(t, dir), []byte("damaged\n"), 0o600))
	open(t, dir, job.Options{Trouble: func(string, error) {}})
	must.Eq(t, 0, len(coretest.OpenBelow(t, dir)))
}

// A file that claims to be another job's is not trusted.
func TestJobFileOfAnotherJob(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	m := open(t, dir, job.Options{})
	j := m.Start(core.OpStatus, "", func(context.Context, *job.Run) (any, error) { return nil, nil })
	must.NoError(t, m.Events(t.Context(), j.ID, 0, func(core.Event) error { return nil }))
	must.NoError(t, m.Close(context.Background()))
	file := onlyFile(t, dir)
	other := strings.Replace(file, j.ID[:4], "0000", 1)
	must.NoError(t, os.Rename(file, other))
	var told error
	again := open(t, dir, job.Options{Trouble: func(_ string, err error) { told = err }})
	must.Eq(t, core.Integrity, core.KindOf(told))
	must.SliceEmpty(t, again.List())
	_, err := os.Stat(other)
	must.ErrorIs(t, err, os.ErrNotExist)
}

// C-11: any bit of a job's file is flipped: the job shows what was written, up to some point, or
// nothing.
func TestFlippedBitsInJobFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	m := open(t, dir, job.Options{})
	j := m.Start(core.OpStatus, "", func(_ context.Context, r *job.Run) (any, error) {
		r.Log("one")
		r.Log("two")
		return result{42}, nil
	})
	var want []core.Event
	must.NoError(t, m.Events(t.Context(), j.ID, 0, func(e core.Event) error { want = append(want, e); return nil }))
	must.NoError(t, m.Close(context.Background()))
	file := onlyFile(t, dir)
	data, err := os.ReadFile(file)
	must.NoError(t, err)
	for at := range data {
		there := filepath.Join(t.TempDir(), "jobs")
		must.NoError(t, os.Mkdir(there, 0o700))
		damaged := append([]byte{}, data...)
		damaged[at] ^= 1 << (at % 8)
		must.NoError(t, os.WriteFile(filepath.Join(there, filepath.Base(file)), damaged, 0o600))
		again := open(t, there, job.Options{Trouble: func(string, error) {}})
		var got []core.Event
		if err := again.Events(t.Context(), j.ID, 0, func(e core.Event) error { got = append(got, e); return nil }); err != nil {
			must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(at))
			continue
		}
		for i, e := range got {
			if i == len(got)-1 && e.State == core.JobFailed {
				break
			}
			must.True(t, e.At.Equal(want[i].At), must.Sprint(at))
			e.At = want[i].At
			must.Eq(t, want[i], e, must.Sprint(at))
		}
	}
}
