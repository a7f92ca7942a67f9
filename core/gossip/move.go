package gossip

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

// mover is a transport whose address can change.
type mover interface {
	// Move advertises another host: an IP address, or a name that is looked up until it resolves or
	// ctx ends.
	Move(ctx context.Context, host string) error
}

var _ mover = (*transport)(nil)

// Move makes the pool advertise another host, an IP address or a name, from now on. It does not
// wait for the others to learn it. A pool that does not run yet starts at that host.
func (p *Pool) Move(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if host == "" || p.move == host || p.move == "" && p.opts.Advertise == host {
		return
	}
	p.move = host
	p.signal()
}

// takeMove makes the host passed to Move the advertised one.
func (p *Pool) takeMove(ctx context.Context) error {
	p.mu.Lock()
	host := p.move
	p.move, p.opts.Advertise = "", host
	p.mu.Unlock()
	m, ok := p.net.(mover)
	if !ok {
		return core.Errorf(core.Internal, "move in the gossip pool: a %T cannot", p.net)
	}
	if err := m.Move(ctx, host); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the pool ends
		}
		return err
	}
	p.log.Info("gossip address changed", "host", host)
	return nil
}

// Move implements mover. The port stays.
func (t *transport) Move(ctx context.Context, host string) error {
	t.mu.Lock()
	t.advertise = net.JoinHostPort(host, "0")
	t.mu.Unlock()
	return t.choose(ctx)
}

// drop abandons the verification of deaths that a list reported, when that list ends.
func (p *Pool) drop(deaths []death) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looking -= len(deaths)
}

// compare verifies the members that were alive before this node moved and that its new list has not
// heard of.
func (p *Pool) compare(list *memberlist.Memberlist) {
	p.mu.Lock()
	young := time.Since(p.began) < settleWithin
	p.mu.Unlock()
	if young {
		return
	}
	there := map[string]bool{}
	for _, n := range list.Members() {
		there[n.Name] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.members {
		if e.Status == Alive && e.doubt == 0 && !there[id] {
			p.doubt(e)
		}
	}
}
