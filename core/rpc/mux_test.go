package rpc_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	health "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
)

func TestMuxSplits(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	queen := identity(t, ca, "00000002", core.RoleQueen)
	for protocol, l := range map[string]net.Listener{
		rpc.ProtocolRaft: n.mux.Raft(), rpc.ProtocolGRPC: n.mux.GRPC(), rpc.ProtocolData: n.mux.Data(), rpc.ProtocolBlob: n.mux.Blobs(),
	} {
		id, role := queen, core.RoleQueen
		if protocol == rpc.ProtocolBlob {
			id, role = identity(t, ca, "00000002", core.RoleHive), core.RoleHive
		}
		got := make(chan net.Conn, 1)
		go func() {
			c, err := l.Accept()
			must.NoError(t, err)
			got <- c
		}()
		raw, err := net.Dial("tcp", n.addr)
		must.NoError(t, err)
		c := tls.Client(raw, id.ClientConfig(protocol, role, "00000001"))
		must.NoError(t, c.Handshake())
		server, ok := (<-got).(*rpc.Conn)
		must.True(t, ok)
		must.Eq(t, protocol, server.ConnectionState().NegotiatedProtocol)
		peer, ok := server.Peer()
		must.True(t, ok)
		must.Eq(t, "00000002", peer.ID)
		must.Eq(t, []core.Role{role}, peer.Roles)
		must.NoError(t, c.Close())
		_, err = server.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)
		must.NoError(t, server.Close())
	}
	must.MapEmpty(t, n.refused.all())
}

// Every wrong client is refused within the handshake and counted under its reason.
func TestMuxRefuses(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	server := identity(t, ca, "00000001", both...)
	queen, hive := identity(t, ca, "00000002", core.RoleQueen), identity(t, ca, "00000003", core.RoleHive)
	foreign := identity(t, other, "00000004", core.RoleQueen)
	expired := issue(t, ca, "00000005", time.Minute, time.Now().Add(-30*time.Minute), core.RoleQueen)
	revoked := identity(t, ca, "00000006", core.RoleQueen)

	// The client's own checks are off, so that the server refuses.
	config := func(id *pki.Identity, protocol string, change ...func(*tls.Config)) *tls.Config {
		c := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{protocol}}
		if id != nil {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.Certificate(), nil }
		}
		for _, f := range change {
			f(c)
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		config *tls.Config
		reason rpc.Reason
	}{
		{"wrong CA, raft", config(foreign, rpc.ProtocolRaft), rpc.ReasonWrongCA},
		{"wrong CA, grpc", config(foreign, rpc.ProtocolGRPC), rpc.ReasonWrongCA},
		{"wrong CA, data", config(foreign, rpc.ProtocolData), rpc.ReasonWrongCA},
		{"expired, raft", config(expired, rpc.ProtocolRaft), rpc.ReasonExpired},
		{"expired, grpc", config(expired, rpc.ProtocolGRPC), rpc.ReasonExpired},
		{"expired, data", config(expired, rpc.ProtocolData), rpc.ReasonExpired},
		{"wrong role, raft", config(hive, rpc.ProtocolRaft), rpc.ReasonWrongRole},
		{"wrong role, files", config(queen, rpc.ProtocolBlob), rpc.ReasonWrongRole},
		{"wrong CA, files", config(foreign, rpc.ProtocolBlob), rpc.ReasonWrongCA},
		{"expired, files", config(expired, rpc.ProtocolBlob), rpc.ReasonExpired},
		{"no certificate, files", config(nil, rpc.ProtocolBlob), rpc.ReasonNoCertificate},
		{"revoked, files", config(revoked, rpc.ProtocolBlob), rpc.ReasonRevoked},
		{"wrong role, data", config(hive, rpc.ProtocolData), rpc.ReasonWrongRole},
		{"no certificate, raft", config(nil, rpc.ProtocolRaft), rpc.ReasonNoCertificate},
		{"no certificate, data", config(nil, rpc.ProtocolData), rpc.ReasonNoCertificate},
		{"revoked, raft", config(revoked, rpc.ProtocolRaft), rpc.ReasonRevoked},
		{"revoked, grpc", config(revoked, rpc.ProtocolGRPC), rpc.ReasonRevoked},
		{"revoked, data", config(revoked, rpc.ProtocolData), rpc.ReasonRevoked},
		{"TLS 1.2", config(queen, rpc.ProtocolGRPC, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), rpc.ReasonTLSVersion},
		{"unknown protocol", config(queen, "rbee-raft/2"), rpc.ReasonHandshake},
		{"no protocol", config(queen, "", func(c *tls.Config) { c.NextProtos = nil }), rpc.ReasonHandshake},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := listen(t, server)
			n.revoked.add("00000006")
			for _, l := range []net.Listener{n.mux.Raft(), n.mux.GRPC(), n.mux.Guests(), n.mux.Data(), n.mux.Blobs()} {
				echo(t, l)
			}
			_, err := shake(t, n.addr, tt.config)
			must.Error(t, err)
			eventually(t, time.Second, "counted", func() bool { return len(n.refused.all()) > 0 })
			must.Eq(t, map[rpc.Reason]int{tt.reason: 1}, n.refused.all())

			// The same port still serves permitted peers.
			_, err = shake(t, n.addr, config(queen, rpc.ProtocolRaft))
			must.NoError(t, err)
			_, err = shake(t, n.addr, config(nil, rpc.ProtocolGRPC)) // each method's rule decides
			must.NoError(t, err)
		})
	}
}

