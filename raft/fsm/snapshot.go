package fsm

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// SnapshotFormat is the newest format of snapshots that this build reads and writes: a
// SnapshotHeader, then SnapshotRecords, each preceded by its length as a varint, in the order of
// recordKinds, each kind sorted by id. The header has the state machine version that the state
// needs (see features), so that a queen that is not upgraded yet, or was downgraded, reads what it
// can. Format 1 belongs to version 1. The format changes only when the framing does.
const SnapshotFormat = 2

// Snapshot captures the present state without copying it.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{f.table, f.State().Snapshot()}, nil
}

// Restore replaces the state with a snapshot's. On error the state does not change.
func (f *FSM) Restore(r io.ReadCloser) error {
	store, _, err := f.table.readSnapshot(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	f.store.Swap(store).Abandon()
	return nil
}

type snapshot struct {
	table *Table
	state *state.Snapshot
}

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.table.WriteSnapshot(sink, s.state); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return core.Wrap(sink.Close(), core.Unavailable, "finish snapshot")
}

func (s *snapshot) Release() {}

// recordKinds lists the kinds of records in their order in a snapshot.
var recordKinds = []recordKind{
	{"cluster", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		if c, ok := s.Cluster(nil); ok {
			yield(&raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Cluster{Cluster: clusterToProto(c)}})
		}
	}},
	{"node", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Nodes(nil), yield, func(n core.Node) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Node{Node: nodeToProto(n)}}
		})
	}},
	{"token", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Tokens(nil), yield, func(t core.Token) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Token{Token: tokenToProto(t)}}
		})
	}},
	{"tombstone", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Tombstones(nil), yield, func(t state.Tombstone) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Tombstone{Tombstone: &raftv1.Tombstone{
				Hive: t.Hive, Incarnation: t.Incarnation, Index: t.Index,
			}}}
		})
	}},
	{"revoked_token", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.RevokedTokens(nil), yield, func(t state.RevokedToken) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_RevokedToken{RevokedToken: &raftv1.RevokedToken{Token: t.Token, Index: t.Index}}}
		})
	}},
	{"start", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Starts(nil), yield, func(d state.Start) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Start{Start: startToProto(d)}}
		})
	}},
	{"setting", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Settings(nil), yield, func(v state.Setting) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Setting{Setting: &raftv1.Setting{Name: v.Name, Value: v.Value, Index: v.Index}}}
		})
	}},
	{"alias", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Aliases(nil), yield, func(a core.Alias) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Alias{Alias: aliasToProto(a)}}
		})
	}},
	{"deployment", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.Deployments(nil), yield, func(d core.Deployment) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Deployment{Deployment: deploymentToProto(d)}}
		})
	}},
	{"hive", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		s.EachHive(nil, func(h *core.Hive) bool {
			return yield(&raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Hive{Hive: hiveToProto(*h)}})
		})
	}},
	{"worker", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		s.EachWorker(nil, func(w *core.Worker) bool {
			return yield(&raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Worker{Worker: workerToProto(*w)}})
		})
	}},
	{"retire_intent", func(s *state.Snapshot, yield func(*raftv1.SnapshotRecord) bool) {
		yieldAll(s.RetireIntents(nil), yield, func(i state.RetireIntent) *raftv1.SnapshotRecord {
			return &raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_RetireIntent{RetireIntent: &raftv1.RetireIntent{Hive: i.Hive, Nonce: i.Nonce}}}
		})
	}},
}

// recordKind yields the records of one kind, until yield returns false.
type recordKind struct {
	field protoreflect.Name // field of SnapshotRecord
	each  func(*state.Snapshot, func(*raftv1.SnapshotRecord) bool)
}

func yieldAll[T any](rows []T, yield func(*raftv1.SnapshotRecord) bool, record func(T) *raftv1.SnapshotRecord) {
	for _, row := range rows {
		if !yield(record(row)) {
			return
		}
	}
}

// WriteSnapshot calls Table.WriteSnapshot of this build.
func WriteSnapshot(w io.Writer, s *state.Snapshot) error { return current.WriteSnapshot(w, s) }

