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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/remote"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
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

// The gateway is given the queen; say here that it fits.
var (
	_ inference.Router = (*queen.Queen)(nil)
	_ gateway.Cluster  = (*queen.Queen)(nil)
	_ gateway.Jobs     = (*queen.Queen)(nil)

	_ gateway.Reader     = (*queen.Queen)(nil)
	_ gateway.Authorizer = (*queen.Queen)(nil)
	_ gateway.Admin      = (*queen.Queen)(nil)
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

func (p *process) buildHive(ctx context.Context) error {
	cfg := p.cfg
	// Their parents may be new, and are then closed to the users of plugins.
	for _, dir := range []string{filepath.Join(cfg.DataDir, "home"), cfg.StoreDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return core.Wrap(err, core.Internal, "make folders for plugins")
		}
	}
	walls, err := PluginWalls(cfg, p.opts.SSH.Home, cfg.DataDir, cfg.StoreDir)
	if err != nil {
		return err
	}
	walls.HomeDir = filepath.Join(cfg.DataDir, "home")
	plugins := pluginhost.New(pluginhost.Options{
		PluginDir: cfg.PluginDir, RunDir: filepath.Join(cfg.DataDir, "run"), Logger: p.log.Named("plugin"), AllowAddresses: cfg.Hive.Download.AllowAddresses,
		Walls: walls,
	})
	if problem := plugins.Confinement(); problem != "" {
		p.log.Warn("plugins are not fully confined", "problem", problem)
	}
	// Wrong plugin settings end the agent now, at their line of the file, rather than the first
	// worker later.
	if err := cfg.Diagnostics(plugins.Validate(ctx, cfg)).Err(); err != nil {
		return core.WithHint(err, "\"rbee config validate\" checks a configuration without starting anything.")
	}
	p.plugins = plugins
	workers, catalogs, err := specs(plugins, cfg, p.log)
	if err != nil {
		return err
	}
	blobs, err := store.Open(cfg.StoreDir, p.log.Named("store"))
	if err != nil {
		return err
	}
	p.defers(blobs.Close)
	origins, err := p.origins()
	if err != nil {
		return err
	}
	queens, rpcAddress := hive.OneQueen(p.conn), func() string { return "" }
	var peers hive.Peers
	if p.net != nil {
		queens, rpcAddress, peers = p.net.queens, p.net.identity.RPCAddress, p.net.pool
		if cfg.Queen.Enabled {
			p.net.queens.pipe = p.conn
		}
	}
	p.upload = download.NewLimiter(int64(cfg.Hive.Download.UploadLimit))
	p.bees, err = hive.New(hive.Options{
		Discover: func() (workers, catalogs []pluginhost.Spec, err error) { return specs(plugins, cfg, p.log) },
		ID:       p.id, Name: nodeName(cfg), Version: p.opts.Version, DataDir: cfg.DataDir, RPCAddress: rpcAddress,
		Jobs: p.jobs, Store: blobs, Plugins: plugins, WorkerSpecs: workers, CatalogSpecs: catalogs, Origins: origins, Queens: queens, Peers: peers, Logger: p.log,
		KeepFiles: !cfg.Hive.Download.Seed, UploadLimit: p.upload,
		StopWorkersOnExit: !cfg.Hive.KeepWorkers, Build: buildOptions(cfg.Hive.Build, p.opts.Suite), Engines: cfg.Hive.Engines.Allow,
		Slots: cfg.Hive.Slots, ContextTokens: cfg.Hive.ContextTokens, Threads: cfg.Hive.Threads, StopGrace: cfg.Hive.StopGrace, WorkerTimeout: cfg.Hive.WorkerTimeout,
	})
	return err
}

// origins makes the client of HTTP servers. What it refuses, plugins refuse as well.
func (p *process) origins() (hive.Origins, error) {
	o := p.cfg.Hive.Download
	allow, err := origin.ParsePrefixes(o.AllowAddresses)
	if err != nil {
		return hive.Origins{}, core.Wrap(err, core.Invalid, "read hive.download.allow_addresses")
	}
	client, err := origin.New(origin.Options{Allow: allow, Environ: os.Environ(), UserAgent: "rbee/" + p.opts.Version})
	if err != nil {
		return hive.Origins{}, core.WithHint(core.Wrap(err, core.Invalid, "prepare downloads"), "%s", sdk.HintOf(err))
	}
	p.defers(func() error { client.Close(); return nil })
	p.download = download.NewLimiter(int64(o.RateLimit))
	return hive.Origins{Client: client, Connections: o.Connections, Limit: p.download}, nil
}

