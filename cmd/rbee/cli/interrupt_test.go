package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// buffer is a bytes.Buffer that may be read while it is written.
type buffer struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// running is a command line in its own process.
type running struct {
	cmd    *exec.Cmd
	out    buffer
	err    buffer
	exited chan struct{}
}

// ownEnviron returns this process's environment with its folders below dir and without the user's
// RBEE_* variables.
func ownEnviron(dir string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "RBEE_") || strings.HasPrefix(v, "XDG_")
	})
	return append(env, "HOME="+dir, "XDG_STATE_HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CACHE_HOME="+dir)
}

// start runs "rbee args" against addr, in its own folders. It is killed when the test ends.
func start(t *testing.T, addr, dir string, args ...string) *running {
	t.Helper()
	r := &running{cmd: exec.Command("rbee", args...), exited: make(chan struct{})}
	r.cmd.Env = append(ownEnviron(dir), "RBEE_ADDR="+addr, "NO_PROXY=*")
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	r.begin(t)
	return r
}

func (r *running) begin(t *testing.T) {
	t.Helper()
	must.NoError(t, r.cmd.Start())
	go func() {
		defer close(r.exited)
		_ = r.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.exited
	})
}

// code waits for the process to exit and returns the exit code.
func (r *running) code(t *testing.T) int {
	t.Helper()
	select {
	case <-r.exited:
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not end; stdout %q stderr %q", r.out.String(), r.err.String())
	}
	return r.cmd.ProcessState.ExitCode()
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	must.Wait(t, wait.InitialSuccess(wait.ErrorFunc(f), wait.Timeout(10*time.Second), wait.Gap(10*time.Millisecond)))
}

func contains(get func() string, want string) func() error {
	return func() error {
		if got := get(); !strings.Contains(got, want) {
			return errors.New(want + " is not in " + got)
		}
		return nil
	}
}

func TestInterruptedAnswer(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	q.addWorker(fakeWorker("w1", "rbee-tiny"))
	r := start(t, q.http.URL, t.TempDir(), "infer", "--model", "rbee-tiny", "--prompt", "forever")
	eventually(t, contains(r.out.String, "on on "))
	must.NoError(t, r.cmd.Process.Signal(os.Interrupt))
	must.Eq(t, 130, r.code(t))
	must.Eq(t, "rbee: interrupted\n", r.err.String())
	must.StrHasSuffix(t, "\n", r.out.String())
	eventually(t, func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.cancelled != 1 {
			return errors.New("the worker still generates")
		}
		return nil
	})
}

func TestInterruptedJobIsCancelled(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		q := newFakeQueen(t)
		r := start(t, q.http.URL, t.TempDir(), "infer", "--model", "slow", "--prompt", "hello")
		eventually(t, contains(r.err.String, "this takes for ever"))
		must.NoError(t, r.cmd.Process.Signal(sig))
		must.Eq(t, 128+int(sig), r.code(t))
		must.StrContains(t, r.err.String(), "Cancelling")
		must.StrContains(t, r.err.String(), "rbee: interrupted\n")
		must.Eq(t, core.JobCancelled, q.jobs.List()[0].State)
	}
}

// Concurrent commands that miss the same worker start it once.
func TestCommandsAtOnceStartOneWorker(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	dir := t.TempDir()
	var all []*running
	for range 4 {
		all = append(all, start(t, q.http.URL, dir, "infer", "--model", "rbee-tiny", "--prompt", "hello"))
	}
	for _, r := range all {
		must.Eq(t, 0, r.code(t), must.Sprint(r.err.String()))
		must.Eq(t, "1: hello\n", r.out.String())
	}
	must.Len(t, 1, q.requests)
}

// The command waits for an agent that is just starting.
func TestAgentNotReadyYet(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	q.addWorker(fakeWorker("w1", "rbee-tiny"))
	q.trouble(true)
	r := start(t, q.http.URL, t.TempDir(), "infer", "--model", "rbee-tiny", "--prompt", "hello")
	eventually(t, contains(r.err.String, "The agent is not ready yet (no leader): waiting."))
	must.Eq(t, "", r.out.String())
	q.trouble(false)
	must.Eq(t, 0, r.code(t), must.Sprint(r.err.String()))
	must.Eq(t, "1: hello\n", r.out.String())
}

func TestBackgroundAgentCannotStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &running{cmd: exec.Command("rbee", "infer", "--model", "rbee-tiny", "--prompt", "hello"), exited: make(chan struct{})}
	r.cmd.Env = append(ownEnviron(dir), "RBEE_BIND_HTTP_PORT=0", "RBEE_HIVE_SLOTS=many") // an agent on the default port is not the test's
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	r.begin(t)
	must.Eq(t, 1, r.code(t))
	must.Eq(t, "", r.out.String())
	must.StrContains(t, r.err.String(), "starting one in the background")
	must.StrContains(t, r.err.String(), "ended at once")
	must.StrContains(t, r.err.String(), filepath.Join(dir, "rbee", "agent.log"))
	must.StrContains(t, r.err.String(), "RBEE_HIVE_SLOTS") // the end of its log
	must.FileNotExists(t, recordPath(filepath.Join(dir, "rbee")))
}

func TestAgentStop(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	dir := filepath.Join(state, "rbee")
	must.NoError(t, os.Mkdir(dir, 0o700))
	sleeper := &running{cmd: exec.Command("sleep", "60"), exited: make(chan struct{})}
	sleeper.begin(t)
	id, err := hostinfo.Identify(sleeper.cmd.Process.Pid)
	must.NoError(t, err)
	record := func(id hostinfo.Identity) {
		b, err := json.Marshal(agentRecord{Process: id, Address: "127.0.0.1:9", Version: "1"})
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(recordPath(dir), b, 0o600))
	}

	// A process that got the pid of an agent that exited long ago is not the agent.
	other := id
	other.Start++
	record(other)
	stop := start(t, "127.0.0.1:1", state, "agent", "stop")
	must.Eq(t, 0, stop.code(t))
	must.Eq(t, "No agent runs in the background: nothing to stop.\n", stop.out.String())
	must.True(t, id.Alive())
	must.FileNotExists(t, recordPath(dir))

	// The real one is.
	record(id)
	stop = start(t, "127.0.0.1:1", state, "agent", "stop")
	must.Eq(t, 0, stop.code(t), must.Sprint(stop.err.String()))
	must.StrContains(t, stop.out.String(), "The agent at 127.0.0.1:9")
	must.False(t, id.Alive())
	must.FileNotExists(t, recordPath(dir))

	// An unreadable record is reported, and stays.
	must.NoError(t, os.WriteFile(recordPath(dir), []byte("{"), 0o600))
	stop = start(t, "127.0.0.1:1", state, "agent", "stop")
	must.Eq(t, 1, stop.code(t))
	must.StrContains(t, stop.err.String(), "Remove the file")
}

func TestRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.json")
	must.NoError(t, writeRecord(path, "127.0.0.1:5", "1.2.3", time.Unix(1, 0)))
	r, err := readRecord(path)
	must.NoError(t, err)
	must.Eq(t, "127.0.0.1:5", r.Address)
	must.Eq(t, os.Getpid(), r.Process.PID)
	must.True(t, r.Process.Alive())
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
}
