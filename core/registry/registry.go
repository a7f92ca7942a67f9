// Package registry is the one door to the replicated registry: what this process knows of it, and
// writes to it.
package registry

import (
	"context"

	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
	"github.com/rbee-project/rbee/raft/state"
)

// Registry reads and writes through one raft node. It is safe for concurrent use.
type Registry struct {
	node *node.Node
}

// New returns the registry of a raft node. The node stays the caller's to run and to shut down.
func New(n *node.Node) *Registry { return &Registry{node: n} }

// View returns the registry as this node has it now. It is immutable and needs no release.
func (r *Registry) View() *state.Snapshot { return r.node.State().Snapshot() }

// Replaced returns a channel that is closed when a snapshot replaces the whole registry.
func (r *Registry) Replaced() <-chan struct{} { return r.node.State().Abandoned() }

// Write commits a command and returns once this node has applied it. Only the leader can. The
// request id helps people who read logs; one that is too long is left out. Errors: those of the
// state machine, Unavailable.
func (r *Registry) Write(ctx context.Context, requestID string, c *raftv1.Command) (fsm.Result, error) {
	if len(requestID) <= fsm.MaxIDBytes {
		c.RequestId = requestID
	}
	return r.node.Apply(ctx, c)
}
