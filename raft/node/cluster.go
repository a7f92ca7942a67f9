package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// changeTimeout bounds how long a change of the cluster waits for the one before it.
const changeTimeout = 10 * time.Second

// maxSnapshotBytes bounds the snapshot that RestoreSnapshot reads.
const maxSnapshotBytes = 1 << 30

// Bootstrap selects what a node without state does.
type Bootstrap int

// How a cluster starts.
const (
	// Alone: the node is its cluster's only voter, and its leader at once.
	Alone Bootstrap = iota
	// Never: the node waits for a leader to add it. A node that joined a cluster never starts
	// another one.
	Never
	// Later: the node waits for a leader, or for Bootstrap to be called.
	Later
)

// Server is a member of the raft cluster.
type Server struct {
	NodeID  string // the machine's id; see Options.ID
	RaftID  string // new each time the machine starts with an empty raft folder
	Address string // as the transport dials it
	Voter   bool
	Leader  bool // this node believes so
}

// Bootstrap starts a cluster of these voters, this node included, with ids as returned by ID. All
// of them call it with the same list, in any order; it is harmless if a cluster starts in the
// meantime. Errors: Conflict if there is state already, Invalid, Unavailable.
func (n *Node) Bootstrap(voters []Voter) error {
	const op = "bootstrap raft cluster"
	if n.opts.Bootstrap == Never {
		return core.Errorf(core.Conflict, "%s: this queen already belongs to a cluster and cannot start another", op)
	}
	voters = slices.Clone(voters)
	slices.SortFunc(voters, func(a, b Voter) int { return strings.Compare(a.ID, b.ID) })
	var c raft.Configuration
	for _, v := range voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Address)})
	}
	switch err := n.raft.BootstrapCluster(c).Error(); {
	case errors.Is(err, raft.ErrCantBootstrap):
		return core.Errorf(core.Conflict, "%s: this queen is part of a cluster already", op)
	case errors.Is(err, raft.ErrNotVoter):
		return core.Errorf(core.Invalid, "%s: this queen, %s, is not among the voters", op, n.id)
	case errors.Is(err, raft.ErrRaftShutdown):
		return n.classify(op, err)
	case err != nil:
		return core.Wrap(err, core.Invalid, op)
	}
	if len(voters) == 1 {
		n.standNow()
	}
	return nil
}

