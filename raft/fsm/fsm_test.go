package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

func hive(id string, incarnation uint64, status core.HiveStatus) core.Hive {
	return core.Hive{
		ID: id, Name: "name of " + id, Version: "1.0.0", OS: "linux", Arch: "amd64", Incarnation: incarnation, Status: status,
		Devices:     []core.Device{{ID: "cpu", Kind: "cpu", Name: "A CPU", TotalBytes: 1 << 30}},
		WorkerTypes: []string{"cpu"},
	}
}

func worker(hive, id string, st core.WorkerState, nonce string) core.Worker {
	return core.Worker{
		ID: id, Hive: hive, Type: "cpu", Version: "1.0.0", Model: "rbee-tiny", ModelDigest: "sha256:00", Device: "cpu",
		Slots: 4, ContextTokens: 512, State: st, Nonce: nonce,
	}
}

// at sets the indexes.
func at[T core.Hive | core.Worker](v T, create, modify uint64) T {
	switch p := any(&v).(type) {
	case *core.Hive:
		p.CreateIndex, p.ModifyIndex = create, modify
	case *core.Worker:
		p.CreateIndex, p.ModifyIndex = create, modify
	}
	return v
}

// apply applies a command as raft does, stamped as raft/node does unless it is stamped already.
func apply(t testing.TB, f *fsm.FSM, index uint64, c *raftv1.Command) fsm.Result {
	t.Helper()
	if c.GetMinFsm() == 0 {
		c = proto.CloneOf(c)
		c.MinFsm = fsm.Required(c)
	}
	if c.GetAtUnixNano() == 0 {
		c = proto.CloneOf(c)
		c.AtUnixNano = born.UnixNano()
	}
	data, err := fsm.Encode(c)
	must.NoError(t, err)
	r, ok := f.Apply(&raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}).(fsm.Result)
	must.True(t, ok)
	must.Eq(t, index, r.Index)
	return r
}

const (
	ready    = core.HiveReady
	down     = core.HiveDown
	wReady   = core.WorkerReady
	loading  = core.WorkerLoading
	retiring = core.WorkerRetiring
)

