package pluginhost_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func TestWorkerLife(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, `tokens = 3`)
	info := w.Info()
	must.Eq(t, "fake", info.Name)
	must.Eq(t, sdk.KindWorker, info.Kind)
	f, err := w.FingerprintOnce(t.Context())
	must.NoError(t, err)
	must.Eq(t, "fake:0", f.Devices[0].ID)
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateIdle, st.State)

	var last worker.Progress
	must.NoError(t, w.Start(t.Context(), startSpec(t), func(p worker.Progress) error {
		must.GreaterEq(t, last.Done, p.Done)
		last = p
		return nil
	}))
	must.Eq(t, last.Total, last.Done)
	answer, err := ask(t.Context(), w, "hello")
	must.NoError(t, err)
	must.StrContains(t, answer, "token0 token1 token2")
	st, err = w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateReady, st.State)
	must.Eq(t, "w1", st.WorkerID)
	must.Eq(t, w.Attachment().Nonce, st.Nonce)

	// A second Start is refused.
	must.Eq(t, core.Conflict, core.KindOf(w.Start(t.Context(), startSpec(t), nil)))

	forced, err := w.Stop(t.Context(), time.Second)
	must.NoError(t, err)
	must.False(t, forced)
	<-w.Done()
	must.Eq(t, "exit code 0", w.Exit())
	_, err = os.Stat(w.DataSocket())
	must.ErrorIs(t, err, fs.ErrNotExist)
	forced, err = w.Stop(t.Context(), time.Second) // idempotent
	must.NoError(t, err)
	must.False(t, forced)
	must.NoError(t, w.Kill())
	_, err = w.Status(t.Context())
	must.Eq(t, core.WorkerLost, core.KindOf(err))

	log, err := os.ReadFile(w.Attachment().LogFile)
	must.NoError(t, err)
	must.StrContains(t, string(log), `"@message":"model loaded"`)
	must.SliceContainsFunc(t, w.Tail(), "model loaded", func(line, want string) bool { return strings.HasPrefix(line, want) })
}

func TestSocketsAndLogArePrivate(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "")
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	a := w.Attachment()
	for path, want := range map[string]fs.FileMode{a.RunDir: 0o700, a.DataSocket: 0o600, a.LogFile: 0o600} {
		info, err := os.Lstat(path)
		must.NoError(t, err)
		must.Eq(t, want, info.Mode().Perm(), must.Sprintf("%s", path))
	}
	must.Eq(t, a.RunDir, filepath.Dir(a.Address))
	entries, err := os.ReadDir(a.RunDir)
	must.NoError(t, err)
	must.Len(t, 2, entries) // the two sockets and no folder of go-plugin
}

func TestRunFolderMustBePrivateAndShort(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, mode := range []fs.FileMode{0o755, 0o740, 0o720, 0o710, 0o704, 0o702, 0o701} {
		open := filepath.Join(shortDir(t), "open")
		must.NoError(t, os.Mkdir(open, 0o700))
		must.NoError(t, os.Chmod(open, mode))
		_, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: fakeSpec(t, h, ""), RunDir: open})
		must.Eq(t, core.Forbidden, core.KindOf(err), must.Sprint(mode))
	}
	long := filepath.Join(shortDir(t), strings.Repeat("x", 90))
	_, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: fakeSpec(t, h, ""), RunDir: long})
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "data_dir")
}

func TestFailedStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, `fail_start = "the weights are damp"`)
	err := w.Start(t.Context(), startSpec(t), nil)
	must.Eq(t, core.Internal, core.KindOf(err))
	must.StrContains(t, err.Error(), "the weights are damp")
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateFailed, st.State)
	must.StrContains(t, st.Problem, "damp")

	w = launched(t, h, "")
	spec := startSpec(t)
	spec.Device = "fake:9"
	err = w.Start(t.Context(), spec, nil)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "fake:0")

	w = launched(t, h, "")
	spec = startSpec(t)
	spec.Slots = 0
	must.Eq(t, core.Invalid, core.KindOf(w.Start(t.Context(), spec, nil)))

	// A start that hangs ends with its context, and one whose progress fails with that error.
	w = launched(t, h, `hang = ["start"]`)
	boom := fmt.Errorf("boom")
	must.ErrorIs(t, w.Start(t.Context(), startSpec(t), func(worker.Progress) error { return boom }), boom)
}

