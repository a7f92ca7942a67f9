package state_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// A command that reads what it has just written finds it, and what it removed is gone: commands
// decide by what they read.
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

// What grows with use is bounded: the oldest go, each kind by its own count, and a repeat is none.
func TestOldestRowsGo(t *testing.T) {
	t.Parallel()
	const more = 7
	// Names in another order than ages.
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
			put(c.most-more, c.most) // the same again
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

// A row without an id is a command that nobody checked: a program that goes on would differ from
// the other queens'.
func TestNoRowWithoutID(t *testing.T) {
	t.Parallel()
	s := filled(t)
	must.Panic(t, func() { _ = s.Update(8, func(tx *state.Txn) error { tx.PutNode(core.Node{}); return nil }) })
	must.Eq(t, 7, s.AppliedIndex())
	update(t, s, func(tx *state.Txn) { tx.PutNode(core.Node{ID: "n1"}) }) // it is not locked
}

// SameHive saves a write through raft for each report that says nothing new, and none that does.
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
