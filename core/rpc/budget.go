package rpc

import "sync"

// defaultHeldBytes bounds the messages of all peers that have arrived in part or whose call is
// running, together.
const defaultHeldBytes = 128 << 20

// budget bounds the bytes of messages that peers make a server hold. A message counts from its
// first byte until its call ends or asks for the next message. Beyond the bound, the node that
// holds the most loses the connection that holds the most. It is safe for concurrent use.
type budget struct {
	total, perNode int64
	// closes a connection; called without the lock
	cut func(node string, held int64, c *Conn)

	mu    sync.Mutex // guards below
	used  int64
	nodes map[string]*nodeHeld
}

type nodeHeld struct {
	held  int64
	conns map[*Conn]*connHeld
}

type connHeld struct {
	held int64
	cut  bool // it is being closed
}

func newBudget(total, perNode int64, cut func(node string, held int64, c *Conn)) *budget {
	return &budget{total: total, perNode: perNode, cut: cut, nodes: map[string]*nodeHeld{}}
}

// add records that a connection holds n more bytes, or fewer if n is negative.
func (b *budget) add(c *Conn, n int64) {
	if n == 0 {
		return
	}
	node := c.node.ID
	b.mu.Lock()
	held := b.nodes[node]
	if held == nil {
		held = &nodeHeld{conns: map[*Conn]*connHeld{}}
		b.nodes[node] = held
	}
	of := held.conns[c]
	if of == nil {
		of = &connHeld{}
		held.conns[c] = of
	}
	of.held += n
	held.held += n
	b.used += n
	if of.held == 0 {
		if delete(held.conns, c); len(held.conns) == 0 {
			delete(b.nodes, node)
		}
	}
	var victim *Conn
	var victimHeld int64
	switch {
	case n < 0:
	case held.held > b.perNode:
		victim, victimHeld = held.largest(), held.held
	case b.used > b.total:
		var most *nodeHeld
		for id, other := range b.nodes {
			if most == nil || other.held > most.held {
				node, most = id, other
			}
		}
		victim, victimHeld = most.largest(), most.held
	}
	b.mu.Unlock()
	if victim != nil {
		b.cut(node, victimHeld, victim)
	}
}

// largest returns the connection that holds the most and marks it as cut. It returns nil if all are
// cut.
func (h *nodeHeld) largest() *Conn {
	var found *Conn
	for c, of := range h.conns {
		if !of.cut && (found == nil || of.held > h.conns[found].held) {
			found = c
		}
	}
	if found != nil {
		h.conns[found].cut = true
	}
	return found
}
