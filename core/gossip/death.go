package gossip

import (
	"context"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	deathPings    = 12
	deathInterval = 250 * time.Millisecond
	deathRounds   = 5  // that a node answers, but no stream to it comes about
	maxLooking    = 32 // deaths looked into at a time; beyond that they are believed
)

// death is what memberlist says of a node, and is not believed yet.
type death struct {
	id, address string
	doubt       int
}

// lookInto finds out whether a node is dead that memberlist takes for dead. One that answers is
// asked to compare everything, which is how the whole pool hears that it is alive.
func (p *Pool) lookInto(ctx context.Context, list *memberlist.Memberlist, d death) {
	defer func() {
		p.mu.Lock()
		p.looking--
		p.mu.Unlock()
	}()
	for range deathRounds {
		if !p.answers(ctx, list, d) {
			break
		}
		p.log.Debug("a node was taken for dead and answers", "node", d.id, "address", d.address)
		// The first time it hears that it is said to be dead and denies it, the second time it
		// tells so.
		for range 2 {
			if _, err := list.Join([]string{d.address}); err != nil || !p.doubts(d) {
				break
			}
		}
		if ctx.Err() != nil || !p.doubts(d) {
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

// doubts reports whether the node was not heard of since it was taken for dead.
func (p *Pool) doubts(d death) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.members[d.id]
	return e != nil && e.doubt == d.doubt
}

// answers reports whether one of several pings is answered.
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

// end makes a member one that is gone. The caller holds p.mu.
func (p *Pool) end(e *entry, s Status) {
	e.Status, e.since, e.doubt = s, time.Now(), 0
	if s == Left {
		p.peers.forget(e.ID)
	}
	p.notify()
}
