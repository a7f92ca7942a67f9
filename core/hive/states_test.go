package hive

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// kept returns the workers' states that the hive keeps, by contents.
func (r *rig) kept() []string {
	r.t.Helper()
	out := []string{}
	for _, name := range entries(r.t, filepath.Join(r.dir, "states")) {
		b, err := os.ReadFile(filepath.Join(r.dir, "states", name))
		must.NoError(r.t, err)
		out = append(out, string(b))
	}
	return out
}

const keepingFake = "worker \"fake\" {\n  config {\n    keep_state = true\n  }\n}\n"

// The state that a worker kept when it was unloaded is handed to the next one with the model.
// Retiring a worker for good removes it, and so does deleting the model.
func TestStateSurvivesASwap(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: keepingFake})
	end := func(w core.SpawnResult, keep bool) {
		result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID, KeepState: keep})
	}
	end(r.spawn("fake"), true)
	must.Eq(t, []string{"x"}, r.kept())
	info, err := os.Stat(filepath.Join(r.dir, "states"))
	must.NoError(t, err)
	must.Eq(t, 0o700, info.Mode().Perm())

	w := r.spawn("fake")
	must.Eq(t, []string{}, r.kept()) // the next worker has it
	end(w, true)
	must.Eq(t, []string{"xx"}, r.kept())

	first, second := r.spawn("fake"), r.spawn("fake")
	end(first, true)
	must.Eq(t, []string{"xxx"}, r.kept())
	end(second, false)
	must.Eq(t, []string{}, r.kept())

	end(r.spawn("fake"), true)
	must.Len(t, 1, r.kept())
	result1[core.ModelDeleteResult](r, core.Request{Operation: core.OpModelDelete, Model: "tiny"})
	must.Eq(t, []string{}, r.kept())
}

// A worker that dies does not affect the state that another one kept, and a symlink in its place is
// not followed.
func TestStateOfABrokenWorker(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: keepingFake})
	w := r.spawn("fake")
	file := r.hive.states.disk.workerState(w.Worker.ID)
	outside := filepath.Join(t.TempDir(), "outside")
	must.NoError(t, os.WriteFile(outside, []byte("outside"), 0o600))
	must.NoError(t, os.Symlink(outside, file+".link"))
	must.NoError(t, os.Rename(file+".link", file))
	x, ok := r.hive.roster.worker(w.Worker.ID)
	must.True(t, ok)
	x.mu.Lock()
	x.asked, x.keep = true, true
	x.mu.Unlock()
	must.NoError(t, x.proc.Kill())
	<-x.gone
	must.Eq(t, []string{}, r.kept())
	must.FileExists(t, outside)
}

// The kept files are bounded in number and age.
func TestStatesAreBounded(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	states := filepath.Join(dir, "states")
	must.NoError(t, os.MkdirAll(states, 0o700))
	put := func(name string, age time.Duration) {
		must.NoError(t, os.WriteFile(filepath.Join(states, name), []byte(name), 0o600))
		must.NoError(t, os.Chtimes(filepath.Join(states, name), now.Add(-age), now.Add(-age)))
	}
	for i := range maxStates + 3 {
		put(string(rune('A'+i)), time.Duration(i)*time.Hour)
	}
	r := run(t, setup{dir: dir, change: func(o *Options) { o.Now = func() time.Time { return now } }})
	must.Len(t, maxStates, r.kept())
	must.FileNotExists(t, filepath.Join(states, string(rune('A'+maxStates))))
	put("old", maxStateAge+time.Second)
	put("young", maxStateAge-time.Second)
	must.NoError(t, os.Remove(filepath.Join(states, "A")))
	must.NoError(t, os.Remove(filepath.Join(states, "B")))
	r.hive.states.bound()
	must.FileNotExists(t, filepath.Join(states, "old"))
	must.FileExists(t, filepath.Join(states, "young"))
}
