package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// The node that holds too much loses its largest connection, once. A budget to which everything was
// released tracks no node.
func TestBudget(t *testing.T) {
	t.Parallel()
	type out struct {
		node string
		conn *Conn
	}
	var cuts []out
	b := newBudget(100, 40, func(node string, _ int64, c *Conn) { cuts = append(cuts, out{node, c}) })
	conn := func(node string) *Conn { return &Conn{node: pki.Node{ID: node}} }
	a1, a2, b1, c1 := conn("a"), conn("a"), conn("b"), conn("c")
	b.add(a1, 10)
	b.add(a2, 30)
	must.SliceEmpty(t, cuts)
	b.add(a1, 1)
	must.Eq(t, []out{{"a", a2}}, cuts, must.Sprint("its largest"))
	b.add(a1, 1)
	must.Eq(t, []out{{"a", a2}, {"a", a1}}, cuts, must.Sprint("not the same again"))
	b.add(a1, 1)
	must.Len(t, 2, cuts)
	b.add(a1, -13)
	b.add(a2, -30)

	cuts = nil
	b.add(a1, 35)
	b.add(b1, 40)
	must.SliceEmpty(t, cuts)
	b.add(c1, 26)
	must.Eq(t, []out{{"b", b1}}, cuts, must.Sprint("the node that holds the most of all"))
	b.add(a1, -35)
	b.add(b1, -40)
	b.add(c1, -26)
	b.add(c1, 0)
	must.Zero(t, b.used)
	must.MapEmpty(t, b.nodes)

	b.add(a1, 1)
	b.add(a2, 2)
	b.add(a1, -1)
	must.MapLen(t, 1, b.nodes["a"].conns)
}

// A closed meter holds nothing, and nothing more is counted.
func TestMeterClose(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	must.NoError(t, theirs.Close())
	b := newBudget(1<<40, 1<<40, func(string, int64, *Conn) {})
	m := newMeter(&Conn{Conn: tls.Client(ours, &tls.Config{InsecureSkipVerify: true}), node: pki.Node{ID: "a"}}, b)
	m.pending = 7
	b.add(m.Conn, 7)
	_ = m.Close() // the other end is closed
	must.Zero(t, b.used)
	must.NoError(t, m.note(func() error { m.pending++; return nil }))
	must.Zero(t, b.used)
}

func TestCrowdForgets(t *testing.T) {
	t.Parallel()
	c := newCrowd[string](2)
	a, _, _ := c.enter("a", "1")
	b, _, _ := c.enter("a", "2")
	c.leave(a)
	c.leave(a)
	must.MapEq(t, map[string]int{"a": 1}, c.hosts)
	c.leave(b)
	must.MapEmpty(t, c.hosts)
	_, ok := c.evict()
	must.False(t, ok)
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// Connections are counted per machine: by IPv4 address, or by the /64 of an IPv6 address.
func TestHostOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10.0.0.1:5": "10.0.0.1", "[::ffff:10.0.0.1]:5": "10.0.0.1", "[2001:db8::1]:5": "2001:db8::/64", "[2001:db8::ffff:1]:6": "2001:db8::/64",
		"[fe80::1%eth0]:5": "fe80::/64", "name:5": "name", "@": "@",
	} {
		must.Eq(t, want, hostOf(address(text)), must.Sprint(text))
	}
	must.Eq(t, "", hostOf(nil))
}

// Ticket keys are replaced after six hours, and stay valid for opening as long again.
func TestTicketKeys(t *testing.T) {
	t.Parallel()
	var k tickets
	now := time.Unix(1_800_000_000, 0)
	first := k.keys(now)
	must.Len(t, 1, first)
	must.Eq(t, first, k.keys(now.Add(ticketLife-1)))
	second := k.keys(now.Add(ticketLife))
	must.Len(t, 2, second)
	must.NotEq(t, first[0], second[0])
	must.Eq(t, first[0], second[1])
	third := k.keys(now.Add(2 * ticketLife))
	must.Len(t, 2, third)
	must.Eq(t, second[0], third[1])
}

