package state_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// A command sees its own writes and removals: commands decide by what they read.
func TestTxnReadsItsOwnWrites(t *testing.T) {
	t.Parallel()
	update(t, filled(t), func(tx *state.Txn) {
		h, ok := tx.Hive("h1")
		must.True(t, ok)
		must.Eq(t, "h1", h.ID)
		tx.PutHive(core.Hive{ID: "h1", Draining: true})
		h, ok = tx.Hive("h1")
		must.True(t, ok)
		must.True(t, h.Draining)
		tx.DeleteHive("h1")
		_, ok = tx.Hive("h1")
		must.False(t, ok)

		w, ok := tx.Worker("h1", "w3")
		must.True(t, ok)
		must.Eq(t, "tiny", w.Model)
		tx.PutWorker(core.Worker{ID: "w3", Hive: "h1", Model: "big"})
		w, _ = tx.Worker("h1", "w3")
		must.Eq(t, "big", w.Model)
		tx.DeleteWorker("h1", "w3")
		_, ok = tx.Worker("h1", "w3")
		must.False(t, ok)
		_, ok = tx.Worker("h10", "w3")
		must.False(t, ok)

		tx.PutWorker(core.Worker{ID: "w2", Hive: "h1"})
		must.Eq(t, []string{"w2", "w2"}, ids(tx.WorkersWithID("w2")))
		must.Eq(t, "h1", tx.WorkersWithID("w2")[0].Hive)
		must.SliceEmpty(t, tx.WorkersWithID("w"))
		must.SliceEmpty(t, tx.WorkersWithID(""))

		_, ok = tx.NodeNamed("atlas")
		must.False(t, ok)
		tx.PutNode(core.Node{ID: "n1", Name: "Atlas"})
		n, ok := tx.NodeNamed("atlas")
		must.True(t, ok)
		must.Eq(t, "n1", n.ID)
		n, ok = tx.Node("n1")
		must.True(t, ok)
		must.Eq(t, "Atlas", n.Name)

		_, ok = tx.Setting("a")
		must.False(t, ok)
		tx.PutSetting(state.Setting{Name: "a", Value: "1"})
		tx.PutSetting(state.Setting{Name: "a", Value: "2"})
		tx.PutSetting(state.Setting{Name: "b"})
		set, ok := tx.Setting("a")
		must.True(t, ok)
		must.Eq(t, "2", set.Value)
		must.Eq(t, 2, tx.SettingCount())
		tx.DeleteSetting("a")
		must.Eq(t, 1, tx.SettingCount())

		for range 2 {
			tx.PutAlias(core.Alias{Name: "chat"})
		}
		tx.PutAlias(core.Alias{Name: "code"})
		must.Eq(t, 2, tx.AliasCount())
		for range 2 {
			tx.DeleteAlias("chat")
		}
		must.Eq(t, 1, tx.AliasCount())
		_, ok = tx.Alias("chat")
		must.False(t, ok)
		_, ok = tx.Alias("code")
		must.True(t, ok)
	})
}

// Tables that grow with use are bounded: the oldest rows are dropped, each kind by its own count,
// and a repetition does not count.
func TestOldestRowsDropped(t *testing.T) {
	t.Parallel()
	const more = 7
	// The order of the names differs from that of the ages.
	name := func(i int) string { return fmt.Sprintf("%05x", i*40503%65536) }
	for kind, c := range map[string]struct {
		most int
		put  func(tx *state.Txn, i int)
		ages func(s *state.Snapshot) (ages []uint64)
	}{
		"revoked tokens": {
			state.MaxRevokedTokens,
			func(tx *state.Txn, i int) { tx.PutRevokedToken(state.RevokedToken{Token: name(i), Index: uint64(i)}) },
			func(s *state.Snapshot) (ages []uint64) {
				for _, r := range s.RevokedTokens(nil) {
					ages = append(ages, r.Index)
				}
				return ages
			},
		},
		"starts": {
			state.MaxStarts,
			func(tx *state.Txn, i int) { tx.PutStart(state.Start{Model: name(i), Index: uint64(i)}) },
			func(s *state.Snapshot) (ages []uint64) {
				for _, r := range s.Starts(nil) {
					ages = append(ages, r.Index)
				}
				return ages
			},
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := state.New()
			put := func(from, to int) {
				update(t, s, func(tx *state.Txn) {
					for i := from; i < to; i++ {
						c.put(tx, i)
					}
				})
			}
			put(0, c.most)
			must.Len(t, c.most, c.ages(s.Snapshot()))
			put(c.most-more, c.most) // repeated
			must.Len(t, c.most, c.ages(s.Snapshot()))
			put(c.most, c.most+more)
			ages := c.ages(s.Snapshot())
			must.Len(t, c.most, ages)
			for _, age := range ages {
				must.GreaterEq(t, more, age)
			}
		})
	}
}