// The dialling side also checks the other side.
func TestClientRefuses(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	client := identity(t, ca, "00000002", both...)
	for _, tt := range []struct {
		name   string
		server *pki.Identity
		kind   core.Kind
	}{
		{"wrong CA", identity(t, other, "00000001", both...), core.Unauthenticated},
		{"expired", issue(t, ca, "00000001", time.Minute, time.Now().Add(-30*time.Minute), both...), core.Unauthenticated},
		{"another node", identity(t, ca, "00000003", both...), core.Unauthenticated},
		{"revoked", identity(t, ca, "00000004", both...), core.Forbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := listen(t, tt.server)
			p := rpc.NewPool(rpc.PoolOptions{Identity: client, Revoked: func(id string) bool { return id == "00000004" }})
			t.Cleanup(func() { _ = p.Close() })
			id := "00000001"
			if tt.name == "revoked" {
				id = "" // any node, so that the dial is attempted
			}
			_, err := p.DialData(t.Context(), id, n.addr, "w")
			must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(err))
			must.NotEq(t, "", core.HintOf(err))
		})
	}
	n := listen(t, identity(t, ca, "00000001", core.RoleHive))
	raft := rpc.NewRaftStream(rpc.RaftOptions{Mux: n.mux, Identity: client})
	_, err := raft.Dial(n.addr, time.Second)
	must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
	must.StrContains(t, core.HintOf(err), "role")
	n = listen(t, identity(t, ca, "00000005", core.RoleHive))
	pool := rpc.NewPool(rpc.PoolOptions{Identity: client})
	t.Cleanup(func() { _ = pool.Close() })
	conn, err := pool.Conn("00000005", n.addr, core.RoleQueen)
	must.NoError(t, err)
	err = conn.Invoke(t.Context(), "/x/y", &health.HealthCheckRequest{}, &health.HealthCheckResponse{})
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.StrContains(t, err.Error(), "queen."+clusterID) // its certificate is not one of a queen
}

// A node without roles offers only gRPC.
func TestMuxOffers(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", core.RoleHive))
	echo(t, n.mux.Raft())
	queen := identity(t, ca, "00000002", core.RoleQueen)
	_, err := shake(t, n.addr, queen.ClientConfig(rpc.ProtocolRaft, core.RoleHive, ""))
	must.Error(t, err)
}

