package gossip

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	udpEvery  = 5 * time.Second // pause between two rounds
	udpRound  = 32              // members pinged per round
	udpPings  = 8               // pings per member; at 30 % packet loss, 0.5 % of such rounds fail
	udpRounds = 2               // failed rounds before a member counts as deaf
)

// deaf is a member that has not answered recent pings.
type deaf struct {
	rounds int  // failed rounds in a row
	told   bool // it answers over TCP, and this has been logged
}

// Deaf returns the members that answer over TCP but not over UDP, sorted by ID: something in
// between drops the packets. memberlist continues over TCP, more slowly.
func (p *Pool) Deaf() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Member
	for id, d := range p.deaf {
		if e := p.members[id]; d.told && e != nil && e.Status == Alive {
			out = append(out, e.Member)
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// watchUDP pings all members in turn until ctx ends. memberlist does not expose which members fail
// its direct pings: it asks other nodes when a member does not answer.
func (p *Pool) watchUDP(ctx context.Context, list *memberlist.Memberlist) {
	tick := time.NewTicker(udpEvery)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var round sync.WaitGroup
		for _, m := range p.round(&last) {
			round.Go(func() { p.checkUDP(ctx, list, m) })
		}
		round.Wait()
	}
}

// round returns the next live members after the last one of the previous round.
func (p *Pool) round(last *string) []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var live []Member
	for id, e := range p.members {
		if e.Status == Alive && e.doubt == 0 {
			live = append(live, e.Member)
		} else {
			delete(p.deaf, id)
		}
	}
	for id := range p.deaf {
		if p.members[id] == nil {
			delete(p.deaf, id)
		}
	}
	slices.SortFunc(live, func(a, b Member) int {
		return cmp.Or(cmpBool(a.ID <= *last, b.ID <= *last), strings.Compare(a.ID, b.ID))
	})
	live = live[:min(len(live), udpRound)]
	if len(live) > 0 {
		*last = live[len(live)-1].ID
	}
	return live
}

// cmpBool orders false before true.
func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// checkUDP checks whether packets to and from a member get through.
func (p *Pool) checkUDP(ctx context.Context, list *memberlist.Memberlist, m Member) {
	for range udpPings {
		_, err := list.Ping(m.ID, stringAddr(m.GossipAddress))
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			p.heardUDP(m)
			return
		}
	}
	p.mu.Lock()
	d := p.deaf[m.ID]
	if d == nil {
		d = &deaf{}
		p.deaf[m.ID] = d
	}
	d.rounds++
	ask := d.rounds >= udpRounds && !d.told
	p.mu.Unlock()
	if !ask {
		return
	}
	if _, err := list.Join([]string{m.GossipAddress}); err != nil {
		return // nothing gets through, or the member has other keys: memberlist detects that
	}
	p.mu.Lock()
	d.told = p.deaf[m.ID] == d
	told := d.told
	if told {
		p.notify()
	}
	p.mu.Unlock()
	if told && ctx.Err() == nil {
		p.log.Warn("UDP to or from a node is blocked: gossip continues over TCP, and changes arrive late; open the gossip port for UDP in both directions",
			"node", m.ID, "name", m.Name, "address", m.GossipAddress)
	}
}

func (p *Pool) heardUDP(m Member) {
	p.mu.Lock()
	d := p.deaf[m.ID]
	delete(p.deaf, m.ID)
	told := d != nil && d.told
	if told {
		p.notify()
	}
	p.mu.Unlock()
	if told {
		p.log.Info("UDP to and from a node works again", "node", m.ID, "name", m.Name, "address", m.GossipAddress)
	}
}
