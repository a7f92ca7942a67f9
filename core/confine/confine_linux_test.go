package confine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
)

// childVariable turns this test binary into the child that the tests start: it lists the actions to
// try.
const childVariable = "RBEE_TEST_CONFINED"

func TestMain(m *testing.M) {
	if tries := os.Getenv(childVariable); tries != "" {
		for try := range strings.SplitSeq(tries, "\n") {
			verb, path, _ := strings.Cut(try, " ")
			fmt.Printf("%s: %v\n", try, outcome(attempt(verb, path)))
		}
		return
	}
	os.Exit(m.Run())
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EXDEV):
		return "refused"
	}
	return err.Error()
}

func attempt(verb, path string) error {
	agent := fmt.Sprintf("/proc/%d/", os.Getppid())
	switch verb {
	case "read":
		_, err := os.ReadFile(path)
		return err
	case "list":
		_, err := os.ReadDir(path)
		return err
	case "write":
		return os.WriteFile(path, []byte("x"), 0o600)
	case "append":
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			err = f.Close()
		}
		return err
	case "truncate":
		return os.Truncate(path, 0)
	case "mkdir":
		return os.Mkdir(path, 0o700)
	case "remove":
		return os.Remove(path)
	case "rename":
		from, to, _ := strings.Cut(path, ">")
		return os.Rename(from, to)
	case "link":
		from, to, _ := strings.Cut(path, ">")
		return os.Link(from, to)
	case "run":
		return exec.Command(path).Run()
	case "parent": // a file of the parent in /proc
		f, err := os.Open(agent + path)
		if err == nil {
			err = f.Close()
		}
		return err
	case "threads": // the parent's threads
		threads, err := os.ReadDir(agent + "task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			if f, err := os.Open(agent + "task/" + t.Name() + "/mem"); err == nil {
				return errors.Join(fmt.Errorf("the memory of the parent is open by thread %s", t.Name()), f.Close())
			}
		}
		return fs.ErrPermission
	case "signal":
		return syscall.Kill(os.Getppid(), 0)
	case "status":
		text, err := os.ReadFile("/proc/self/status")
		if err == nil && !strings.Contains(string(text), path) {
			err = fmt.Errorf("%s not in\n%s", path, text)
		}
		return err
	}
	return fmt.Errorf("unknown verb %q", verb)
}

func needLandlock(t *testing.T, atLeast int) {
	t.Helper()
	version, err := abi()
	if err != nil {
		t.Skipf("not tested: %s", Problem())
	}
	if version < atLeast {
		t.Skipf("not tested: this kernel has version %d of Landlock's interface, %d is needed", version, atLeast)
	}
}

// child returns this test binary as a command with a list of actions.
func child(t *testing.T, tries ...string) (cmd *exec.Cmd, output func() string) {
	t.Helper()
	exe, err := os.Executable()
	must.NoError(t, err)
	var out bytes.Buffer
	cmd = exec.Command(exe) //nolint:noctx // Start takes none
	cmd.Env = []string{childVariable + "=" + strings.Join(tries, "\n"), "TMPDIR=" + t.TempDir()}
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, func() string {
		must.NoError(t, cmd.Wait(), must.Sprint(out.String()))
		return strings.TrimSpace(out.String())
	}
}

// expect starts the actions under the rules, and compares their results.
func expect(t *testing.T, rules Rules, tries [][2]string) {
	t.Helper()
	var all, want []string
	for _, try := range tries {
		all = append(all, try[0])
		want = append(want, try[0]+": "+try[1])
	}
	cmd, output := child(t, all...)
	must.NoError(t, Start(cmd, rules))
	must.Eq(t, strings.Join(want, "\n"), output())
}

// tree creates files, each with its own path as content; names that end in a slash are folders.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	must.NoError(t, err)
	for _, name := range names {
		path := filepath.Join(root, name)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		if strings.HasSuffix(name, "/") {
			must.NoError(t, os.MkdirAll(path, 0o700))
			continue
		}
		must.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700))
	}
	return root
}

func TestStartHidesFiles(t *testing.T) {
	t.Parallel()
	needLandlock(t, abiRefer)
	root := tree(t, "data/cluster/key", "data/run/own/log", "data/run/other/log", "data/store/blob", "free/file", "link/")
	must.NoError(t, os.Symlink(filepath.Join(root, "data"), filepath.Join(root, "link/data")))
	p := func(name string) string { return filepath.Join(root, name) }
	rules := Rules{
		p("link/data"):     None, // a link, which is resolved
		p("data/run/own"):  Full,
		p("data/store"):    Read,
		p("data/not/yet"):  None,
		p("free/later/on"): None,
	}
	expect(t, rules, [][2]string{
		{"read " + p("data/cluster/key"), "refused"},
		{"append " + p("data/cluster/key"), "refused"},
		{"read " + p("link/data/cluster/key"), "refused"},
		{"read /proc/self/root" + p("data/cluster/key"), "refused"},
		{"write " + p("data/cluster/new"), "refused"},
		{"mkdir " + p("data/cluster/new"), "refused"},
		{"remove " + p("data/cluster/key"), "refused"},
		{"rename " + p("data/cluster") + ">" + p("free/cluster"), "refused"},
		{"rename " + p("data/cluster/key") + ">" + p("data/run/own/key"), "refused"},
		{"link " + p("data/cluster/key") + ">" + p("data/run/own/key"), "refused"},
		{"mkdir " + p("data/not"), "refused"},
		{"read " + p("data/run/other/log"), "refused"},
		{"list " + p("data/run"), "done"},
		{"read " + p("data/run/own/log"), "done"},
		{"write " + p("data/run/own/new"), "done"},
		{"mkdir " + p("data/run/own/folder"), "done"},
		{"rename " + p("data/run/own/new") + ">" + p("data/run/own/folder/new"), "done"},
		{"read " + p("data/store/blob"), "done"},
		{"run " + p("data/store/blob"), "done"},
		{"append " + p("data/store/blob"), "refused"},
		{"remove " + p("data/store/blob"), "refused"},
		{"write " + p("data/store/new"), "refused"},
		{"append " + p("free/file"), "done"},
		{"read /etc/passwd", "done"},
		{"append /dev/null", "done"},
		{"read /proc/self/status", "done"},
		{"status TracerPid:\t0", "done"},
		{"status NoNewPrivs:\t1", "done"},
	})
}

