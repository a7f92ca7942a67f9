package gossip

import (
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	gossipv1 "github.com/rbee-project/rbee/proto/gossip/v1"
)

const (
	maxPending  = 16   // conflicts queued for Run
	maxNotes    = 1000 // leaves sent in a full state exchange
	maxNoteSize = 256
)

// delegate receives memberlist's callbacks, mostly with memberlist's lock held: each callback
// copies what it needs under the pool's lock and returns.
//
// memberlist knows which nodes left and which died, but does not report it: Node.State in its
// events is never set (0.7.0). So a leaving node first sends its own note, which every node passes
// on; the death of a member with a known note is a leave.
type delegate struct{ p *Pool }

// NodeMeta returns this node's metadata.
func (d delegate) NodeMeta(int) []byte {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	return d.p.meta
}

// NotifyMsg handles a note that a node is leaving.
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

// GetBroadcasts returns the notes still to be passed on.
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
		panic(err) // IDs are checked to be valid text on receipt
	}
	return b
}

// MergeRemoteState adds the notes of another node. A joining node may have lost this node, and
// accepts it back only at a higher memberlist incarnation than it knows: see death.go.
func (d delegate) MergeRemoteState(b []byte, join bool) {
	if join {
		d.p.renew()
	}
	var s gossipv1.State
	if proto.Unmarshal(b, &s) != nil {
		d.p.refused.Add(1)
		return
	}
	for _, l := range s.GetLeft()[:min(len(s.GetLeft()), maxNotes)] {
		d.p.noteLeave(l)
	}
}

// NotifyJoin handles a node that appears, for the first time or again.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.p.seen(n) }

// NotifyUpdate handles changed metadata of a node.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.p.seen(n) }

// NotifyLeave handles a node that left or died.
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
	p.doubt(e)
}

// NotifyConflict handles a second address that claims a known ID.
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

// NotifyMerge refuses a node whose state contains nodes that are not rbee's.
func (d delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if _, err := decodeMember(n.Name, n.Meta); err != nil {
			d.p.refused.Add(1)
			return fmt.Errorf("node %q: %w", n.Name, err)
		}
	}
	return nil
}

// NotifyAlive refuses invalid nodes and earlier runs of a node that has since restarted: an old
// packet or an old machine cannot bring an earlier run back.
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
		return nil // memberlist itself denies false claims about this node
	}
	e := p.members[n.Name]
	switch {
	case e == nil && p.full(n.Name):
		p.refused.Add(1)
		return fmt.Errorf("there are %d nodes already", maxMembers)
	case e != nil && m.Incarnation < e.Incarnation:
		p.refused.Add(1)
		return fmt.Errorf("it was started before the node that has this id now (%d, %d)", m.Incarnation, e.Incarnation)
	}
	return nil
}

// outbid moves this node to a higher incarnation than a forged one: the others would refuse this
// node's own as outdated. The caller holds p.mu.
func (p *Pool) outbid(forged uint64) {
	m := p.self
	m.Incarnation = forged + 1
	meta, err := m.encode()
	if err != nil {
		return // the current state stays correct
	}
	p.refused.Add(1)
	p.self, p.meta, p.update = m, meta, true
	p.peers.raise(m.Incarnation)
	p.signal()
}

// seen records the metadata of a live node.
func (p *Pool) seen(n *memberlist.Node) {
	m, err := decodeMember(n.Name, n.Meta)
	if err != nil {
		return // NotifyAlive has already refused it
	}
	m.GossipAddress, m.Status = n.Address(), Alive
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Name == p.opts.Self.ID {
		return
	}
	p.settled = true
	e := p.members[m.ID]
	if e == nil {
		if p.full(m.ID) {
			return
		}
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

// noteLeave records that a node announced its leave. It reports whether the announcement is new.
func (p *Pool) noteLeave(l *gossipv1.Leave) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.members[l.GetId()] // never this node: it knows its own state best
	if e == nil || l.GetIncarnation() < e.Incarnation || p.left[e.ID] >= l.GetIncarnation() {
		return false
	}
	p.left[e.ID] = l.GetIncarnation()
	if e.Status == Failed || e.doubt > 0 {
		p.end(e, Left)
	}
	return true
}

// tellLeave announces to the pool that this node leaves: directly to the nodes it can reach at
// once, and through them to the others.
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
		panic(err) // this node's own ID is valid text
	}
	for _, a := range to {
		_ = list.SendToAddress(a, b) // nodes that miss it learn it from the others
	}
}

func (p *Pool) spread(l *gossipv1.Leave) {
	b, err := proto.Marshal(l)
	if err != nil {
		return
	}
	p.leaves.QueueBroadcast(&note{id: l.GetId(), msg: b})
}

// note is a broadcast; a newer note of the same node replaces it.
type note struct {
	id  string
	msg []byte
}

// Name returns the ID of the node that the note is about.
func (n *note) Name() string { return n.id }

// Invalidates reports whether the note replaces another.
func (n *note) Invalidates(b memberlist.Broadcast) bool {
	o, ok := b.(*note)
	return ok && o.id == n.id
}

// Message returns the bytes to send.
func (n *note) Message() []byte { return n.msg }

// Finished does nothing.
func (n *note) Finished() {}
