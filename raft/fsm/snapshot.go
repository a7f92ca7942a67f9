package fsm

import (
	"bufio"
	"errors"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// SnapshotFormat is the format of the snapshots that this build writes, and the newest it reads: a SnapshotHeader, then SnapshotRecords,
// each behind its length as a varint; hives first, sorted by id.
const SnapshotFormat = 1

// Snapshot takes the state as it is now, without copying it.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{f.State().Snapshot()}, nil
}

// Restore replaces the state by a snapshot's. When it fails the state stays as it was.
func (f *FSM) Restore(r io.ReadCloser) error {
	store, err := ReadSnapshot(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	f.store.Swap(store).Abandon()
	return nil
}

type snapshot struct{ state *state.Snapshot }

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := WriteSnapshot(sink, s.state); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return core.E("finish snapshot", core.Unavailable, sink.Close())
}

func (s *snapshot) Release() {}

// WriteSnapshot writes s; the same state gives the same bytes.
func WriteSnapshot(w io.Writer, s *state.Snapshot) error {
	buf := bufio.NewWriter(w)
	opts := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	put := func(m proto.Message) error {
		_, err := opts.MarshalTo(buf, m)
		return err
	}
	err := put(&raftv1.SnapshotHeader{Format: SnapshotFormat, Fsm: Version, Index: s.AppliedIndex()})
	for _, h := range s.Hives(nil) {
		if err == nil {
			err = put(&raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Hive{Hive: hiveToProto(h)}})
		}
	}
	for _, worker := range s.Workers(nil) {
		if err == nil {
			err = put(&raftv1.SnapshotRecord{Record: &raftv1.SnapshotRecord_Worker{Worker: workerToProto(worker)}})
		}
	}
	if err == nil {
		err = buf.Flush()
	}
	return core.E("write snapshot", core.Unavailable, err)
}

// ReadSnapshot reads a snapshot into a new store. Errors: Integrity, and Unsupported for one of a newer version.
func ReadSnapshot(r io.Reader) (*state.Store, error) {
	buf := bufio.NewReader(r)
	opts := protodelim.UnmarshalOptions{MaxSize: MaxCommandBytes}
	var header raftv1.SnapshotHeader
	if err := opts.UnmarshalFrom(buf, &header); err != nil {
		return nil, damaged("the header: %w", err)
	}
	if header.GetFormat() != SnapshotFormat || header.GetFsm() > Version {
		return nil, core.WithHint(core.Errorf("read snapshot", core.Unsupported, "it has format %d and state machine version %d, this build reads %d and %d",
			header.GetFormat(), header.GetFsm(), SnapshotFormat, Version), "Install the version of rbee that wrote the snapshot, or a newer one.")
	}
	store := state.New()
	err := store.Update(header.GetIndex(), func(t *state.Txn) error {
		for n := 1; ; n++ {
			var record raftv1.SnapshotRecord
			if err := opts.UnmarshalFrom(buf, &record); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return damaged("record %d: %w", n, err)
			}
			if err := restore(t, &record); err != nil {
				return damaged("record %d: %w", n, err)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return store, nil
}

func restore(t *state.Txn, record *raftv1.SnapshotRecord) error {
	switch r := record.GetRecord().(type) {
	case *raftv1.SnapshotRecord_Hive:
		h := hiveFromProto(r.Hive)
		if _, twice := t.Hive(h.ID); h.ID == "" || twice {
			return errors.New("a hive without an id, or there twice")
		}
		t.PutHive(h)
	case *raftv1.SnapshotRecord_Worker:
		w := workerFromProto(r.Worker)
		if _, twice := t.Worker(w.ID); w.ID == "" || twice {
			return errors.New("a worker without an id, or there twice")
		}
		if _, ok := t.Hive(w.Hive); !ok {
			return errors.New("a worker without its hive")
		}
		t.PutWorker(w)
	default:
		return errors.New("of an unknown type")
	}
	return nil
}

func damaged(format string, args ...any) error {
	return core.WithHint(core.Errorf("read snapshot", core.Integrity, format, args...), "The snapshot is damaged: use an older one, or let this queen join again with an empty raft folder.")
}

// Inspect reads a snapshot and says what it holds. Errors: as ReadSnapshot.
func Inspect(r io.Reader) (core.SnapshotInfo, error) {
	return core.SnapshotInfo{}, core.Errorf("read snapshot", core.Unsupported, "not there yet")
}
