package gossip

import (
	"context"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	deathPings    = 12
	deathInterval = 250 * time.Millisecond
	deathRounds   = 5 // in a row; after that, one every heldEvery
	heldEvery     = 5 * time.Second
	maxLooking    = 32 // deaths verified at a time; further ones are believed
	renewEvery    = 5 * time.Second
)

// death is memberlist's report that a node died, not verified yet.
type death struct {
	id, address string
	doubt       int
}

// doubt starts a check of a member that was reported dead. The caller holds p.mu.
func (p *Pool) doubt(e *entry) {
	e.ends++
	e.doubt = e.ends
	if p.looking >= maxLooking {
		p.end(e, Failed) // too many in a row to be chance losses
		return
	}
	p.looking++
	p.deaths = append(p.deaths, death{id: e.ID, address: e.GossipAddress, doubt: e.doubt})
	p.signal()
}

// lookInto verifies the death of a node. If the node answers, lookInto asks it for a full state
// exchange, through which the whole pool learns that it is alive.
//
// That may not help: any holder of the key can report a death at memberlist's highest incarnation,
// which the node's own denial cannot exceed. The node stays alive here for as long as it answers,
// and rejoins once memberlist has forgotten the death, after half a minute.
func (p *Pool) lookInto(ctx context.Context, list *memberlist.Memberlist, d death) {
	defer func() {
		p.mu.Lock()
		p.looking--
		p.mu.Unlock()
	}()
	for round := 1; p.answers(ctx, list, d); round++ {
		p.log.Debug("a node reported dead still answers", "node", d.id, "address", d.address)
		// In the first exchange the node learns of its reported death and denies it; in the second
		// it spreads the denial.
		for range 2 {
			if _, err := list.Join([]string{d.address}); err != nil || !p.doubts(d) {
				break
			}
		}
		if !p.doubts(d) || round >= deathRounds && !pause(ctx, heldEvery) {
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.members[d.id]; e != nil && e.doubt == d.doubt {
		p.end(e, Failed)
	}
}

// pause waits for d. It reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// renew announces this node's state at a new memberlist incarnation.
func (p *Pool) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.renewed) >= renewEvery {
		p.renewed, p.update = now, true
		p.signal()
	}
}

// doubts reports whether the node has been silent since it was reported dead.
func (p *Pool) doubts(d death) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.members[d.id]
	return e != nil && e.doubt == d.doubt
}

// answers reports whether the node answers one of several pings.
func (p *Pool) answers(ctx context.Context, list *memberlist.Memberlist, d death) bool {
	done := make(chan struct{}, deathPings)
	tick := time.NewTicker(deathInterval)
	defer tick.Stop()
	for range deathPings {
		p.wg.Go(func() {
			if _, err := list.Ping(d.id, stringAddr(d.address)); err == nil {
				done <- struct{}{}
			}
		})
		select {
		case <-ctx.Done():
			return false
		case <-done:
			return true
		case <-tick.C:
		}
	}
	timer := time.NewTimer(probeTimeout)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-done:
		return true
	}
	return false
}

// end marks a member as failed or left. The caller holds p.mu.
func (p *Pool) end(e *entry, s Status) {
	e.Status, e.since, e.doubt = s, time.Now(), 0
	if s == Left {
		p.peers.forget(e.ID)
	}
	p.notify()
}