// A row without an id means that a command was not checked: continuing would let this queen's state
// diverge from the others'.
func TestNoRowWithoutID(t *testing.T) {
	t.Parallel()
	s := filled(t)
	must.Panic(t, func() { _ = s.Update(8, func(tx *state.Txn) error { tx.PutNode(core.Node{}); return nil }) })
	must.Eq(t, 7, s.AppliedIndex())
	update(t, s, func(tx *state.Txn) { tx.PutNode(core.Node{ID: "n1"}) }) // the store is not locked
}

// SameHive saves a write through raft for each report that changes nothing, and for no other.
func TestSameHive(t *testing.T) {
	t.Parallel()
	hive := func(change func(*core.Hive)) *core.Hive {
		h := &core.Hive{ID: "h1", Devices: []core.Device{{ID: "cpu", TotalBytes: 5}}, WorkerTypes: []string{"cpu"}}
		if change != nil {
			change(h)
		}
		return h
	}
	for name, c := range map[string]struct {
		change func(*core.Hive)
		same   bool
	}{
		"nothing":        {nil, true},
		"what changes":   {func(h *core.Hive) { h.Devices[0].FreeBytes, h.LastBeat, h.Probing = 1, time.Unix(1, 0), true }, true},
		"what raft adds": {func(h *core.Hive) { h.Draining, h.CreateIndex, h.ModifyIndex = true, 3, 4 }, true},
		"a device":       {func(h *core.Hive) { h.Devices[0].TotalBytes = 6 }, false},
		"a worker type":  {func(h *core.Hive) { h.WorkerTypes = append(h.WorkerTypes, "gpu") }, false},
		"another id":     {func(h *core.Hive) { h.ID = "h2" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told := hive(c.change)
			free := told.Devices[0].FreeBytes
			must.Eq(t, c.same, state.SameHive(told, hive(nil)))
			must.Eq(t, c.same, state.SameHive(hive(nil), told))
			must.Eq(t, free, told.Devices[0].FreeBytes, must.Sprint("it is only compared"))
		})
	}
	must.True(t, state.SameHive(&core.Hive{}, &core.Hive{Devices: []core.Device{}, WorkerTypes: []string{}}))
}

