// Package fsm turns the commands of the replicated log into state, the same on every queen, and writes and reads its snapshots.
package fsm

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// Version is the state machine version of this build: it applies commands whose min_fsm is at most this. It grows with every change
// after which the same command gives another state, a new field of a known command included.
const Version = 2

// Result is what applying a command gave. It depends on the state and the command alone, so it is the same on every queen.
type Result struct {
	Index uint64 // of the command in the log
	Err   error  // why the command changed nothing: see its constructor; nil: it is in force
	// Errs is for SyncHives alone: why each hive was refused, in the order of the command; nil where it is in force.
	Errs []error
}

// FSM is the state machine that raft drives. State may be called at any time, the other methods are raft's.
type FSM struct {
	store atomic.Pointer[state.Store]
}

var _ raft.FSM = (*FSM)(nil)

// New returns a state machine with an empty registry.
func New() *FSM {
	f := &FSM{}
	f.store.Store(state.New())
	return f
}

// State is the registry of now. After a restore it is another one; see state.Store.Abandoned.
func (f *FSM) State() *state.Store { return f.store.Load() }

// Encode is the command as bytes for the log.
func Encode(c *raftv1.Command) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, core.E("encode raft command", core.Invalid, err)
	}
	return data, nil
}

// Apply applies one entry of the log and returns a Result. It panics at an entry that this version cannot apply as every other queen does:
// to stop is better than to diverge. An entry that is already in the state, because a snapshot was newer than its place in the log, is passed over.
func (f *FSM) Apply(l *raft.Log) any {
	var c raftv1.Command
	if err := proto.Unmarshal(l.Data, &c); err != nil {
		panic(fmt.Sprintf("the replicated log is damaged at index %d: %v; remove this queen's raft folder and let it join again, "+
			"or restore a snapshot if it is the only queen", l.Index, err))
	}
	store := f.store.Load()
	if l.Index <= store.AppliedIndex() {
		return Result{Index: l.Index}
	}
	op := operation(&c)
	if op == nil && !c.GetIgnorable() {
		panic(fmt.Sprintf("the replicated log holds at index %d a command that state machine version %d does not know (it needs %d): "+
			"install on this queen the version of rbee that its leader runs", l.Index, Version, max(c.GetMinFsm(), Version+1)))
	}
	err := store.Update(l.Index, func(t *state.Txn) error {
		if op == nil {
			return nil
		}
		return op(t, l.Index)
	})
	return Result{Index: l.Index, Err: err}
}

// operation is what the command does; nil: this version does not know.
func operation(c *raftv1.Command) func(t *state.Txn, index uint64) error {
	if c.GetMinFsm() > Version {
		return nil
	}
	switch op := c.GetOp().(type) {
	case *raftv1.Command_SyncHive:
		return func(t *state.Txn, index uint64) error { return syncHive(t, index, op.SyncHive) }
	case *raftv1.Command_SetHiveStatus:
		return func(t *state.Txn, index uint64) error { return setHiveStatus(t, index, op.SetHiveStatus) }
	case *raftv1.Command_RetireWorker:
		return func(t *state.Txn, index uint64) error { return retireWorker(t, index, op.RetireWorker) }
	case *raftv1.Command_RemoveHive:
		return func(t *state.Txn, _ uint64) error { return removeHive(t, op.RemoveHive.GetHive()) }
	}
	return nil
}

func syncHive(t *state.Txn, index uint64, op *raftv1.SyncHive) error {
	hive := hiveFromProto(op.GetHive())
	if hive.ID == "" {
		return core.Errorf("sync hive", core.Invalid, "the hive has no id")
	}
	if hive.Status == "" {
		hive.Status = core.HiveReady
	}
	old, known := t.Hive(hive.ID)
	if known && hive.Incarnation < old.Incarnation {
		return core.WithHint(core.Errorf("sync hive", core.Conflict, "hive %s has incarnation %d, this is the older %d",
			hive.ID, old.Incarnation, hive.Incarnation), "Another agent runs with this hive's id: give each its own data_dir, or restart this one if it is the right one.")
	}
	hive.CreateIndex, hive.ModifyIndex = index, index
	if known {
		hive.CreateIndex, hive.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if !sameHive(hive, old) {
			hive.ModifyIndex = index
		}
	}
	if !known || hive.ModifyIndex == index {
		t.PutHive(hive)
	}

	given := make(map[string]bool, len(op.GetWorkers()))
	for _, p := range op.GetWorkers() {
		w := workerFromProto(p)
		w.Hive = hive.ID
		if w.ID == "" {
			return core.Errorf("sync hive", core.Invalid, "a worker of hive %s has no id", hive.ID)
		}
		given[w.ID] = true
		if err := syncWorker(t, index, w); err != nil {
			return err
		}
	}
	for _, w := range t.WorkersOfHive(hive.ID) {
		if !given[w.ID] {
			t.DeleteWorker(w.ID)
		}
	}
	return nil
}

func syncWorker(t *state.Txn, index uint64, w core.Worker) error {
	old, known := t.Worker(w.ID)
	if known && old.Hive != w.Hive {
		return core.WithHint(core.Errorf("sync hive", core.Conflict, "worker %s belongs to hive %s, not to %s", w.ID, old.Hive, w.Hive),
			"Stop the worker on one of the two hives.")
	}
	w.CreateIndex, w.ModifyIndex = index, index
	if known && old.Nonce == w.Nonce {
		w.CreateIndex, w.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if old.State == core.WorkerRetiring {
			// Retiring is for ever: what the hive says may be older than the intent.
			w.State = core.WorkerRetiring
		}
		if w == old {
			return nil
		}
		w.ModifyIndex = index
	}
	t.PutWorker(w)
	return nil
}

func sameHive(a, b core.Hive) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Version == b.Version && a.OS == b.OS && a.Arch == b.Arch && a.Incarnation == b.Incarnation &&
		a.Status == b.Status && slices.Equal(a.Devices, b.Devices) && slices.Equal(a.WorkerTypes, b.WorkerTypes)
}

func setHiveStatus(t *state.Txn, index uint64, op *raftv1.SetHiveStatus) error {
	h, ok := t.Hive(op.GetHive())
	if !ok {
		return core.WithHint(core.Errorf("set hive status", core.NotFound, "there is no hive %q", op.GetHive()), "List the hives to see their ids.")
	}
	if op.GetIncarnation() != 0 && op.GetIncarnation() != h.Incarnation {
		return core.Errorf("set hive status", core.Conflict, "hive %s has incarnation %d, not %d", h.ID, h.Incarnation, op.GetIncarnation())
	}
	status := core.HiveStatus(op.GetStatus())
	if h.Status != status {
		h.Status, h.ModifyIndex = status, index
		t.PutHive(h)
	}
	if status == core.HiveDown {
		deleteWorkers(t, h.ID)
	}
	return nil
}

func retireWorker(t *state.Txn, index uint64, op *raftv1.RetireWorker) error {
	w, ok := t.Worker(op.GetWorker())
	if !ok {
		return core.WithHint(core.Errorf("retire worker", core.NotFound, "there is no active worker %q", op.GetWorker()), "List the workers to see their ids.")
	}
	if w.State != core.WorkerRetiring {
		w.State, w.ModifyIndex = core.WorkerRetiring, index
		t.PutWorker(w)
	}
	return nil
}

func removeHive(t *state.Txn, hive string) error {
	t.DeleteHive(hive)
	deleteWorkers(t, hive)
	return nil
}

func deleteWorkers(t *state.Txn, hive string) {
	for _, w := range t.WorkersOfHive(hive) {
		t.DeleteWorker(w.ID)
	}
}
