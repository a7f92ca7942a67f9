package rpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
)

const clusterID = "00c0ffee00c0ffee"

var both = []core.Role{core.RoleQueen, core.RoleHive} // constant

func newCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(clusterID, "test", time.Now())
	must.NoError(t, err)
	return ca
}

// issue makes a node's identity with a certificate that is valid from start for ttl.
func issue(t testing.TB, ca *pki.CA, id string, ttl time.Duration, began time.Time, roles ...core.Role) *pki.Identity {
	t.Helper()
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, id)
	must.NoError(t, err)
	cert, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: id, Name: "n" + id, Roles: roles}, nil, ttl, began)
	must.NoError(t, err)
	i, err := pki.Create(t.TempDir(), pki.Material{ClusterName: "test", Name: "n" + id, RPCAddress: "127.0.0.1:7834", CAPEM: ca.CertPEM(), NodePEM: cert, Key: key})
	must.NoError(t, err)
	return i
}

func identity(t testing.TB, ca *pki.CA, id string, roles ...core.Role) *pki.Identity {
	t.Helper()
	return issue(t, ca, id, time.Hour, time.Now(), roles...)
}

// revocations is a set of node ids.
type revocations struct{ m sync.Map }

func (r *revocations) add(id string)      { r.m.Store(id, true) }
func (r *revocations) has(id string) bool { _, ok := r.m.Load(id); return ok }

// counter counts refusals.
type counter struct {
	mu sync.Mutex // guards n
	n  map[rpc.Reason]int
}

func (c *counter) add(r rpc.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[rpc.Reason]int{}
	}
	c.n[r]++
}

func (c *counter) all() map[rpc.Reason]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[rpc.Reason]int{}
	maps.Copy(out, c.n)
	return out
}

// node is a node that listens on loopback.
type node struct {
	id      *pki.Identity
	mux     *rpc.Mux
	addr    string
	refused *counter
	revoked *revocations
	stop    func() // waits until all has stopped
}

func listen(t testing.TB, id *pki.Identity, change ...func(*rpc.MuxOptions)) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	n := &node{id: id, addr: l.Addr().String(), refused: &counter{}, revoked: &revocations{}}
	o := rpc.MuxOptions{Identity: id, Revoked: n.revoked.has, Refused: n.refused.add, Logger: hclog.NewNullLogger()}
	for _, f := range change {
		f(&o)
	}
	n.mux = rpc.NewMux(l, o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.mux.Run(ctx) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			must.NoError(t, <-ended)
		})
	}
	t.Cleanup(n.stop)
	return n
}

// serve serves gRPC on the node's port, and on the pipe unless it is nil.
func (n *node) serve(t testing.TB, o rpc.ServerOptions, pipe *rpc.Pipe, register func(*grpc.Server)) {
	t.Helper()
	if o.Self.ID == "" {
		o.Self = n.id.Node()
	}
	if o.Refused == nil {
		o.Refused = n.refused.add
	}
	s, guests := rpc.NewNodeServer(o), rpc.NewGuestServer(o)
	register(s)
	register(guests)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = rpc.Serve(ctx, guests, n.mux.Guests(), 0) }) // the port may be closed first
	wg.Go(func() { _ = rpc.Serve(ctx, s, n.mux.GRPC(), 0) })        // the port may be closed first
	if pipe != nil {
		wg.Go(func() { _ = s.Serve(pipe.Listener()) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// echo echoes what arrives until the listener is closed, and returns the count of its open
// connections.
func echo(t testing.TB, l net.Listener) *atomic.Int64 {
	t.Helper()
	var open atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			wg.Go(func() {
				defer open.Add(-1)
				defer c.Close()
				buf := make([]byte, 1024)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return &open
}

// shake connects with a TLS configuration and exchanges a byte with an echo: the client sees a
// server's refusal only when it reads.
func shake(t testing.TB, addr string, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	must.NoError(t, raw.SetDeadline(time.Now().Add(10*time.Second)))
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return nil, err
	}
	_, err = c.Read(make([]byte, 1))
	ended(t, err)
	return c, err
}

// ended requires that a connection that returned err has ended: a deadline that passes in silence
// is not a refusal.
func ended(t testing.TB, err error) {
	t.Helper()
	must.False(t, errors.Is(err, os.ErrDeadlineExceeded), must.Sprint("the connection stands, and nothing comes"))
}

// eventually waits for a condition that other goroutines make true.
func eventually(t testing.TB, within time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
		timer := time.NewTimer(time.Millisecond)
		<-timer.C
	}
}
