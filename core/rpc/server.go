package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// MaxMessageBytes bounds a message in either direction; a larger one is refused by its sender or
// receiver. A command for the registry, of 4 MiB at most, fits with what is around it.
const MaxMessageBytes = 4<<20 + 64<<10

// The bounds of a connection to a server, RFC 9113's.
const (
	maxCalls       = 256      // at once
	maxHeaderBytes = 16 << 10 // of a call
	// streamWindow is what a call may send before the server asks for more.
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	// maxTrailerBytes bounds a server's answer but its messages; an error's text travels in it
	// three times.
	maxTrailerBytes = 256 << 10
)

// The bounds of callers without a certificate.
const (
	maxGuestMessage = 64 << 10
	maxGuestCalls   = 4
	maxGuestHeader  = 4 << 10
)

// The keepalive of connections that cross a machine's border: a peer that is gone is noticed within
// pingInterval + pingTimeout.
const (
	pingInterval = 15 * time.Second
	pingTimeout  = 5 * time.Second
)

// serverStart is how long a client may take to begin to speak.
const serverStart = 5 * time.Second

// ServerOptions say what a node's server knows of its callers.
type ServerOptions struct {
	Logger hclog.Logger // nil: none
	// Self is what callers in this process count as. Without roles it has all: an agent alone.
	Self pki.Node
	// Revoked reports whether a node's calls are refused; nil: none are.
	Revoked func(nodeID string) bool
	// Refused is told of each call that was refused; nil: nobody.
	Refused func(Reason)
	// Forward passes on calls that only the leader answers; nil: they are answered here.
	Forward *Forwarder
	// MaxHeldBytes bounds what a node server holds of all nodes' messages; one node gets a quarter.
	// 0: 128 MiB.
	MaxHeldBytes int64
}

// NewNodeServer returns a server that lets only those call a method whom its rule
// (rbee.options.v1.rule) names; a method without one is refused. Whether a call is let in is
// decided before anything of its messages is read. It serves a Pipe, whose callers count as this
// node, and a Mux's GRPC. What it holds of all nodes' messages is bounded: a node that makes it
// hold too much loses its connection. For the rest see NewServer.
func NewNodeServer(o ServerOptions, opts ...grpc.ServerOption) *grpc.Server {
	o.prepare()
	refused := newRefusals(o.Logger, o.Refused)
	held := newBudget(o.MaxHeldBytes, o.MaxHeldBytes/4, func(node string, bytes int64, c *Conn) {
		c.Abort()
		refused.note(ReasonTooMany, c.RemoteAddr().String(), node, fmt.Errorf("its messages took %d bytes of memory", bytes))
	})
	return newGated(o, refused, append([]grpc.ServerOption{
		grpc.Creds(shaken{budget: held}),
		grpc.StatsHandler(callMeter{held}),

		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
	}, opts...)...)
}

// NewGuestServer returns a server for a Mux's Guests. It is NewNodeServer with bounds for callers
// that nobody knows: small messages, and few calls at once.
func NewGuestServer(o ServerOptions, opts ...grpc.ServerOption) *grpc.Server {
	o.prepare()
	return newGated(o, newRefusals(o.Logger, o.Refused), append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxGuestMessage),
		grpc.MaxConcurrentStreams(maxGuestCalls),
		grpc.MaxHeaderListSize(maxGuestHeader),
		grpc.StaticStreamWindowSize(maxGuestMessage),
		grpc.StaticConnWindowSize(maxGuestMessage),
	}, opts...)...)
}

func (o *ServerOptions) prepare() {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.MaxHeldBytes <= 0 {
		o.MaxHeldBytes = defaultHeldBytes
	}
	if len(o.Self.Roles) == 0 {
		o.Self.Roles = []core.Role{core.RoleQueen, core.RoleHive}
	}
}

