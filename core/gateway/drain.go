package gateway

import (
	"net"
	"time"
)

func (c *conns) none() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open) == 0
}

// closeUnused closes the connections that no request came on. Others that have none at the moment
// are the server's to close.
func (c *conns) closeUnused() {
	c.mu.Lock()
	var unused []net.Conn
	for conn, of := range c.open {
		if !of.used {
			unused = append(unused, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range unused {
		_ = conn.Close()
	}
}

// lameDuck goes on to answer what comes on open connections, each answer with the word that the
// connection is closed after it, until nothing has come for a while: then any client that still has
// a connection does not use it, and closing it fails no request. It returns at end at the latest.
func (g *Gateway) lameDuck(c *conns, end <-chan struct{}) {
	tick := time.NewTicker(max(g.o.LameDuck/20, time.Millisecond))
	defer tick.Stop()
	for !c.none() && g.streams.quiet(time.Now()) < g.o.LameDuck {
		select {
		case <-tick.C:
		case <-end:
			return
		}
	}
}