// closing records that it was closed.
type closing struct {
	net.Conn
	closed atomic.Bool
}

func (c *closing) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// A connection has three seconds for TCP and TLS; a connection that fails is closed.
func TestConnectDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var raw *closing
		for name, dial := range map[string]func(ctx context.Context) (net.Conn, error){
			"no answer to the dial": func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
			"no handshake": func(context.Context) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, theirs) }()
				raw = &closing{Conn: ours}
				return raw, nil
			},
		} {
			began := time.Now()
			d := dialer{dial: func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }}
			_, err := d.connect(t.Context(), "a:1", &tls.Config{InsecureSkipVerify: true})
			must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(name, err))
			must.Eq(t, connectTimeout, time.Since(began), must.Sprint(name))
		}
		must.True(t, raw.closed.Load())
	})
}

// noTLS is an identity that dials without TLS.
type noTLS struct{ Identity }

func (noTLS) ClientConfig(string, core.Role, string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true}
}

// Raft's own timeout applies; without one, the timeout of every connection does.
func TestRaftDialDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewRaftStream(RaftOptions{Identity: noTLS{}, Dial: func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
		for timeout, want := range map[time.Duration]time.Duration{0: connectTimeout, time.Second: time.Second, time.Hour: connectTimeout} {
			began := time.Now()
			_, err := s.Dial("a:1", timeout)
			must.Eq(t, core.Unavailable, core.KindOf(err))
			must.Eq(t, want, time.Since(began))
		}
	})
}

// crowded is a listener that has run out of file descriptors.
type crowded struct {
	tries atomic.Int64
	end   chan struct{}
}

func (l *crowded) Accept() (net.Conn, error) {
	select {
	case <-l.end:
		return nil, net.ErrClosed
	default:
		l.tries.Add(1)
		return nil, errors.New("too many open files")
	}
}

func (l *crowded) Close() error {
	select {
	case <-l.end:
	default:
		close(l.end)
	}
	return nil
}

func (l *crowded) Addr() net.Addr { return address("a:1") }

// When no connection can be accepted, the pauses grow to a second, and end with the Mux.
func TestMuxPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &crowded{end: make(chan struct{})}
		m := &Mux{opts: MuxOptions{Logger: hclog.NewNullLogger()}, l: l, half: newCrowd[*guest](1)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(10 * time.Second)
		must.Between(t, 16, l.tries.Load(), 18) // 5 ms, 10 ms … 640 ms, then a second each
		began := time.Now()
		cancel()
		must.NoError(t, <-done)
		must.Zero(t, time.Since(began))
		<-l.end // and the listener is closed

		// A connection that arrives during the close is closed.
		ours, theirs := net.Pipe()
		must.Nil(t, m.enter(ours))
		_, err := theirs.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)
	})
}

// A listener that fails permanently ends the Mux and everything that waits for it.
func TestMuxListenerFails(t *testing.T) {
	t.Parallel()
	l := &crowded{end: make(chan struct{})}
	must.NoError(t, l.Close())
	m := &Mux{opts: MuxOptions{Logger: hclog.NewNullLogger()}, l: l, half: newCrowd[*guest](1), ports: map[string]*port{}}
	m.ports[ProtocolData] = &port{m: m, conns: make(chan *Conn), over: make(chan struct{})}
	must.Eq(t, core.Unavailable, core.KindOf(m.Run(t.Context())))
	_, err := m.Data().Accept()
	must.ErrorIs(t, err, net.ErrClosed)
}