func TestMuxGarbage(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	echo(t, n.mux.GRPC())
	for i, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", strings.Repeat("\x00", 1<<16), "\x15\x03\x03\x00\x02\x02\x28"} {
		c, err := net.Dial("tcp", n.addr)
		must.NoError(t, err)
		_, _ = io.WriteString(c, garbage) // it may be refused before all is written
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		must.NoError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		_, err = io.Copy(io.Discard, c)
		must.False(t, errors.Is(err, net.ErrClosed))
		ended(t, err)
		must.NoError(t, c.Close())
		eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonHandshake] == i+1 })
	}
	_, err := shake(t, n.addr, identity(t, ca, "00000002", core.RoleHive).ClientConfig(rpc.ProtocolGRPC, core.RoleHive, ""))
	must.NoError(t, err)
}

// Silent peers do not keep others out, and are dropped: the oldest when there are too many, each
// after five seconds.
func TestMuxSilent(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	good := identity(t, ca, "00000002", core.RoleHive).ClientConfig(rpc.ProtocolGRPC, core.RoleHive, "")
	for _, limit := range []int{0, 50} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			n := listen(t, identity(t, ca, "00000001", both...), func(o *rpc.MuxOptions) { o.MaxHandshakes = limit })
			open := echo(t, n.mux.GRPC())
			var silent []net.Conn
			for i := range 200 {
				c, err := net.Dial("tcp", n.addr)
				must.NoError(t, err)
				defer c.Close()
				if i%2 == 0 {
					// slow rather than silent; it may be closed already
					_, _ = c.Write([]byte("\x16\x03\x01"))
				}
				silent = append(silent, c)
			}
			begin := time.Now()
			_, err := shake(t, n.addr, good)
			must.NoError(t, err)
			took := time.Since(begin)
			t.Logf("a handshake beside 200 silent ones: %s", took)
			must.Less(t, 4*time.Second, took) // a silent one is dropped after 5 s
			must.Eq(t, 1, open.Load())
			if limit > 0 {
				eventually(t, 10*time.Second, "the oldest are gone", func() bool { return n.refused.all()[rpc.ReasonHandshake] >= 150 })
				must.NoError(t, silent[0].SetDeadline(time.Now().Add(10*time.Second)))
				_, err := silent[0].Read(make([]byte, 1))
				must.Error(t, err)
				must.False(t, errors.Is(err, net.ErrClosed))
				ended(t, err)
			}
			n.stop() // ends all of them at once
		})
	}
}

// A connection that no server accepts is dropped in time.
func TestMuxNotAccepted(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	config := identity(t, ca, "00000002", core.RoleQueen).ClientConfig(rpc.ProtocolRaft, core.RoleQueen, "")
	must.NoError(t, n.mux.Raft().Close())
	_, err := shake(t, n.addr, config)
	must.Error(t, err)
	_, err = n.mux.Raft().Accept()
	must.ErrorIs(t, err, net.ErrClosed)
}

// A connection that waits to be accepted can be evicted like one in its handshake.
func TestMuxWaitsForAcceptance(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...), func(o *rpc.MuxOptions) { o.MaxHandshakes = 1 })
	config := identity(t, ca, "00000002", core.RoleQueen).ClientConfig(rpc.ProtocolRaft, core.RoleQueen, "")
	var all []*tls.Conn
	for range 2 { // no server accepts
		raw, err := net.Dial("tcp", n.addr)
		must.NoError(t, err)
		t.Cleanup(func() { _ = raw.Close() })
		must.NoError(t, raw.SetDeadline(time.Now().Add(10*time.Second)))
		c := tls.Client(raw, config)
		must.NoError(t, c.Handshake())
		all = append(all, c)
	}
	_, err := all[0].Read(make([]byte, 1))
	must.Error(t, err)
	ended(t, err)
	c, err := n.mux.Raft().Accept()
	must.NoError(t, err)
	_, err = c.Write([]byte("x"))
	must.NoError(t, err)
	_, err = all[1].Read(make([]byte, 1))
	must.NoError(t, err)
	must.NoError(t, c.Close())
}