func (p *process) buildQueen(identity *pki.Identity) error {
	cfg := p.cfg
	opts := node.Options{ID: p.id, Dir: filepath.Join(cfg.DataDir, "raft"), Logger: p.log}
	if cfg.Dev {
		opts.Dir = "" // in memory
	}
	var seed *queen.Seed
	var made atomic.Pointer[queen.Queen]
	if p.net != nil {
		var err error
		if opts.Bootstrap, seed, err = beginning(cfg, identity, p.started); err != nil {
			return err
		}
		opts.Stream, opts.ElectionTimeout = raftStream{p.net.stream}, cfg.Queen.ElectionTimeout
		// Raft asks once it runs, the queen is there when it has announcements of others.
		opts.MinFSM = func() uint32 {
			if q := made.Load(); q != nil {
				return q.MinFSM()
			}
			return 0
		}
		opts.AddressOf = func(raftID string) string {
			if q := made.Load(); q != nil {
				return q.AddressOf(raftID)
			}
			return ""
		}
	}
	n, err := node.Open(opts)
	if err != nil {
		return err
	}
	p.registry = n
	p.defers(n.Shutdown)
	if p.net != nil && opts.Bootstrap == node.Never && !n.HasState() && !p.knowsQueen() {
		return lostRegistry(identity, opts.Dir)
	}
	o := queen.Options{
		Registry: registry.New(n), ID: p.id, Version: p.opts.Version, Logger: p.log.Named("queen"),
		LocalHive: func() string {
			if p.bees == nil {
				return ""
			}
			return p.bees.ID()
		},
		HiveConn: p.hiveConn,
		Jobs:     p.jobs,
		Infer:    p.infer,
		Hosts:    func() []core.HiveHost { return p.remote.Hosts().List() },
		// What is idle may lead into a dark machine, where a request would wait for nothing.
		Suspected: func(hive string) { p.answers.DropHive(hive) },
	}
	if p.net != nil {
		if err := p.net.serve(n); err != nil {
			return err
		}
		o.Pinger = p.net
		o.Membership = &queen.Membership{
			Identity: identity, Gossip: p.net, Self: p.conn, Conn: p.net.conn, Probe: p.net.probe, CertificateTTL: cfg.Queen.CertificateTTL, TokenGrace: &cfg.Queen.TokenGrace, NodesChanged: p.net.membersChanged,
			// TCP would wait for a quarter of an hour.
			HiveDown: p.net.pool.Forget, Seed: seed,
			Deaf: p.net.gossip.Deaf, SeekGossip: func(address string) { p.net.gossip.RejoinNow(address) },
		}
	}
	p.queen = queen.New(o)
	made.Store(p.queen)
	if err := p.buildRemote(); err != nil {
		return err
	}
	metrics := gateway.NewMetrics()
	if err := n.Register(metrics.Registerer()); err != nil {
		return core.Wrap(err, core.Internal, "register the metrics of raft")
	}
	p.answers = inference.New(inference.Options{
		Router: p.queen, Dial: p.dial, Meter: metrics, Logger: p.log.Named("inference"), QueueLimit: cfg.Queen.QueueLimit, QueueTimeout: cfg.Queen.QueueTimeout,
		FirstTokenTimeout: cfg.Queen.FirstTokenTimeout, TokenTimeout: cfg.Queen.TokenTimeout, AnswerMemory: int64(cfg.Queen.BodyMemory),
	})
	p.defers(func() error { p.answers.Close(); return nil })
	g := gateway.Options{
		Hurry: p.opts.Hurry, MaxBodyBytes: int64(p.cfg.Queen.MaxBody), BodyMemory: int64(p.cfg.Queen.BodyMemory), MaxConns: p.places.public,
		Inference: p.answers, Metrics: metrics, Cluster: p.queen, Jobs: p.queen, Reader: p.queen, Admin: p.queen, Version: p.opts.Version, Logger: p.log.Named("gateway"),
	}
	g.Hosts, g.Origins = slices.Concat(hostNames(cfg), cfg.HTTP.AllowHosts), cfg.HTTP.AllowOrigins
	if p.net != nil {
		g.Auth = p.queen
		if host, _, err := net.SplitHostPort(identity.RPCAddress()); err == nil {
			g.Hosts = append(g.Hosts, host)
		}
	}
	p.api = gateway.New(g)
	if p.net == nil {
		return nil
	}
	count, err := rpc.CountRefusals(metrics.Registerer())
	if err == nil {
		p.net.countRefusals(count)
	}
	return err
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

// hiveConn is the connection of the queen to a hive.
func (p *process) hiveConn(h string) (grpc.ClientConnInterface, error) {
	if h == p.id {
		return p.conn, nil
	}
	address, err := p.hiveAddress(h)
	if err != nil {
		return nil, err
	}
	return p.net.conn(h, address, core.RoleHive)
}

// hiveAddress is where the RPC port of a hive on another machine is.
func (p *process) hiveAddress(h string) (string, error) {
	known, ok := p.registry.State().Hive(nil, h)
	if p.net == nil || !ok || known.RPCAddress == "" {
		return "", core.Errorf(core.Unavailable, "hive %s is not on this machine, and no address of it is known", h).Hint("Look at `rbee status`.")
	}
	return known.RPCAddress, nil
}

// dial connects to the data socket of a worker: of this process's hive directly, of another one by
// way of its agent.
func (p *process) dial(ctx context.Context, w core.Worker) (net.Conn, error) {
	if p.bees != nil && w.Hive == p.bees.ID() {
		c, err := p.bees.DialWorker(ctx, w.ID)
		if err != nil {
			return nil, err // not a nil *net.UnixConn in an interface
		}
		return c, nil
	}
	address, err := p.hiveAddress(w.Hive)
	if err != nil {
		return nil, err
	}
	return p.net.pool.DialData(ctx, w.Hive, address, w.ID)
}

// buildServers makes the gRPC servers: one for calls within the process, in a cluster another one
// for calls from other nodes.
func (p *process) buildServers() {
	o := rpc.ServerOptions{Logger: p.log.Named("rpc"), Self: pki.Node{ID: p.id}}
	var pool *gossip.Pool
	count := 1
	if p.net != nil {
		pool = p.net.gossip
		o.Self, o.Revoked, o.Refused = p.net.identity.Node(), p.net.isRevoked, p.net.refuse
		count = 2
	}
	if p.queen != nil && p.net != nil {
		o.Forward = &rpc.Forwarder{
			Leader: p.queen.Leader,
			Conn: func(id, address string) (grpc.ClientConnInterface, error) {
				return p.net.conn(id, address, core.RoleQueen)
			},
		}
	}
	p.leaving = newLeaver(p.bees, p.queen, pool, p.log)
	for range count {
		s := rpc.NewNodeServer(o)
		p.jobs.Register(s)
		if p.queen != nil {
			p.queen.Register(s)
		}
		if p.bees != nil {
			p.bees.Register(s)
		}
		if p.net != nil {
			hivev1.RegisterAgentServiceServer(s, p.leaving)
		}
		p.servers = append(p.servers, s)
	}
	if p.queen != nil && p.net != nil {
		p.guests = rpc.NewGuestServer(o)
		p.queen.RegisterJoin(p.guests)
	}
}

// stages are the parts in the order in which they start; they stop in the opposite one.
func (p *process) stages() []stage {
	list := []stage{{"rpc", func(ctx context.Context) error { return rpc.Serve(ctx, p.servers[0], p.pipe.Listener(), rpcGrace) }}}
	if p.net != nil {
		list = append(list,
			stage{"mux", p.net.mux.Run},
			stage{"nodes", func(ctx context.Context) error { return rpc.Serve(ctx, p.servers[1], p.net.mux.GRPC(), rpcGrace) }},
		)
		if p.guests != nil {
			list = append(list, stage{"guests", func(ctx context.Context) error { return rpc.Serve(ctx, p.guests, p.net.mux.Guests(), rpcGrace) }})
		}
		list = append(list,
			stage{"gossip", p.net.gossip.Run},
			stage{"queens", p.net.queens.follow},
			stage{"standing", p.net.watchStanding},
		)
	}
	if p.queen != nil {
		list = append(list, stage{"queen", p.queen.Run})
		if p.net != nil && p.cfg.TLS.Given() && p.cfg.Queen.BootstrapExpect > 1 {
			list = append(list, stage{"bootstrap", p.bootstrap})
		}
	}
	list = append(list, stage{"local", p.serveLocal})
	if p.bees != nil {
		list = append(list, stage{"hive", p.bees.Run})
		if p.net != nil {
			list = append(list, stage{"data", func(ctx context.Context) error { return p.bees.ServeData(ctx, p.net.mux.Data()) }},
				stage{"blobs", func(ctx context.Context) error { return p.bees.ServeBlobs(ctx, p.net.mux.Blobs()) }})
		}
	}
	list = append(list, stage{"jobs", p.endJobs})
	if p.net != nil {
		list = append(list, stage{"address", p.followMoves}, stage{"renew", func(ctx context.Context) error { return p.net.renew(ctx, hostNames(p.cfg), !p.cfg.TLS.Given()) }})
	}
	if p.answers != nil {
		list = append(list, stage{"connections", p.dropGone})
	}
	if p.api != nil {
		list = append(list, stage{"gateway", func(ctx context.Context) error { return p.api.Serve(ctx, p.listener, p.cfg.Hive.StopGrace) }})
	}
	if p.net != nil {
		list = append(list, stage{"leave", p.leaving.run})
	}
	if p.registry != nil && p.net != nil {
		list = append(list, stage{"leadership", p.handOver})
	}
	if p.opts.Load != nil {
		list = append(list, stage{"reload", p.followReloads})
	}
	return append(list, stage{"ready", p.ready})
}

// goneInterval is the time between two looks for connections to workers that are gone.
const goneInterval = 2 * time.Second

// dropGone closes the idle connections to workers that are not in the registry any more.
func (p *process) dropGone(ctx context.Context) error {
	tick := time.NewTicker(goneInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			registry := p.registry.State()
			p.answers.DropGone(func(w core.Worker) bool {
				now, ok := registry.Worker(nil, w.Hive, w.ID)
				return ok && now.Nonce == w.Nonce
			})
		}
	}
}

// handOver gives the leadership to another queen before anything else ends, so that no write waits
// for an election.
func (p *process) handOver(ctx context.Context) error {
	<-ctx.Done()
	if p.registry.IsLeader() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverGrace)
		defer cancel()
		if err := p.registry.LeadershipTransfer(limited); err != nil {
			p.log.Info("the leadership is not handed over", "reason", err)
		}
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