// follow's context ends when another queen leads, and follow stops looking once it is not needed.
func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var moved atomic.Bool
		var looks atomic.Int32
		f := &Forwarder{Leader: func(context.Context) (string, string, bool, error) {
			looks.Add(1)
			if moved.Load() {
				return "b", "", false, nil
			}
			return "a", "", false, nil
		}}
		ctx, cancel := f.follow(t.Context(), "a")
		time.Sleep(time.Second + leaderWatch/2)
		must.Eq(t, 10, looks.Load())
		must.NoError(t, ctx.Err())
		cancel()
		must.Error(t, ctx.Err())
		time.Sleep(time.Second)
		must.Eq(t, 10, looks.Load())

		ctx, cancel = f.follow(t.Context(), "a")
		moved.Store(true)
		<-ctx.Done()
		must.ErrorIs(t, context.Cause(ctx), errLeaderChanged)
		cancel()
	})
}

// The end of follow waits for a lookup in progress.
func TestFollowWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var over atomic.Bool
		f := &Forwarder{Leader: func(context.Context) (string, string, bool, error) {
			time.Sleep(time.Second)
			over.Store(true)
			return "a", "", false, nil
		}}
		_, cancel := f.follow(t.Context(), "a")
		time.Sleep(leaderWatch * 3 / 2)
		cancel()
		must.True(t, over.Load())
	})
}

// elsewhere is a connection to the leader that fails, and records the contexts that it was used
// with.
type elsewhere struct {
	used []context.Context
	err  error
}

func (e *elsewhere) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	e.used = append(e.used, ctx)
	return e.err
}

func (e *elsewhere) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	e.used = append(e.used, ctx)
	return nil, e.err
}

// incomingStream is a call's stream at this queen.
type incomingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s incomingStream) Context() context.Context   { return s.ctx }
func (incomingStream) RecvMsg(any) error            { return nil }
func (incomingStream) SetTrailer(metadata.MD)       {}
func (incomingStream) SetHeader(metadata.MD) error  { return nil }
func (incomingStream) SendHeader(metadata.MD) error { return nil }

func leaderCall(t *testing.T, method string) (context.Context, *call) {
	t.Helper()
	d, ok := methodOf(method)
	must.True(t, ok)
	rule, ok := ruleOf(d)
	must.True(t, ok)
	must.True(t, rule.GetLeader())
	c := &call{method: d, rule: rule}
	return context.WithValue(t.Context(), callKey{}, c), c
}

// A call that has ended does not look for a leader.
func TestForwardedCallIsOver(t *testing.T) {
	t.Parallel()
	to := &elsewhere{err: core.Errorf(core.Conflict, "no")}
	f := &Forwarder{
		Leader: func(context.Context) (string, string, bool, error) { return "a", "a:1", false, nil },
		Conn:   func(string, string) (grpc.ClientConnInterface, error) { return to, nil },
	}
	ctx, _ := leaderCall(t, queenv1.ClusterService_Apply_FullMethodName)
	_, err := f.unary(ctx, &queenv1.ApplyRequest{}, &grpc.UnaryServerInfo{FullMethod: queenv1.ClusterService_Apply_FullMethodName}, nil)
	must.Eq(t, core.Conflict, core.KindOf(err))
	ctx, _ = leaderCall(t, queenv1.ClusterService_SaveSnapshot_FullMethodName)
	err = f.stream(nil, incomingStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: queenv1.ClusterService_SaveSnapshot_FullMethodName, IsServerStream: true}, nil)
	must.Eq(t, core.Conflict, core.KindOf(err))
	ctx, _ = leaderCall(t, queenv1.ClusterService_RestoreSnapshot_FullMethodName)
	err = f.stream(nil, incomingStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: queenv1.ClusterService_RestoreSnapshot_FullMethodName, IsClientStream: true}, nil)
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.Len(t, 3, to.used)
	for _, ctx := range to.used {
		must.Error(t, ctx.Err())
	}
}

