package state_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

func filled(t testing.TB) *state.Store {
	t.Helper()
	s := state.New()
	must.NoError(t, s.Update(7, func(tx *state.Txn) error {
		for _, id := range []string{"h2", "h1", "h10"} {
			tx.PutHive(core.Hive{ID: id, Devices: []core.Device{{ID: "cpu"}}, WorkerTypes: []string{"cpu"}})
		}
		tx.PutWorker(core.Worker{ID: "w3", Hive: "h1", Model: "tiny"})
		tx.PutWorker(core.Worker{ID: "w1", Hive: "h1", Model: "tiny-2"})
		tx.PutWorker(core.Worker{ID: "w2", Hive: "h10", Model: "tiny"})
		tx.PutWorker(core.Worker{ID: "x1", Hive: "h10"}) // no model yet
		return nil
	}))
	return s
}

func ids[T core.Hive | core.Worker](list []T) []string {
	out := []string{}
	for _, v := range list {
		switch v := any(v).(type) {
		case core.Hive:
			out = append(out, v.ID)
		case core.Worker:
			out = append(out, v.ID)
		}
	}
	return out
}

func TestQueries(t *testing.T) {
	t.Parallel()
	s := filled(t)
	must.Eq(t, 7, s.AppliedIndex())
	must.Eq(t, []string{"h1", "h10", "h2"}, ids(s.Hives(nil)))
	must.Eq(t, []string{"w1", "w2", "w3", "x1"}, ids(s.Workers(nil)))
	must.Eq(t, []string{"w1", "w3"}, ids(s.WorkersOfHive(nil, "h1"))) // and not those of h10
	must.Eq(t, []string{}, ids(s.WorkersOfHive(nil, "h")))
	must.Eq(t, []string{"w2", "w3"}, ids(s.WorkersOfModel(nil, "tiny")))
	must.Eq(t, []string{"w1", "w2", "w3"}, ids(s.WorkersWithPrefix(nil, "w")))
	must.Eq(t, []string{"w1", "w2", "w3", "x1"}, ids(s.WorkersWithPrefix(nil, "")))
	must.Eq(t, []string{}, ids(s.WorkersWithPrefix(nil, "w11")))
	h, ok := s.Hive(nil, "h10")
	must.True(t, ok)
	must.Eq(t, "h10", h.ID)
	w, ok := s.Worker(nil, "h1", "w3")
	must.True(t, ok)
	must.Eq(t, "h1", w.Hive)
	_, ok = s.Hive(nil, "h")
	must.False(t, ok)
	_, ok = s.Worker(nil, "h1", "")
	must.False(t, ok)
}

func TestEmptyListsAreNotNull(t *testing.T) {
	t.Parallel()
	s := state.New()
	must.NoError(t, s.Update(1, func(tx *state.Txn) error {
		tx.PutHive(core.Hive{ID: "h1"})
		return nil
	}))
	data, err := json.Marshal([]any{s.Workers(nil), s.Hives(nil)})
	must.NoError(t, err)
	must.StrNotContains(t, string(data), "null")
}

// The caller owns what a query returns.
func TestCopies(t *testing.T) {
	t.Parallel()
	s := filled(t)
	h, _ := s.Hive(nil, "h1")
	h.Devices[0].ID, h.WorkerTypes[0] = "changed", "changed"
	s.Hives(nil)[0].Devices[0].ID = "changed"
	h, _ = s.Hive(nil, "h1")
	must.Eq(t, "cpu", h.Devices[0].ID)
	must.Eq(t, "cpu", h.WorkerTypes[0])
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	t.Parallel()
	s := filled(t)
	refused := errors.New("refused")
	err := s.Update(8, func(tx *state.Txn) error {
		tx.DeleteHive("h1")
		tx.DeleteHive("not there")
		tx.DeleteWorker("h1", "w1")
		tx.PutWorker(core.Worker{ID: "w9", Hive: "h1"})
		must.Eq(t, []string{"w3", "w9"}, ids(tx.WorkersOfHive("h1"))) // it sees its own changes
		_, ok := tx.Hive("h1")
		must.False(t, ok)
		must.Len(t, 3, s.Hives(nil)) // others do not
		return refused
	})
	must.ErrorIs(t, err, refused)
	must.Eq(t, []string{"h1", "h10", "h2"}, ids(s.Hives(nil)))
	must.Eq(t, []string{"w1", "w3"}, ids(s.WorkersOfHive(nil, "h1")))
	must.Eq(t, 8, s.AppliedIndex())
}

