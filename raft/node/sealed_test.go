package node_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/node"
)

// C-11: one bit of the newest snapshot is flipped, in its metadata or its data. The node opens with
// everything it had, from the previous snapshot and the log, or not at all.
func TestSnapshotFlippedBits(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "raft")
	n := open(t, node.Options{ID: "queen-a", Dir: dir})
	stop := run(t, n)
	for _, id := range []string{"first", "second"} {
		must.NoError(t, write1(t.Context(), n, id, 7))
		must.NoError(t, n.Snapshot(t.Context()))
	}
	must.NoError(t, write1(t.Context(), n, "third", 7))
	members := n.Servers()
	index := n.Raft().LastIndex()
	stop()
	must.NoError(t, n.Shutdown())
	list, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	must.NoError(t, err)
	must.SliceLen(t, 2, list)
	newest := slices.Max(list)
	opened, refused := 0, 0
	for _, name := range []string{"meta.json", "state.bin", "meta.sum"} {
		path := filepath.Join(newest, name)
		data, err := os.ReadFile(path)
		must.NoError(t, err)
		for at := 0; at < len(data); at += 3 {
			damaged := slices.Clone(data)
			damaged[at] ^= 1 << (at % 7)
			must.NoError(t, os.WriteFile(path, damaged, 0o600))
			n, err := node.Open(node.Options{ID: "queen-a", Dir: dir})
			if err != nil {
				must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name, at, err))
				refused++
				continue
			}
			for _, id := range []string{"first", "second"} {
				h, ok := n.State().Hive(nil, id)
				must.True(t, ok, must.Sprint(name, at, id))
				must.Eq(t, 7, h.Incarnation)
			}
			for i, s := range n.Servers() {
				must.Eq(t, members[i].RaftID, s.RaftID, must.Sprint(name, at))
				must.Eq(t, members[i].Address, s.Address, must.Sprint(name, at))
			}
			must.GreaterEq(t, index, n.Raft().LastIndex(), must.Sprint(name, at))
			opened++
			must.NoError(t, n.Shutdown())
		}
		must.NoError(t, os.WriteFile(path, data, 0o600))
	}
	t.Logf("%d opened, %d refused", opened, refused)
	must.Positive(t, opened)
}
