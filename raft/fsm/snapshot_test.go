package fsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	must.NoError(t, apply(t, f, 1, fsm.SyncHive(hive("h1", 1, ""), []core.Worker{worker("h1", "w1", wReady, "")})).Err)
	good := snapshot(t, f)
	delimited := func(ms ...proto.Message) []byte {
		var b []byte
		for _, m := range ms {
			data, err := proto.Marshal(m)
			must.NoError(t, err)
			b = append(protowire.AppendVarint(b, uint64(len(data))), data...)
		}
		return b
	}
	header := &raftv1.SnapshotHeader{Format: fsm.SnapshotFormat, Fsm: fsm.Version, Index: 1}
	hiveRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Hive{Hive: &raftv1.Hive{Id: "h1"}}}
	workerRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Worker{Worker: &raftv1.Worker{Id: "w1", Hive: "h1"}}}
	clusterRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Cluster{Cluster: &raftv1.Cluster{Id: "c"}}}
	nodeRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Node{Node: &raftv1.Node{Id: "n"}}}
	tokenRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Token{Token: &raftv1.Token{Id: "t"}}}
	stoneRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Tombstone{Tombstone: &raftv1.Tombstone{Hive: "h"}}}
	revokedRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_RevokedToken{RevokedToken: &raftv1.RevokedToken{Token: "t"}}}
	settingRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Setting{Setting: &raftv1.Setting{Name: "s"}}}
	aliasRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Alias{Alias: &raftv1.Alias{Name: "a", Model: "m"}}}
	namelessRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Alias{Alias: &raftv1.Alias{Model: "m"}}}
	intentRecord := &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_RetireIntent{RetireIntent: &raftv1.RetireIntent{Hive: "h1", Nonce: "n"}}}
	for _, tt := range []struct {
		name string
		data []byte
		kind core.Kind
	}{
		{"empty", nil, core.Integrity},
		{"cut", good[:len(good)-1], core.Integrity},
		{"garbage", []byte("not a snapshot"), core.Integrity},
		{"a newer format", delimited(&raftv1.SnapshotHeader{Format: fsm.SnapshotFormat + 1, Fsm: 1}), core.Unsupported},
		{"a newer state machine", delimited(&raftv1.SnapshotHeader{Format: fsm.SnapshotFormat, Fsm: fsm.Version + 1}), core.Unsupported},
		{"a record of an unknown type", delimited(header, &raftv1.SnapshotRecord{}), core.Integrity},
		{"a hive twice", delimited(header, hiveRecord, hiveRecord), core.Integrity},
		{"a worker before its hive", delimited(header, workerRecord, hiveRecord), core.Integrity},
		{"a hive without an id", delimited(header, &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Hive{}}), core.Integrity},
		{"no format", delimited(&raftv1.SnapshotHeader{Fsm: 1}), core.Integrity},
		{"a second cluster", delimited(header, clusterRecord, clusterRecord), core.Integrity},
		{"a cluster without an id", delimited(header, &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Cluster{}}), core.Integrity},
		{"a node twice", delimited(header, nodeRecord, nodeRecord), core.Integrity},
		{"a token twice", delimited(header, tokenRecord, tokenRecord), core.Integrity},
		{"a tombstone twice", delimited(header, stoneRecord, stoneRecord), core.Integrity},
		{"a revoked token twice", delimited(header, revokedRecord, revokedRecord), core.Integrity},
		{"a setting twice", delimited(header, settingRecord, settingRecord), core.Integrity},
		{"an alias twice", delimited(header, aliasRecord, aliasRecord), core.Integrity},
		{"an alias without a name", delimited(header, namelessRecord), core.Integrity},
		{"a setting without a name", delimited(header, &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Setting{}}), core.Integrity},
		{"a retire intent before its hive", delimited(header, intentRecord, hiveRecord), core.Integrity},
		{"a retire intent twice", delimited(header, hiveRecord, intentRecord, intentRecord), core.Integrity},
		{"an id with a NUL", delimited(header, &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Hive{Hive: &raftv1.Hive{Id: "h\x00"}}}), core.Integrity},
		{"a record that is too long", append(delimited(header), protowire.AppendVarint(nil, 1<<40)...), core.Integrity},
	} {
		before := f.State()
		err := f.Restore(io.NopCloser(bytes.NewReader(tt.data)))
		must.Eq(t, tt.kind, core.KindOf(err), must.Sprintf("%s: %v", tt.name, err))
		must.NotEq(t, "", core.HintOf(err))
		must.True(t, before == f.State(), must.Sprint(tt.name)) // unchanged
		_, err = fsm.Inspect(bytes.NewReader(tt.data))
		must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(tt.name))
	}
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(good))))
}