func TestApply(t *testing.T) {
	t.Parallel()
	type workers = []core.Worker
	sync := func(h core.Hive, w ...core.Worker) *raftv1.Command { return fsm.SyncHive(h, w) }
	own := func(h core.Hive, w ...core.Worker) *raftv1.Command {
		return fsm.SyncHiveState(fsm.HiveState{Hive: h, Workers: w, OwnIDs: true})
	}
	h1, h2 := hive("h1", 5, ready), hive("h2", 1, ready)
	w1, w2 := worker("h1", "w1", wReady, "n1"), worker("h1", "w2", loading, "n2")
	for _, tt := range []struct {
		name    string
		before  []*raftv1.Command // at 1, 2, …
		cmd     *raftv1.Command   // at 10
		kind    core.Kind
		hives   []core.Hive
		workers workers
		errs    []core.Kind
	}{
		{
			name: "a hive registers", cmd: sync(hive("h1", 5, ""), w1, w2),
			hives: []core.Hive{at(h1, 10, 10)}, workers: workers{at(w1, 10, 10), at(w2, 10, 10)},
		},
		{
			name: "what did not change keeps its index", before: []*raftv1.Command{sync(h1, w1, w2)},
			cmd:   sync(h1, w1, worker("h1", "w2", wReady, "n2")),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 1, 1), at(worker("h1", "w2", wReady, "n2"), 1, 10)},
		},
		{
			name: "a new incarnation changes the hive only", before: []*raftv1.Command{sync(h1, w1)}, cmd: sync(hive("h1", 6, ready), w1),
			hives: []core.Hive{at(hive("h1", 6, ready), 1, 10)}, workers: workers{at(w1, 1, 1)},
		},
		{
			name: "a missing worker is gone, another hive's stays", before: []*raftv1.Command{sync(h1, w1, w2), sync(h2, worker("h2", "w3", wReady, "n3"))},
			cmd:   sync(h1, w2),
			hives: []core.Hive{at(h1, 1, 1), at(h2, 2, 2)}, workers: workers{at(w2, 1, 1), at(worker("h2", "w3", wReady, "n3"), 2, 2)},
		},
		{
			name: "an older incarnation changes nothing", before: []*raftv1.Command{sync(h1, w1)}, cmd: sync(hive("h1", 4, ready)),
			kind: core.Conflict, hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 1, 1)},
		},
		{
			name: "another hive's worker changes nothing", before: []*raftv1.Command{sync(h1, w1)},
			cmd: sync(h2, worker("h2", "w0", wReady, ""), worker("h2", "w1", wReady, "n1")), kind: core.Conflict,
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 1, 1)},
		},
		{
			name: "another hive's worker id as the hive's own", before: []*raftv1.Command{sync(h1, w1)},
			cmd:   own(h2, worker("h2", "w0", wReady, ""), worker("h2", "w1", wReady, "n9")),
			hives: []core.Hive{at(h1, 1, 1), at(h2, 10, 10)},
			workers: workers{
				at(worker("h2", "w0", wReady, ""), 10, 10), at(w1, 1, 1), at(worker("h2", "w1", wReady, "n9"), 10, 10),
			},
		},
		{
			name:   "a hive whose worker id was taken while it was down",
			before: []*raftv1.Command{sync(h1, w1, w2), fsm.SetHiveStatus("h1", down, 0), sync(h2, worker("h2", "w1", wReady, "n9"))},
			cmd:    own(h1, w1, w2), hives: []core.Hive{at(h1, 1, 10), at(h2, 3, 3)},
			workers: workers{at(w1, 10, 10), at(worker("h2", "w1", wReady, "n9"), 3, 3), at(w2, 10, 10)},
		},
		{
			name: "a report goes on without saying that its ids are its own", before: []*raftv1.Command{sync(h2, worker("h2", "w1", wReady, "n9")), own(h1, w1)},
			cmd: sync(h1, w1), hives: []core.Hive{at(h1, 2, 2), at(h2, 1, 1)},
			workers: workers{at(w1, 2, 2), at(worker("h2", "w1", wReady, "n9"), 1, 1)},
		},
		{
			name: "one of two workers with an id goes", before: []*raftv1.Command{sync(h2, worker("h2", "w1", wReady, "n9")), own(h1, w1)},
			cmd: sync(h2), hives: []core.Hive{at(h1, 2, 2), at(h2, 1, 1)}, workers: workers{at(w1, 2, 2)},
		},
		{
			name: "retire one of two with an id", before: []*raftv1.Command{sync(h2, worker("h2", "w1", wReady, "n9")), own(h1, w1)},
			cmd: fsm.RetireWorker("h2", "w1"), hives: []core.Hive{at(h1, 2, 2), at(h2, 1, 1)},
			workers: workers{at(w1, 2, 2), at(worker("h2", "w1", retiring, "n9"), 1, 10)},
		},
		{
			name: "retire either of two with an id", before: []*raftv1.Command{sync(h2, worker("h2", "w1", wReady, "n9")), own(h1, w1)},
			cmd: fsm.RetireWorker("", "w1"), kind: core.Conflict, hives: []core.Hive{at(h1, 2, 2), at(h2, 1, 1)},
			workers: workers{at(w1, 2, 2), at(worker("h2", "w1", wReady, "n9"), 1, 1)},
		},
		{
			name: "a retiring worker stays so whatever its hive says", before: []*raftv1.Command{sync(h1, w1), fsm.RetireWorker("", "w1")}, cmd: sync(h1, w1),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(worker("h1", "w1", retiring, "n1"), 1, 2)},
		},
		{
			name: "a retired worker's id with another nonce is another worker", before: []*raftv1.Command{sync(h1, w1), fsm.RetireWorker("", "w1")},
			cmd:   sync(h1, worker("h1", "w1", wReady, "n9")),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(worker("h1", "w1", wReady, "n9"), 10, 10)},
		},
		{
			name: "retired, gone, and back", before: []*raftv1.Command{sync(h1, w1), fsm.RetireWorker("", "w1"), sync(h1)}, cmd: sync(h1, w1),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 10, 10)},
		},
		{
			name: "retire twice", before: []*raftv1.Command{sync(h1, w1), fsm.RetireWorker("", "w1")}, cmd: fsm.RetireWorker("", "w1"),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(worker("h1", "w1", retiring, "n1"), 1, 2)},
		},
		{name: "retire nobody", cmd: fsm.RetireWorker("", "w1"), kind: core.NotFound},
		{
			name: "a hive that is down loses its workers", before: []*raftv1.Command{sync(h1, w1, w2), sync(h2, worker("h2", "w3", wReady, ""))},
			cmd:   fsm.SetHiveStatus("h1", down, 5),
			hives: []core.Hive{at(hive("h1", 5, down), 1, 10), at(h2, 2, 2)}, workers: workers{at(worker("h2", "w3", wReady, ""), 2, 2)},
		},
		{
			name: "a status for another incarnation changes nothing", before: []*raftv1.Command{sync(h1, w1)}, cmd: fsm.SetHiveStatus("h1", down, 4),
			kind: core.Conflict, hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 1, 1)},
		},
		{
			name: "the same status is no change", before: []*raftv1.Command{sync(h1, w1)}, cmd: fsm.SetHiveStatus("h1", ready, 0),
			hives: []core.Hive{at(h1, 1, 1)}, workers: workers{at(w1, 1, 1)},
		},
		{name: "the status of nobody", cmd: fsm.SetHiveStatus("h1", down, 0), kind: core.NotFound},
		{
			name: "a hive that is down comes back", before: []*raftv1.Command{sync(h1, w1), fsm.SetHiveStatus("h1", down, 0)}, cmd: sync(h1, w1),
			hives: []core.Hive{at(h1, 1, 10)}, workers: workers{at(w1, 10, 10)},
		},
		{
			name: "a batch", before: []*raftv1.Command{sync(h1, w1)},
			cmd: fsm.SyncHives([]fsm.HiveState{
				{Hive: h2, Workers: workers{worker("h2", "w3", wReady, "n3")}},
				{Hive: hive("h1", 4, ready)}, // older
				// h1's
				{Hive: hive("h3", 1, ready), Workers: workers{worker("h3", "a", wReady, ""), worker("h3", "w1", wReady, "n1")}},
				{Hive: hive("h4", 1, ready)},
			}),
			hives: []core.Hive{at(h1, 1, 1), at(h2, 10, 10), at(hive("h4", 1, ready), 10, 10)}, workers: workers{at(w1, 1, 1), at(worker("h2", "w3", wReady, "n3"), 10, 10)},
			errs: []core.Kind{"", core.Conflict, core.Conflict, ""},
		},
		{
			name: "draining", before: []*raftv1.Command{sync(h1, w1)}, cmd: fsm.SetHiveDraining("h1", true),
			hives: []core.Hive{at(drains(h1), 1, 10)}, workers: workers{at(w1, 1, 1)},
		},
		{
			name: "draining again", before: []*raftv1.Command{sync(h1), fsm.SetHiveDraining("h1", true)}, cmd: fsm.SetHiveDraining("h1", true),
			hives: []core.Hive{at(drains(h1), 1, 2)},
		},
		{
			name: "no longer draining", before: []*raftv1.Command{sync(h1), fsm.SetHiveDraining("h1", true)}, cmd: fsm.SetHiveDraining("h1", false),
			hives: []core.Hive{at(h1, 1, 10)},
		},
		{
			name: "a hive that drains goes on so when it is down and back", before: []*raftv1.Command{sync(h1), fsm.SetHiveDraining("h1", true), fsm.SetHiveStatus("h1", down, 0)},
			cmd: sync(hive("h1", 6, ready)), hives: []core.Hive{at(drains(hive("h1", 6, ready)), 1, 10)},
		},
		{name: "draining nobody", cmd: fsm.SetHiveDraining("h1", true), kind: core.NotFound},
		{
			name: "another address", before: []*raftv1.Command{sync(h1)}, cmd: sync(addressed(h1, "10.0.0.1:7834")),
			hives: []core.Hive{at(addressed(h1, "10.0.0.1:7834"), 1, 10)},
		},
		{
			name: "a removed hive takes its workers along", before: []*raftv1.Command{sync(h1, w1, w2), sync(h2)}, cmd: fsm.RemoveHive("h1"),
			hives: []core.Hive{at(h2, 2, 2)},
		},
		{name: "removing nobody is fine", cmd: fsm.RemoveHive("h1")},
		{
			name: "an unknown command that may be passed over", before: []*raftv1.Command{sync(h1)}, cmd: &raftv1.Command{Ignorable: true, MinFsm: fsm.Version + 1},
			hives: []core.Hive{at(h1, 1, 1)},
		},
		{
			name: "a known command of a newer version that may be passed over", before: []*raftv1.Command{sync(h1)},
			cmd:   &raftv1.Command{Ignorable: true, MinFsm: fsm.Version + 1, Op: fsm.RemoveHive("h1").GetOp()},
			hives: []core.Hive{at(h1, 1, 1)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := fsm.New()
			for i, c := range tt.before {
				must.NoError(t, apply(t, f, uint64(i+1), c).Err)
			}
			r := apply(t, f, 10, tt.cmd)
			must.Eq(t, tt.kind, core.KindOf(r.Err), must.Sprint(r.Err))
			must.Eq(t, tt.errs, kinds(r.Errs), must.Sprint(r.Errs))
			check := func(s *state.Store) {
				must.Eq(t, append([]core.Hive{}, tt.hives...), s.Hives(nil))
				must.Eq(t, append([]core.Worker{}, tt.workers...), s.Workers(nil))
				must.Eq(t, 10, s.AppliedIndex())
			}
			check(f.State())

			// Commands that raft applies again, after it restored a snapshot that is ahead of the
			// log, change nothing.
			for i, c := range append(tt.before, tt.cmd) {
				must.NoError(t, apply(t, f, uint64(i+1), c).Err)
			}
			check(f.State())

			// The same after a snapshot.
			g := fsm.New()
			must.NoError(t, g.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
			check(g.State())
		})
	}
}