func TestLeftoversDieWithTheWorker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for name, how := range map[string]func(*pluginhost.Worker){
		"killed":         func(w *pluginhost.Worker) { must.NoError(t, w.Kill()) },
		"stopped":        func(w *pluginhost.Worker) { _, _ = w.Stop(t.Context(), 0) },
		"died by itself": func(w *pluginhost.Worker) { kill9(t, w.PID()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := launched(t, h, "child = true")
			must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
			child := childOf(t, w.PID())
			how(w)
			<-w.Done()
			gone(t, w.PID())
			gone(t, child)
		})
	}
}

// FAULTS C-32: children, double forks and processes that left its session end with the worker.
func TestEscapedChildDiesWithTheWorker(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	h := newHost(t, func(o *pluginhost.Options) {
		o.Environ = func() []string { return append(os.Environ(), "PROBE=escape:"+pidFile) }
	})
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: probeSpec(t, h), WorkerID: "w", Nonce: "n-" + filepath.Base(filepath.Dir(pidFile)) + t.Name()})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	text, err := os.ReadFile(pidFile)
	must.NoError(t, err)
	var child int
	_, err = fmt.Sscan(string(text), &child)
	must.NoError(t, err)
	must.NoError(t, w.Kill())
	<-w.Done()
	gone(t, child)
}

func TestReattach(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "")
	_, err := h.Reattach(t.Context(), w.Attachment())
	must.Eq(t, core.Conflict, core.KindOf(err)) // not started: it does not know its id
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	text, err := json.Marshal(w.Attachment())
	must.NoError(t, err)
	must.NoError(t, w.Close())
	must.NoError(t, w.Close())

	var a pluginhost.Attachment
	must.NoError(t, json.Unmarshal(text, &a))
	other := newHost(t)
	again, err := other.Reattach(t.Context(), a)
	must.NoError(t, err)
	must.Eq(t, w.PID(), again.PID())
	must.Eq(t, "fake", again.Info().Name)
	_, err = ask(t.Context(), again, "still there?")
	must.NoError(t, err)

	for name, tc := range map[string]struct {
		change func(*pluginhost.Attachment)
		want   core.Kind
	}{
		"other nonce":      {func(a *pluginhost.Attachment) { a.Nonce = "x" }, core.Conflict},
		"other id":         {func(a *pluginhost.Attachment) { a.WorkerID = "x" }, core.Conflict},
		"other start time": {func(a *pluginhost.Attachment) { a.Process.Start++ }, core.NotFound},
		"other boot":       {func(a *pluginhost.Attachment) { a.Process.BootID = "x" }, core.NotFound},
		"other process":    {func(a *pluginhost.Attachment) { a.Process.PID = os.Getpid() }, core.NotFound},
		"other executable": {func(a *pluginhost.Attachment) { a.Runs = "sha256:00" }, core.NotFound},
		"other protocol":   {func(a *pluginhost.Attachment) { a.Protocol = 2 }, core.Unsupported},
		"other socket":     {func(a *pluginhost.Attachment) { a.Address += "x" }, core.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			a := a
			tc.change(&a)
			_, err := other.Reattach(t.Context(), a)
			must.Eq(t, tc.want, core.KindOf(err), must.Sprintf("%v", err))
			if tc.want == core.NotFound {
				a.Nonce = "nobody's" // a process with the nonce in its environment belongs to the worker, whatever its identity
				killed, _ := other.EndAttachment(t.Context(), a)
				must.False(t, killed)
			}
			_, err = again.Status(t.Context()) // the worker is unharmed
			must.NoError(t, err)
		})
	}

	began := time.Now()
	forced, err := again.Stop(t.Context(), time.Second)
	must.NoError(t, err)
	must.False(t, forced)
	<-again.Done()
	must.Less(t, 3*time.Second, time.Since(began))
	_, err = other.Reattach(t.Context(), a)
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestReattachedWorkerDoneIsFast(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "")
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	again, err := h.Reattach(t.Context(), w.Attachment())
	must.NoError(t, err)
	began := time.Now()
	must.NoError(t, again.Kill())
	<-again.Done()
	must.Less(t, 200*time.Millisecond, time.Since(began))
	must.NoError(t, again.Close())
}

