package gossip

import (
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	gossipv1 "github.com/rbee-project/rbee/proto/gossip/v1"
)

const (
	maxPending  = 16   // conflicts that wait for Run
	maxNotes    = 1000 // leaves that are told when two nodes compare everything
	maxNoteSize = 256
)

// delegate is what memberlist calls, mostly with its own lock held: each call copies what it needs
// under the pool's lock and returns.
//
// memberlist knows who left and who is dead, but does not say: Node.State in its events is never
// set (0.7.0). So a node that leaves says it in a note of its own first, which everybody passes on,
// and the death of a member whose note is known is a leave.
type delegate struct{ p *Pool }

// NodeMeta returns what this node tells about itself.
func (d delegate) NodeMeta(int) []byte {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	return d.p.meta
}

// NotifyMsg takes a note that a node leaves.
func (d delegate) NotifyMsg(b []byte) {
	var l gossipv1.Leave
	if len(b) > maxNoteSize || proto.Unmarshal(b, &l) != nil {
		d.p.refused.Add(1)
		return
	}
	if d.p.noteLeave(&l) {
		d.p.spread(&l)
	}
}

// GetBroadcasts gives the notes that are still to be passed on.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.p.leaves.GetBroadcasts(overhead, limit)
}

// LocalState returns all notes, for a node that may have missed some.
func (d delegate) LocalState(bool) []byte {
	d.p.mu.Lock()
	var s gossipv1.State
	for id, inc := range d.p.left {
		if len(s.Left) == maxNotes {
			break
		}
		s.Left = append(s.Left, &gossipv1.Leave{Id: id, Incarnation: inc})
	}
	d.p.mu.Unlock()
	b, err := proto.Marshal(&s)
	if err != nil {
		panic(err) // ids that came in as valid text go out as it
	}
	return b
}

// MergeRemoteState takes the notes that another node has.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	var s gossipv1.State
	if proto.Unmarshal(b, &s) != nil {
		d.p.refused.Add(1)
		return
	}
	for _, l := range s.GetLeft()[:min(len(s.GetLeft()), maxNotes)] {
		d.p.noteLeave(l)
	}
}

// NotifyJoin is told of a node that is there, again or for the first time.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.p.seen(n) }

// NotifyUpdate is told of a node that tells something else about itself.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.p.seen(n) }

// NotifyLeave is told of a node that is gone.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.members[n.Name]
	if e == nil {
		return
	}
	if inc, ok := p.left[e.ID]; ok && inc >= e.Incarnation {
		p.end(e, Left)
		return
	}
	e.ends++
	e.doubt = e.ends
	if p.looking >= maxLooking {
		p.end(e, Failed) // so many are not lost by chance
		return
	}
	p.looking++
	p.deaths = append(p.deaths, death{id: e.ID, address: e.GossipAddress, doubt: e.doubt})
	p.signal()
}

// NotifyConflict is told of an id that is claimed from a second address.
func (d delegate) NotifyConflict(existing, second *memberlist.Node) {
	p := d.p
	c := Conflict{ID: existing.Name, Known: existing.Address(), Refused: second.Address(), Self: existing.Name == p.opts.Self.ID}
	theirs, err := decodeMember(second.Name, second.Meta)
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.Self && err == nil && theirs.Incarnation < p.self.Incarnation {
		c.SelfLate = true
		c.Known, c.Refused = c.Refused, c.Known
	}
	if len(p.pending) < maxPending {
		p.pending = append(p.pending, c)
		p.signal()
	}
}

// NotifyMerge refuses a node that brings others which are not of a pool of rbee.
func (d delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if _, err := decodeMember(n.Name, n.Meta); err != nil {
			d.p.refused.Add(1)
			return fmt.Errorf("node %q: %w", n.Name, err)
		}
	}
	return nil
}

