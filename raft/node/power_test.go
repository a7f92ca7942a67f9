package node_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

func mayBeBehind(path string) bool { return strings.HasSuffix(path, "log.db.tip") }

// oldSnapshot reports whether the path is in a snapshot, which raft may have deleted: its return is
// harmless.
func oldSnapshot(path string) bool { return strings.Contains(path, "/snapshots/") }

// oneSnapshot reports whether the path is a snapshot's folder: raft syncs it only after it has its
// final name, and truncates the log after that.
func oneSnapshot(path string) bool { return filepath.Base(filepath.Dir(path)) == "snapshots" }

// C-08: what a node acknowledges is on the disk: its id, commands, snapshots with their metadata,
// and the folders that contain them.
func TestPowerLossNode(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Ignore: mayBeBehind, Returns: oldSnapshot, Late: oneSnapshot, Run: func(t *testing.T, dir string, ack func(string)) {
		n, err := node.Open(node.Options{ID: "queen-a", Dir: filepath.Join(dir, "raft")})
		must.NoError(t, err)
		stop := run(t, n)
		must.NoError(t, write1(t.Context(), n, "h", 1))
		ack("a command")
		for i := range uint64(3) {
			must.NoError(t, write1(t.Context(), n, "h", i+2))
			must.NoError(t, n.Snapshot(t.Context()))
			ack("a snapshot")
		}
		stop()
		must.NoError(t, n.Shutdown())
	}})
}

// The raft folder of a restore without a cluster is on the disk when the restore returns.
func TestPowerLossFound(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Ignore: mayBeBehind, Returns: oldSnapshot, Late: oneSnapshot, Run: func(t *testing.T, dir string, ack func(string)) {
		must.NoError(t, node.Found(filepath.Join(dir, "raft"), "q", "127.0.0.1:1", fsm.New().State(), node.Salvaged{}, time.Now(), hclog.NewNullLogger()))
		ack("a raft folder")
	}})
}
