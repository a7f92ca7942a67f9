package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
)

const (
	queenDeadAfter = 3 * time.Second
	hiveDeadAfter  = 10 * time.Second
)

// PoolOptions configure a Pool.
type PoolOptions struct {
	Identity Identity
	// Revoked reports whether a node must not be contacted; nil bars none.
	Revoked func(nodeID string) bool
	// Broken is called when a connection breaks that this side did not close. It must not block. It
	// may be nil.
	Broken func(nodeID, address string)
	// Declined is called when another node refuses this one's certificate. It must not block. It
	// may be nil.
	Declined func(address string)
	// Barred returns the reason why no connections may be made, or nil if they may.
	Barred func() error
	// DeadAfter is how long a peer may be silent during a call before the connection is dropped. 0:
	// 3 s for a queen. A hive that is not a queen leaves it to TCP, which takes 10 s: its
	// connections to queens have their own heartbeats, and a lossy network should not cut them.
	DeadAfter time.Duration
	// Dial makes connections; nil: TCP.
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Logger hclog.Logger // nil: none
}

// Pool keeps the connections to other nodes. It is safe for concurrent use.
type Pool struct {
	opts PoolOptions
	dialer
	ping bool // whether to monitor silent peers
	wg   sync.WaitGroup

	mu       sync.Mutex // guards below
	closed   bool
	kept     map[keptKey]*kept
	data     map[*Conn]struct{}                // open connections for data and files
	sessions map[string]tls.ClientSessionCache // for data connections, by node id and address
}

// keptKey identifies a kept connection. The address is set only if the node is unknown.
type keptKey struct {
	node, address string
	role          core.Role
}

// NewPool returns an empty pool. It connects on demand. The caller closes it.
func NewPool(o PoolOptions) *Pool {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	ping := o.DeadAfter > 0
	if o.DeadAfter <= 0 {
		o.DeadAfter = hiveDeadAfter
		if o.Identity.Node().Has(core.RoleQueen) {
			o.DeadAfter, ping = queenDeadAfter, true
		}
	}
	if o.Dial == nil {
		o.Dial = tcp(o.DeadAfter)
	}
	return &Pool{
		opts: o, dialer: dialer{identity: o.Identity, revoked: o.Revoked, declined: o.Declined, dial: unlessBarred(o.Barred, o.Dial)}, ping: ping,
		kept: map[keptKey]*kept{}, data: map[*Conn]struct{}{}, sessions: map[string]tls.ClientSessionCache{},
	}
}

// Conn returns the kept connection to a node, whose certificate must include the role. The first
// call dials it, as does a call after it broke; a call fails fast while the node cannot be reached.
// A changed address closes the old connection and dials anew. The pool owns the connection and
// closes it. An empty nodeID means any node at the address. Calls fail with the errors of
// DialOptions. Errors: Forbidden for a revoked node, Unavailable after Close.
func (p *Pool) Conn(nodeID, address string, role core.Role) (*grpc.ClientConn, error) {
	if nodeID != "" && p.revoked != nil && p.revoked(nodeID) {
		return nil, dialError("connect", address, refuse(ReasonRevoked, "node %s was revoked", nodeID))
	}
	key := keptKey{node: nodeID, role: role}
	if nodeID == "" {
		key.address = address
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, core.Errorf(core.Unavailable, "connect: the agent is shutting down")
	}
	old, ok := p.kept[key]
	if ok && old.address == address {
		return old.cc, nil
	}
	k, err := p.keep(nodeID, address, role)
	if err != nil {
		return nil, err
	}
	p.kept[key] = k
	if ok {
		p.wg.Go(old.close)
	}
	return k.cc, nil
}

// Forget closes the connections to a node; the next Conn dials anew.
func (p *Pool) Forget(nodeID string) {
	p.drop(func(id string) bool { return id == nodeID })
}

// CloseRevoked closes the connections to all revoked nodes. Call it after each revocation.
func (p *Pool) CloseRevoked() {
	if p.revoked != nil {
		p.drop(p.revoked)
	}
}

func (p *Pool) drop(condition func(nodeID string) bool) {
	var gone []*kept
	var cut []*Conn
	p.mu.Lock()
	for key, k := range p.kept {
		if condition(key.node) {
			delete(p.kept, key)
			gone = append(gone, k)
		}
	}
	for key := range p.sessions {
		if node, _, _ := strings.Cut(key, " "); condition(node) {
			delete(p.sessions, key)
		}
	}
	for c := range p.data {
		if condition(c.node.ID) {
			cut = append(cut, c)
		}
	}
	p.mu.Unlock()
	for _, c := range cut {
		c.Abort()
	}
	for _, k := range gone {
		k.close()
	}
}

// Reset closes all connections, for example when this machine's address changes; the next Conn
// dials anew.
func (p *Pool) Reset() { p.drop(func(string) bool { return true }) }

// Close closes all connections. Running calls fail with Unavailable. It may be called again.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drop(func(string) bool { return true })
	p.wg.Wait()
	return nil
}