// A node revoked during its handshake is not admitted: CloseRevoked could not see it.
func TestMuxRevokedWhileShaking(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	var asked atomic.Int64
	n := listen(t, identity(t, ca, "00000001", both...), func(o *rpc.MuxOptions) {
		o.Revoked = func(id string) bool { return id == "00000002" && asked.Add(1) > 1 }
	})
	echo(t, n.mux.Raft())
	_, err := shake(t, n.addr, identity(t, ca, "00000002", core.RoleQueen).ClientConfig(rpc.ProtocolRaft, core.RoleQueen, ""))
	must.Error(t, err)
	must.GreaterEq(t, 2, asked.Load())
}

// An ended connection is in no table, whichever way it ended.
func TestMuxForgets(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...), func(o *rpc.MuxOptions) { o.GuestLife = time.Hour })
	echo(t, n.mux.Raft())
	echo(t, n.mux.Data())
	echo(t, n.mux.Guests())
	queen := identity(t, ca, "00000002", core.RoleQueen)
	for _, config := range []*tls.Config{
		queen.ClientConfig(rpc.ProtocolRaft, core.RoleQueen, ""), queen.ClientConfig(rpc.ProtocolData, core.RoleHive, ""),
		{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{rpc.ProtocolGRPC}}, // a guest
	} {
		for range 3 {
			c, err := shake(t, n.addr, config)
			must.NoError(t, err)
			must.NoError(t, c.Close())
		}
	}
	_, err := shake(t, n.addr, identity(t, newCA(t), "00000003", core.RoleQueen).ClientConfig(rpc.ProtocolRaft, core.RoleQueen, "")) // refused
	must.Error(t, err)
	eventually(t, 10*time.Second, "all are forgotten", func() bool {
		half, guests, open, counts := n.mux.Held()
		return half+guests+open+counts == 0
	})
}

// The handshake's deadline does not outlast the handshake.
func TestNoDeadlineAfterHandshake(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	id := identity(t, ca, "00000001", both...)
	config := identity(t, ca, "00000002", core.RoleQueen).ClientConfig(rpc.ProtocolData, core.RoleHive, "")
	synctest.Test(t, func(t *testing.T) {
		// The bubble's clock begins in the year 2000, before any certificate.
		time.Sleep(time.Until(id.Certificate().Leaf.NotBefore.Add(time.Minute)))
		l := &pipes{c: make(chan net.Conn)}
		m := rpc.NewMux(l, rpc.MuxOptions{Identity: id})
		done := make(chan error, 1)
		go func() { done <- m.Run(t.Context()) }()
		a, b := net.Pipe()
		l.c <- a
		c := tls.Client(b, config)
		shook := make(chan error, 1)
		go func() { shook <- c.Handshake() }()
		server, err := m.Data().Accept()
		must.NoError(t, err)
		must.NoError(t, <-shook)
		time.Sleep(time.Minute)
		go func() { _, _ = server.Write([]byte("x")) }() // read below
		_, err = c.Read(make([]byte, 1))
		must.NoError(t, err)
		server.(*rpc.Conn).Abort()
		_ = b.Close()
		must.NoError(t, l.Close())
		must.Error(t, <-done)
	})
}

// A revoked node loses all its connections at once and cannot reconnect.
func TestMuxRevokedWhileOpen(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	open := map[string]func() int64{}
	for protocol, l := range map[string]net.Listener{
		rpc.ProtocolRaft: n.mux.Raft(), rpc.ProtocolGRPC: n.mux.GRPC(), rpc.ProtocolData: n.mux.Data(), rpc.ProtocolBlob: n.mux.Blobs(),
	} {
		open[protocol] = echo(t, l).Load
	}
	bad, good := identity(t, ca, "00000002", both...), identity(t, ca, "00000003", both...)
	var cut, kept []*tls.Conn
	for protocol := range open {
		for _, id := range []*pki.Identity{bad, good} {
			c, err := shake(t, n.addr, id.ClientConfig(protocol, core.RoleQueen, ""))
			must.NoError(t, err)
			if id == bad {
				cut = append(cut, c)
			} else {
				kept = append(kept, c)
			}
		}
	}
	n.revoked.add("00000002")
	begin := time.Now()
	n.mux.CloseRevoked()
	for _, c := range cut {
		_, err := c.Read(make([]byte, 1))
		must.Error(t, err)
	}
	must.Less(t, 5*time.Second, time.Since(begin))
	for protocol := range open {
		eventually(t, time.Second, "one is left", func() bool { return open[protocol]() == 1 })
		_, err := shake(t, n.addr, bad.ClientConfig(protocol, core.RoleQueen, ""))
		must.Error(t, err)
	}
	for _, c := range kept {
		_, err := c.Write([]byte("y"))
		must.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		must.NoError(t, err)
	}
	n.mux.CloseNode("00000003")
	for _, c := range kept {
		_, err := c.Read(make([]byte, 1))
		must.Error(t, err)
	}
}

