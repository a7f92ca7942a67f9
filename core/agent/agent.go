// Package agent builds one process, a queen and a hive, from a configuration and runs it: start,
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
	// jobsGrace is how long cancelled jobs may take to end when the agent stops.
	jobsGrace = 10 * time.Second
	// rpcGrace is how long calls between queen and hive may continue after both have stopped.
	rpcGrace = time.Second
	// handOverGrace bounds the attempt to transfer the leadership to another queen before the agent
	// stops.
	handOverGrace = 3 * time.Second
)

// Options say how Run runs an agent, in addition to its configuration.
type Options struct {
	Version string       // version of the program
	Logger  hclog.Logger // nil: no logging
	// Join is a join token and a queen, "TOKEN@host", for a machine that is not in a cluster yet; a
	// machine in a cluster ignores it. Empty: no joining.
	Join string
	SSH  SSH // how to reach other machines
	// NotifySocket is the NOTIFY_SOCKET of a service manager, which is notified when the agent
	// serves and when it begins to stop; empty: no service manager.
	NotifySocket string
	// Load rereads the configuration, once for each value of Reload; nil: reloading is disabled.
	// Its error is logged.
	Load   func() (*config.Config, error)
	Reload <-chan struct{}
	// Hurry is closed when a stopping agent must no longer wait for running requests, which then
	// end with an error event; nil: the agent waits as long as its configuration says.
	Hurry <-chan struct{}
	// Suite is the command that runs the conformance suite of plugins, plugintest.Child; empty: no
	// plugin can be built.
	Suite []string
	// Ready is called once, when the agent serves, with the host:port of its HTTP API; empty for a
	// hive without a queen, which has no API. A queen of a cluster is ready as soon as it answers,
	// even without a leader.
	Ready func(address string)
}

// Record is the content of agent.json, which a running agent writes to its data folder so that
// scripts find it.
type Record struct {
	PID         int       `json:"pid"`
	HTTPAddress string    `json:"http_address,omitempty"` // host:port; empty: there is no queen
	Scheme      string    `json:"scheme,omitempty"`       // "http" or "https"
	RPCAddress  string    `json:"rpc_address,omitempty"`  // host:port; empty: not in a cluster
	Version     string    `json:"version"`
	StartedAt   time.Time `json:"started_at"`
	// Stopping reports that the agent is stopping: the next agent waits for it.
	Stopping bool `json:"stopping,omitempty"`
}

// Run runs an agent until ctx ends. Errors: Invalid for a configuration that cannot work, InUse for
// an address or a data folder that another process uses, those of Join, Internal.
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

// process holds the parts of a running agent; a part that the agent does not have is nil.
type process struct {
	cfg     *config.Config
	opts    Options
	log     hclog.Logger
	started time.Time
	closers []func() error // in the order of opening

	places   places // limits on connections
	id       string // node ID
	net      *network
	pipe     *rpc.Pipe // between the queen and the hive of this process
	conn     *grpc.ClientConn
	servers  []*grpc.Server // one for the pipe, one for other nodes
	guests   *grpc.Server   // for machines that join; nil: joining is disabled
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

// defers registers a function to call at shutdown.
func (p *process) defers(closer func() error) { p.closers = append(p.closers, closer) }

// build opens everything and starts nothing. If it fails, the caller closes what it has opened.
func (p *process) build(ctx context.Context) error {
	identity, err := p.identity(ctx)
	if err != nil {
		return err
	}
	if err := problems(ctx, p.cfg, identity).Err(); err != nil {
		return core.WithHint(err, "\"rbee config validate\" checks a configuration without starting anything.")
	}
	// Open the ports first: if one is in use, nothing else has happened yet.
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

// identity returns this machine's identity in its cluster, joining a cluster first if asked to;
// nil: it is not in a cluster.
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

// joinsAgain reports whether a member may redeem a join token again: its certificate has expired.
func joinsAgain(id *pki.Identity, tokenAtHost string) bool {
	parsed, _, err := token.ParseJoin(tokenAtHost)
	return err == nil && Ended(id, parsed.Fingerprint, time.Now())
}

// buildJobs creates the owner of this machine's jobs: those of its hive and those that its queen
// runs.
func (p *process) buildJobs() (err error) {
	log := p.log.Named("job")
	p.jobs, err = job.Open(job.Options{
		Owner: p.id, Version: p.opts.Version, Dir: filepath.Join(p.cfg.DataDir, "jobs"),
		Panicked: func(id string, op core.Operation, value any, stack []byte) {
			log.Error("an operation crashed", "job", id, "operation", op, "panic", value, "stack", string(stack))
		},
		Trouble: func(id string, err error) {
			log.Warn("failed to keep the events of a job on disk", "job", id, "error", err)
		},
	})
	return err
}

// endJobs ends the jobs before the hive stops: ending jobs need their workers supervised.
func (p *process) endJobs(ctx context.Context) error {
	<-ctx.Done()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobsGrace)
	defer cancel()
	if err := p.jobs.Close(limited); err != nil {
		p.log.Warn("end the jobs", "error", err)
	}
	return ctx.Err()
}

// listen opens a port. setting is its name within bind { … }. Errors: InUse, Forbidden, Invalid.
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
		return nil, core.Errorf(core.InUse, "address %s already in use", address).Hint(
			"If it is an rbee agent, use it as it is (\"rbee status\"); otherwise choose another port with %sbind { %s = … }.", flag, setting)
	case errors.Is(err, syscall.EACCES):
		return nil, core.Errorf(core.Forbidden, "may not listen on %s", address).Hint("Choose a port above 1023.")
	case err != nil:
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "listen"), "Check bind { address = … } in the configuration.")
	}
	return l, nil
}