func drains(h core.Hive) core.Hive { h.Draining = true; return h }

func addressed(h core.Hive, address string) core.Hive { h.RPCAddress = address; return h }

func kinds(errs []error) (list []core.Kind) {
	for _, err := range errs {
		list = append(list, core.KindOf(err))
	}
	return list
}

func snapshot(t testing.TB, f *fsm.FSM) []byte {
	t.Helper()
	var buf bytes.Buffer
	must.NoError(t, fsm.WriteSnapshot(&buf, f.State().Snapshot()))
	return buf.Bytes()
}

func TestApplyStopsRatherThanDiverge(t *testing.T) {
	t.Parallel()
	newer, err := proto.Marshal(fsm.RemoveHive("h1"))
	must.NoError(t, err)
	for _, tt := range []struct {
		name, want string
		data       []byte
	}{
		{"undecodable", "damaged at index 7", []byte{0xff}},
		{"nothing known in it", "index 7 a command that state machine version 3 does not know", protowire.AppendTag(nil, 99, protowire.VarintType)},
		{"a newer version's", "(it needs 4)", protowire.AppendVarint(protowire.AppendTag(newer, 3, protowire.VarintType), 4)},
	} {
		if tt.name == "nothing known in it" {
			tt.data = protowire.AppendVarint(tt.data, 1)
		}
		func() {
			f := fsm.New()
			defer func() {
				must.StrContains(t, fmt.Sprint(recover()), tt.want, must.Sprint(tt.name))
				must.Eq(t, 0, f.State().AppliedIndex())
			}()
			f.Apply(&raft.Log{Index: 7, Data: tt.data})
		}()
	}
}

// A restore wakes watchers of the old state.
func TestRestoreAbandons(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	old := f.State()
	ws := memdb.NewWatchSet()
	must.Len(t, 0, old.Hives(ws))
	must.True(t, ws.Watch(time.After(time.Millisecond))) // nothing happened
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
	must.False(t, ws.Watch(time.After(10*time.Second)))
	select {
	case <-old.Abandoned():
	default:
		t.Fatal("not abandoned")
	}
	must.True(t, old != f.State())
}