// However many are refused, the log gets one line a second, which counts the suppressed ones.
func TestRefusalLogRate(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	id := identity(t, ca, "00000001", both...)
	var out syncBuffer
	var count counter
	log := hclog.New(&hclog.LoggerOptions{Output: &out})
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{c: make(chan net.Conn)}
		m := rpc.NewMux(l, rpc.MuxOptions{Identity: id, Logger: log, Refused: count.add})
		done := make(chan error, 1)
		go func() { done <- m.Run(t.Context()) }()
		for range 10 {
			for range 10 {
				a, b := net.Pipe()
				l.c <- a
				go func() { _, _ = b.Write(bytes.Repeat([]byte("x"), 100)); _ = b.Close() }()
			}
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
		}
		must.NoError(t, l.Close())
		must.Error(t, <-done)
	})
	must.Eq(t, 100, count.all()[rpc.ReasonHandshake])
	must.Eq(t, 5, strings.Count(out.String(), "refused a connection"))
	must.Eq(t, 4, strings.Count(out.String(), "others=19"))
}

// A silent client has five seconds.
func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	id := identity(t, newCA(t), "00000001", both...)
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{c: make(chan net.Conn)}
		m := rpc.NewMux(l, rpc.MuxOptions{Identity: id})
		done := make(chan error, 1)
		go func() { done <- m.Run(t.Context()) }()
		a, b := net.Pipe()
		begin := time.Now()
		l.c <- a
		_, err := b.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)
		must.Eq(t, 5*time.Second, time.Since(begin))
		must.NoError(t, l.Close())
		must.Error(t, <-done)
	})
}

// pipes is a listener of in-memory connections.
type pipes struct {
	c      chan net.Conn
	closed bool
}

func (p *pipes) Accept() (net.Conn, error) {
	c, ok := <-p.c
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p *pipes) Close() error {
	if !p.closed {
		p.closed = true
		close(p.c)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// The first data connection pays for signatures; the following ones resume it, and are still
// checked.
func TestDataConnectionsAreResumed(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	echo(t, n.mux.Data())
	echo(t, n.mux.GRPC())
	queen := identity(t, ca, "00000002", core.RoleQueen)
	connect := func(protocol string, cache tls.ClientSessionCache) (*tls.Conn, error) {
		c := queen.ClientConfig(protocol, core.RoleHive, "00000001")
		c.ClientSessionCache = cache
		return shake(t, n.addr, c)
	}
	for protocol, resumed := range map[string]bool{rpc.ProtocolData: true, rpc.ProtocolGRPC: false} {
		cache := tls.NewLRUClientSessionCache(1)
		first, err := connect(protocol, cache)
		must.NoError(t, err)
		must.False(t, first.ConnectionState().DidResume)
		again, err := connect(protocol, cache)
		must.NoError(t, err)
		must.Eq(t, resumed, again.ConnectionState().DidResume, must.Sprint(protocol))
		if resumed {
			n.revoked.add("00000002")
			_, err = connect(protocol, cache)
			must.Error(t, err)
			eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonRevoked] == 1 })
			n.revoked.m.Clear()
		}
	}
}
