// Package memregistry is an in-memory registry: the state machine without raft.
package memregistry

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Registry is a registry that applies writes at once.
type Registry struct {
	machine *fsm.FSM

	mu    sync.Mutex // guards below
	index uint64
}

// New returns an empty registry.
func New() *Registry { return &Registry{machine: fsm.New()} }

// View returns the current registry.
func (r *Registry) View() *state.Snapshot { return r.machine.State().Snapshot() }

// Replaced returns a channel that is never closed.
func (r *Registry) Replaced() <-chan struct{} { return r.machine.State().Abandoned() }

// Apply applies a command.
func (r *Registry) Apply(_ context.Context, _ string, c *raftv1.Command) (fsm.Result, error) {
	c.AtUnixNano = time.Now().UnixNano()
	entry, err := fsm.Encode(c)
	if err != nil {
		return fsm.Result{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	result, ok := r.machine.Apply(&raft.Log{Index: r.index, Data: entry}).(fsm.Result)
	if !ok {
		return fsm.Result{}, core.Errorf(core.Internal, "the state machine returned no result")
	}
	return result, result.Err
}

// AppliedIndex returns the number of commands written.
func (r *Registry) AppliedIndex() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index
}

// Write applies a command.
func (r *Registry) Write(ctx context.Context, requestID string, c *raftv1.Command) error {
	_, err := r.Apply(ctx, requestID, c)
	return err
}

// CatchUp returns at once: the registry is always up to date.
func (r *Registry) CatchUp(context.Context) error { return nil }

// Cluster returns the registry's cluster. Errors: Unavailable if it has none.
func (r *Registry) Cluster() (core.Cluster, error) {
	c, ok := r.View().Cluster(nil)
	if !ok {
		return c, core.Errorf(core.Unavailable, "the registry has no cluster yet")
	}
	return c, nil
}

// Alone reports that the registry belongs to a cluster.
func (r *Registry) Alone() bool { return false }

// Silence returns 0, as on the leader.
func (r *Registry) Silence() time.Duration { return 0 }
