package job_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// open opens the jobs in a folder.
func open(t testing.TB, dir string, opts job.Options) *job.Manager {
	t.Helper()
	opts.Owner, opts.Dir = "hive-1", dir
	if opts.Trouble == nil {
		opts.Trouble = func(id string, err error) { t.Errorf("job %s: %v", id, err) }
	}
	m, err := job.Open(opts)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, m.Close(context.Background())) })
	return m
}

// copied returns a copy of a folder: the state that a process killed now would leave.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "jobs")
	must.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// onlyFile returns the file of the only job.
func onlyFile(t testing.TB, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	must.NoError(t, err)
	must.Len(t, 1, files)
	return files[0]
}

func sameJob(t *testing.T, want, got core.Job) {
	t.Helper()
	must.True(t, want.CreatedAt.Equal(got.CreatedAt))
	must.True(t, want.EndedAt.Equal(got.EndedAt))
	got.CreatedAt, got.EndedAt = want.CreatedAt, want.EndedAt
	must.Eq(t, want, got)
}

func TestJobsRestored(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	a := open(t, dir, job.Options{})
	ids := []string{}
	for name, fn := range map[string]func(context.Context, *job.Run) (any, error){
		"good": func(_ context.Context, r *job.Run) (any, error) {
			r.Log("one")
			r.Progress(core.Progress{Phase: "p", Done: 1, Total: 2})
			return result{42}, nil
		},
		"bad": func(context.Context, *job.Run) (any, error) {
			return nil, core.Errorf(core.TooLarge, "no room").Hint("Make some.")
		},
	} {
		j := a.Start(core.OpModelDownload, name, fn)
		follow(t, a, j.ID, 0)
		ids = append(ids, j.ID)
	}
	cancelled := a.Start(core.OpWorkerSpawn, "", func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
	_, err := a.Cancel(cancelled.ID)
	must.NoError(t, err)
	follow(t, a, cancelled.ID, 0)
	running := a.Start(core.OpWorkerSpawn, "", func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
	must.NoError(t, a.Close(t.Context())) // ends it properly, with the reason
	ids = append(ids, cancelled.ID, running.ID)

	b := open(t, dir, job.Options{})
	must.Len(t, 4, b.List())
	for _, id := range ids {
		want, err := a.Get(id)
		must.NoError(t, err)
		got, err := b.Get(id)
		must.NoError(t, err)
		sameJob(t, want, got)
		must.Eq(t, briefs(follow(t, a, id, 0)), briefs(follow(t, b, id, 0)))
		must.Eq(t, briefs(follow(t, a, id, 1)), briefs(follow(t, b, id, 1)))
		must.SliceEmpty(t, follow(t, b, id, want.LastSeq))
	}
	j, err := b.Get(running.ID)
	must.NoError(t, err)
	must.Eq(t, core.JobCancelled, j.State)
	must.StrContains(t, j.Error.Message, "shutting down")

	// The same request still returns the same job.
	again := b.Start(core.OpModelDownload, "good", func(context.Context, *job.Run) (any, error) { panic("must not run") })
	must.Eq(t, core.JobSucceeded, again.State)
	must.Eq(t, `{"answer":42}`, string(again.Result))
	// A new job sorts after all others.
	next := b.Start(core.OpModelDownload, "", func(context.Context, *job.Run) (any, error) { return nil, nil })
	must.Eq(t, next.ID, b.List()[0].ID)

	info, err := os.Stat(dir)
	must.NoError(t, err)
	must.Eq(t, 0o700, info.Mode().Perm())
	info, err = os.Stat(filepath.Join(dir, ids[0]+".log"))
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
}

// Events that a reader has seen survive a kill of the agent at any moment, and the numbering
// continues.
func TestJobRunningWhenAgentKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	a := open(t, dir, job.Options{})
	steps := make(chan struct{})
	j := a.Start(core.OpModelDownload, "request", func(ctx context.Context, r *job.Run) (any, error) {
		for i := 0; ; i++ {
			select {
			case <-steps:
				r.Log("line %d", i)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	// The request ID is known as soon as the job is.
	atOnce := open(t, copied(t, dir), job.Options{})
	must.Eq(t, []string{"1 failed unavailable"}, briefs(follow(t, atOnce, j.ID, 0)))

	stop := errors.New("seen enough")
	for n := range int64(5) {
		steps <- struct{}{}
		var seen []core.Event
		must.ErrorIs(t, a.Events(t.Context(), j.ID, 0, func(e core.Event) error {
			if seen = append(seen, e); e.Seq > n {
				return stop
			}
			return nil
		}), stop)
		b := open(t, copied(t, dir), job.Options{})
		got := follow(t, b, j.ID, 0)
		must.Eq(t, append(briefs(seen), fmt.Sprintf("%d failed unavailable", n+2)), briefs(got))
		must.Eq(t, []string{fmt.Sprintf("%d failed unavailable", n+2)}, briefs(follow(t, b, j.ID, n+1)))
		found, err := b.Get(j.ID)
		must.NoError(t, err)
		must.Eq(t, core.JobFailed, found.State)
		must.StrContains(t, found.Error.Message, "restarted")
		must.StrContains(t, found.Error.Hint, "Submit the request again")
		again := b.Start(core.OpModelDownload, "request", func(context.Context, *job.Run) (any, error) { panic("must not run") })
		must.Eq(t, j.ID, again.ID)
	}
}

// A file may end anywhere when the machine loses power, and a disk may return anything.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	a := open(t, dir, job.Options{})
	j := a.Start(core.OpModelDownload, "request", func(_ context.Context, r *job.Run) (any, error) {
		r.Log("one")
		r.Log("two")
		return result{42}, nil
	})
	all := briefs(follow(t, a, j.ID, 0))
	must.Len(t, 4, all)
	must.NoError(t, a.Close(t.Context()))
	whole, err := os.ReadFile(onlyFile(t, dir))
	must.NoError(t, err)
	first := strings.IndexByte(string(whole), '\n') + 1

	// check opens a file and returns what remains of the job, or nothing.
	check := func(t *testing.T, text []byte) []string {
		t.Helper()
		dir := t.TempDir()
		must.NoError(t, os.WriteFile(filepath.Join(dir, j.ID+".log"), text, 0o600))
		troubles := 0
		m := open(t, dir, job.Options{Trouble: func(string, error) { troubles++ }})
		list := m.List()
		if len(list) == 0 {
			must.Eq(t, 1, troubles)
			files, err := os.ReadDir(dir)
			must.NoError(t, err)
			must.SliceEmpty(t, files)
			return nil
		}
		must.Zero(t, troubles)
		got := briefs(follow(t, m, j.ID, 0))
		again := open(t, dir, job.Options{}) // the file is repaired as well
		must.Eq(t, got, briefs(follow(t, again, j.ID, 0)))
		return got
	}
	lost := fmt.Sprintf
	for cut := 0; cut <= len(whole); cut++ {
		got := check(t, whole[:cut])
		lines := strings.Count(string(whole[:cut]), "\n") - 1 // complete events
		switch {
		case cut < first:
			must.SliceEmpty(t, got)
		case lines == len(all):
			must.Eq(t, all, got)
		default:
			must.Eq(t, append(append([]string{}, all[:lines]...), lost("%d failed unavailable", lines+1)), got)
		}
	}
	for i := first; i < len(whole); i += 7 { // one wrong bit
		text := append([]byte{}, whole...)
		text[i] ^= 4
		got := check(t, text)
		must.NotEq(t, 0, len(got))
		must.StrHasSuffix(t, "failed unavailable", got[len(got)-1])
	}
}

// A reader that has seen events lost with the power does not wait forever.
func TestReaderAheadGetsEnd(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	a := open(t, dir, job.Options{})
	j := a.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
		r.Log("one")
		return nil, nil
	})
	follow(t, a, j.ID, 0)
	must.NoError(t, a.Close(t.Context()))
	b := open(t, dir, job.Options{})
	must.Eq(t, []string{"8 succeeded"}, briefs(follow(t, b, j.ID, 7)))
}

func TestFilesAreBounded(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	a := open(t, dir, job.Options{})
	const lines = 6000 // of 1 KiB: three times the size limit of a file
	j := a.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
		for i := range lines {
			r.Log("%d %s", i, strings.Repeat("x", 1<<10))
		}
		return result{1}, nil
	})
	follow(t, a, j.ID, 0)
	must.NoError(t, a.Close(t.Context()))
	info, err := os.Stat(onlyFile(t, dir))
	must.NoError(t, err)
	must.Less(t, 2<<20+2<<20, info.Size())
	must.Eq(t, 0o600, info.Mode(), must.Sprint("a renewed file is as private as the first"))
	b := open(t, dir, job.Options{})
	events := follow(t, b, j.ID, 0)
	for i, e := range events[1:] {
		must.Greater(t, events[i].Seq, e.Seq)
	}
	last := events[len(events)-1]
	must.Eq(t, core.EventEnd, last.Kind)
	want, err := a.Get(j.ID)
	must.NoError(t, err)
	must.Eq(t, want.LastSeq, last.Seq)
	must.Eq(t, core.EventResult, events[len(events)-2].Kind)
}

