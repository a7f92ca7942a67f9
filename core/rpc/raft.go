package rpc

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// RaftOptions configure a RaftStream.
type RaftOptions struct {
	Mux      *Mux
	Identity Identity
	Revoked  func(nodeID string) bool // nil: none
	// Broken is called when a connection breaks that this side did not close. address is set for a
	// connection that this queen dialled, and empty for one that the other queen dialled. It is the
	// first sign of a queen's death, and may be a false one. It must not block. It may be nil.
	Broken func(nodeID, address string)
	// Declined is called when another queen refuses this one's certificate. It must not block. It
	// may be nil.
	Declined func(address string)
	// Barred returns the reason why no connections may be made, or nil if they may.
	Barred func() error
	// Dial makes connections; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// RaftStream carries raft between queens over the RPC port: both ends show a queen's certificate.
// It has the methods of raft's StreamLayer, except that addresses are strings. It is safe for
// concurrent use.
type RaftStream struct {
	opts   RaftOptions
	dialer dialer

	mu     sync.Mutex // guards below
	closed bool
	open   map[*Conn]struct{} // dialled and not closed yet
}

// NewRaftStream returns the raft connections of a Mux.
func NewRaftStream(o RaftOptions) *RaftStream {
	if o.Dial == nil {
		o.Dial = tcp(queenDeadAfter)
	}
	return &RaftStream{opts: o, dialer: dialer{identity: o.Identity, revoked: o.Revoked, declined: o.Declined, dial: unlessBarred(o.Barred, o.Dial)}, open: map[*Conn]struct{}{}}
}

// Accept waits for a connection from another queen. It fails with net.ErrClosed.
func (s *RaftStream) Accept() (net.Conn, error) {
	conn, err := s.opts.Mux.Raft().Accept()
	if err != nil {
		return nil, err
	}
	if c, ok := conn.(*Conn); ok {
		c.onBreak(func() { s.broken(c.node.ID, "") })
	}
	return conn, nil
}

// Dial connects to the queen at an RPC address. Errors: Unavailable, Unauthenticated or Forbidden
// if another node answers, DeadlineExceeded.
func (s *RaftStream) Dial(address string, timeout time.Duration) (net.Conn, error) {
	if timeout <= 0 {
		timeout = connectTimeout
	}
	// raft passes a timeout but no context
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.dialer.connect(ctx, address, s.dialer.config(ProtocolRaft, core.RoleQueen, ""))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Abort()
		return nil, core.Wrap(net.ErrClosed, core.Unavailable, "connect")
	}
	s.open[c] = struct{}{}
	c.forget = s.forget
	c.onBreak(func() { s.broken(c.node.ID, address) })
	return c, nil
}

func (s *RaftStream) broken(node, address string) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if s.opts.Broken != nil && !closed {
		s.opts.Broken(node, address)
	}
}

func (s *RaftStream) forget(c *Conn) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
}

// Addr returns the RPC address at which other queens reach this one, and which raft takes as its
// own.
func (s *RaftStream) Addr() net.Addr { return advertised(s.opts.Identity.RPCAddress()) }

// CloseNode closes the connections to a node and those that the node made.
func (s *RaftStream) CloseNode(nodeID string) {
	s.opts.Mux.CloseNode(nodeID)
	s.closeIf(func(c *Conn) bool { return c.node.ID == nodeID })
}

// CloseRevoked closes the connections to all revoked nodes. Mux.CloseRevoked closes those that they
// made.
func (s *RaftStream) CloseRevoked() {
	if s.opts.Revoked != nil {
		s.closeIf(func(c *Conn) bool { return s.opts.Revoked(c.node.ID) })
	}
}

// Reset closes the connections that this node made, for example when this machine's address
// changes.
func (s *RaftStream) Reset() { s.closeIf(func(*Conn) bool { return true }) }

func (s *RaftStream) closeIf(condition func(*Conn) bool) {
	s.mu.Lock()
	var all []*Conn
	for c := range s.open {
		if condition(c) {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		c.Abort()
	}
}

// Close ends Accept and closes all raft connections: raft itself does not close those that it waits
// on.
func (s *RaftStream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.opts.Mux.Raft().Close()
	s.opts.Mux.closeProtocol(ProtocolRaft)
	s.closeIf(func(*Conn) bool { return true })
	return err
}

// advertised is an address under which others know this node.
type advertised string

// Network implements net.Addr.
func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }
