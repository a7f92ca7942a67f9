// Package coretest holds helpers that tests of several packages share, such as loggers and
// Eventually, and tests of the whole repository, such as the import table.
package coretest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// Logger returns a logger that writes to the test's own output.
func Logger(t testing.TB) hclog.Logger {
	t.Helper()
	return hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Debug, Output: Output(t)})
}

// Output returns the test's own output for as long as the test runs. It drops later output, for
// which t.Output would panic: some libraries have goroutines that cannot be waited for.
func Output(t testing.TB) io.Writer {
	o := &output{w: t.Output()}
	t.Cleanup(o.end)
	return o
}

type output struct {
	mu sync.Mutex // guards below
	w  io.Writer  // nil: the test has ended
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w == nil {
		return len(p), nil
	}
	return o.w.Write(p)
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = nil
}

// OpenBelow returns the files and folders at or below dir that this process has open, including
// deleted ones. A finalizer may close a forgotten file: a test that looks for leaks runs alone,
// with the garbage collector off. OpenBelow skips the test if the operating system does not list
// open files.
func OpenBelow(t testing.TB, dir string) (paths []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("open files are found on Linux alone")
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) { // it may be closed meanwhile
			paths = append(paths, to)
		}
	}
	return paths
}

// Eventually calls check until it returns nil, and fails the test with check's last error if that
// takes longer than patience. It is for foreign processes and real sockets; inside one process use
// testing/synctest.
func Eventually(t testing.TB, patience time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("still not so after %s: %v", patience, err)
		case <-tick.C:
		}
	}
}

// Build compiles the program of pkg to out with the flags of `make dev`, so that it shares that
// command's build cache. Otherwise each package of a plugin would be compiled once more, with cgo.
func Build(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Module returns a new folder with the program in the file source as a separate module outside the
// repository, which requires the rbee in the folder root. Its go.mod lists the same requirements as
// rbee's: the go command then needs no go.mod of another version, which the module cache of a
// machine that only built rbee does not have.
func Module(t testing.TB, root, name, source string) string {
	t.Helper()
	root, err := filepath.Abs(root)
	must.NoError(t, err)
	read := func(path string) string {
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		return string(b)
	}
	const rbee = "github.com/rbee-project/rbee"
	_, requires, found := strings.Cut(read(filepath.Join(root, "go.mod")), "module "+rbee+"\n")
	must.True(t, found)
	dir := t.TempDir()
	for file, content := range map[string]string{
		"main.go": read(source),
		"go.sum":  read(filepath.Join(root, "go.sum")),
		"go.mod":  fmt.Sprintf("module %s\n%s\nrequire %s v0.0.0\n\nreplace %s => %s\n", name, requires, rbee, rbee, root),
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
	}
	return dir
}