// WriteSnapshot writes s. The same state always produces the same bytes.
func (t *Table) WriteSnapshot(w io.Writer, s *state.Snapshot) error {
	out := &writer{buf: bufio.NewWriter(w)}
	header := &raftv1.SnapshotHeader{Format: SnapshotFormat, Fsm: t.stateNeeds(s), Index: s.AppliedIndex()}
	if header.GetFsm() == 1 {
		header.Format = 1
	}
	out.put(header)
	for _, kind := range recordKinds {
		kind.each(s, out.record)
	}
	if out.err == nil {
		out.err = out.buf.Flush()
	}
	return core.Wrap(out.err, core.Unavailable, "write snapshot")
}

// writer writes length-prefixed messages and keeps the first error.
type writer struct {
	buf *bufio.Writer
	err error
}

func (w *writer) put(m proto.Message) {
	if w.err == nil {
		_, w.err = protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}.MarshalTo(w.buf, m)
	}
}

// record writes a record and reports whether to continue.
func (w *writer) record(r *raftv1.SnapshotRecord) bool {
	w.put(r)
	return w.err == nil
}

// ReadSnapshot calls Table.ReadSnapshot of this build.
func ReadSnapshot(r io.Reader) (*state.Store, error) { return current.ReadSnapshot(r) }

// ReadSnapshot reads a snapshot into a new store. Errors: Integrity, and Unsupported for a newer
// version's snapshot.
func (t *Table) ReadSnapshot(r io.Reader) (*state.Store, error) {
	store, _, err := t.readSnapshot(r)
	return store, err
}

// Inspect reads a whole snapshot and returns a summary. Errors: as for ReadSnapshot.
func Inspect(r io.Reader) (core.SnapshotInfo, error) {
	store, header, err := current.readSnapshot(r)
	if err != nil {
		return core.SnapshotInfo{}, err
	}
	s := store.Snapshot()
	cluster, _ := s.Cluster(nil)
	return core.SnapshotInfo{
		Format: header.GetFormat(), FSM: header.GetFsm(), Index: header.GetIndex(), Cluster: cluster.ID,
		Hives: len(s.Hives(nil)), Workers: len(s.Workers(nil)), Nodes: len(s.Nodes(nil)), Tokens: len(s.Tokens(nil)),
	}, nil
}

func (t *Table) readSnapshot(r io.Reader) (*state.Store, *raftv1.SnapshotHeader, error) {
	buf := bufio.NewReader(r)
	opts := protodelim.UnmarshalOptions{MaxSize: MaxCommandBytes}
	header := &raftv1.SnapshotHeader{}
	if err := opts.UnmarshalFrom(buf, header); err != nil {
		return nil, nil, damaged("the header: %w", err)
	}
	if header.GetFormat() == 0 {
		return nil, nil, damaged("the header: no format")
	}
	if header.GetFormat() > SnapshotFormat || header.GetFsm() > t.version {
		return nil, nil, core.Errorf(core.Unsupported, "read snapshot: it has format %d and state machine version %d, this build reads them up to %d and %d", header.GetFormat(), header.GetFsm(), SnapshotFormat, t.version).Hint(
			"Install the version of rbee that wrote the snapshot, or a newer one.")
	}
	store := state.New()
	err := store.Update(header.GetIndex(), func(txn *state.Txn) error {
		for n := 1; ; n++ {
			var record raftv1.SnapshotRecord
			if err := opts.UnmarshalFrom(buf, &record); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return damaged("record %d: %w", n, err)
			}
			if err := restore(txn, known(t, &record)); err != nil {
				return damaged("record %d: %w", n, err)
			}
		}
	})
	if err != nil {
		return nil, nil, err
	}
	return store, header, nil
}

