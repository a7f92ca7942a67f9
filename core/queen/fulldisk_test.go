package queen_test

import (
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/node"
)

// A queen whose disk is full reports that, and not that an election is in progress.
func TestFullDiskIsNamed(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(1 << 40)
	n, err := node.Open(node.Options{ID: "q1", Dir: t.TempDir(), FreeBytes: func() (uint64, error) { return free.Load(), nil }})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, n.Shutdown()) })
	q := queen.New(queen.Options{Registry: registry.New(n), ID: "q1"})
	free.Store(0)
	s, err := q.Status(t.Context())
	must.NoError(t, err)
	must.StrContains(t, s.Problems[0], "the disk is almost full")
	_, _, _, err = q.Members.Leader(t.Context())
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "Free space")

	free.Store(1 << 40)
	s, err = q.Status(t.Context())
	must.NoError(t, err)
	for _, p := range s.Problems {
		must.StrNotContains(t, p, "disk")
	}
}
