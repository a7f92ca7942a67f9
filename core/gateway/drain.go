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

// closeUnused closes the connections that never received a request. The server closes other idle
// ones itself.
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

// lameDuck keeps answering requests on open connections, each answer announcing that the connection
// closes after it, until no request has arrived for a while. By then any client that still has a
// connection does not use it, and closing it fails no request. It returns at end at the latest.
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
