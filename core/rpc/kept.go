package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/rbee-project/rbee/core"
)

const (
	// pingMethod exists on no server: its refusal is a sign of life.
	pingMethod = "/rbee/ping"
	// clientPing is the pause between grpc's own pings of a server that is silent during a call;
	// grpc does not allow less than 10 s.
	clientPing = 15 * time.Second
)

// kept is a connection that the pool keeps.
type kept struct {
	cc            *grpc.ClientConn
	node, address string
	deadAfter     time.Duration
	ping          bool
	wg            *sync.WaitGroup // the pool's
	broken        func(nodeID, address string)

	mu     sync.Mutex // guards below
	closed bool
	calls  int // running
	timer  *time.Timer
	conn   *Conn // the newest
}

func (p *Pool) keep(nodeID, address string, role core.Role) (*kept, error) {
	k := &kept{node: nodeID, address: address, deadAfter: p.opts.DeadAfter, ping: p.ping, wg: &p.wg, broken: p.opts.Broken}
	cc, err := grpc.NewClient("passthrough:///"+address, append(DialOptions(),
		grpc.WithTransportCredentials(shaking{shake: func(ctx context.Context, raw net.Conn) (*Conn, error) {
			c, err := p.shake(ctx, raw, address, p.config(ProtocolGRPC, role, nodeID))
			if err != nil {
				return nil, dialError("connect", address, err)
			}
			k.connected(c)
			return c, nil
		}}),
		grpc.WithContextDialer(p.dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		// The timeout also bounds how long TCP tries to get bytes through.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPing, Timeout: p.opts.DeadAfter}),
		grpc.WithChainUnaryInterceptor(k.unary),
		grpc.WithChainStreamInterceptor(k.stream),
	)...)
	if err != nil {
		return nil, core.Wrap(err, core.Invalid, "connect")
	}
	k.cc = cc
	return k, nil
}

func (k *kept) connected(c *Conn) {
	c.watched = true
	c.onBreak(func() {
		if k.broken != nil {
			k.broken(c.node.ID, k.address)
		}
	})
	k.mu.Lock()
	k.conn = c
	k.mu.Unlock()
}

func (k *kept) close() {
	k.mu.Lock()
	k.closed = true
	if k.timer != nil && k.timer.Stop() {
		k.timer = nil
		k.wg.Done()
	}
	k.mu.Unlock()
	_ = k.cc.Close()
}

// begin records a running call, and monitors the peer while there is one.
func (k *kept) begin(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if k.ping && k.timer == nil && !k.closed {
		ctx = context.WithoutCancel(ctx) // the monitor also serves other calls
		k.wg.Add(1)
		k.timer = time.AfterFunc(k.deadAfter/6, func() { k.look(ctx) })
	}
}

func (k *kept) done() {
	k.mu.Lock()
	k.calls--
	k.mu.Unlock()
}

// look cuts the connection to a peer that shows no sign of life: grpc's own pings are too far
// apart.
func (k *kept) look(ctx context.Context) {
	defer k.wg.Done()
	k.mu.Lock()
	k.timer = nil
	c, wanted := k.conn, k.calls > 0 && !k.closed
	k.mu.Unlock()
	if !wanted {
		return
	}
	if c != nil && c.silence() >= k.deadAfter/3 {
		asked := c.heard.Load()
		ctx, cancel := context.WithTimeout(ctx, k.deadAfter/2)
		err := k.cc.Invoke(ctx, pingMethod, &emptypb.Empty{}, &emptypb.Empty{})
		late := ctx.Err() != nil
		cancel()
		if late && err != nil && c.heard.Load() == asked {
			c.cut()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.calls > 0 && !k.closed && k.timer == nil {
		k.wg.Add(1)
		k.timer = time.AfterFunc(k.deadAfter/6, func() { k.look(ctx) })
	}
}

// explain replaces grpc's error for calls that ended with the connection, since the caller did not
// cancel them.
func (k *kept) explain(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, io.EOF) || status.Code(err) != codes.Canceled || ctx.Err() != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		return err
	}
	return status.Error(codes.Unavailable, "the connection to "+k.address+" was given up")
}

func (k *kept) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pingMethod {
		return next(ctx, method, req, reply, cc, opts...)
	}
	k.begin(ctx)
	defer k.done()
	return k.explain(ctx, next(ctx, method, req, reply, cc, opts...))
}

func (k *kept) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	k.begin(ctx)
	var once sync.Once
	end := func() { once.Do(k.done) }
	s, err := next(ctx, desc, cc, method, append(opts, grpc.OnFinish(func(error) { end() }))...)
	if err != nil {
		end()
		return nil, k.explain(ctx, err)
	}
	return &keptStream{s, func(err error) error { return k.explain(ctx, err) }}, nil
}

type keptStream struct {
	grpc.ClientStream
	// with the caller's context: the stream's own ends with the connection
	explain func(error) error
}

func (s *keptStream) SendMsg(m any) error {
	return s.explain(s.ClientStream.SendMsg(m))
}

func (s *keptStream) RecvMsg(m any) error {
	return s.explain(s.ClientStream.RecvMsg(m))
}
