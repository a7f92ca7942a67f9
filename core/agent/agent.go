// Package agent builds one process out of a configuration, a queen and a hive, and runs it: start,
// ready, stop in order.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/remote"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/node"
)

const (
	// jobsGrace is how long jobs may take to end when they are cancelled since the agent ends.
	jobsGrace = 10 * time.Second
	// rpcGrace is how long calls between queen and hive may go on after both have ended their work.
	rpcGrace = time.Second
	// handOverGrace is how long the agent tries to give its leadership to another queen before it
	// ends.
	handOverGrace = 3 * time.Second
)

// Options say how Run runs an agent, beside its configuration.
type Options struct {
	Version string       // of the program
	Logger  hclog.Logger // nil: none
	// Join is a join token and a queen, "TOKEN@host", for a machine that is in no cluster yet; one
	// that is in a cluster ignores it. Empty: none.
	Join string
	SSH  SSH // with which other machines are reached
	// NotifySocket is NOTIFY_SOCKET of a service manager that is told when the agent serves, and
	// when it begins to end; empty: none.
	NotifySocket string
	// Load reads the configuration anew, for each value of Reload; nil: there is no reloading. Its
	// error is logged.
	Load   func() (*config.Config, error)
	Reload <-chan struct{}
	// Hurry is closed when an agent that ends is not to wait for running requests any more, which
	// then end with an error event; nil: it waits for as long as its configuration says.
	Hurry <-chan struct{}
	// Suite is the command that runs the conformance suite of plugins, plugintest.Child; empty: no
	// plugin can be built.
	Suite []string
	// Ready is called once, when the agent serves, with the host:port of its HTTP API; empty: it
	// has none, being a hive alone. A queen of a cluster is ready as soon as it answers, also while
	// there is no leader.
	Ready func(address string)
}

// Record is what a running agent writes to agent.json in its data folder, so that scripts find it.
type Record struct {
	PID         int       `json:"pid"`
	HTTPAddress string    `json:"http_address,omitempty"` // host:port; empty: a hive alone
	Scheme      string    `json:"scheme,omitempty"`       // "http" or "https"
	RPCAddress  string    `json:"rpc_address,omitempty"`  // host:port; empty: in no cluster
	Version     string    `json:"version"`
	StartedAt   time.Time `json:"started_at"`
	// Stopping says that the agent has been told to end: the next one waits for it.
	Stopping bool `json:"stopping,omitempty"`
}