func TestSnapshotStands(t *testing.T) {
	t.Parallel()
	s := filled(t)
	snap := s.Snapshot()
	must.NoError(t, s.Update(8, func(tx *state.Txn) error { tx.DeleteHive("h1"); return nil }))
	must.Len(t, 3, snap.Hives(nil))
	must.Eq(t, 7, snap.AppliedIndex())
	must.Len(t, 2, s.Hives(nil))
}

// A watch fires for the watched rows, and for nothing else.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		watch  func(s *state.Store, ws memdb.WatchSet)
		update func(tx *state.Txn)
		fires  bool
	}{
		{"a list by a new one", func(s *state.Store, ws memdb.WatchSet) { s.Hives(ws) }, func(tx *state.Txn) { tx.PutHive(core.Hive{ID: "h9"}) }, true},
		{"hives by a worker", func(s *state.Store, ws memdb.WatchSet) { s.Hives(ws) }, func(tx *state.Txn) { tx.DeleteWorker("h1", "w1") }, false},
		{"one that is not there, when it comes", func(s *state.Store, ws memdb.WatchSet) { s.Worker(ws, "h1", "w9") }, func(tx *state.Txn) { tx.PutWorker(core.Worker{ID: "w9", Hive: "h1"}) }, true},
		{"a model by its worker", func(s *state.Store, ws memdb.WatchSet) { s.WorkersOfModel(ws, "tiny") }, func(tx *state.Txn) { tx.DeleteWorker("h10", "w2") }, true},
		{"a model by its hive", func(s *state.Store, ws memdb.WatchSet) { s.WorkersOfModel(ws, "tiny") }, func(tx *state.Txn) { tx.PutHive(core.Hive{ID: "h1", Draining: true}) }, true},
		{"a model by another's worker", func(s *state.Store, ws memdb.WatchSet) { s.WorkersOfModel(ws, "tiny") }, func(tx *state.Txn) { tx.DeleteWorker("h1", "w1") }, false},
		{"a model that nobody serves, when somebody does", func(s *state.Store, ws memdb.WatchSet) { s.WorkersOfModel(ws, "big") }, func(tx *state.Txn) { tx.PutWorker(core.Worker{ID: "w9", Model: "big"}) }, true},
		{"the cluster, when it is made", func(s *state.Store, ws memdb.WatchSet) { s.Cluster(ws) }, func(tx *state.Txn) { tx.PutCluster(core.Cluster{ID: "c"}) }, true},
		{"a node's revocation", func(s *state.Store, ws memdb.WatchSet) { s.Snapshot().Revoked(ws, "n1") }, func(tx *state.Txn) { tx.PutNode(core.Node{ID: "n1", Name: "n"}) }, true},
		{"nodes", func(s *state.Store, ws memdb.WatchSet) { s.Nodes(ws) }, func(tx *state.Txn) { tx.PutNode(core.Node{ID: "n1", Name: "n"}) }, true},
		{"tokens by a token", func(s *state.Store, ws memdb.WatchSet) { s.Tokens(ws) }, func(tx *state.Txn) { tx.PutToken(core.Token{ID: "t1"}) }, true},
		{"tokens by a node", func(s *state.Store, ws memdb.WatchSet) { s.Tokens(ws) }, func(tx *state.Txn) { tx.PutNode(core.Node{ID: "n1", Name: "n"}) }, false},
		{"nothing by nothing", func(s *state.Store, ws memdb.WatchSet) { s.Workers(ws); s.Hives(ws) }, func(*state.Txn) {}, false},
	} {
		s := filled(t)
		ws := memdb.NewWatchSet()
		tt.watch(s, ws)
		must.NoError(t, s.Update(8, func(tx *state.Txn) error { tt.update(tx); return nil }))
		wait := time.Duration(0) // what fires has fired by now
		if tt.fires {
			wait = time.Minute
		}
		must.Eq(t, !tt.fires, ws.Watch(time.After(wait)), must.Sprint(tt.name))
	}
	s := filled(t)
	ws := memdb.NewWatchSet()
	s.WorkersWithPrefix(ws, "none")
	s.Abandon()
	must.False(t, ws.Watch(time.After(10*time.Second)))
}
