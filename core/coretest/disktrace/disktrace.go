// Package disktrace checks that what a program acknowledges is on the disk: it runs a scenario in a
// process of its own, follows its system calls and those of the programs that it starts, and knows
// at each moment which data and which names of files a loss of power would take back.
//
// A SIGKILL loses nothing that was written, so a test with it passes without a single fsync. This
// one fails when any of them is missing.
package disktrace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// environment names the folder of the scenario in the process that runs it.
const environment = "RBEE_DISKTRACE_DIR"

// ackPrefix is in front of the name of an acknowledgement: a path that is looked up and does not
// exist.
const ackPrefix = "/rbee-disktrace-ack/"

// Scenario writes below a folder.
type Scenario struct {
	// Run does the work. It calls ack with a name of its own when everything that it did so far is
	// promised.
	Run func(t *testing.T, dir string, ack func(name string))
	// Ignore reports whether a file or folder, relative to the folder of the scenario, may be lost;
	// nil: none but hidden and temporary ones.
	Ignore func(path string) bool
	// Returns reports whether a name that was removed may come back; nil: none.
	Returns func(path string) bool
	// Late reports whether a file or folder may get its name before what is in it is on the disk,
	// as nobody goes by it before the next acknowledgement; nil: none.
	Late func(path string) bool
	// Ordered reports whether the name at path may only go when every name before it, in other
	// folders too, has gone from the disk for sure; nil: none.
	Ordered func(path string) bool
}

// Check runs a scenario and fails the test for everything that a loss of power could take back
// although it was acknowledged, and for each file that got its name before its data were on the
// disk. It must be all that the test does. Where processes cannot be traced the test is skipped.
func Check(t *testing.T, s Scenario) {
	t.Helper()
	for _, v := range Violations(t, s) {
		t.Error(v)
	}
}

// Violations returns what Check fails for.
func Violations(t *testing.T, s Scenario) []string {
	t.Helper()
	if dir := os.Getenv(environment); dir != "" {
		s.Run(t, dir, acknowledge)
		t.SkipNow() // what comes after is for the process that looks on
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

// temporary reports whether nobody looks for a file after a restart.
func temporary(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".new") || strings.HasSuffix(name, ".lock")
}
