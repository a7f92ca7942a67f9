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

// MaxMessageBytes bounds a message in either direction; the sender or receiver refuses a larger
// one. A command for the registry, of 4 MiB at most, fits with its envelope.
const MaxMessageBytes = 4<<20 + 64<<10

// The bounds of a connection to a server, as HTTP/2 (RFC 9113) settings.
const (
	maxCalls       = 256      // concurrent
	maxHeaderBytes = 16 << 10 // per call
	// streamWindow bounds what a call may send before the server asks for more.
	streamWindow = 256 << 10
	connWindow   = 1 << 20
	// maxTrailerBytes bounds a server's answer without its messages, which repeats an error's text
	// three times.
	maxTrailerBytes = 256 << 10
)

// The bounds of callers without a certificate.
const (
	maxGuestMessage = 64 << 10
	maxGuestCalls   = 4
	maxGuestHeader  = 4 << 10
)

// The keepalive of connections between machines: a dead peer is noticed within pingInterval +
// pingTimeout.
const (
	pingInterval = 15 * time.Second
	pingTimeout  = 5 * time.Second
)

// serverStart bounds how long a client may take to start speaking.
const serverStart = 5 * time.Second

// ServerOptions configure a node's server.
type ServerOptions struct {
	Logger hclog.Logger // nil: none
	// Self is the identity of callers in this process. Without roles it has all: an agent alone.
	Self pki.Node
	// Revoked reports whether a node's calls are refused; nil refuses none.
	Revoked func(nodeID string) bool
	// Refused is called for each refused call; it may be nil.
	Refused func(Reason)
	// Forward forwards calls that only the leader answers; nil answers them on this node.
	Forward *Forwarder
	// MaxHeldBytes bounds what a node server holds of all nodes' messages; one node may hold a
	// quarter. 0: 128 MiB.
	MaxHeldBytes int64
}

// NewNodeServer returns a server that admits only the callers that a method's rule
// (rbee.options.v1.rule) permits; it refuses a method without a rule. It decides before it reads
// any of a call's messages. It serves a Pipe, whose callers count as this node, and a Mux's GRPC.
// It bounds what it holds of all nodes' messages: a node that makes it hold too much loses its
// connection. See NewServer for the rest.
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

// NewGuestServer returns a server for a Mux's Guests: a NewNodeServer with tighter bounds for
// unknown callers, small messages and few calls at once.
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
// ToStatus), and whose handlers' panics become Internal errors, logged with their stack. It
// classifies the errors that a handler gets from its stream, too. It serves a Pipe or a Mux's GRPC,
// and admits all callers to all methods: see NewNodeServer.
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

// answer turns a handler's result, or its panic, into a status. It must be deferred.
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

// fromStream does what FromStatus does, except that io.EOF, the regular end of a stream, stays as
// it is.
func fromStream(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return FromStatus(err)
}

// Serve serves on l until ctx ends, then lets running requests finish for grace before it cuts
// them. It closes l, and returns when all handlers have. The error is nil if ctx ended it.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		if ctx.Err() == nil {
			s.Stop()
			return core.Wrap(err, core.Unavailable, "serve rpc")
		}
		served <- err // a Mux closes its listeners when ctx ends
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
		// the bytes do not leave the process
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.Dial(ctx) }))
	c, err := grpc.NewClient("passthrough:///in-process", append(all, opts...)...)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "create rpc client")
	}
	return c, nil
}

// RemoteOptions returns DialOptions for a server on another machine: they also detect a dead peer.
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