func restore(t *state.Txn, record *raftv1.SnapshotRecord) error {
	switch r := record.GetRecord().(type) {
	case *raftv1.SnapshotRecord_Cluster:
		c := clusterFromProto(r.Cluster)
		if _, twice := t.Cluster(); twice || !isID(c.ID) {
			return errors.New("a cluster without an id, or a second one")
		}
		t.PutCluster(c)
	case *raftv1.SnapshotRecord_Node:
		n := nodeFromProto(r.Node)
		if _, twice := t.Node(n.ID); twice || !isID(n.ID) {
			return errors.New("a node without an id, or a duplicate")
		}
		t.PutNode(n)
	case *raftv1.SnapshotRecord_Token:
		token := tokenFromProto(r.Token)
		if _, twice := t.Token(token.ID); twice || !isID(token.ID) {
			return errors.New("a token without an id, or a duplicate")
		}
		t.PutToken(token)
	case *raftv1.SnapshotRecord_Tombstone:
		stone := state.Tombstone{Hive: r.Tombstone.GetHive(), Incarnation: r.Tombstone.GetIncarnation(), Index: r.Tombstone.GetIndex()}
		if _, twice := t.Tombstone(stone.Hive); twice || !isID(stone.Hive) {
			return errors.New("a tombstone without a hive, or a duplicate")
		}
		t.PutTombstone(stone)
	case *raftv1.SnapshotRecord_RevokedToken:
		gone := state.RevokedToken{Token: r.RevokedToken.GetToken(), Index: r.RevokedToken.GetIndex()}
		if !isID(gone.Token) || t.RevokedToken(gone.Token) {
			return errors.New("a revoked token without an id, or a duplicate")
		}
		t.PutRevokedToken(gone)
	case *raftv1.SnapshotRecord_Start:
		d := startFromProto(r.Start)
		if _, twice := t.Start(d.Model); twice || !isID(d.Model) {
			return errors.New("a start without a model, or a duplicate")
		}
		t.PutStart(d)
	case *raftv1.SnapshotRecord_Setting:
		v := state.Setting{Name: r.Setting.GetName(), Value: r.Setting.GetValue(), Index: r.Setting.GetIndex()}
		if _, twice := t.Setting(v.Name); twice || !isID(v.Name) {
			return errors.New("a setting without a name, or a duplicate")
		}
		t.PutSetting(v)
	case *raftv1.SnapshotRecord_Alias:
		a := aliasFromProto(r.Alias)
		if _, twice := t.Alias(a.Name); twice || !isID(a.Name) {
			return errors.New("an alias without a name, or a duplicate")
		}
		t.PutAlias(a)
	case *raftv1.SnapshotRecord_Deployment:
		d := deploymentFromProto(r.Deployment)
		if _, twice := t.Deployment(d.Name); twice || !isID(d.Name) {
			return errors.New("a deployment without a name, or a duplicate")
		}
		t.PutDeployment(d)
	case *raftv1.SnapshotRecord_Hive:
		h := hiveFromProto(r.Hive)
		if _, twice := t.Hive(h.ID); twice || !isID(h.ID) {
			return errors.New("a hive without an id, or a duplicate")
		}
		t.PutHive(h)
	case *raftv1.SnapshotRecord_Worker:
		w := workerFromProto(r.Worker)
		if _, twice := t.Worker(w.Hive, w.ID); twice || !isID(w.ID) {
			return errors.New("a worker without an id, or a duplicate")
		}
		if _, ok := t.Hive(w.Hive); !ok {
			return errors.New("a worker without its hive")
		}
		t.PutWorker(w)
	case *raftv1.SnapshotRecord_RetireIntent:
		i := state.RetireIntent{Hive: r.RetireIntent.GetHive(), Nonce: r.RetireIntent.GetNonce()}
		if !isID(i.Nonce) || t.RetireIntent(i.Hive, i.Nonce) {
			return errors.New("a retire intent without a nonce, or a duplicate")
		}
		if _, ok := t.Hive(i.Hive); !ok {
			return errors.New("a retire intent without its hive")
		}
		t.PutRetireIntent(i)
	default:
		return errors.New("of an unknown type")
	}
	return nil
}

// isID reports whether s can be the id of a row. A NUL separates the parts of the registry's keys.
func isID(s string) bool { return s != "" && !strings.Contains(s, "\x00") }

func damaged(format string, args ...any) error {
	return core.Errorf(core.Integrity, "read snapshot: "+format, args...).Hint("Use another snapshot.")
}
