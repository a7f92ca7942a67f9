package gossip

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

// settleWithin is how long after a move unconfirmed members still count as alive.
const settleWithin = 15 * time.Second

// moveGoodbye bounds the leave announcement from the former address.
const moveGoodbye = time.Second

// Run runs the pool until ctx ends. The node then falls silent, which others take for a failure
// unless Leave was called before. Call it once.
func (p *Pool) Run(ctx context.Context) error {
	defer p.net.Shutdown() //nolint:errcheck // it cannot fail
	if p.own != nil {
		if err := p.own.run(ctx); err != nil {
			return err
		}
	}
	for {
		moved, err := p.live(ctx)
		if !moved {
			p.peers.save(p.remember())
			return err
		}
		if err := p.takeMove(ctx); err != nil {
			return err
		}
	}
}

// live runs memberlist until ctx ends or this node moves: a list cannot change its address.
func (p *Pool) live(ctx context.Context) (moved bool, err error) {
	p.mu.Lock()
	for _, e := range p.members {
		e.doubt = 0 // it belonged to the previous list
	}
	p.mu.Unlock()
	list, err := memberlist.Create(p.config())
	if err != nil {
		return false, core.WithHint(core.Wrap(err, core.Unavailable, "join the gossip pool"), "Check gossip and advertise in the configuration.")
	}
	// Outside p.mu: others may already send their state, with memberlist's lock held.
	here := list.LocalNode().Address()
	p.mu.Lock()
	p.list, p.began = list, time.Now()
	p.self.GossipAddress = here
	p.update = true // Update may have been called meanwhile
	p.mu.Unlock()
	p.log.Info("gossip runs", "address", p.Address())
	life, end := context.WithCancel(ctx)
	defer end()
	var others sync.WaitGroup
	kick := make(chan struct{}, 1)
	others.Go(func() { p.rejoinLoop(life, list, kick) })
	others.Go(func() { p.watchUDP(life, list) })
	moved = p.work(life, list, kick)
	if moved {
		// Nodes that receive it accept the new address at once; the others do once the old one is
		// silent.
		_ = list.Leave(moveGoodbye)
	}
	end()
	p.mu.Lock()
	p.list, p.settled = nil, false
	p.mu.Unlock()
	p.wg.Wait() // pings end within half a second; Leave must not use a list that is shut down
	err = list.Shutdown()
	others.Wait()
	return moved, core.Wrap(err, core.Internal, "leave the gossip pool")
}

// lasting is a transport that outlives a list.
type lasting struct{ memberlist.Transport }

// Shutdown does nothing.
func (lasting) Shutdown() error { return nil }

func (p *Pool) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = p.opts.Self.ID
	c.Transport = lasting{p.net}
	c.Label = p.opts.ClusterID
	c.Keyring = p.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.SuspicionMult, c.RetransmitMult = suspicionMult, retransmitMult
	c.ProbeInterval, c.ProbeTimeout, c.TCPTimeout = probeInterval, probeTimeout, streamTimeout
	c.DeadNodeReclaimTime = reclaimAfter
	c.EnableCompression = false // the messages are small
	c.MsgpackUseNewTimeFormat = true
	c.DelegateProtocolMin, c.DelegateProtocolMax, c.DelegateProtocolVersion = protocolVersion, protocolVersion, protocolVersion
	d := delegate{p}
	c.Delegate, c.Events, c.Conflict, c.Merge, c.Alive = d, d, d, d, d
	c.Logger = libraryLog(p.log, p.nameOf)
	return c
}

// announce sends this node's current metadata to the others. memberlist v0.7.0 restarts the
// numbering of its broadcasts whenever its queue is empty, so that one broadcast may replace
// another of the same length; UpdateNode then waits in vain. What is lost three times follows with
// the next full exchange.
func announce(ctx context.Context, list *memberlist.Memberlist) {
	for range 3 {
		if ctx.Err() != nil || list.UpdateNode(probeInterval) == nil {
			return
		}
	}
}

// work does periodic work and whatever callbacks must not do, until ctx ends or this node moves.
func (p *Pool) work(ctx context.Context, list *memberlist.Memberlist, kick chan<- struct{}) (moved bool) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		p.mu.Lock()
		update, pending, deaths, rejoin := p.update && !p.leaving, p.pending, p.deaths, p.rejoin
		p.update, p.pending, p.deaths, p.rejoin = false, nil, nil, false
		moved = p.move != "" && !p.leaving
		p.mu.Unlock()
		if moved {
			p.drop(deaths)
			return true
		}
		for _, d := range deaths {
			p.wg.Go(func() { p.lookInto(ctx, list, d) })
		}
		for _, c := range pending {
			p.wg.Go(func() { p.examine(ctx, list, c) })
		}
		if rejoin {
			select {
			case kick <- struct{}{}:
			default: // one is already queued
			}
		}
		step := p.stepKeys()
		if update {
			announce(ctx, list)
		}
		select {
		case <-ctx.Done():
			return false
		case <-p.wake:
		case <-step:
		case <-tick.C:
			p.forget()
			p.compare(list)
			p.peers.save(p.remember())
		}
	}
}
