// Package disktrace checks that whatever a program acknowledges is on disk: it runs a scenario in a
// separate process, traces its system calls and those of the programs that it starts, and tracks
// which data and which file names a loss of power would undo at each moment.
//
// A SIGKILL loses nothing that was written, so a test with SIGKILL passes without a single fsync. A
// test with Check fails when any of them is missing.
package disktrace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// environment names the variable that holds the scenario's folder in the process that runs it.
const environment = "RBEE_DISKTRACE_DIR"

// ackPrefix precedes the name of an acknowledgement: a nonexistent path that is looked up.
const ackPrefix = "/rbee-disktrace-ack/"

// Scenario writes below a folder.
type Scenario struct {
	// Run does the work. It calls ack with a unique name whenever it promises that everything done
	// so far is durable.
	Run func(t *testing.T, dir string, ack func(name string))
	// Ignore reports whether a file or folder, relative to the folder of the scenario, may be lost;
	// nil: only hidden and temporary ones.
	Ignore func(path string) bool
	// Returns reports whether a removed name may reappear; nil: none may.
	Returns func(path string) bool
	// Late reports whether a file or folder may get its name before its contents are on disk,
	// because nobody relies on it before the next acknowledgement; nil: none may.
	Late func(path string) bool
	// Ordered reports whether the name at path may be removed only after the removal of every
	// earlier name, in other folders as well, is on disk; nil: none.
	Ordered func(path string) bool
}

// Check runs a scenario and fails the test for everything acknowledged that a loss of power could
// undo, and for each file that got its name before its data was on disk. The test must do nothing
// else. If processes cannot be traced, Check skips the test.
func Check(t *testing.T, s Scenario) {
	t.Helper()
	for _, v := range Violations(t, s) {
		t.Error(v)
	}
}

// Violations returns the failures that Check would report.
func Violations(t *testing.T, s Scenario) []string {
	t.Helper()
	if dir := os.Getenv(environment); dir != "" {
		s.Run(t, dir, acknowledge)
		t.SkipNow() // the rest of the test is for the tracing process
	}
	for _, may := range []*func(string) bool{&s.Ignore, &s.Returns, &s.Late, &s.Ordered} {
		if *may == nil {
			*may = func(string) bool { return false }
		}
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return trace(t, dir, s)
}

// temporary reports whether a file does not matter after a restart.
func temporary(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".new") || strings.HasSuffix(name, ".lock")
}
