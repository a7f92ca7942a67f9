package agent

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/queen/dispatch"
	"github.com/rbee-project/rbee/core/queen/limits"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/core/queen/tokens"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/raft/node"
)

// The gateway and the inference service use parts of the queen: assert here that these fit.
var (
	_ inference.Router   = (*router.Router)(nil)
	_ inference.Limiter  = (*limits.Limiter)(nil)
	_ gateway.Cluster    = (*queen.Queen)(nil)
	_ gateway.Jobs       = (*dispatch.Dispatcher)(nil)
	_ gateway.Reader     = (*registry.Registry)(nil)
	_ gateway.Authorizer = (*tokens.Keeper)(nil)
	_ gateway.Admin      = admin{}
)

// admin is the gateway.Admin that a queen's parts form together.
type admin struct {
	gateway.Members
	gateway.TokenKeeper
	gateway.HiveAdmin
	gateway.Snapshots
}

func (p *process) buildQueen(identity *pki.Identity) error {
	cfg := p.cfg
	opts := node.Options{ID: p.id, Dir: filepath.Join(cfg.DataDir, "raft"), Logger: p.log}
	if cfg.Dev {
		opts.Dir = "" // kept in memory
	}
	var seed *membership.Seed
	var made atomic.Pointer[queen.Queen]
	if p.net != nil {
		var err error
		if opts.Bootstrap, seed, err = beginning(cfg, identity, p.started); err != nil {
			return err
		}
		opts.Stream, opts.ElectionTimeout = raftStream{p.net.stream}, cfg.Queen.ElectionTimeout
		// Raft calls these functions once it runs; the queen exists by then if other nodes have
		// announced themselves.
		opts.MinFSM = func() uint32 {
			if q := made.Load(); q != nil {
				return q.Members.MinFSM()
			}
			return 0
		}
		opts.AddressOf = func(raftID string) string {
			if q := made.Load(); q != nil {
				return q.Members.AddressOf(raftID)
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
		// An idle connection may lead to a machine that is down, where a request would wait in
		// vain.
		Suspected: func(hive string) { p.answers.DropHive(hive) },
	}
	if p.net != nil {
		if err := p.net.serve(n); err != nil {
			return err
		}
		o.Pinger = p.net
		o.TokenGrace = &cfg.Queen.TokenGrace
		o.HiveDown = p.net.pool.Forget // TCP would wait for a quarter of an hour
		o.Network = &membership.Network{
			Identity: identity, Gossip: p.net, Self: p.conn, Conn: p.net.conn, Probe: p.net.probe, Deaf: p.net.gossip.Deaf,
			SeekGossip: func(address string) { p.net.gossip.RejoinNow(address) }, CertificateTTL: cfg.Queen.CertificateTTL,
			NodesChanged: p.net.membersChanged, Seed: seed,
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
		Router: p.queen.Router, Limiter: p.queen.Limits, Dial: p.dial, Meter: metrics, Logger: p.log.Named("inference"), QueueLimit: cfg.Queen.QueueLimit, QueueTimeout: cfg.Queen.QueueTimeout,
		FirstTokenTimeout: cfg.Queen.FirstTokenTimeout, TokenTimeout: cfg.Queen.TokenTimeout, AnswerMemory: int64(cfg.Queen.BodyMemory),
	})
	p.defers(func() error { p.answers.Close(); return nil })
	g := gateway.Options{
		Hurry: p.opts.Hurry, MaxBodyBytes: int64(p.cfg.Queen.MaxBody), BodyMemory: int64(p.cfg.Queen.BodyMemory), MaxConns: p.places.public,
		MaxFormBytes: int64(cfg.Queen.MaxForm), FormDisk: int64(cfg.Queen.FormDisk), Spool: func() (gateway.SpoolFile, error) { return disk.Unnamed(cfg.DataDir) },
		Inference: p.answers, Metrics: metrics, Cluster: p.queen, Jobs: p.queen.Jobs, Reader: p.queen.Registry,
		Admin: admin{p.queen.Members, p.queen.Tokens, p.queen, p.queen.Registry}, Version: p.opts.Version, Logger: p.log.Named("gateway"),
	}
	g.Hosts, g.Origins = slices.Concat(hostNames(cfg), cfg.HTTP.AllowHosts), cfg.HTTP.AllowOrigins
	if p.net != nil {
		g.Auth, g.Elsewhere = p.queen.Tokens, p.queen.KeptElsewhere
		if host, _, err := net.SplitHostPort(identity.RPCAddress()); err == nil {
			g.Hosts = append(g.Hosts, host)
		}
	}
	p.api = gateway.New(g)
	p.queen.ServeKept(p.api.Kept)
	if p.net == nil {
		return nil
	}
	count, err := rpc.CountRefusals(metrics.Registerer())
	if err == nil {
		p.net.countRefusals(count)
	}
	return err
}

// hiveConn returns the queen's connection to a hive.
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

// hiveAddress returns the RPC address of a hive on another machine.
func (p *process) hiveAddress(h string) (string, error) {
	known, ok := p.registry.State().Hive(nil, h)
	if p.net == nil || !ok || known.RPCAddress == "" {
		return "", core.Errorf(core.Unavailable, "hive %s is not on this machine, and no address of it is known", h).Hint("Look at `rbee status`.")
	}
	return known.RPCAddress, nil
}

// dial connects to the data socket of a worker: directly for this process's hive, through its agent
// for another hive.
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
