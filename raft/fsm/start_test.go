package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Of several queens that decide where a model starts, one succeeds. The registry records once the
// decision has led to a worker.
func TestClaimStart(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	index := uint64(0)
	claim := func(request, previous string) core.Kind {
		index++
		c := fsm.ClaimStart(state.Start{Model: "m", Hive: "h1", Served: "rbee-tiny", Request: request, Registered: true, Index: 9}, previous)
		must.NoError(t, fsm.Validate(c))
		err := apply(t, f, index, c).Err
		if err == nil {
			return ""
		}
		return core.KindOf(err)
	}
	must.Eq(t, core.Conflict, claim("a", "gone"))
	must.Eq(t, "", claim("a", ""))
	must.Eq(t, core.Conflict, claim("b", ""))
	must.Eq(t, "", claim("a", ""), must.Sprint("repeated"))
	start, ok := f.State().Snapshot().Start(nil, "m")
	must.True(t, ok)
	must.Eq(t, state.Start{Model: "m", Hive: "h1", Served: "rbee-tiny", Request: "a", Index: 2}, start)

	sync := func(h string, workers ...core.Worker) {
		index++
		must.NoError(t, apply(t, f, index, fsm.SyncHive(hive(h, 1, ""), workers)).Err)
	}
	registered := func() bool {
		start, _ := f.State().Snapshot().Start(nil, "m")
		return start.Registered
	}
	sync("h2", worker("h2", "w1", wReady, "n1"))
	must.False(t, registered(), must.Sprint("another hive's"))
	sync("h1", worker("h1", "w2", loading, "n2"))
	must.True(t, registered())
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
	must.True(t, registered())
	must.Eq(t, core.Conflict, claim("b", ""))
	must.Eq(t, "", claim("b", "a"))
	must.False(t, registered())
	sync("h1", worker("h1", "w2", loading, "n2"))
	must.False(t, registered(), must.Sprint("the worker of the start before"))
}

func TestStartsBounded(t *testing.T) {
	t.Parallel()
	s := state.New()
	must.NoError(t, s.Update(1, func(txn *state.Txn) error {
		for i := range uint64(state.MaxStarts + 2) {
			start := state.Start{Model: fmt.Sprintf("m%06d", i), Hive: "h", Served: "m", Request: "r", Index: i}
			txn.PutStart(start)
			txn.PutStart(start) // counts once
		}
		return nil
	}))
	left := s.Snapshot().Starts(nil)
	must.SliceLen(t, state.MaxStarts, left)
	must.Eq(t, "m000002", left[0].Model)
}
