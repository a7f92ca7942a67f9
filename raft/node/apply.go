package node

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// ErrOutcomeUnknown is in the chain of an error after which it is unknown whether the command took
// or will take effect. Commands are idempotent, so callers should repeat it.
var ErrOutcomeUnknown = errors.New("it is unknown whether the change was made")

// Apply checks a command, stamps it, gets it logged by a majority, applies it here, and returns its
// result. A result that refuses the command is also the error. It does not change c.
//
// Errors: Invalid and TooLarge before anything is logged; NotFound, Conflict and Invalid from the
// state; Unavailable if this node is not the leader, its disk failed or it shuts down; Cancelled
// and DeadlineExceeded from ctx. The chain includes ErrOutcomeUnknown if the outcome is unknown.
func (n *Node) Apply(ctx context.Context, c *raftv1.Command) (fsm.Result, error) {
	c = proto.CloneOf(c)
	c.AtUnixNano = n.opts.Now().UnixNano()
	if err := fsm.Validate(c); err != nil {
		return fsm.Result{}, err
	}
	if err := n.stamp(c); err != nil {
		return fsm.Result{}, err
	}
	data, err := fsm.Encode(c)
	if err != nil {
		return fsm.Result{}, err
	}
	if err := n.disk.stalled(); err != nil {
		// raft is stuck in the write and accepts no requests
		return fsm.Result{}, core.Wrap(err, core.Unavailable, "change the registry")
	}
	results := make(chan fsm.Result, 1)
	err = n.wait(ctx, "change the registry", func() error {
		f := n.raft.Apply(data, 0)
		if err := f.Error(); err != nil {
			return err
		}
		r, ok := f.Response().(fsm.Result)
		if !ok {
			return core.Errorf(core.Internal, "change the registry: the state machine answered %T", f.Response())
		}
		results <- r
		return nil
	})
	if err != nil {
		return fsm.Result{}, err
	}
	r := <-results
	return r, r.Err
}

// stamp sets the state machine version that a command needs. A queen that does not know the command
// would stop when it reaches it, so stamp refuses the command while an older queen lives; it
// removes optional fields instead.
func (n *Node) stamp(c *raftv1.Command) error {
	lowest := uint32(0)
	if n.opts.MinFSM != nil {
		lowest = n.opts.MinFSM()
	}
	table := n.fsm.Table()
	if lowest != 0 {
		table.Fit(c, lowest)
	}
	c.MinFsm = table.Required(c)
	if lowest == 0 || c.GetMinFsm() <= lowest || fsm.Revokes(c) {
		return nil // an old version must not delay a revocation
	}
	return core.Errorf(core.Unavailable, "change the registry: the change needs state machine version %d (%s), but a live queen has %d", c.GetMinFsm(), strings.Join(table.Missing(c, lowest), ", "), lowest).Hint(
		"Finish the upgrade: all queens need the version of rbee that this one runs.")
}

// Barrier returns once State has everything that was committed before the call, if this node was
// still the leader then: reads of State are then linearizable. It costs one entry of the log.
// Errors: Unavailable, and ctx's.
func (n *Node) Barrier(ctx context.Context) error {
	term := n.raft.CurrentTerm()
	err := n.wait(ctx, "wait for the registry", func() error { return n.raft.Barrier(0).Error() })
	if err == nil && n.raft.CurrentTerm() == term {
		n.confirmed.Store(term)
	}
	return err
}

// wait waits for a future of raft, which takes no context. An abandoned future completes when raft
// gets to it.
func (n *Node) wait(ctx context.Context, op string, future func() error) error {
	if err := ctx.Err(); err != nil {
		return core.Prefix(err, op)
	}
	if !n.begin() {
		return core.Errorf(core.Unavailable, "%s: this queen is shutting down", op)
	}
	answer := make(chan error, 1)
	go func() {
		answer <- future()
		n.end()
	}()
	select {
	case err := <-answer:
		return n.classify(op, err)
	case <-ctx.Done():
		return core.Errorf(core.KindOf(ctx.Err()), "%s: %w; %w", op, ctx.Err(), ErrOutcomeUnknown).Hint("Try again: repeating a change is harmless.")
	case <-n.closed:
		// Raft drops some futures when it shuts down.
		return core.Errorf(core.Unavailable, "%s: this queen is shutting down; %w", op, ErrOutcomeUnknown)
	}
}

// begin counts a future, unless the node shuts down.
func (n *Node) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ending {
		return false
	}
	n.pending++
	return true
}

func (n *Node) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending--
}

// drain waits until all futures have completed, or the time has passed.
func (n *Node) drain(within time.Duration) {
	for until := time.Now().Add(within); time.Now().Before(until); time.Sleep(time.Millisecond) {
		n.mu.Lock()
		left := n.pending
		n.mu.Unlock()
		if left == 0 {
			return
		}
	}
}

// classify turns raft's error into a classified one for the caller.
func (n *Node) classify(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		if leader := n.Leader(); leader != "" && leader != n.opts.ID {
			return core.Errorf(core.Unavailable, "%s: queen %s is not the leader, %s is", op, n.opts.ID, leader).Hint("Try again.")
		}
		return core.Errorf(core.Unavailable, "%s: there is no leader", op).Hint("Try again in a moment; if it stays so, check that a majority of the queens runs.")
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return core.Errorf(core.Unavailable, "%s: %w; %w", op, err, ErrOutcomeUnknown).Hint("Try again: repeating a change is harmless.")
	case errors.Is(err, raft.ErrRaftShutdown):
		return core.Errorf(core.Unavailable, "%s: this queen is shutting down", op)
	case n.store != nil && n.store.Err() != nil:
		return core.Wrap(errors.Join(n.store.Err(), ErrOutcomeUnknown), core.Unavailable, op)
	}
	return core.Prefix(err, op)
}