// A call waits five seconds for a leader, and no longer than its own deadline. Calls that any queen
// answers are not forwarded.
func TestForwardPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &Forwarder{Leader: func(context.Context) (string, string, bool, error) {
			return "", "", false, core.Errorf(core.Unavailable, "nobody leads")
		}}
		ctx, c := leaderCall(t, queenv1.ClusterService_Apply_FullMethodName)
		info := &grpc.UnaryServerInfo{FullMethod: queenv1.ClusterService_Apply_FullMethodName}
		began := time.Now()
		_, err := f.unary(ctx, nil, info, nil)
		must.ErrorIs(t, err, errNoLeader)
		must.Between(t, leaderWait, time.Since(began), leaderWait+leaderLook)

		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		began = time.Now()
		_, err = f.unary(short, nil, info, nil)
		must.ErrorIs(t, err, errNoLeader)
		must.Eq(t, time.Second, time.Since(began))

		here := func(context.Context, any) (any, error) { return "here", nil }
		for _, local := range []context.Context{t.Context(), context.WithValue(t.Context(), callKey{}, &call{method: c.method})} {
			v, err := f.unary(local, nil, info, here)
			must.NoError(t, err)
			must.Eq(t, any("here"), v)
		}
	})
}

// A message is released when its call ends or asks for the next one.
func TestCallMeter(t *testing.T) {
	t.Parallel()
	b := newBudget(1<<40, 1<<40, func(string, int64, *Conn) {})
	held := &callHeld{conn: &Conn{node: pki.Node{ID: "a"}}, budget: b}
	ctx := context.WithValue(t.Context(), callHeldKey{}, held)
	m := callMeter{b}
	m.HandleRPC(ctx, &stats.InPayload{WireLength: 10})
	must.Eq(t, 10, b.used)
	m.HandleRPC(ctx, &stats.InPayload{WireLength: 7})
	must.Eq(t, 7, b.used)
	must.NoError(t, releaseHeld(nil, incomingStream{ctx: ctx}, nil, func(_ any, ss grpc.ServerStream) error { return ss.RecvMsg(nil) }))
	must.Zero(t, b.used)
	m.HandleRPC(ctx, &stats.InPayload{WireLength: 9})
	m.HandleRPC(ctx, &stats.End{})
	must.Zero(t, b.used)
	must.MapEmpty(t, b.nodes)
}

// A connection that is cut is closed and reported once; one that its owner closes is not reported.
func TestConnEnds(t *testing.T) {
	t.Parallel()
	conn := func() (c *Conn, theirs net.Conn, told, forgotten *int) {
		ours, theirs := net.Pipe()
		told, forgotten = new(int), new(int)
		w := &wire{Conn: ours}
		c = &Conn{Conn: tls.Client(w, &tls.Config{InsecureSkipVerify: true}), wire: w, forget: func(*Conn) { *forgotten++ }}
		c.onBreak(func() { *told++ })
		return c, theirs, told, forgotten
	}
	for name, tt := range map[string]struct {
		end  func(c *Conn)
		told int
	}{
		"cut":   {(*Conn).cut, 1},
		"abort": {(*Conn).Abort, 0},
		"close": {func(c *Conn) { _ = c.Close() }, 0},
	} {
		c, theirs, told, forgotten := conn()
		tt.end(c)
		_, err := theirs.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF, must.Sprint(name))
		tt.end(c)
		_, err = c.Write([]byte("x"))
		must.Error(t, err)
		_, err = c.Read(make([]byte, 1))
		must.Error(t, err)
		must.Eq(t, tt.told, *told, must.Sprint(name))
		must.One(t, *forgotten, must.Sprint(name))
	}
}

// Unset options of a server have defaults.
func TestServerDefaults(t *testing.T) {
	t.Parallel()
	var o ServerOptions
	o.prepare()
	must.NotNil(t, o.Logger)
	must.Eq(t, 128<<20, o.MaxHeldBytes)
	must.True(t, o.Self.Has(core.RoleQueen) && o.Self.Has(core.RoleHive))
}
