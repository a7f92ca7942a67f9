package node_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
	"github.com/rbee-project/rbee/raft/state"
)

// A raft folder that Found writes is a cluster of one, which leads at once, has the registry, and
// continues from there, even after a restart.
func TestFound(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "raft")
	saved := fsm.New()
	must.NoError(t, saved.State().Update(7, func(txn *state.Txn) error {
		txn.PutHive(hive("h", 3))
		return nil
	}))
	before := node.Salvaged{Index: 40, Term: 1 << 40}
	must.NoError(t, node.Found(dir, "q1", "127.0.0.1:1", saved.State(), before, time.Now(), hclog.NewNullLogger()))
	must.Eq(t, core.Conflict, core.KindOf(node.Found(dir, "q1", "127.0.0.1:1", saved.State(), before, time.Now(), hclog.NewNullLogger())))
	for i := range uint64(2) {
		n, err := node.Open(node.Options{ID: "q1", Dir: dir, Logger: logger(t), Bootstrap: node.Never})
		must.NoError(t, err)
		must.True(t, n.HasState())
		must.Greater(t, 40+1000, int(n.AppliedIndex()))
		stop := run(t, n)
		must.NoError(t, write1(t.Context(), n, "w", i+1))
		must.Greater(t, uint64(1<<40), n.Raft().CurrentTerm())
		h, ok := n.State().Hive(nil, "h")
		must.True(t, ok)
		must.Eq(t, 3, h.Incarnation)
		stop()
		must.NoError(t, n.Shutdown())
	}
	left, err := filepath.Glob(dir + ".*")
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

// Salvage reads everything from an intact folder and everything readable from a damaged one, and
// changes nothing.
func TestSalvage(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "raft")
	quiet := hclog.NewNullLogger()
	got, err := node.Salvage(dir, quiet)
	must.NoError(t, err)
	must.Eq(t, 0, got.Index)

	n, err := node.Open(node.Options{ID: "q1", Dir: dir, Logger: logger(t)})
	must.NoError(t, err)
	stop := run(t, n)
	must.NoError(t, write1(t.Context(), n, "in the snapshot", 1))
	must.NoError(t, n.Snapshot(t.Context()))
	must.NoError(t, write1(t.Context(), n, "in the log", 1))
	_, err = node.Salvage(dir, quiet)
	must.Eq(t, core.InUse, core.KindOf(err))
	last := n.Raft().LastIndex()
	stop()
	must.NoError(t, n.Shutdown())

	got, err = node.Salvage(dir, quiet)
	must.NoError(t, err)
	must.SliceEmpty(t, got.Problems)
	must.Eq(t, last, got.Index)
	must.Positive(t, got.Term)
	_, ok := got.State.Hive(nil, "in the log")
	must.True(t, ok)

	// The log is damaged: the contents of the snapshot are still readable.
	path := filepath.Join(dir, "log.db")
	data, err := os.ReadFile(path)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{0x55}, len(data)), 0o600))
	got, err = node.Salvage(dir, quiet)
	must.NoError(t, err)
	must.SliceLen(t, 1, got.Problems)
	_, ok = got.State.Hive(nil, "in the snapshot")
	must.True(t, ok)
	_, ok = got.State.Hive(nil, "in the log")
	must.False(t, ok)
}
