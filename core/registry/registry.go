// Package registry is the only access to the replicated registry: it reads this process's copy,
// writes to the cluster's, and lets both catch up with the leader.
package registry

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
	"github.com/rbee-project/rbee/raft/state"
)

// Raft holds the methods that a Registry passes through to the raft node unchanged; see raft/node.
type Raft interface {
	ID() string // server id in the raft configuration
	HasState() bool
	IsLeader() bool
	Leader() string
	LastContact() time.Duration
	AppliedIndex() uint64
	DiskProblem() error
	Queens() ([]core.Queen, error)

	ReadIndex(ctx context.Context, verify bool) (uint64, error)
	WaitApplied(ctx context.Context, index uint64) error

	Run(ctx context.Context, lead func(ctx context.Context) error) error
	Autopilot(ctx context.Context, m Members) error
	RemoveServer(ctx context.Context, raftID string) error
	LeadershipTransfer(ctx context.Context) error
	LeadershipTransferTo(ctx context.Context, raftID, address string) error
}

type (
	// Members is the queens that Raft.Autopilot follows.
	Members = node.Membership
	// Member is one of the Members.
	Member = node.Member
)

// NodeOf returns the node id in a raft id.
func NodeOf(raftID string) string { return node.OfRaftID(raftID) }

// Registry reads and writes through one raft node. It is safe for concurrent use.
type Registry struct {
	Raft
	node  *node.Node
	id    string
	leads func() bool
	self  grpc.ClientConnInterface
}

// New returns the registry of a raft node. The caller still shuts down the node.
func New(n *node.Node) *Registry {
	return &Registry{Raft: n, node: n, id: n.NodeID(), leads: func() bool { return true }}
}

// Attach sets how this registry learns that its queen has taken over the leadership, and the
// connection for methods that the leader answers; nil: this queen is alone. Call it before anything
// else.
func (r *Registry) Attach(leads func() bool, self grpc.ClientConnInterface) {
	r.leads, r.self = leads, self
}

// View returns the registry in this node's current state. It is immutable and needs no release.
func (r *Registry) View() *state.Snapshot { return r.node.State().Snapshot() }

// Replaced returns a channel that is closed when a snapshot replaces the whole registry.
func (r *Registry) Replaced() <-chan struct{} { return r.node.State().Abandoned() }

// Leads reports whether this queen has taken over the leadership and still holds it. Raft learns of
// a loss some milliseconds before the queen's own loop does: without the check, a read in between
// would be refused here instead of waiting for the next leader.
func (r *Registry) Leads() bool { return r.leads() && r.IsLeader() }

// Silence returns how long this queen has heard from no leader; 0 if it leads or is alone.
func (r *Registry) Silence() time.Duration {
	if r.Alone() || r.Leads() {
		return 0
	}
	return r.LastContact()
}

// NotLeader returns the error for a question that only a leader can answer.
func (r *Registry) NotLeader() error {
	err := core.Errorf(core.Unavailable, "this queen does not lead the cluster")
	if leader := r.Leader(); leader != "" && leader != r.id {
		return core.WithHint(err, "Ask the leader, queen %s.", leader)
	}
	if problem := r.DiskProblem(); problem != nil {
		return problem
	}
	return core.WithHint(err, "Try again in a moment: a leader is being elected.")
}

// Apply commits a command and returns once this node has applied it. Only the leader can. The
// request id helps readers of logs; one that is too long is omitted. Errors: those of the state
// machine, Unavailable.
func (r *Registry) Apply(ctx context.Context, requestID string, c *raftv1.Command) (fsm.Result, error) {
	label(c, requestID)
	return r.node.Apply(ctx, c)
}

// Write commits a command through the current leader and returns once this node has applied it.
// Errors: those of the state machine, Unavailable.
func (r *Registry) Write(ctx context.Context, requestID string, c *raftv1.Command) error {
	if r.self == nil || r.Leads() {
		_, err := r.Apply(ctx, requestID, c)
		return err
	}
	label(c, requestID)
	data, err := fsm.Encode(c)
	if err != nil {
		return err
	}
	resp, err := queenv1.NewClusterServiceClient(r.self).Apply(ctx, &queenv1.ApplyRequest{Command: data})
	if err != nil {
		return rpc.FromStatus(err)
	}
	return r.WaitApplied(ctx, resp.GetIndex())
}

func label(c *raftv1.Command, requestID string) {
	if len(requestID) <= fsm.MaxIDBytes {
		c.RequestId = requestID
	}
}
