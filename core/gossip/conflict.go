package gossip

import (
	"context"
	"maps"
	"time"

	"github.com/hashicorp/memberlist"
)

const conflictPings = 3

// examine checks whether two nodes really use one ID and, if so, raises the alarm at a bounded
// rate. A node that restarted at another address looks the same until the pool notices that the old
// address is dead: no node answers there.
func (p *Pool) examine(ctx context.Context, list *memberlist.Memberlist, c Conflict) {
	now := time.Now()
	p.mu.Lock()
	maps.DeleteFunc(p.reported, func(_ string, t time.Time) bool { return now.Sub(t) >= logPeriod })
	_, done := p.reported[c.Refused]
	p.reported[c.Refused] = now
	p.mu.Unlock()
	if done {
		return
	}
	here := p.Address()
	ask := c.Known
	if c.Self && c.Known == here {
		ask = c.Refused
	}
	answered := false
	for range conflictPings {
		if _, err := list.Ping(c.ID, stringAddr(ask)); err == nil {
			answered = true
			break
		}
		if ctx.Err() != nil {
			return
		}
	}
	if !answered {
		p.mu.Lock()
		delete(p.reported, c.Refused)
		p.mu.Unlock()
	}
	switch {
	case !answered && c.Self && ask == c.Known:
		// The conflict is this node at its address before the restart: announce the new address as
		// soon as the others take the old one for dead.
		p.mu.Lock()
		p.moved, p.rejoin = now.Add(movedFor), true
		p.signal()
		p.mu.Unlock()
		p.log.Debug("the pool still has this node at its former address", "address", ask)
	case !answered:
		p.log.Debug("a node uses another address than the pool knows, where no node answers", "node", c.ID, "known", c.Known, "now", c.Refused)
	default:
		p.conflicts.Add(1)
		if c.Self {
			p.log.Error("another machine uses this node's id: one is a copy of the other", "node", c.ID, "here", here, "there", ask, "came_second", c.SelfLate)
		} else {
			p.log.Error("refused a node: its id belongs to another live node", "node", c.ID, "alive", c.Known, "refused", c.Refused)
		}
		if p.opts.OnConflict != nil {
			p.opts.OnConflict(c)
		}
	}
}
