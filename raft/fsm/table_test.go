package fsm_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// nextBuilds returns the tables of the current build and of a next one with two new features:
// draining, which exists today, and an invented one, two hives with the same name, which no field
// shows.
func nextBuilds() (older, newer *fsm.Table) {
	list := append(fsm.Features(),
		fsm.Feature{Name: "draining", Since: fsm.Version + 1, Fields: []string{"Command.set_hive_draining", "Hive.draining"}},
		fsm.Feature{Name: "namesakes", Since: fsm.Version + 1, State: func(s *state.Snapshot) bool {
			names := map[string]bool{}
			for _, h := range s.Hives(nil) {
				if names[h.Name] {
					return true
				}
				names[h.Name] = true
			}
			return false
		}},
	)
	return fsm.NewTable(fsm.Version, list), fsm.NewTable(fsm.Version+1, list)
}

func written(t *testing.T, table *fsm.Table, f *fsm.FSM) []byte {
	t.Helper()
	var b bytes.Buffer
	must.NoError(t, table.WriteSnapshot(&b, f.State().Snapshot()))
	return b.Bytes()
}

// A build can read what a newer one wrote until the state has something that only the newer one
// knows.
func TestSnapshotVersion(t *testing.T) {
	t.Parallel()
	older, newer := nextBuilds()
	namesake := hive("h2", 1, "")
	namesake.Name = "h1"
	for name, c := range map[string]*raftv1.Command{
		"a field":  fsm.SetHiveDraining("h1", true),
		"no field": fsm.SyncHive(namesake, nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fsm.NewOf(newer)
			first := hive("h1", 1, "")
			first.Name = "h1"
			must.NoError(t, apply(t, f, 1, fsm.InitCluster(cluster("c"), nil, nil)).Err)
			must.NoError(t, apply(t, f, 2, fsm.SyncHive(first, nil)).Err)
			must.Eq(t, written(t, older, f), written(t, newer, f))
			_, err := older.ReadSnapshot(bytes.NewReader(written(t, newer, f)))
			must.NoError(t, err)

			must.NoError(t, apply(t, f, 3, c).Err)
			_, err = older.ReadSnapshot(bytes.NewReader(written(t, newer, f)))
			must.Eq(t, core.Unsupported, core.KindOf(err))
			_, err = newer.ReadSnapshot(bytes.NewReader(written(t, newer, f)))
			must.NoError(t, err)
		})
	}
}

// An older build stops at a command that it does not know, unless it may skip it.
func TestApplyOfNewerCommand(t *testing.T) {
	t.Parallel()
	older, newer := nextBuilds()
	f := fsm.NewOf(older)
	must.NoError(t, apply(t, f, 1, fsm.SyncHive(hive("h1", 1, ""), nil)).Err)
	c := fsm.SetHiveDraining("h1", true)
	c.MinFsm = newer.Required(c)
	must.Eq(t, fsm.Version+1, c.GetMinFsm())
	data, err := fsm.Encode(c)
	must.NoError(t, err)
	entry := &raft.Log{Index: 2, Data: data}
	err = f.Check(entry)
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "Install")
	func() {
		defer func() { must.NotNil(t, recover()) }()
		f.Apply(entry)
	}()
	c.Ignorable = true
	must.NoError(t, apply(t, f, 2, c).Err)
	must.Eq(t, 2, f.State().AppliedIndex())
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
}

// Optional fields of a command are omitted for older queens, and required ones are named.
func TestFit(t *testing.T) {
	t.Parallel()
	list := []fsm.Feature{
		{Name: "addresses", Since: 7, Fields: []string{"Hive.rpc_address"}, Optional: true},
		{Name: "batches", Since: 8, Fields: []string{"Command.sync_hives"}},
	}
	table := fsm.NewTable(8, list)
	one := fsm.SyncHive(addressed(hive("h1", 1, ""), "h1:1"), nil)
	must.Eq(t, 7, table.Required(one))
	table.Fit(one, 7)
	must.Eq(t, "h1:1", one.GetSyncHive().GetHive().GetRpcAddress())
	table.Fit(one, 6)
	must.Eq(t, "", one.GetSyncHive().GetHive().GetRpcAddress())
	must.Eq(t, 1, table.Required(one))

	many := fsm.SyncHives([]fsm.HiveState{{Hive: addressed(hive("h1", 1, ""), "h1:1")}})
	table.Fit(many, 6)
	must.Eq(t, "", many.GetSyncHives().GetHives()[0].GetHive().GetRpcAddress())
	must.Eq(t, 8, table.Required(many))
	must.Eq(t, []string{"batches"}, table.Missing(many, 6))
}

// A build that identifies workers by id alone refuses a state in which two hives share a worker id,
// and reads one in which they do not.
func TestSharedWorkerIDs(t *testing.T) {
	t.Parallel()
	old := fsm.NewTable(2, fsm.Features())
	f := fsm.New()
	must.NoError(t, apply(t, f, 1, fsm.SyncHive(hive("h1", 1, ""), []core.Worker{worker("h1", "w1", wReady, "n1"), worker("h1", "w2", wReady, "n2")})).Err)
	_, err := old.ReadSnapshot(bytes.NewReader(snapshot(t, f)))
	must.NoError(t, err)
	shared := fsm.SyncHiveState(fsm.HiveState{Hive: hive("h2", 1, ""), Workers: []core.Worker{worker("h2", "w1", wReady, "n3")}, OwnIDs: true})
	must.Eq(t, 3, fsm.Required(shared))
	must.NoError(t, apply(t, f, 2, shared).Err)
	data := snapshot(t, f)
	_, err = old.ReadSnapshot(bytes.NewReader(data))
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data))))
	must.Len(t, 2, f.State().Snapshot().WorkersWithID(nil, "w1"))
	w, ok := f.State().Worker(nil, "h2", "w1")
	must.True(t, ok)
	must.Eq(t, "n3", w.Nonce)

	// An older queen gets the command in the form that it knows.
	table := fsm.NewTable(fsm.Version, fsm.Features())
	table.Fit(shared, 2)
	must.LessEq(t, 2, table.Required(shared))
}