func TestStartForbidsTruncation(t *testing.T) {
	t.Parallel()
	needLandlock(t, abiTruncate)
	root := tree(t, "data/key", "store/blob")
	expect(t, Rules{root + "/data": None, root + "/store": Read}, [][2]string{
		{"truncate " + root + "/data/key", "refused"},
		{"truncate " + root + "/store/blob", "refused"},
	})
}

func TestStartHidesParent(t *testing.T) {
	t.Parallel()
	needLandlock(t, 1)
	root := tree(t, "data/key")
	tries := [][2]string{
		{"parent mem", "refused"},
		{"parent root" + root + "/data/key", "refused"},
		{"threads", "refused"},
	}
	if os.Geteuid() == 0 {
		t.Log("not tested as root, whose capabilities allow it: environ and maps")
	} else {
		tries = append(tries, [2]string{"parent environ", "refused"}, [2]string{"parent maps", "refused"})
	}
	expect(t, Rules{root + "/data": None}, tries)
}

func TestStartForbidsSignals(t *testing.T) {
	t.Parallel()
	needLandlock(t, abiSignal)
	root := tree(t, "data/")
	expect(t, Rules{root + "/data": None}, [][2]string{{"signal", "refused"}})
}

func TestStartWaitsForThread(t *testing.T) {
	t.Parallel()
	needLandlock(t, 1)
	// The thread that starts the child is in the child's domain. The child runs only after that
	// thread has ended.
	root := tree(t, "data/")
	version, err := abi()
	must.NoError(t, err)
	ruleset, err := newRuleset(version, Rules{root + "/data": None})
	must.NoError(t, err)
	defer syscall.Close(ruleset)
	cmd, output := child(t, "threads")
	var state string
	must.NoError(t, startOn(cmd, ruleset, func() {
		// If the child were not stopped, it would find this thread among the threads, and exit.
		for range 200 {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
			if _, rest, ok := strings.Cut(string(text), ") "); ok && err == nil {
				state = rest[:1]
			}
			if state != "t" {
				return
			}
			syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 1000})
		}
	}))
	must.Eq(t, "t", state, must.Sprint("the child is not stopped while the thread that started it is there"))
	must.Eq(t, "threads: refused", output())
}

func TestStartLeavesParentUnconfined(t *testing.T) {
	t.Parallel()
	needLandlock(t, 1)
	root := tree(t, "data/key")
	var starts, reads sync.WaitGroup
	var over atomic.Bool
	for range 8 {
		reads.Go(func() {
			for !over.Load() {
				if _, err := os.ReadFile(root + "/data/key"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 8 {
		starts.Go(func() {
			cmd, output := child(t, "read "+root+"/data/key")
			if err := Start(cmd, Rules{root + "/data": None}); err != nil {
				t.Error(err)
				return
			}
			must.Eq(t, "read "+root+"/data/key: refused", output())
		})
	}
	starts.Wait()
	over.Store(true)
	reads.Wait()
}

func TestStartKeepsErrors(t *testing.T) {
	t.Parallel()
	err := Start(exec.Command(filepath.Join(t.TempDir(), "missing")), Rules{"/nowhere": None}) //nolint:noctx // Start takes none
	must.ErrorIs(t, err, fs.ErrNotExist)
}

func TestTracingProblem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		scope   string
		refused error
		says    string
	}{
		"no Yama":            {"", syscall.ESRCH, ""},
		"children only":      {"1\n", syscall.ESRCH, ""},
		"switched off":       {"3\n", syscall.ESRCH, "ptrace_scope is 3"},
		"filtered":           {"1\n", syscall.EPERM, "allow the system call"},
		"filtered as absent": {"", syscall.ENOSYS, "allow the system call"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			problem := tracingProblem(c.scope, c.refused)
			must.StrContains(t, problem, c.says)
			must.Eq(t, c.says == "", problem == "")
		})
	}
}

// Starting many children leaves neither rulesets nor folders open. No other test runs concurrently.
func TestStartLeavesNothingOpen(t *testing.T) {
	needLandlock(t, 1)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must.NoError(t, err)
		return len(entries)
	}
	before := open()
	for range 3 {
		cmd, output := child(t, "read /proc/self/status")
		must.NoError(t, Start(cmd, Rules{"/": Read, t.TempDir(): Full}))
		output()
	}
	must.Eq(t, before, open())
}
