package agent

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: this machine's identity and the queens it knows are on disk before they are used.
func TestPowerLossAgent(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		data := filepath.Join(dir, "data")
		unlock, err := lockDataDir(data)
		must.NoError(t, err)
		defer unlock()
		_, err = nodeID(data)
		must.NoError(t, err)
		ack("a node id")
		must.NoError(t, storeQueens(filepath.Join(data, "queens.json"), nil))
		ack("a list of queens")
	}})
}
