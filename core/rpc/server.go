package rpc

import (
	"context"
	"errors"
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

// MaxMessageBytes bounds a message in either direction; a larger one is refused by its sender or receiver.
const MaxMessageBytes = 16 << 20

// The keepalive of connections that cross a machine's border: a peer that is gone is noticed within pingInterval + pingTimeout.
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
	// Revoked says whether a node's calls are refused; nil: none are.
	Revoked func(nodeID string) bool
	// Refused is told of each call that was refused; nil: nobody.
	Refused func(Reason)
	// Forward passes on calls that only the leader answers; nil: they are answered here.
	Forward *Forwarder
}

// NewNodeServer returns a server that lets only those call a method whom its rule (rbee.options.v1.rule) names; a method without one is
// refused. It serves a Pipe, whose callers count as this node, and a Mux's GRPC. For the rest see NewServer.
func NewNodeServer(o ServerOptions, opts ...grpc.ServerOption) *grpc.Server {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if len(o.Self.Roles) == 0 {
		o.Self.Roles = []core.Role{core.RoleQueen, core.RoleHive}
	}
	g := &gate{self: o.Self, revoked: o.Revoked, refused: newRefusals(o.Logger, o.Refused)}
	unary, stream := []grpc.UnaryServerInterceptor{g.unary}, []grpc.StreamServerInterceptor{g.stream}
	if f := o.Forward; f != nil {
		unary, stream = append(unary, f.unary), append(stream, f.stream)
	}
	return NewServer(o.Logger, append([]grpc.ServerOption{
		grpc.ConnectionTimeout(serverStart), grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...),
	}, opts...)...)
}

// NewServer returns a server whose handlers' errors reach the client with their kind and hint (see ToStatus), and whose handlers' panics
// become Internal errors, logged with their stack. Errors that a handler gets from its stream are classified too. It serves a Pipe or a Mux's
// GRPC, and lets everybody call everything: see NewNodeServer.
func NewServer(log hclog.Logger, opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(shaken{}),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
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
		*err = core.WithHint(core.Errorf("", core.Internal, "%s crashed", method), "This is a defect: please report it with the log of the agent.")
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

// Serve serves on l until ctx ends, then lets running requests finish for grace before it cuts them. It closes l, and returns when all
// handlers have. The error is nil when ctx ended it.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		if ctx.Err() == nil {
			s.Stop()
			return core.E("serve rpc", core.Unavailable, err)
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

// Client returns a client of the server at the other end of p; see DialOptions for its errors. It connects with the first request.
// The caller closes it.
func Client(p *Pipe, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the wire does not leave the process
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.Dial(ctx) }))
	c, err := grpc.NewClient("passthrough:///in-process", append(all, opts...)...)
	if err != nil {
		return nil, core.E("create rpc client", core.Internal, err)
	}
	return c, nil
}

// RemoteOptions are DialOptions for a server on another machine: they also notice a peer that is gone.
func RemoteOptions() []grpc.DialOption {
	return append(DialOptions(), grpc.WithKeepaliveParams(keepalive.ClientParameters{
		Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true,
	}))
}

// DialOptions are the options of every client: message limits, quick reconnects, and errors, of requests and of streams, as the
// classified errors that the server's handler returned. A stream's regular end stays io.EOF.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
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
