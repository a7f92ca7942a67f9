package node

import (
	"context"
	"io"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Bootstrap says what a node without state does.
type Bootstrap int

// How a cluster begins.
const (
	// Alone: the node is its cluster's only voter, and its leader at once.
	Alone Bootstrap = iota
	// Never: the node waits for a leader to add it. What joined a cluster never begins another one.
	Never
	// Later: the node waits for a leader, or for Bootstrap to be called.
	Later
)

// Server is a member of the raft cluster.
type Server struct {
	NodeID  string // the machine's; see Options.ID
	RaftID  string // another one each time the machine starts with an empty raft folder
	Address string // as the transport dials it
	Voter   bool
	Leader  bool // this node believes so
}

// Member is a queen as gossip knows it.
type Member struct {
	NodeID  string
	RaftID  string // empty: not known, and then nothing is done with it
	Name    string // for the log
	Address string // as the transport dials it
	Version string // for the log
	Alive   bool
	Left    bool // it said goodbye; otherwise one that is not alive failed
}

// Membership is what Autopilot knows of the queens from elsewhere.
type Membership interface {
	// Members are the queens, this node included. It does not block.
	Members() []Member
}

// Bootstrap begins a cluster of these voters, this node among them, with ids as ID gives them. All of them call it with the same list, in any order;
// it is harmless where a cluster begins meanwhile. Errors: Conflict where there is state already, Invalid, Unavailable.
func (n *Node) Bootstrap(voters []Voter) error { return notYet() }

// ID is the node's raft id.
func (n *Node) ID() string { return n.opts.ID }

// NodeID is the id that the node was opened with.
func (n *Node) NodeID() string { return n.opts.ID }

// HasState says whether the node is, or once was, part of a cluster.
func (n *Node) HasState() bool { return true }

// Servers are the members of the raft cluster, in the order of its configuration.
func (n *Node) Servers() []Server { return nil }

// LeaderServer is the leader that this node knows.
func (n *Node) LeaderServer() (Server, bool) { return Server{}, false }

// ReadIndex is the index that a node must have applied for its State to hold everything that was acknowledged before the call; see WaitApplied.
// Only the leader knows it. With verify it asks a majority whether it still leads; without, it believes so for as long as its lease.
// Errors: Unavailable; ctx's.
func (n *Node) ReadIndex(ctx context.Context, verify bool) (uint64, error) { return 0, notYet() }

// WaitApplied returns when State has everything up to the raft index. Errors: Unavailable when the node shuts down; ctx's.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error { return notYet() }

// LastContact is how long ago this node heard of its leader, or was it: 0 on the leader. A node that never did counts from Open.
func (n *Node) LastContact() time.Duration { return 0 }

// AddNonvoter adds a server that gets the log and has no vote, or changes a nonvoter's address. Errors: as Apply.
func (n *Node) AddNonvoter(ctx context.Context, raftID, address string) error { return notYet() }

// AddVoter gives a server a vote, or changes a voter's address. Errors: as Apply.
func (n *Node) AddVoter(ctx context.Context, raftID, address string) error { return notYet() }

// RemoveServer takes a server out of the cluster; one that is not there is no error. Errors: as Apply.
func (n *Node) RemoveServer(ctx context.Context, raftID string) error { return notYet() }

// LeadershipTransferTo asks a voter to take the leadership over, and waits until it stands for it. Errors: as LeadershipTransfer.
func (n *Node) LeadershipTransferTo(ctx context.Context, raftID, address string) error {
	return notYet()
}

// SaveSnapshot writes the state as a snapshot that RestoreSnapshot takes: on the leader, everything that was acknowledged before the call; on another
// node, what it has. Errors: w's, Unavailable; ctx's.
func (n *Node) SaveSnapshot(ctx context.Context, w io.Writer) error { return notYet() }

// RestoreSnapshot replaces the state of the whole cluster by a snapshot's. Only the leader can. Nothing changes before the snapshot was read and checked.
// Errors: Integrity, Unsupported, TooLarge; Conflict for another cluster's; Unavailable; ctx's.
func (n *Node) RestoreSnapshot(ctx context.Context, r io.Reader) error { return notYet() }

// Autopilot keeps the raft cluster as the membership says, until ctx ends; run it while leading, within lead. It adds queens as nonvoters and gives them
// a vote when they were well for Options.Stabilization; removes those that are dead for a while, as long as Options.MinVoters stay, and at once an
// identity that its machine has lost; and follows addresses. Errors: those of ending it.
func (n *Node) Autopilot(ctx context.Context, m Membership) error {
	<-ctx.Done()
	return nil
}

// Lost says that a connection to a queen broke, named by its node id, raft id or address. If it is the leader, and its address refuses connections,
// this node does not wait for the election timeout. It does not block, and a wrong hint does no harm.
func (n *Node) Lost(hint string) {}

func notYet() error { return core.Errorf("", core.Unsupported, "not there yet") }
