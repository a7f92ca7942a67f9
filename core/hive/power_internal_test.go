package hive

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: handles of workers, the hive's id and its start count are on disk before anything relies on
// them.
func TestPowerLossHandles(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		l, err := openLayout(dir)
		must.NoError(t, err)
		_, err = l.ownID()
		must.NoError(t, err)
		ack("an id")
		_, err = l.nextIncarnation(time.Unix(7, 0))
		must.NoError(t, err)
		ack("a start")
		must.NoError(t, writeJSON(l.handleFile("0123456789ab"), map[string]string{"worker": "0123456789ab"}))
		ack("a handle")
		must.NoError(t, removeFile(l.handleFile("0123456789ab")))
		ack("a worker that is gone")
	}})
}