// Run runs an agent until ctx ends. Errors: Invalid for a configuration that cannot work, InUse for
// an address or a data folder that another process has, those of Join, Internal.
func Run(ctx context.Context, cfg *config.Config, o Options) (err error) {
	log := o.Logger
	if log == nil {
		log = hclog.NewNullLogger()
	}
	if cfg.DataDir == "" {
		if cfg.DataDir, err = os.MkdirTemp("", "rbee-"); err != nil {
			return core.Wrap(err, core.Internal, "make a temporary data folder")
		}
		defer os.RemoveAll(cfg.DataDir)
	}
	unlock, err := awaitDataDir(ctx, cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	p := &process{cfg: cfg, opts: o, log: log, started: time.Now(), places: placesFor(openFiles())}
	defer func() {
		for _, closer := range slices.Backward(p.closers) {
			err = errors.Join(err, closer())
		}
		if err == nil && p.leaving != nil && p.leaving.left() {
			err = forget(cfg.DataDir)
		}
	}()
	if err := p.build(ctx); err != nil {
		return err
	}
	return runStages(ctx, p.stages())
}

// process is the parts of a running agent, each nil where the agent has none.
type process struct {
	cfg     *config.Config
	opts    Options
	log     hclog.Logger
	started time.Time
	closers []func() error // in the order of opening

	places   places // for connections
	id       string // of the node
	net      *network
	pipe     *rpc.Pipe // between the queen and the hive of this process
	conn     *grpc.ClientConn
	servers  []*grpc.Server // for the pipe, and for other nodes
	guests   *grpc.Server   // for machines that join; nil: none can
	jobs     *job.Manager
	bees     *hive.Hive
	registry *node.Node
	queen    *queen.Queen
	remote   *remote.Remote
	listener net.Listener
	answers  *inference.Service
	api      *gateway.Gateway
	leaving  *leaver

	plugins          *pluginhost.Host
	download, upload *download.Limiter
}

// defers has something closed at the end.
func (p *process) defers(closer func() error) { p.closers = append(p.closers, closer) }

// build opens everything and starts nothing. What it has opened when it fails is closed by the
// caller as well.
func (p *process) build(ctx context.Context) error {
	identity, err := p.identity(ctx)
	if err != nil {
		return err
	}
	if err := problems(ctx, p.cfg, identity).Err(); err != nil {
		return core.WithHint(err, "\"rbee config validate\" checks a configuration without starting anything.")
	}
	// The addresses first: when one is taken nothing else has happened yet.
	if p.cfg.Queen.Enabled {
		if p.listener, err = listen(ctx, p.cfg.ListenAddress(identity != nil), p.cfg.Bind.HTTPPort, "http_port"); err != nil {
			return err
		}
		p.defers(func() error { p.listener.Close(); return nil })
	}
	if identity == nil {
		if p.id, err = nodeID(p.cfg.DataDir); err != nil {
			return err
		}
	} else {
		p.id = identity.Node().ID
		if p.net, err = newNetwork(ctx, p.cfg, identity, p.opts, p.log); err != nil {
			return err
		}
		p.defers(p.net.close)
		if p.listener != nil {
			p.listener = tls.NewListener(p.listener, identity.HTTPConfig())
		}
	}
	if err := p.buildJobs(); err != nil {
		return err
	}
	p.pipe = rpc.NewPipe()
	p.defers(p.pipe.Close)
	if p.conn, err = rpc.Client(p.pipe); err != nil {
		return err
	}
	p.defers(p.conn.Close)
	if p.cfg.Hive.Enabled {
		if err := p.buildHive(ctx); err != nil {
			return err
		}
	}
	if p.cfg.Queen.Enabled {
		if err := p.buildQueen(identity); err != nil {
			return err
		}
	}
	p.buildServers()
	return nil
}

// identity is who this machine is in its cluster, which it may join now; nil: it is in none.
func (p *process) identity(ctx context.Context) (*pki.Identity, error) {
	id, err := identityOf(ctx, p.cfg)
	if err != nil || p.opts.Join == "" {
		return id, err
	}
	if id != nil && !joinsAgain(id, p.opts.Join) {
		p.log.Info("this machine is in a cluster already: the join token is not used", "cluster", id.Cluster())
		return id, nil
	}
	if err := join(ctx, p.cfg, p.opts.Join); err != nil {
		return nil, err
	}
	id, err = identityOf(ctx, p.cfg)
	if err == nil {
		p.log.Info("joined the cluster", "cluster", id.Cluster(), "node", id.Node().ID, "name", id.Node().Name)
	}
	return id, err
}

// joinsAgain reports whether a join token serves a machine that is in its cluster already.
func joinsAgain(id *pki.Identity, tokenAtHost string) bool {
	parsed, _, err := token.ParseJoin(tokenAtHost)
	return err == nil && Ended(id, parsed.Fingerprint, time.Now())
}

// buildJobs makes the owner of the jobs of this machine: of its hive's, and of those that its queen
// runs.
func (p *process) buildJobs() (err error) {
	log := p.log.Named("job")
	p.jobs, err = job.Open(job.Options{
		Owner: p.id, Version: p.opts.Version, Dir: filepath.Join(p.cfg.DataDir, "jobs"),
		Panicked: func(id string, op core.Operation, value any, stack []byte) {
			log.Error("an operation crashed", "job", id, "operation", op, "panic", value, "stack", string(stack))
		},
		Trouble: func(id string, err error) {
			log.Warn("the events of a job are not kept on the disk", "job", id, "error", err)
		},
	})
	return err
}

// endJobs ends the jobs before the hive goes: ending ones need their workers supervised.
func (p *process) endJobs(ctx context.Context) error {
	<-ctx.Done()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobsGrace)
	defer cancel()
	if err := p.jobs.Close(limited); err != nil {
		p.log.Warn("end the jobs", "error", err)
	}
	return ctx.Err()
}

// listen opens a port. setting is its name in bind { … }. Errors: InUse, Forbidden, Invalid.
func listen(ctx context.Context, address string, port int, setting string) (net.Listener, error) {
	address = net.JoinHostPort(address, strconv.Itoa(port))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		flag := ""
		if setting == "http_port" {
			flag = "-http-port or "
		}
		return nil, core.Errorf(core.InUse, "the address %s is taken by another process", address).Hint(
			"If it is an rbee agent, use it as it is (\"rbee status\"); otherwise choose another port with %sbind { %s = … }.", flag, setting)
	case errors.Is(err, syscall.EACCES):
		return nil, core.Errorf(core.Forbidden, "may not listen on %s", address).Hint("Choose a port above 1023.")
	case err != nil:
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "listen"), "Check bind { address = … } in the configuration.")
	}
	return l, nil
}