func newGated(o ServerOptions, refused *refusals, opts ...grpc.ServerOption) *grpc.Server {
	g := &gate{self: o.Self, revoked: o.Revoked, refused: refused}
	all := []grpc.ServerOption{
		grpc.ConnectionTimeout(serverStart), grpc.InTapHandle(g.tap), grpc.ChainStreamInterceptor(releaseHeld),
	}
	if f := o.Forward; f != nil {
		all = append(all, grpc.ChainUnaryInterceptor(f.unary), grpc.ChainStreamInterceptor(f.stream))
	}
	return NewServer(o.Logger, append(all, opts...)...)
}

// NewServer returns a server whose handlers' errors reach the client with their kind and hint (see
// ToStatus), and whose handlers' panics become Internal errors, logged with their stack. Errors
// that a handler gets from its stream are classified too. It serves a Pipe or a Mux's GRPC, and
// lets everybody call everything: see NewNodeServer.
func NewServer(log hclog.Logger, opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(shaken{}),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.ForceServerCodecV2(Codec()),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval / 2, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
			defer answer(log, info.FullMethod, &err)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer answer(log, info.FullMethod, &err)
			return next(srv, serverStream{ss})
		}),
	}, opts...)...)
}

// answer turns what a handler returned, or its panic, into a status. It is deferred.
func answer(log hclog.Logger, method string, err *error) {
	if value := recover(); value != nil {
		log.Error("panic in a request", "method", method, "panic", value, "stack", string(debug.Stack()))
		*err = core.Errorf(core.Internal, "%s crashed", method).Hint("This is a defect: please report it with the log of the agent.")
	}
	*err = ToStatus(*err)
}

type serverStream struct{ grpc.ServerStream }

func (s serverStream) SendMsg(m any) error { return fromStream(s.ServerStream.SendMsg(m)) }
func (s serverStream) RecvMsg(m any) error { return fromStream(s.ServerStream.RecvMsg(m)) }

// fromStream is FromStatus that leaves io.EOF, the regular end of a stream, as it is.
func fromStream(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return FromStatus(err)
}

// Serve serves on l until ctx ends, then lets running requests finish for grace before it cuts
// them. It closes l, and returns when all handlers have. The error is nil when ctx ended it.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		if ctx.Err() == nil {
			s.Stop()
			return core.Wrap(err, core.Unavailable, "serve rpc")
		}
		served <- err // a Mux closes its listeners with ctx
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() { s.GracefulStop(); close(stopped) }()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		s.Stop()
		<-stopped
	}
	<-served //nolint:errcheck // the listener was closed on purpose
	return nil
}

// Client returns a client of the server at the other end of p; see DialOptions for its errors. It
// connects with the first request. The caller closes it.
func Client(p *Pipe, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := append(DialOptions(),
		// the wire does not leave the process
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.Dial(ctx) }))
	c, err := grpc.NewClient("passthrough:///in-process", append(all, opts...)...)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "create rpc client")
	}
	return c, nil
}

// RemoteOptions are DialOptions for a server on another machine: they also notice a peer that is
// gone.
func RemoteOptions() []grpc.DialOption {
	return append(DialOptions(), grpc.WithKeepaliveParams(keepalive.ClientParameters{
		Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true,
	}))
}

// DialOptions returns the options of every client: message limits, quick reconnects, and errors, of
// requests and of streams, as the classified errors that the server's handler returned. A stream's
// regular end stays io.EOF.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes), grpc.ForceCodecV2(Codec())),
		grpc.WithMaxHeaderListSize(maxTrailerBytes),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return FromStatus(next(ctx, method, req, reply, cc, opts...))
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := next(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, FromStatus(err)
			}
			return clientStream{s}, nil
		}),
	}
}

type clientStream struct{ grpc.ClientStream }

func (s clientStream) SendMsg(m any) error { return fromStream(s.ClientStream.SendMsg(m)) }
func (s clientStream) RecvMsg(m any) error { return fromStream(s.ClientStream.RecvMsg(m)) }
