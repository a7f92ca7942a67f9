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

// warnEvery is the time between two warnings about connections.
const warnEvery = 10 * time.Second

// conns is a server's connections, and the listener that they come from. When there are as many as
// there may be, a new one takes the place of one that no request runs on: of the address that has
// the most, the one that has been idle for longest. Where a request runs on every other, it is
// closed.
type conns struct {
	net.Listener
	max     int // in all
	perHost int // of one address
	log     hclog.Logger

	mu     sync.Mutex // guards below
	open   map[net.Conn]*openConn
	hosts  map[string]int
	warned time.Time // last
	quiet  int       // closed since
}

type openConn struct {
	host  string
	used  bool      // at least one request came
	busy  bool      // a request runs
	since time.Time // of the last change
}

func newConns(l net.Listener, most int, log hclog.Logger) *conns {
	return &conns{Listener: l, max: most, perHost: max(most/2, 1), log: log, open: map[net.Conn]*openConn{}, hosts: map[string]int{}}
}

// Accept waits for a connection and finds a place for it.
func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) { // such as no more files
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

// enter notes a connection. out has to make room for it; not ok: there is none.
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

// before reports whether a is to be closed before b.
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

// changed is called by the server at every step of a connection's life.
func (c *conns) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.open[conn]
	if of == nil {
		return // it had to make room
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

// warn logs at most one line in a while, with the number of those that were left out.
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

// cut closes a connection without a goodbye, which could wait for the other end.
func cut(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close()
}

// hostOf returns what connections are counted by: the address, of IPv6 its /64.
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