func TestEndAttachment(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, `hang = ["status"]`)
	a := w.Attachment()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // the caller's patience counts
	defer cancel()
	_, err := h.Reattach(ctx, a)
	must.Eq(t, core.Unavailable, core.KindOf(err)) // it hangs
	killed, err := h.EndAttachment(t.Context(), a)
	must.NoError(t, err)
	must.True(t, killed)
	<-w.Done()
	must.Eq(t, "signal killed", w.Exit())
	killed, err = h.EndAttachment(t.Context(), a)
	must.NoError(t, err)
	must.False(t, killed)
}

func TestStopHungWorkerForced(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, `hang = ["stop"]`)
	began := time.Now()
	forced, err := w.Stop(t.Context(), 0)
	must.NoError(t, err)
	must.True(t, forced)
	must.Less(t, 12*time.Second, time.Since(began))
	must.Eq(t, "signal killed", w.Exit())
}

func TestCrash(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, `crash_after_tokens = 2`)
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	_, err := ask(t.Context(), w, "one two three four")
	must.Error(t, err)
	<-w.Done()
	must.Eq(t, "exit code 3", w.Exit())
}

// Everything a plugin prints goes to its log, and more than a pipe holds does not block it.
func TestPrintingDoesNotStopAWorker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "print = true\ntokens = 3000")
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	_, err := ask(t.Context(), w, "x")
	must.NoError(t, err)
	log, err := os.ReadFile(w.Attachment().LogFile)
	must.NoError(t, err)
	must.Eq(t, 3000, strings.Count(string(log), "printed to standard output\n"))
	must.Eq(t, 3000, strings.Count(string(log), "printed to standard error\n"))
}

// The log of a worker may be truncated while the worker runs, to bound it.
func TestLogMayBeTruncatedUnderAWorker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "print = true\ntokens = 3", func(l *pluginhost.WorkerLaunch) {
		must.NoError(t, os.WriteFile(l.LogFile, []byte(strings.Repeat("from before the launch\n", 1000)), 0o600))
	})
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	must.NoError(t, os.Truncate(w.Attachment().LogFile, 0))
	_, err := ask(t.Context(), w, "x")
	must.NoError(t, err)
	log, err := os.ReadFile(w.Attachment().LogFile)
	must.NoError(t, err)
	must.StrNotContains(t, string(log), "\x00")
	must.Eq(t, 3, strings.Count(string(log), "printed to standard error\n"))
	must.SliceContains(t, w.Tail(), "printed to standard error")
}

func TestTetheredProcessEndsWhenLetGo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "", func(l *pluginhost.WorkerLaunch) { l.Tethered = true })
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	must.NoError(t, w.Close())
	<-w.Done()
	must.Eq(t, "exit code 0", w.Exit())
}

func childOf(t testing.TB, pid int) int {
	t.Helper()
	var child int
	coretest.Eventually(t, 5*time.Second, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return err
		}
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, f := range tasks {
			if c, err := os.ReadFile(f); err == nil {
				b = append(b, c...)
			}
		}
		_, err = fmt.Sscan(string(b), &child)
		return err
	})
	return child
}
