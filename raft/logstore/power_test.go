package logstore

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: what the log acknowledges is on the disk, including the file's name in its folder.
func TestPowerLossLog(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{
		// The tip may lag behind.
		Ignore: func(path string) bool { return strings.HasSuffix(path, tipSuffix) },
		Run: func(t *testing.T, dir string, ack func(string)) {
			s, err := Open(filepath.Join(dir, "log.db"), Options{})
			must.NoError(t, err)
			ack("a new log")
			must.NoError(t, s.StoreLogs(entries(1, 300, 1)))
			ack("entries")
			must.NoError(t, s.SetBoth([]byte("LastVoteTerm"), 7, []byte("LastVoteCand"), []byte("b")))
			ack("a vote")
			must.NoError(t, s.DeleteRange(1, 10))
			ack("a deletion")
			must.NoError(t, s.StartAt(entry(400, 2)))
			ack("a beginning")
			must.NoError(t, s.Close())
		},
	})
}

// After an orderly shutdown the number of the last write is also on the disk: a log rolled back
// since then is noticed, whatever happened to the machine.
func TestPowerLossTip(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		s, err := Open(filepath.Join(dir, "log.db"), Options{})
		must.NoError(t, err)
		must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
		must.NoError(t, s.Close())
		ack("a closed log")
	}})
}