func TestRetentionOnDisk(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for name, tt := range map[string]struct {
		opts job.Options
		want int // jobs left of 5, each a day apart and at least 10 KB
	}{
		"count": {job.Options{Retain: 3}, 3},
		"age":   {job.Options{MaxAge: 2*day + time.Hour}, 3},
		"bytes": {job.Options{MaxBytes: 25_000}, 2},
		"all":   {job.Options{}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			now := time.Unix(1e9, 0)
			tt.opts.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
			dir := filepath.Join(t.TempDir(), "jobs")
			m := open(t, dir, tt.opts)
			running := m.Start(core.OpModelDownload, "", func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
			var newest core.Job
			for range 5 {
				mu.Lock()
				now = now.Add(day)
				mu.Unlock()
				newest = m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
					for range 2 {
						r.Log("%s", strings.Repeat("x", 5000))
					}
					return nil, nil
				})
				follow(t, m, newest.ID, 0)
			}
			files := func() int {
				entries, err := os.ReadDir(dir)
				must.NoError(t, err)
				return len(entries)
			}
			must.NoError(t, m.Close(t.Context())) // also waits for the removal of files
			must.Len(t, min(tt.want+1, cmpRetain(tt.opts)), m.List())
			_, err := m.Get(newest.ID)
			must.NoError(t, err)
			must.Eq(t, len(m.List()), files())
			again := open(t, dir, tt.opts)
			must.Len(t, files(), again.List())
			_ = running
		})
	}
}

