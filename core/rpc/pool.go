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

// PoolOptions are what a Pool needs.
type PoolOptions struct {
	Identity Identity
	// Revoked reports whether a node is not to be talked to; nil: none are.
	Revoked func(nodeID string) bool
	// Broken is told that a connection broke that this side did not close. It must not block. nil:
	// nobody.
	Broken func(nodeID, address string)
	// DeadAfter is how long a peer may be silent while it is asked something before the connection
	// is given up. 0: 3 s for a queen. A hive that is no queen leaves it to TCP, which takes 10 s:
	// its lines to queens have beats of their own, and a lossy network should not cut them.
	DeadAfter time.Duration
	// Dial makes connections; nil: TCP.
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Logger hclog.Logger // nil: none
}

// Pool keeps the connections to other nodes. It is safe for concurrent use.
type Pool struct {
	opts PoolOptions
	dialer
	ping bool // look after silent peers
	wg   sync.WaitGroup

	mu       sync.Mutex // guards below
	closed   bool
	kept     map[keptKey]*kept
	data     map[*Conn]struct{}                // open connections for data and files
	sessions map[string]tls.ClientSessionCache // of data connections, by node id and address
}

// keptKey is what a kept connection is for. The address counts where the node is not known.
type keptKey struct {
	node, address string
	role          core.Role
}

// NewPool returns an empty pool. It connects when it is asked to. The caller closes it.
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
		opts: o, dialer: dialer{identity: o.Identity, revoked: o.Revoked, dial: o.Dial}, ping: ping,
		kept: map[keptKey]*kept{}, data: map[*Conn]struct{}{}, sessions: map[string]tls.ClientSessionCache{},
	}
}

// Conn returns the kept connection to a node, whose certificate must give it the role. It is
// dialled with the first call and after it broke; a call fails fast while the node cannot be
// reached. Another address than before closes what there was and dials anew. The pool closes it.
// nodeID may be empty: whoever answers at the address. Its errors are those of DialOptions. Errors:
// Forbidden for a revoked node, Unavailable after Close.
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

// CloseRevoked closes the connections to all nodes that are revoked. It is to be called whenever
// there is one more.
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

// Close closes all connections. Calls that run fail with Unavailable. It may be repeated.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drop(func(string) bool { return true })
	p.wg.Wait()
	return nil
}