// AddNonvoter adds a server that gets the log but has no vote, or changes a member's address.
// Errors: as for Apply.
func (n *Node) AddNonvoter(ctx context.Context, raftID, address string) error {
	return n.change(ctx, "add queen", func() raft.Future {
		return n.raft.AddNonvoter(raft.ServerID(raftID), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// AddVoter adds a server with a vote, gives a member one, or changes its address. Errors: as for
// Apply.
func (n *Node) AddVoter(ctx context.Context, raftID, address string) error {
	return n.change(ctx, "add queen", func() raft.Future {
		return n.raft.AddVoter(raft.ServerID(raftID), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// RemoveServer removes a server from the cluster; a missing one is not an error. Errors: Conflict
// for the only voter, and as for Apply.
func (n *Node) RemoveServer(ctx context.Context, raftID string) error {
	if v := n.voterIDs(); len(v) == 1 && v[0] == raft.ServerID(raftID) {
		return core.Errorf(core.Conflict, "remove queen: queen %s is the only one with a vote", raftID).Hint("Have another queen join first.")
	}
	return n.change(ctx, "remove queen", func() raft.Future { return n.raft.RemoveServer(raft.ServerID(raftID), 0, changeTimeout) })
}

// change changes the cluster. Raft makes one change at a time.
func (n *Node) change(ctx context.Context, op string, begin func() raft.Future) error {
	err := n.wait(ctx, op, func() error { return begin().Error() })
	switch {
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return core.Errorf(core.Unavailable, "%s: another change of the cluster is under way", op).Hint("Try again; it needs a majority of the queens.")
	case err != nil && core.KindOf(err) == core.Internal:
		return core.WithKind(err, core.Conflict) // raft's own error text
	}
	return err
}

// SaveSnapshot writes the state as a snapshot for RestoreSnapshot: on the leader, everything that
// was acknowledged before the call; on another node, its own state. Errors: w's, Unavailable;
// ctx's.
func (n *Node) SaveSnapshot(ctx context.Context, w io.Writer) error {
	if n.IsLeader() {
		if _, err := n.ReadIndex(ctx, true); err != nil {
			return err
		}
	}
	return n.fsm.Table().WriteSnapshot(w, n.State().Snapshot())
}

// RestoreSnapshot replaces the state of the whole cluster with a snapshot's, except revocations and
// keys: see fsm.KeepRevoked. Only the leader can do this. It reads and checks the whole snapshot
// before it changes anything. The index of the state increases. Errors: Integrity, Unsupported,
// TooLarge; Conflict for another cluster's snapshot; Unavailable; ctx's.
func (n *Node) RestoreSnapshot(ctx context.Context, r io.Reader) error {
	const op = "restore snapshot"
	if n.raft.State() != raft.Leader {
		return n.classify(op, raft.ErrNotLeader)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes+1))
	if err != nil {
		return core.Prefix(err, op)
	}
	if len(data) > maxSnapshotBytes {
		return core.Errorf(core.TooLarge, "%s: the snapshot has more than %d MiB", op, maxSnapshotBytes>>20)
	}
	store, err := n.fsm.Table().ReadSnapshot(bytes.NewReader(data))
	if err != nil {
		return err
	}
	theirs, _ := store.Snapshot().Cluster(nil)
	before := n.State()
	if ours, ok := before.Snapshot().Cluster(nil); ok && ours.ID != theirs.ID {
		return core.Errorf(core.Conflict, "%s: the snapshot is of cluster %q, this is cluster %q", op, theirs.ID, ours.ID).Hint(
			"A snapshot goes back only into the cluster that it was taken of: its keys and certificates are that cluster's.")
	}
	// Waiters for an index must not find an older state after it. Raft takes the next free index,
	// which may be higher by then.
	index := max(store.AppliedIndex(), n.raft.LastIndex())
	if err := store.Update(index, func(*state.Txn) error { return nil }); err != nil {
		return err
	}
	if err := fsm.KeepRevoked(store, before.Snapshot()); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := n.fsm.Table().WriteSnapshot(&out, store.Snapshot()); err != nil {
		return err
	}
	n.log.Warn("restoring the registry from a snapshot", "index", index)
	meta := &raft.SnapshotMeta{Version: 1, Index: index, Term: n.raft.CurrentTerm(), Size: int64(out.Len())}
	err = n.wait(ctx, op, func() error { return n.raft.Restore(meta, &out, changeTimeout) })
	if errors.Is(err, raft.ErrEnqueueTimeout) {
		return core.Errorf(core.Unavailable, "%s: there is no leader", op)
	}
	if err != nil {
		return err
	}
	return n.revokeAgain(ctx, before.Snapshot())
}

// revokeAgain repeats the revocations made during the restore of a snapshot: they are in the
// earlier state, but not in the snapshot.
func (n *Node) revokeAgain(ctx context.Context, before *state.Snapshot) error {
	now := n.State().Snapshot()
	for _, v := range before.Nodes(nil) {
		if same, ok := now.Node(nil, v.ID); v.Revoked && ok && !same.Revoked {
			if _, err := n.Apply(ctx, fsm.RevokeNode(v.ID)); err != nil {
				return err
			}
		}
	}
	for _, v := range before.RevokedTokens(nil) {
		if _, ok := now.Token(nil, v.Token); ok {
			if _, err := n.Apply(ctx, fsm.RevokeToken(v.Token)); err != nil {
				return err
			}
		}
	}
	return nil
}
