package gateway

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// warnEvery is the least time between two warnings about connections.
const warnEvery = 10 * time.Second

// conns is a server's listener together with its connections. At the limit, a new connection
// replaces one without a running request: of the address with the most connections, the longest
// idle one. If every connection has a running request, the new one is closed.
type conns struct {
	net.Listener
	max     int // connections in all
	perHost int // connections of one address
	log     hclog.Logger

	mu     sync.Mutex // guards below
	open   map[net.Conn]*openConn
	hosts  map[string]int
	warned time.Time // time of the last warning
	quiet  int       // connections closed since
}

type openConn struct {
	host  string
	used  bool      // it has received a request
	busy  bool      // a request is running
	since time.Time // time of the last change
}

func newConns(l net.Listener, most int, log hclog.Logger) *conns {
	return &conns{Listener: l, max: most, perHost: max(most/2, 1), log: log, open: map[net.Conn]*openConn{}, hosts: map[string]int{}}
}

// Accept waits for a connection and makes room for it.
func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) { // such as running out of file descriptors
				c.warn("failed to accept a connection", "error", err)
			}
			return nil, err
		}
		conn = watchFraming(conn)
		out, ok := c.enter(conn)
		if out != nil {
			c.warn("too many connections: closed an idle one", "from", hostOf(out.RemoteAddr()), "open", c.max)
			cut(out)
		}
		if ok {
			return conn, nil
		}
		c.warn("too many connections: refused one", "from", hostOf(conn.RemoteAddr()), "open", c.max)
		cut(conn)
	}
}

// enter registers a connection. out must be closed to make room for it; if ok is false, there is no
// room.
func (c *conns) enter(conn net.Conn) (out net.Conn, ok bool) {
	host := hostOf(conn.RemoteAddr())
	c.mu.Lock()
	defer c.mu.Unlock()
	crowded := c.hosts[host] >= c.perHost
	if crowded || len(c.open) >= c.max {
		for other, of := range c.open {
			if of.busy || crowded && of.host != host {
				continue
			}
			if out == nil || c.before(of, c.open[out]) {
				out = other
			}
		}
		if out == nil {
			return nil, false
		}
		c.forget(out)
	}
	c.open[conn] = &openConn{host: host, since: time.Now()}
	c.hosts[host]++
	return out, true
}

// before reports whether a should be closed before b.
func (c *conns) before(a, b *openConn) bool {
	if c.hosts[a.host] != c.hosts[b.host] {
		return c.hosts[a.host] > c.hosts[b.host]
	}
	return a.since.Before(b.since)
}

func (c *conns) forget(conn net.Conn) {
	of := c.open[conn]
	if of == nil {
		return
	}
	delete(c.open, conn)
	if c.hosts[of.host]--; c.hosts[of.host] == 0 {
		delete(c.hosts, of.host)
	}
}

// changed is called by the server on every state change of a connection.
func (c *conns) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.open[conn]
	if of == nil {
		return // it was closed to make room
	}
	switch state {
	case http.StateNew:
	case http.StateActive:
		of.used, of.busy, of.since = true, true, time.Now()
	case http.StateIdle:
		of.busy, of.since = false, time.Now()
	case http.StateHijacked, http.StateClosed:
		c.forget(conn)
	}
}

// warn logs at most one line per warnEvery, with the number of lines skipped.
func (c *conns) warn(message string, pairs ...any) {
	c.mu.Lock()
	now := time.Now()
	if !c.warned.IsZero() && now.Sub(c.warned) < warnEvery {
		c.quiet++
		c.mu.Unlock()
		return
	}
	pairs = append(pairs, "others", c.quiet)
	c.warned, c.quiet = now, 0
	c.mu.Unlock()
	c.log.Warn(message, pairs...)
}

// cut closes a connection without a TLS close message, which could block on the peer.
func cut(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close()
}

// hostOf returns the key by which connections are counted: the address, or the /64 of an IPv6
// address.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	to, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := to.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
