package hostinfo

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// insideVariable makes the test binary the first process of a pid namespace.
const insideVariable = "RBEE_TEST_PID_NAMESPACE"

// FAULTS C-31: a worker exits, and its pid is reused by another process, which must never be
// signalled. Immediate reuse is possible only where the next pid can be chosen: in a separate pid
// namespace.
func TestReusedPidIsNeverSignalled(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		reusedPid(t)
		return
	}
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a namespace of process numbers needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReusedPidIsNeverSignalled$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a namespace of process numbers is not allowed here")
	}
	must.NoError(t, err, must.Sprintf("%s", out))
	must.StrContains(t, string(out), "--- PASS", must.Sprintf("%s", out))
}

func reusedPid(t *testing.T) {
	must.Eq(t, 1, os.Getpid())
	must.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must.NoError(t, syscall.Mount("proc", "/proc", "proc", 0, ""))

	// The next process gets the same pid, and reports every signal that it receives.
	old, stranger, lines := reuse(t)

	must.False(t, old.Alive())
	_, err := Open(old)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.ErrorContains(t, err, "is now another one")
	_, err = ReadUsage(t.Context(), old)
	must.Eq(t, core.NotFound, core.KindOf(err))
	_, err = ReadDetails(t.Context(), old)
	must.Eq(t, core.NotFound, core.KindOf(err))

	// The stranger is still running and has received no signal so far.
	must.NoError(t, stranger.Process.Signal(syscall.SIGUSR1))
	must.True(t, lines.Scan())
	must.Eq(t, "signal", lines.Text())
}

// reuse kills a process and starts another one that gets its pid. If a thread of this process takes
// the pid first, it tries again.
func reuse(t *testing.T) (old Identity, stranger *exec.Cmd, lines *bufio.Scanner) {
	t.Helper()
	for range 200 {
		worker, _ := child(t, nil, nil, "sleep", "600")
		old = identityOf(t, worker.Process.Pid)
		must.NoError(t, worker.Process.Kill())
		must.Error(t, worker.Wait())
		must.NoError(t, os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(old.PID-1)), 0o600))
		cmd, out := child(t, nil, nil, "sh", "-c", `trap 'echo signal' TERM INT HUP USR1; echo up; while :; do sleep 60 & wait; done`)
		lines = bufio.NewScanner(out)
		must.True(t, lines.Scan())
		// not started within the same clock tick
		if cmd.Process.Pid == old.PID && identityOf(t, cmd.Process.Pid) != old {
			return old, cmd, lines
		}
		must.NoError(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
		_ = cmd.Wait()
	}
	t.Fatal("no process got the number of one that had ended")
	return old, nil, nil
}
