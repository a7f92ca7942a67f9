package rpc_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// jobs is a hive on which only one method is implemented; it waits.
type jobs struct {
	jobv1.UnimplementedJobServiceServer
	waits atomic.Int64
}

func (j *jobs) List(ctx context.Context, _ *jobv1.ListRequest) (*jobv1.ListResponse, error) {
	j.waits.Add(1)
	defer j.waits.Add(-1)
	<-ctx.Done()
	return nil, ctx.Err()
}

func (j *jobs) Events(r *jobv1.EventsRequest, s grpc.ServerStreamingServer[jobv1.EventsResponse]) error {
	j.waits.Add(1)
	defer j.waits.Add(-1)
	if err := s.Send(&jobv1.EventsResponse{}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func (j *jobs) Get(context.Context, *jobv1.GetRequest) (*jobv1.GetResponse, error) {
	return &jobv1.GetResponse{}, nil
}

func hiveOf(t testing.TB, ca *pki.CA, id string) (*node, *jobs) {
	t.Helper()
	n, j := listen(t, identity(t, ca, id, core.RoleHive)), &jobs{}
	n.serve(t, rpc.ServerOptions{}, nil, func(s *grpc.Server) { jobv1.RegisterJobServiceServer(s, j) })
	return n, j
}

func newPool(t testing.TB, ca *pki.CA, change ...func(*rpc.PoolOptions)) *rpc.Pool {
	t.Helper()
	o := rpc.PoolOptions{Identity: identity(t, ca, "00000002", core.RoleQueen)}
	for _, f := range change {
		f(&o)
	}
	p := rpc.NewPool(o)
	t.Cleanup(func() { must.NoError(t, p.Close()) })
	return p
}

func get(ctx context.Context, c grpc.ClientConnInterface) error {
	_, err := jobv1.NewJobServiceClient(c).Get(ctx, &jobv1.GetRequest{})
	return err
}

// proxy forwards to an address and can be cut silently.
type proxy struct {
	addr   string
	silent atomic.Bool
	dials  atomic.Int64
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	p := &proxy{addr: l.Addr().String()}
	var mu sync.Mutex
	var all []net.Conn
	var wg sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				_ = to.Close()
				return
			}
			if p.silent.Load() {
				continue
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			p.dials.Add(1)
			b, err := net.Dial("tcp", to)
			if err != nil {
				_ = a.Close()
				continue
			}
			mu.Lock()
			all = append(all, a, b)
			mu.Unlock()
			wg.Go(func() { pass(a, b) })
			wg.Go(func() { pass(b, a) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range all {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return p
}

// All callers share one connection per node. It is dialled anew for another address, after a Forget
// and after it broke.
func TestPoolKeeps(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, _ := hiveOf(t, ca, "00000001")
	var dials atomic.Int64
	broken := make(chan string, 10)
	p := newPool(t, ca, func(o *rpc.PoolOptions) {
		o.Broken = func(id, address string) { broken <- id + " " + address }
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			dials.Add(1)
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	})
	conn := func(address string) *grpc.ClientConn {
		c, err := p.Conn("00000001", address, core.RoleHive)
		must.NoError(t, err)
		return c
	}
	c := conn(n.addr)
	must.Zero(t, dials.Load())
	for range 10 {
		must.True(t, c == conn(n.addr))
		must.NoError(t, get(t.Context(), c))
	}
	must.Eq(t, 1, dials.Load())

	moved := newProxy(t, n.addr)
	must.True(t, c != conn(moved.addr))
	eventually(t, 5*time.Second, "the old one is closed", func() bool { _, _, open, _ := n.mux.Held(); return open == 0 })
	must.NoError(t, get(t.Context(), conn(moved.addr)))
	must.Eq(t, 2, dials.Load())
	must.Eq(t, 1, moved.dials.Load())

	c = conn(moved.addr)
	p.Forget("00000001")
	// not Cancelled: the caller did not cancel
	must.Eq(t, core.Unavailable, core.KindOf(get(t.Context(), c)))
	must.NoError(t, get(t.Context(), conn(moved.addr)))
	must.Eq(t, 3, dials.Load())
	must.Eq(t, 0, len(broken)) // the pool itself closed all these

	n.mux.CloseNode("00000002")
	must.Eq(t, "00000001 "+moved.addr, <-broken)
	eventually(t, 5*time.Second, "dialled anew", func() bool { return get(t.Context(), conn(moved.addr)) == nil })
	must.Eq(t, 4, dials.Load())

	must.NoError(t, p.Close())
	_, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.Eq(t, core.Unavailable, core.KindOf(err))
	_, err = p.DialData(t.Context(), "00000001", n.addr, "w")
	must.Eq(t, core.Unavailable, core.KindOf(err))
}

// Calls that run when the pool forgets a node end at once, with an error that allows a retry.
func TestPoolForgetEndsCalls(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, j := hiveOf(t, ca, "00000001")
	revoked := &revocations{}
	p := newPool(t, ca, func(o *rpc.PoolOptions) { o.Revoked = revoked.has })
	c, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	unary, stream := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := jobv1.NewJobServiceClient(c).List(t.Context(), &jobv1.ListRequest{})
		unary <- err
	}()
	go func() {
		s, err := jobv1.NewJobServiceClient(c).Events(t.Context(), &jobv1.EventsRequest{})
		for err == nil {
			_, err = s.Recv()
		}
		stream <- err
	}()
	eventually(t, 5*time.Second, "both run", func() bool { return j.waits.Load() == 2 })
	revoked.add("00000001")
	p.CloseRevoked()
	must.Eq(t, core.Unavailable, core.KindOf(<-unary))
	must.Eq(t, core.Unavailable, core.KindOf(<-stream))
	_, err = p.Conn("00000001", n.addr, core.RoleHive)
	must.Eq(t, core.Forbidden, core.KindOf(err))
	_, err = p.DialData(t.Context(), "00000001", n.addr, "w")
	must.Eq(t, core.Forbidden, core.KindOf(err))
}

// A machine whose address changes keeps no connection from before: its calls end, and the next one
// dials anew.
func TestPoolReset(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, j := hiveOf(t, ca, "00000001")
	p := newPool(t, ca)
	c, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := jobv1.NewJobServiceClient(c).List(t.Context(), &jobv1.ListRequest{})
		ended <- err
	}()
	eventually(t, 5*time.Second, "it runs", func() bool { return j.waits.Load() == 1 })
	p.Reset()
	must.Eq(t, core.Unavailable, core.KindOf(<-ended))
	again, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	must.True(t, again != c)
}

// Waiting callers detect a silently dead peer in three seconds, and do not drop one that is only
// slow.
func TestPoolDeadPeer(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, j := hiveOf(t, ca, "00000001")
	way := newProxy(t, n.addr)
	broken := make(chan string, 10)
	p := newPool(t, ca, func(o *rpc.PoolOptions) { o.Broken = func(id, address string) { broken <- id + " " + address } })
	c, err := p.Conn("00000001", way.addr, core.RoleHive)
	must.NoError(t, err)
	s, err := jobv1.NewJobServiceClient(c).Events(t.Context(), &jobv1.EventsRequest{})
	must.NoError(t, err)
	_, err = s.Recv()
	must.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Recv()
		ended <- err
	}()
	// it sends nothing for longer than that, but answers pings
	timer := time.NewTimer(4 * time.Second)
	select {
	case err := <-ended:
		t.Fatal(err)
	case <-timer.C:
	}
	must.Eq(t, 1, j.waits.Load())
	way.silent.Store(true)
	begin := time.Now()
	must.Eq(t, core.Unavailable, core.KindOf(<-ended))
	t.Logf("noticed after %s", time.Since(begin))
	must.Less(t, 10*time.Second, time.Since(begin))
	must.Eq(t, "00000001 "+way.addr, <-broken)
	way.silent.Store(false)
	eventually(t, 5*time.Second, "dialled anew", func() bool { return get(t.Context(), c) == nil })
}

// Calls to an unreachable node fail fast, and succeed soon after the node is reachable again.
func TestPoolBackoff(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, _ := hiveOf(t, ca, "00000001")
	var dead atomic.Bool
	dead.Store(true)
	p := newPool(t, ca, func(o *rpc.PoolOptions) {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			if dead.Load() {
				return nil, &net.OpError{Op: "dial", Err: io.ErrClosedPipe}
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	})
	c, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	for range 20 {
		begin := time.Now()
		must.Eq(t, core.Unavailable, core.KindOf(get(t.Context(), c)))
		must.Less(t, 5*time.Second, time.Since(begin))
	}
	dead.Store(false)
	begin := time.Now()
	eventually(t, 10*time.Second, "back", func() bool { return get(t.Context(), c) == nil })
	t.Logf("back after %s", time.Since(begin))
	must.Less(t, 8*time.Second, time.Since(begin))
}

// Raft's connections connect only queens, and the end of one is reported to both raft and the
// owner.
func TestRaftStream(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	type end struct{ node, address string }
	broken := make(chan end, 10)
	stream := func(n *node, who chan end) *rpc.RaftStream {
		s := rpc.NewRaftStream(rpc.RaftOptions{Mux: n.mux, Identity: n.id, Revoked: n.revoked.has, Broken: func(node, address string) {
			if who != nil {
				who <- end{node, address}
			}
		}})
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	a, b := listen(t, identity(t, ca, "00000001", core.RoleQueen)), listen(t, identity(t, ca, "00000002", core.RoleQueen))
	sa, sb := stream(a, broken), stream(b, broken)
	// its advertised address, not its listen address
	must.Eq(t, "127.0.0.1:7834", sa.Addr().String())
	pair := func() (dialled, accepted net.Conn) {
		got := make(chan net.Conn, 1)
		go func() {
			c, err := sb.Accept()
			must.NoError(t, err)
			got <- c
		}()
		c, err := sa.Dial(b.addr, time.Second)
		must.NoError(t, err)
		_, err = c.Write([]byte("x"))
		must.NoError(t, err)
		d := <-got
		_, err = io.ReadFull(d, make([]byte, 1))
		must.NoError(t, err)
		return c, d
	}
	// The dialling queen dies, as the other one sees it; then the reverse.
	c, d := pair()
	go func() { _, _ = d.Read(make([]byte, 1)) }()
	must.NoError(t, c.Close())
	must.Eq(t, end{"00000001", ""}, <-broken)
	must.NoError(t, d.Close())
	c, d = pair()
	go func() { _, _ = c.Read(make([]byte, 1)) }()
	must.NoError(t, d.Close())
	must.Eq(t, end{"00000002", b.addr}, <-broken)
	must.NoError(t, c.Close())

	// A passed deadline is not an end.
	c, d = pair()
	must.NoError(t, d.SetReadDeadline(time.Now()))
	_, err := d.Read(make([]byte, 1))
	must.Error(t, err)
	must.Eq(t, 0, len(broken))
	must.NoError(t, c.Close())
	must.NoError(t, d.Close())
	must.Zero(t, sa.Held())

	// CloseNode closes a node's connections of both directions.
	_, d = pair()
	sa.CloseNode("00000002")
	_, err = d.Read(make([]byte, 1))
	must.Error(t, err)
	must.NoError(t, d.Close())
	must.Eq(t, end{"00000001", ""}, <-broken)
	c, _ = pair()
	sb.CloseNode("00000001")
	_, err = c.Read(make([]byte, 1))
	must.Error(t, err)
	must.NoError(t, c.Close())
	must.Eq(t, end{"00000002", b.addr}, <-broken)

	// Connections to a revoked node are closed, and not reported: this side closed them.
	c, d = pair()
	a.revoked.add("00000002")
	sa.CloseRevoked()
	_, err = c.Read(make([]byte, 1))
	must.Error(t, err)
	_, err = sa.Dial(b.addr, time.Second)
	must.Eq(t, core.Forbidden, core.KindOf(err))
	must.NoError(t, d.Close())
	must.Eq(t, 0, len(broken))
	a.revoked.m.Clear()

	// Neither do connections survive that were dialled from this machine's earlier address.
	c, d = pair()
	sa.Reset()
	_, err = c.Read(make([]byte, 1))
	must.Error(t, err)
	must.NoError(t, d.Close())
	must.Eq(t, 0, len(broken))

	// Close ends the reads that raft waits on.
	c, d = pair()
	ended := make(chan error, 2)
	for _, x := range []net.Conn{c, d} {
		go func() {
			_, err := x.Read(make([]byte, 1))
			ended <- err
		}()
	}
	must.NoError(t, sb.Close())
	must.Error(t, <-ended)
	must.Error(t, <-ended)
	_, err = sb.Accept()
	must.ErrorIs(t, err, net.ErrClosed)
	must.NoError(t, sa.Close())
	_, err = sa.Dial(b.addr, time.Second)
	must.Error(t, err)

	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	must.NoError(t, nobody.Close())
	_, err = stream(a, nil).Dial(nobody.Addr().String(), time.Second)
	must.Eq(t, core.Unavailable, core.KindOf(err))
}

// A joining machine finds out whether it speaks to the cluster that its token belongs to.
func TestJoinConn(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	right, err := pki.Fingerprint(ca.CertPEM())
	must.NoError(t, err)
	wrong, err := pki.Fingerprint(newCA(t).CertPEM())
	must.NoError(t, err)
	n := listen(t, identity(t, ca, "00000001", core.RoleQueen))
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	hive := listen(t, identity(t, ca, "00000002", core.RoleHive))

	c, err := rpc.JoinConn(t.Context(), n.addr, right)
	must.NoError(t, err)
	must.Eq(t, core.Unauthenticated, core.KindOf(get(t.Context(), c)))
	n.mux.CloseNode("") // it has no node id: it stays
	must.Eq(t, core.Unauthenticated, core.KindOf(get(t.Context(), c)))
	must.NoError(t, c.Close())

	for _, tt := range []struct {
		address, fingerprint string
		kind                 core.Kind
	}{
		{n.addr, wrong, core.Unauthenticated},
		{hive.addr, right, core.Unauthenticated}, // not a queen
		{"127.0.0.1:1", right, core.Unavailable},
	} {
		_, err := rpc.JoinConn(t.Context(), tt.address, tt.fingerprint)
		must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(err))
		must.NotEq(t, "", core.HintOf(err))
	}
}

// A machine that joins through the port of the HTTP API, or through a port without TLS, gets an
// error that explains it.
func TestJoinWrongPort(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	fingerprint, err := pki.Fingerprint(ca.CertPEM())
	must.NoError(t, err)
	id := identity(t, ca, "00000001", core.RoleQueen)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	api := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: id.HTTPConfig(), ReadHeaderTimeout: time.Minute}
	go api.ServeTLS(l, "", "")
	t.Cleanup(func() { api.Close() })
	address := l.Addr().String()
	c, err := rpc.JoinConn(t.Context(), address, fingerprint)
	must.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	err = get(t.Context(), c)
	must.ErrorContains(t, err, "404")
	err = rpc.WrongPort(t.Context(), address, fingerprint, err)
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.ErrorContains(t, err, "HTTP API")
	must.StrContains(t, core.HintOf(err), "7834")

	n := listen(t, id)
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	other := core.Errorf(core.Unavailable, "no leader")
	must.Eq(t, error(other), rpc.WrongPort(t.Context(), n.addr, fingerprint, other))

	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	_, err = rpc.JoinConn(t.Context(), plain.Listener.Addr().String(), fingerprint)
	must.StrContains(t, core.HintOf(err), "no TLS")
}

// A renewed certificate applies from the next handshake on, and open connections continue.
func TestRenewal(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n, j := hiveOf(t, ca, "00000001")
	queen := identity(t, ca, "00000002", core.RoleQueen)
	p := newPool(t, ca, func(o *rpc.PoolOptions) { o.Identity = queen })
	c, err := p.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	s, err := jobv1.NewJobServiceClient(c).Events(t.Context(), &jobv1.EventsRequest{})
	must.NoError(t, err)
	_, err = s.Recv()
	must.NoError(t, err)
	for _, id := range []*pki.Identity{n.id, queen} {
		csr, err := id.Request()
		must.NoError(t, err)
		cert, _, err := ca.Sign(csr, id.Node(), nil, 2*time.Hour, time.Now())
		must.NoError(t, err)
		must.NoError(t, id.Replace(cert, ca.CertPEM()))
	}
	must.NoError(t, get(t.Context(), c))
	must.Eq(t, 1, j.waits.Load())
	raw, err := shake(t, n.addr, queen.ClientConfig(rpc.ProtocolGRPC, core.RoleHive, "00000001"))
	if raw != nil { // the other end sends its HTTP/2 preface
		must.True(t, time.Until(raw.ConnectionState().PeerCertificates[0].NotAfter) > 90*time.Minute)
	}
	must.NoError(t, err)
}