// Every table reads back as written, single rows by id and all rows in order, and missing rows are
// not found.
func TestEveryTableIsReadBack(t *testing.T) {
	t.Parallel()
	s := state.New()
	update(t, s, func(tx *state.Txn) {
		for _, id := range []string{"b", "a"} {
			tx.PutSetting(state.Setting{Name: id, Value: "v" + id, Index: 3})
			tx.PutStart(state.Start{Model: id, Hive: "h" + id, Served: "s", Request: "r", Registered: true, Index: 4})
			tx.PutAlias(core.Alias{Name: id})
			tx.PutNode(core.Node{ID: id, Name: "n" + id})
			tx.PutToken(core.Token{ID: id, Name: "t" + id})
			tx.PutTombstone(state.Tombstone{Hive: id, Incarnation: 5})
			tx.PutRevokedToken(state.RevokedToken{Token: id, Index: 6})
			tx.PutHive(core.Hive{ID: id})
			tx.PutWorker(core.Worker{ID: id, Hive: "h", Model: "m"})
			tx.PutWorker(core.Worker{ID: id, Hive: "h0", Model: "m"})
		}
		start, ok := tx.Start("a")
		must.True(t, ok)
		must.Eq(t, "ha", start.Hive)
		must.True(t, tx.RevokedToken("a"))
		must.False(t, tx.RevokedToken("c"))
		token, ok := tx.Token("a")
		must.True(t, ok)
		must.Eq(t, "ta", token.Name)
	})
	snap := s.Snapshot()
	for _, id := range []string{"a", "b", "c", ""} {
		there := id == "a" || id == "b"
		set, ok := snap.Setting(nil, id)
		must.Eq(t, there, ok)
		start, ok := snap.Start(nil, id)
		must.Eq(t, there, ok)
		alias, ok := snap.Alias(nil, id)
		must.Eq(t, there, ok)
		node, ok := snap.Node(nil, id)
		must.Eq(t, there, ok)
		token, ok := snap.Token(nil, id)
		must.Eq(t, there, ok)
		hive, ok := snap.Hive(nil, id)
		must.Eq(t, there, ok)
		worker, ok := snap.Worker(nil, "h", id)
		must.Eq(t, there, ok)
		with := snap.WorkersWithID(nil, id)
		if !there {
			must.NotNil(t, with)
			must.SliceEmpty(t, with)
			must.Eq(t, state.Setting{}, set)
			must.Eq(t, state.Start{}, start)
			continue
		}
		must.Eq(t, state.Setting{Name: id, Value: "v" + id, Index: 3}, set)
		must.Eq(t, state.Start{Model: id, Hive: "h" + id, Served: "s", Request: "r", Registered: true, Index: 4}, start)
		must.Eq(t, []string{id, "n" + id, "t" + id, id, id}, []string{alias.Name, node.Name, token.Name, hive.ID, worker.ID})
		must.Len(t, 2, with)
		must.Eq(t, []string{"h", "h0"}, []string{with[0].Hive, with[1].Hive})
	}
	must.Eq(t, "a", snap.Settings(nil)[0].Name)
	must.Eq(t, "a", snap.Starts(nil)[0].Model)
	must.Eq(t, "a", snap.Aliases(nil)[0].Name)
	must.Eq(t, "a", snap.Tombstones(nil)[0].Hive)
	must.Eq(t, "a", snap.RevokedTokens(nil)[0].Token)
	must.Eq(t, []int{2, 2, 2, 2, 2}, []int{len(snap.Settings(nil)), len(snap.Starts(nil)), len(snap.Aliases(nil)), len(snap.Tombstones(nil)), len(snap.RevokedTokens(nil))})
	n := 0
	snap.EachWorkerOfHive(nil, "h", func(w *core.Worker) bool { n++; return w.Hive == "h" })
	must.Eq(t, 2, n)
	snap.EachHive(nil, func(h *core.Hive) bool { n++; return h.ID != "" })
	must.Eq(t, 4, n)
}

// Whatever a caller does with a result, the registry does not change: no list is shared.
func TestNothingIsShared(t *testing.T) {
	t.Parallel()
	s := state.New()
	filledWithLists := func(row any) {
		for _, f := range reflect.ValueOf(row).Elem().Fields() {
			if f.Kind() == reflect.Slice {
				f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			}
		}
	}
	token, node, hive, cluster := core.Token{ID: "a"}, core.Node{ID: "a"}, core.Hive{ID: "a"}, core.Cluster{ID: "a"}
	for _, row := range []any{&token, &node, &hive, &cluster} {
		filledWithLists(row)
	}
	update(t, s, func(tx *state.Txn) {
		tx.PutToken(token)
		tx.PutNode(node)
		tx.PutHive(hive)
		tx.PutCluster(cluster)
	})
	get := func(ws memdb.WatchSet) []any {
		snap := s.Snapshot()
		token, _ := snap.Token(ws, "a")
		node, _ := snap.Node(ws, "a")
		hive, _ := snap.Hive(ws, "a")
		cluster, _ := snap.Cluster(ws)
		return []any{token, node, hive, cluster, snap.Tokens(ws)[0], snap.Nodes(ws)[0], snap.Hives(ws)[0]}
	}
	first, second := get(nil), get(nil)
	lists := 0
	for i := range first {
		a, b := reflect.ValueOf(first[i]), reflect.ValueOf(second[i])
		for f := range a.NumField() {
			// Fields that exist only in reports are not in the registry.
			if name := a.Type().Field(f).Name; a.Field(f).Kind() == reflect.Slice && name != "Problems" {
				lists++
				must.Eq(t, 1, a.Field(f).Len())
				must.True(t, a.Field(f).Pointer() != b.Field(f).Pointer(), must.Sprintf("%s of %s", name, a.Type()))
			}
		}
	}
	must.Greater(t, 15, lists)
}
