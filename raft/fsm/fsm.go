// Package fsm applies the commands of the replicated log to the state, identically on every queen,
// and writes and reads its snapshots.
package fsm

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// Result is the outcome of applying a command. It depends only on the state and the command, so it
// is the same on every queen.
type Result struct {
	Index uint64 // raft index of the command
	Err   error  // why the command changed nothing: see its constructor; nil: it took effect
	// Errs is only for SyncHives: why each hive was refused, in the order of the command; nil for
	// one that took effect.
	Errs []error
}

// FSM is the state machine that raft drives. State may be called at any time; only raft calls the
// other methods.
type FSM struct {
	table *Table
	store atomic.Pointer[state.Store]
}

var _ raft.FSM = (*FSM)(nil)

// New returns a state machine with an empty registry.
func New() *FSM { return NewOf(current) }

// NewOf returns the state machine of a build with this table.
func NewOf(t *Table) *FSM {
	f := &FSM{table: t}
	f.store.Store(state.New())
	return f
}

// Table returns the features that this state machine knows.
func (f *FSM) Table() *Table { return f.table }

// State returns the current registry. A restore replaces it; see state.Store.Abandoned.
func (f *FSM) State() *state.Store { return f.store.Load() }

// Encode returns the command as bytes for the log.
func Encode(c *raftv1.Command) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, core.Wrap(err, core.Invalid, "encode raft command")
	}
	return data, nil
}

// Check returns why Apply would panic at an entry of the log, or nil if it would not. Errors:
// Unsupported, with a hint, and Integrity.
func (f *FSM) Check(l *raft.Log) error {
	_, err := f.decode(l)
	return err
}

// decode returns the command of an entry of the log.
func (f *FSM) decode(l *raft.Log) (*raftv1.Command, error) {
	const op = "apply raft command"
	c := &raftv1.Command{}
	if err := proto.Unmarshal(l.Data, c); err != nil {
		return nil, core.Errorf(core.Integrity, "%s: the replicated log is damaged at index %d: %w", op, l.Index, err).Hint(
			"If there are other queens, move this queen's raft folder away and start again; the only one goes back to a snapshot: " +
				"\"rbee operator snapshot restore --offline FILE\".")
	}
	c = known(f.table, c)
	if f.operation(c) == nil && !c.GetIgnorable() {
		return nil, core.Errorf(core.Unsupported, "%s: the replicated log holds at index %d a command that state machine version %d does not know (it needs %d)", op,
			l.Index, f.table.version, max(c.GetMinFsm(), f.table.version+1)).Hint("Install on this queen the version of rbee that its leader runs.")
	}
	return c, nil
}

// Apply applies one entry of the log and returns a Result. It panics at an entry that this version
// cannot apply exactly as other queens do: stopping is better than diverging. It skips an entry
// that a newer snapshot already put into the state.
func (f *FSM) Apply(l *raft.Log) any {
	store := f.store.Load()
	if l.Index <= store.AppliedIndex() {
		return Result{Index: l.Index}
	}
	c, err := f.decode(l)
	if err != nil {
		panic(fmt.Sprintf("%v: %s", err, core.HintOf(err)))
	}
	op := f.operation(c)
	var errs []error
	err = store.Update(l.Index, func(t *state.Txn) error {
		if op == nil {
			return nil
		}
		e := &entry{Txn: t, index: l.Index, rules: c.GetMinFsm(), at: timeOf(c.GetAtUnixNano() / second)}
		err := op(e)
		errs = e.errs
		return err
	})
	return Result{Index: l.Index, Err: err, Errs: errs}
}

// entry is a command being applied.
type entry struct {
	*state.Txn
	index uint64
	rules uint32    // state machine version that the command was made for
	at    time.Time // the leader's clock when the command was made, in whole seconds
	errs  []error   // Result.Errs
}

// operation returns the function of a command; nil: unknown to this version.
func (f *FSM) operation(c *raftv1.Command) func(*entry) error {
	if c.GetMinFsm() > f.table.version {
		return nil
	}
	switch op := c.GetOp().(type) {
	case *raftv1.Command_SyncHive:
		return func(e *entry) error { return e.syncHive(op.SyncHive) }
	case *raftv1.Command_SyncHives:
		return func(e *entry) error { e.syncHives(op.SyncHives); return nil }
	case *raftv1.Command_SetHiveStatus:
		return func(e *entry) error { return e.setHiveStatus(op.SetHiveStatus) }
	case *raftv1.Command_SetHiveDraining:
		return func(e *entry) error { return e.setHiveDraining(op.SetHiveDraining) }
	case *raftv1.Command_RetireWorker:
		return func(e *entry) error { return e.retireWorker(op.RetireWorker) }
	case *raftv1.Command_RemoveHive:
		return func(e *entry) error { e.removeHive(op.RemoveHive.GetHive()); return nil }
	case *raftv1.Command_InitCluster:
		return func(e *entry) error { return e.initCluster(op.InitCluster) }
	case *raftv1.Command_PutNode:
		return func(e *entry) error { return e.putNode(op.PutNode) }
	case *raftv1.Command_RevokeNode:
		return func(e *entry) error { return e.revokeNode(op.RevokeNode.GetNode()) }
	case *raftv1.Command_RemoveNode:
		return func(e *entry) error { return e.removeNode(op.RemoveNode.GetNode()) }
	case *raftv1.Command_PutToken:
		return func(e *entry) error { return e.putToken(op.PutToken.GetToken()) }
	case *raftv1.Command_DeleteToken:
		return func(e *entry) error { e.deleteToken(op.DeleteToken); return nil }
	case *raftv1.Command_SetKeyring:
		return func(e *entry) error { return e.setKeyring(op.SetKeyring) }
	case *raftv1.Command_ClaimStart:
		return func(e *entry) error { return e.claimStart(op.ClaimStart) }
	case *raftv1.Command_RotateToken:
		return func(e *entry) error { return e.rotateToken(op.RotateToken) }
	case *raftv1.Command_EndOverlap:
		return func(e *entry) error { e.endOverlap(op.EndOverlap); return nil }
	case *raftv1.Command_TouchTokens:
		return func(e *entry) error { e.touchTokens(op.TouchTokens); return nil }
	case *raftv1.Command_PutAlias:
		return func(e *entry) error { return e.putAlias(op.PutAlias) }
	case *raftv1.Command_DeleteAlias:
		return func(e *entry) error { e.DeleteAlias(op.DeleteAlias.GetName()); return nil }
	case *raftv1.Command_PutDeployments:
		return func(e *entry) error { return e.putDeployments(op.PutDeployments) }
	case *raftv1.Command_StopDeployment:
		return func(e *entry) error { return e.stopDeployment(op.StopDeployment.GetName()) }
	case *raftv1.Command_PlaceReplicas:
		return func(e *entry) error { return e.placeReplicas(op.PlaceReplicas) }
	case *raftv1.Command_PutSetting:
		return func(e *entry) error { return e.putSetting(op.PutSetting) }
	}
	return nil
}
