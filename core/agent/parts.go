package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// buildServers creates the gRPC servers: one for calls within the process and, in a cluster,
// another for calls from other nodes.
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
			Leader: p.queen.Members.Leader,
			Conn: func(id, address string) (grpc.ClientConnInterface, error) {
				return p.net.conn(id, address, core.RoleQueen)
			},
		}
	}
	var members *membership.Members
	if p.queen != nil {
		members = p.queen.Members
	}
	p.leaving = newLeaver(p.bees, members, pool, p.log)
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
		p.queen.Members.Register(p.guests)
	}
}

// stages returns the parts in the order in which they start; they stop in reverse order.
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

// goneInterval is the interval between checks for connections to workers that no longer exist.
const goneInterval = 2 * time.Second

// dropGone closes the idle connections to workers that are no longer in the registry.
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

// handOver transfers the leadership to another queen before anything else stops, so that no write
// waits for an election.
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
