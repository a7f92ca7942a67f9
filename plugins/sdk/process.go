package sdk

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Environment variables that a host sets for a plugin process.
const (
	// EnvCookie tells a plugin that a host started it. Its value is Cookie. It is not a secret.
	EnvCookie = "RBEE_PLUGIN"
	// EnvLogLevel is the lowest level that Logger writes: trace, debug, info, warn, error or off.
	EnvLogLevel = "RBEE_PLUGIN_LOG_LEVEL"
	// EnvTether, set to "1", makes the process exit when its standard input ends, which happens
	// when its host dies. Hosts set it for every process except workers that should outlive them.
	EnvTether = "RBEE_PLUGIN_TETHER"
)

// Cookie is the value of EnvCookie.
const Cookie = "4f1c2a7e-rbee-plugin"

// exitGrace is how long a plugin's work may continue after a termination signal.
const exitGrace = 10 * time.Second

// Handshake returns what host and plugin must agree on before they negotiate a protocol version.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{MagicCookieKey: EnvCookie, MagicCookieValue: Cookie}
}

// Logger returns a logger that writes JSON lines to the process's standard error, which the host
// reads from a pipe or, for a worker, from the worker's log file. Use it for all messages of a
// plugin; standard output belongs to the protocol. Numbers stay numbers.
func Logger(name string) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv(EnvLogLevel))
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, JSONFormat: true, Output: rawStderr{}})
}

// Process is the running plugin process. Authors do not need it: worker.Serve and catalog.Serve use
// it.
type Process struct {
	log    hclog.Logger
	stdout *os.File // the original, before go-plugin replaced it
	stderr *os.File

	settle sync.Once // guards the replacement of the standard files
	end    sync.Once // guards the end of server

	mu     sync.Mutex // guards below
	server *grpc.Server
}

// Serve serves p and the services of register until the host ends the process, a SIGTERM arrives,
// or End is called, and then returns. stop ends the plugin's work within its grace; it may be
// called more than once. A process that no host started exits with a message.
func Serve(kind Kind, p Plugin, register func(grpc.ServiceRegistrar, *Process), stop func(ctx context.Context, grace time.Duration) error) {
	name := filepath.Base(os.Args[0])
	if os.Getenv(EnvCookie) != Cookie {
		fmt.Fprintf(os.Stderr, "%s is a plugin of rbee and is not run by hand.\nPut it in rbee's plugin_dir; \"rbee plugin list\" shows what is there.\n", name)
		os.Exit(1)
	}
	// A worker may outlive its host: writing to a pipe whose other end the host held must not kill
	// it.
	signal.Ignore(syscall.SIGPIPE)

	proc := &Process{log: Logger(name), stdout: os.Stdout, stderr: os.Stderr}
	ctx, cancel := context.WithCancel(context.Background()) // lives as long as the process
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { proc.watchSignals(ctx, stop) })
	if os.Getenv(EnvTether) == "1" {
		// Nothing waits for it: a read of standard input cannot be interrupted.
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			proc.stopAndEnd(stop, exitGrace)
		}()
	}

	sets := map[int]goplugin.PluginSet{}
	for _, v := range ProtocolVersions() {
		sets[v] = goplugin.PluginSet{string(kind): &grpcPlugin{register: func(s *grpc.Server) {
			Register(s, p)
			register(s, proc)
		}}}
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: sets,
		GRPCServer:       proc.newGRPCServer,
		Logger:           proc.log.Named("go-plugin"),
	})
	cancel()
	wg.Wait()
	// The host may have closed the connection without notice, or a signal may have arrived: end the
	// work in any case. The context is a shutdown deadline.
	stopCtx, stopCancel := context.WithTimeout(context.Background(), exitGrace)
	defer stopCancel()
	if err := stop(stopCtx, time.Second); err != nil {
		proc.log.Warn("stop at the end of the process", "error", err)
	}
}

// End makes Serve return after delay, so that a last answer reaches the host. It does not block.
func (p *Process) End(delay time.Duration) {
	p.end.Do(func() {
		time.AfterFunc(delay, func() {
			p.mu.Lock()
			server := p.server
			p.mu.Unlock()
			if server != nil {
				server.Stop()
			}
		})
	})
}

// Log returns the process's logger.
func (p *Process) Log() hclog.Logger { return p.log }

func (p *Process) watchSignals(ctx context.Context, stop func(context.Context, time.Duration) error) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	defer signal.Stop(ch)
	select {
	case <-ctx.Done():
	case <-ch:
		p.log.Info("told to end by a signal")
		p.stopAndEnd(stop, exitGrace)
	}
}

func (p *Process) stopAndEnd(stop func(context.Context, time.Duration) error, grace time.Duration) {
	// a shutdown deadline
	ctx, cancel := context.WithTimeout(context.Background(), grace+time.Second)
	defer cancel()
	if err := stop(ctx, grace); err != nil {
		p.log.Warn("stop", "error", err)
	}
	p.End(0)
}

func (p *Process) newGRPCServer(opts []grpc.ServerOption) *grpc.Server {
	opts = append(opts,
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
			p.settle.Do(p.settleStdio)
			defer p.recovered(&err)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			p.settle.Do(p.settleStdio)
			defer p.recovered(&err)
			return next(srv, ss)
		}),
	)
	s := grpc.NewServer(opts...)
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
	return s
}

// settleStdio acts on its first call, once the host has read the handshake line: from then on all
// printed text goes to standard error. Otherwise it would fill a pipe of go-plugin that nothing
// reads once the host has exited, and the printing goroutine would hang.
func (p *Process) settleStdio() {
	os.Stdout, os.Stderr = p.stderr, p.stderr
	if err := stdoutToStderr(); err != nil {
		p.log.Warn("standard output stays a pipe", "error", err)
	}
}

func (p *Process) recovered(err *error) {
	if r := recover(); r != nil {
		p.log.Error("panic in a call", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "the plugin panicked: %v", r)
	}
}

// grpcPlugin is the plugin's side of go-plugin's interface. Hosts build their clients with
// NewClient of the kind's package.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

func (g *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	g.register(s)
	return nil
}

func (g *grpcPlugin) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("this side serves: %w", ErrUnsupported)
}