// The file was written by state machine version 1.
func TestSnapshotOfFormat1(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/format1.snapshot")
	must.NoError(t, err)
	f := fsm.New()
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data))))
	h1, h2 := at(hive("h1", 7, down), 6, 8), at(hive("h2", 3, ready), 5, 5)
	h2.Devices = append(h2.Devices, core.Device{ID: "cuda:0", Kind: "cuda", Name: "A GPU", TotalBytes: 24 << 30, Problem: "its driver is too old"})
	must.Eq(t, []core.Hive{h1, h2}, f.State().Hives(nil))
	must.Eq(t, []core.Worker{at(worker("h2", "w3", loading, "n3"), 5, 5), at(worker("h2", "w4", retiring, "n4"), 5, 7)}, f.State().Workers(nil))
	must.Eq(t, 8, f.State().AppliedIndex())
	info, err := fsm.Inspect(bytes.NewReader(data))
	must.NoError(t, err)
	must.Eq(t, core.SnapshotInfo{Format: 1, FSM: 1, Index: 8, Hives: 2, Workers: 2}, info)

	// Version 1 can read back what it wrote, until the state has something that it does not know.
	must.Eq(t, data, snapshot(t, f))
	must.NoError(t, apply(t, f, 9, fsm.SyncHive(addressed(hive("h1", 8, ""), "h1:1"), nil)).Err)
	info, err = fsm.Inspect(bytes.NewReader(snapshot(t, f)))
	must.NoError(t, err)
	must.Eq(t, core.SnapshotInfo{Format: 2, FSM: 2, Index: 9, Hives: 2, Workers: 2}, info)
}

// Everything that version 1 does not know makes a snapshot that it refuses, since it would drop it.
func TestSnapshotFormat(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*raftv1.Command{
		"a cluster":       fsm.InitCluster(cluster("c"), nil, nil),
		"a node":          fsm.PutNode(node("n", "n"), ""),
		"a token":         fsm.PutToken(apiToken("t")),
		"a tombstone":     fsm.RemoveHive("h1"),
		"a retire intent": fsm.RetireWorker("", "w1"),
		"draining":        fsm.SetHiveDraining("h1", true),
		"an address":      fsm.SyncHive(addressed(hive("h1", 1, ""), "h:1"), nil),
	} {
		f := fsm.New()
		must.NoError(t, apply(t, f, 1, fsm.SyncHive(hive("h1", 1, ""), []core.Worker{worker("h1", "w1", wReady, "n")})).Err)
		info, err := fsm.Inspect(bytes.NewReader(snapshot(t, f)))
		must.NoError(t, err)
		must.Eq(t, 1, info.Format)
		must.NoError(t, apply(t, f, 2, c).Err)
		info, err = fsm.Inspect(bytes.NewReader(snapshot(t, f)))
		must.NoError(t, err)
		must.Eq(t, []uint32{2, 2}, []uint32{info.Format, info.FSM}, must.Sprint(name))
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	info, err := fsm.Inspect(bytes.NewReader(snapshot(t, inhabited(t))))
	must.NoError(t, err)
	must.Eq(t, core.SnapshotInfo{Format: 2, FSM: 3, Index: 21, Cluster: "c1", Hives: 2, Workers: 3, Nodes: 3, Tokens: 4}, info)
}

// Records are ordered by kind, and within a kind by id.
func TestSnapshotOrder(t *testing.T) {
	t.Parallel()
	r := bytes.NewReader(snapshot(t, inhabited(t)))
	must.NoError(t, protodelim.UnmarshalFrom(r, &raftv1.SnapshotHeader{}))
	order := []string{"cluster", "node", "token", "tombstone", "revoked_token", "start", "setting", "alias", "deployment", "hive", "worker", "retire_intent"}
	var last string
	var kinds []string
	for {
		var record raftv1.SnapshotRecord
		err := protodelim.UnmarshalFrom(r, &record)
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
		m := record.ProtoReflect()
		kind := m.WhichOneof(m.Descriptor().Oneofs().ByName("record"))
		row := m.Get(kind).Message()
		place := fmt.Sprintf("%02d %v", slices.Index(order, string(kind.Name())), row.Get(row.Descriptor().Fields().ByNumber(1)))
		must.Less(t, place, last)
		last = place
		kinds = append(kinds, string(kind.Name()))
	}
	must.Eq(t, order, slices.Compact(kinds)) // all kinds, including new ones
	must.Len(t, (&raftv1.SnapshotRecord{}).ProtoReflect().Descriptor().Fields().Len(), order)
}
