package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// uidOf returns the uid that a process runs as.
func uidOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "\nUid:\t")
	must.True(t, ok)
	var uid int
	_, err = fmt.Sscan(rest, &uid)
	must.NoError(t, err)
	return uid
}

// An agent that runs as root runs its plugins as another user, still loads models and engines, and
// the next agent takes over its workers. In a folder that is closed to others, plugins run as root,
// and the status reports it.
func TestPluginUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("not tested: it needs root")
	}
	open := shortDir(t)
	for _, dir := range []string{open, filepath.Join(open, "d"), filepath.Join(open, "closed")} {
		must.NoError(t, os.MkdirAll(dir, 0o755))
		must.NoError(t, os.Chmod(dir, 0o755))
	}
	must.NoError(t, os.Chmod(filepath.Join(open, "closed"), 0o700))
	unconfined := func(a *agent) string {
		var said string
		coretest.Eventually(t, patience, func() error {
			s := jsonOf[core.Status](a, "status")
			if len(s.Hives) != 1 || len(s.Hives[0].WorkerTypes) == 0 {
				return errors.New("no hive yet")
			}
			said = s.Hives[0].Unconfined
			return nil
		})
		return said
	}
	t.Run("another user", func(t *testing.T) {
		t.Parallel()
		a := startAgent(t, agentOptions{dir: filepath.Join(open, "d"), config: oneMachine})
		if said := unconfined(a); strings.Contains(said, "run as root") {
			t.Skipf("not tested: %s", said) // the programs under test are in a closed folder
		}
		pid := a.spawn("--threads", "1").PID
		must.Positive(t, uidOf(t, pid))
		a.must("infer", "--model", "rbee-tiny", "--prompt", "hello", "--max-tokens", "4")
		info, err := os.Stat(filepath.Join(a.dir, "cluster"))
		if err == nil {
			must.Eq(t, 0o700, info.Mode().Perm())
		}
		a.stop(syscall.SIGTERM)
		next := startAgent(t, agentOptions{dir: a.dir, config: oneMachine})
		must.Eq(t, []int{pid}, next.handlePIDs())
		next.must("infer", "--model", "rbee-tiny", "--prompt", "hello", "--max-tokens", "4")
		must.Positive(t, uidOf(t, pid))
		next.must("worker", "process", "delete", fmt.Sprint(pid), "--hive", "localhost", "--yes")
		must.SliceEmpty(t, next.handlePIDs())
	})
	t.Run("root where it must be", func(t *testing.T) {
		t.Parallel()
		a := startAgent(t, agentOptions{dir: filepath.Join(open, "closed", "d")})
		must.StrContains(t, unconfined(a), "plugins run as root: "+filepath.Join(open, "closed")+" is closed to other users")
		must.StrContains(t, a.must("status"), "plugins run as root")
		must.Eq(t, 0, uidOf(t, a.spawn("--threads", "1").PID))
	})
}