// cmpRetain returns the maximum number of kept jobs: the running one has ended as well.
func cmpRetain(o job.Options) int {
	if o.Retain == 0 {
		return job.DefaultRetain
	}
	return o.Retain
}

// A full disk does not stop an operation: deleting a model must work then.
func TestUnwritableDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "jobs")
	var mu sync.Mutex
	var told []string
	m := open(t, dir, job.Options{Trouble: func(id string, _ error) { mu.Lock(); defer mu.Unlock(); told = append(told, id) }})
	must.NoError(t, os.RemoveAll(dir))
	j := m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
		r.Log("one")
		return result{1}, nil
	})
	must.Eq(t, []string{`1 "one"`, `2 result {"answer":1}`, "3 succeeded"}, briefs(follow(t, m, j.ID, 0)))
	mu.Lock()
	defer mu.Unlock()
	must.Eq(t, []string{j.ID}, told)
}

func TestForeignFilesStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := "01jd0000000000000000000000-other"
	for _, name := range []string{"notes.txt", "x.log", other + ".log", other + ".log.new"} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	must.NoError(t, os.Symlink("/etc/hostname", filepath.Join(dir, "01jd0000000000000000000000-hive-1.log")))
	m := open(t, dir, job.Options{})
	must.SliceEmpty(t, m.List())
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	must.Eq(t, []string{"01jd0000000000000000000000-hive-1.log", "notes.txt", "x.log"}, names)
}