// NotifyAlive refuses what cannot be a node, and a run of a node that was followed by another: an
// old packet, or an old machine, never comes back.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	p := d.p
	m, err := decodeMember(n.Name, n.Meta)
	if err != nil {
		p.refused.Add(1)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Name == p.opts.Self.ID {
		if n.Address() == p.self.GossipAddress && m.Incarnation > p.self.Incarnation {
			p.outbid(m.Incarnation)
		}
		return nil // memberlist itself denies what is wrong about this node
	}
	e := p.members[n.Name]
	switch {
	case e == nil && len(p.members) >= maxMembers:
		p.refused.Add(1)
		return fmt.Errorf("there are %d nodes already", maxMembers)
	case e != nil && m.Incarnation < e.Incarnation:
		p.refused.Add(1)
		return fmt.Errorf("it was started before the node that has this id now (%d, %d)", m.Incarnation, e.Incarnation)
	}
	return nil
}

// outbid starts another incarnation of this node, higher than one that somebody made up for it: the
// others would refuse this node's own as one of the past. The caller holds p.mu.
func (p *Pool) outbid(forged uint64) {
	m := p.self
	m.Incarnation = forged + 1
	meta, err := m.encode()
	if err != nil {
		return // what is there stays right
	}
	p.refused.Add(1)
	p.self, p.meta, p.update = m, meta, true
	p.peers.raise(m.Incarnation)
	p.signal()
}

// seen copies what a node that is alive tells.
func (p *Pool) seen(n *memberlist.Node) {
	m, err := decodeMember(n.Name, n.Meta)
	if err != nil {
		return // NotifyAlive refused it before
	}
	m.GossipAddress, m.Status = n.Address(), Alive
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Name == p.opts.Self.ID {
		return
	}
	e := p.members[m.ID]
	if e == nil {
		e = &entry{}
		p.members[m.ID] = e
	}
	if e.Status != Alive {
		e.since = time.Now()
	}
	changed := e.Member != m
	e.Member, e.doubt = m, 0
	if inc, ok := p.left[m.ID]; ok && inc < m.Incarnation {
		delete(p.left, m.ID)
	}
	if changed {
		p.notify()
	}
}

// noteLeave keeps that a node says it leaves. It reports whether that is news.
func (p *Pool) noteLeave(l *gossipv1.Leave) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.members[l.GetId()] // never this node: it knows best
	if e == nil || l.GetIncarnation() < e.Incarnation || p.left[e.ID] >= l.GetIncarnation() {
		return false
	}
	p.left[e.ID] = l.GetIncarnation()
	if e.Status == Failed || e.doubt > 0 {
		p.end(e, Left)
	}
	return true
}

// tellLeave tells everybody that this node leaves: those that it reaches at once, and the others
// through them.
func (p *Pool) tellLeave(list *memberlist.Memberlist) {
	p.mu.Lock()
	l := &gossipv1.Leave{Id: p.self.ID, Incarnation: p.self.Incarnation}
	to := make([]memberlist.Address, 0, len(p.members))
	for _, e := range p.members {
		if e.Status == Alive {
			to = append(to, memberlist.Address{Addr: e.GossipAddress, Name: e.ID})
		}
	}
	p.mu.Unlock()
	p.spread(l)
	b, err := proto.Marshal(l)
	if err != nil {
		panic(err) // this node's own id is valid text
	}
	for _, a := range to {
		_ = list.SendToAddress(a, b) // whoever misses it hears it from the others
	}
}

func (p *Pool) spread(l *gossipv1.Leave) {
	b, err := proto.Marshal(l)
	if err != nil {
		return
	}
	p.leaves.QueueBroadcast(&note{id: l.GetId(), msg: b})
}

// note is a broadcast; a newer one of the same node takes its place.
type note struct {
	id  string
	msg []byte
}

// Name is whom it is about.
func (n *note) Name() string { return n.id }

// Invalidates reports whether it takes the place of another.
func (n *note) Invalidates(b memberlist.Broadcast) bool {
	o, ok := b.(*note)
	return ok && o.id == n.id
}

// Message returns what is sent.
func (n *note) Message() []byte { return n.msg }

// Finished has nothing to do.
func (n *note) Finished() {}
