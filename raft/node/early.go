package node

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

const (
	probeTimeout = 200 * time.Millisecond
	probeEvery   = 5 * time.Millisecond
	// Voters stand one after another, so that they do not split the votes: each waits for the
	// duration of an election, which takes several writes, on machines that are busy with the
	// leader's death. The first one does not wait.
	standEvery  = 75 * time.Millisecond
	standWrites = 6
	standJitter = 10 * time.Millisecond
)

// Lost reports that a connection to a queen broke, named by its node id, raft id or address; empty
// if unknown. If the queen is the leader, and its address refuses connections, this node does not
// wait for the election timeout. It does not block, and a wrong hint is harmless.
func (n *Node) Lost(hint string) {
	if n.opts.Probe == nil || n.disk.raft.Load() == nil {
		return
	}
	leader, ok := n.LeaderServer()
	if !ok || leader.RaftID == n.id {
		return
	}
	if hint != "" && hint != leader.NodeID && hint != leader.RaftID && hint != leader.Address {
		return
	}
	if !n.probing.CompareAndSwap(false, true) {
		return
	}
	if !n.spawn(func(ctx context.Context) {
		defer n.probing.Store(false)
		n.standFor(ctx, leader)
	}) {
		n.probing.Store(false)
	}
}

// standFor stands for election if the leader is dead.
func (n *Node) standFor(ctx context.Context, leader Server) {
	if n.trans.abstain() != nil || !n.refuses(ctx, string(n.trans.locate(raft.ServerID(leader.RaftID), raft.ServerAddress(leader.Address)))) {
		return
	}
	rank, voters := 0, 0
	for _, s := range n.Servers() {
		if !s.Voter || s.RaftID == leader.RaftID {
			continue
		}
		voters++
		if s.RaftID < n.id {
			rank++
		}
	}
	if voters == 0 {
		return
	}
	took, _ := n.disk.median()
	turn := time.Duration(rank) * max(standEvery, standWrites*took)
	term := n.raft.CurrentTerm()
	for since := time.Now(); ; {
		pause(ctx, time.Until(since.Add(turn))+rand.N(standJitter))
		now, ok := n.LeaderServer()
		if ctx.Err() != nil || ok && now.RaftID != leader.RaftID || !n.isVoter() || n.raft.State() != raft.Follower {
			return // another candidate was faster
		}
		if n.disk.votedAfter(term) {
			return // the candidate's log is at least as long as this one
		}
		contact := n.raft.LastContact()
		if !contact.After(since) {
			break
		}
		// Entries that the leader sent before its death were stored only now: that counts as
		// contact as well, but does not prove that the leader is alive.
		since = contact
	}
	n.log.Info("the leader is dead, standing for election", "queen", leader.RaftID)
	n.standNow()
}

// refuses reports whether the address refuses connections. A process that is being killed may still
// accept a connection, and drop it.
func (n *Node) refuses(ctx context.Context, address string) bool {
	for until := time.Now().Add(probeTimeout); ; {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		err := n.opts.Probe(attempt, address)
		cancel()
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		dropped := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE)
		if !dropped || ctx.Err() != nil || time.Now().After(until) {
			return false
		}
		pause(ctx, probeEvery)
	}
}

// standNow makes this node stand for election without a pre-vote, even if others may still believe
// in a leader. A cluster's only voter need not wait for a leader. If it fails, the timeouts take
// over.
func (n *Node) standNow() {
	self := raft.Server{ID: raft.ServerID(n.id), Address: n.trans.LocalAddr()}
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self.ID), Addr: n.trans.EncodePeer(self.ID, self.Address)}
	if _, err := n.trans.inject(&raft.TimeoutNowRequest{RPCHeader: header}, nil); err != nil {
		n.log.Debug("no early election", "error", err)
	}
}

// spawn runs fn until the node shuts down, and does nothing once the shutdown has begun. Shutdown
// waits for it.
func (n *Node) spawn(fn func(ctx context.Context)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ending {
		return false
	}
	n.wg.Go(func() {
		ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with the node
		defer cancel()
		n.wg.Go(func() {
			select {
			case <-n.closed:
				cancel()
			case <-ctx.Done():
			}
		})
		fn(ctx)
	})
	return true
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// watchedStream reports broken connections from other queens, the leader's among them.
type watchedStream struct {
	raft.StreamLayer
	broken func()
}

func (s watchedStream) Accept() (net.Conn, error) {
	conn, err := s.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: conn, broken: s.broken}, nil
}

type watchedConn struct {
	net.Conn
	broken func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.broken()
	}
	return n, err
}

// dial returns the probe if there is a stream.
func dial(stream raft.StreamLayer) func(context.Context, string) error {
	return func(ctx context.Context, address string) error {
		timeout := probeTimeout
		if until, ok := ctx.Deadline(); ok {
			timeout = max(time.Until(until), time.Millisecond)
		}
		conn, err := stream.Dial(raft.ServerAddress(address), timeout)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// voterIDs returns the raft ids of the voters.
func (n *Node) voterIDs() []raft.ServerID {
	var ids []raft.ServerID
	for _, s := range n.Servers() {
		if s.Voter {
			ids = append(ids, raft.ServerID(s.RaftID))
		}
	}
	return ids
}

func (n *Node) isVoter() bool { return slices.Contains(n.voterIDs(), raft.ServerID(n.id)) }
