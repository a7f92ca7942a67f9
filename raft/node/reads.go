package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

// appliedEvery is the interval of checks for raft having passed an entry that is not a command,
// which the state machine does not see.
const appliedEvery = 5 * time.Millisecond

// ReadIndex returns the index that a node must have applied for its State to hold everything that
// was acknowledged before the call; see WaitApplied. Only the leader knows it. With verify it asks
// a majority whether it still leads; without, it trusts its lease, the election timeout since it
// last heard from a majority. Errors: Unavailable; ctx's.
func (n *Node) ReadIndex(ctx context.Context, verify bool) (uint64, error) {
	const op = "read the registry"
	if err := n.disk.stalled(); err != nil {
		// raft is stuck in the write, and does not notice that it no longer leads
		return 0, core.Wrap(err, core.Unavailable, op)
	}
	term := n.raft.CurrentTerm()
	if n.raft.State() != raft.Leader {
		return 0, n.classify(op, raft.ErrNotLeader)
	}
	// Entries that the previous leader acknowledged are known to be committed once an entry of this
	// term is.
	if n.confirmed.Load() != term {
		if err := n.confirm(ctx, term); err != nil {
			return 0, err
		}
	}
	index := n.raft.CommitIndex()
	if verify || time.Since(n.quorumContact(term)) > n.opts.ElectionTimeout {
		if err := n.verify(ctx, op, term); err != nil {
			return 0, err
		}
	}
	if err := n.WaitApplied(ctx, index); err != nil {
		return 0, err
	}
	return n.AppliedIndex(), nil
}

// verify asks a majority whether it still accepts this node as the leader of the term.
//
// Raft's own check (VerifyLeader, raft 1.8.0) counts any answer that arrives after the question,
// including one to an earlier heartbeat: a process that was stopped for a while finds such answers
// in its sockets, and would take itself for the leader although there is another. So verify repeats
// it until a majority has answered messages sent after the question; the second time nearly always
// suffices, since it sends heartbeats each time.
func (n *Node) verify(ctx context.Context, op string, term uint64) error {
	asked := time.Now()
	for {
		if err := n.wait(ctx, op, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
			return err
		}
		if !n.quorumContact(term).Before(asked) {
			return nil
		}
		if n.raft.CurrentTerm() != term {
			// elected again: first find out what was committed before
			return n.classify(op, raft.ErrNotLeader)
		}
	}
}

// quorumContact returns the latest time such that a majority accepted this node as the leader of
// the term in answer to requests sent at that time or later.
func (n *Node) quorumContact(term uint64) time.Time {
	return n.trans.quorumContact(n.voterIDs(), raft.ServerID(n.id), term)
}

// confirm writes one entry for all waiters together.
func (n *Node) confirm(ctx context.Context, term uint64) error {
	select {
	case n.confirming <- struct{}{}:
		defer func() { <-n.confirming }()
	case <-ctx.Done():
		return fmt.Errorf("read the registry: %w", core.FromContext(ctx))
	}
	if n.confirmed.Load() == term {
		return nil
	}
	return n.Barrier(ctx)
}

// WaitApplied returns once State has everything up to the raft index. Errors: Unavailable if the
// node shuts down; ctx's.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	const op = "wait for the registry"
	for {
		changed := n.applied.wait()
		if n.hasApplied(index) {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(appliedEvery):
		case <-ctx.Done():
			return core.WithHint(fmt.Errorf("%s: %w", op, core.FromContext(ctx)), "This queen is behind the leader: try again, or ask another one.")
		case <-n.closed:
			return core.Errorf(core.Unavailable, "%s: this queen is shutting down", op)
		}
	}
}

// hasApplied reports whether State has everything up to index. State's own index may be lower,
// because only commands reach it.
func (n *Node) hasApplied(index uint64) bool {
	if n.AppliedIndex() >= index || n.empty.Load() >= index {
		return true
	}
	if n.raft.AppliedIndex() < index {
		return false
	}
	have := n.AppliedIndex()
	for i := index; i > have; i-- {
		var l raft.Log
		if err := n.disk.GetLog(i, &l); errors.Is(err, raft.ErrLogNotFound) && !n.disk.restoring.Load() {
			break // a snapshot of the applied state was made
		} else if err != nil {
			return false
		}
		if l.Type == raft.LogCommand {
			return n.AppliedIndex() >= i
		}
		if isStandIn(&l) {
			break
		}
	}
	n.empty.Store(index)
	return true
}

// LastContact returns the time since this node last heard from its leader or led: 0 on the leader.
// Before the first contact it counts from Open.
func (n *Node) LastContact() time.Duration {
	if n.IsLeader() {
		return 0
	}
	last := n.raft.LastContact()
	if last.IsZero() {
		last = n.opened
	}
	return time.Since(last)
}

// signal wakes all goroutines that wait for it.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: no waiters
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) send() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// machine is the state machine that reports what was applied.
type machine struct {
	*fsm.FSM
	applied  *signal
	restored func()
}

func (m machine) Apply(l *raft.Log) any {
	defer m.applied.send()
	return m.FSM.Apply(l)
}

func (m machine) Restore(r io.ReadCloser) error {
	defer m.applied.send()
	err := m.FSM.Restore(r)
	if err == nil {
		m.restored()
	}
	return err
}
