package gateway

import (
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// Addresses of one machine are counted together, those of two machines are not.
func TestHostOf(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{
		"192.0.2.1:80":                "192.0.2.1",
		"[::ffff:192.0.2.1]:80":       "192.0.2.1",
		"[2001:db8:1:2:3::4]:80":      "2001:db8:1:2::/64",
		"[fe80::1%eth0]:80":           "fe80::/64",
		"a path, not an address:port": "a path, not an address:port",
	} {
		must.Eq(t, want, hostOf(addr(from)))
	}
	must.Eq(t, "", hostOf(nil))
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// from is a connection from an address.
type from struct {
	net.Conn
	addr addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// A new connection replaces the longest idle one of the address with the most connections, and
// never a busy one.
func TestConnsMakeRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConns(nil, 8, hclog.NewNullLogger())
		enter := func(host string) (conn, out net.Conn, ok bool) {
			conn = &from{addr: addr(host + ":1")}
			out, ok = c.enter(conn)
			time.Sleep(time.Second)
			return conn, out, ok
		}
		var all []net.Conn
		for _, host := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"} {
			conn, out, ok := enter(host)
			must.True(t, ok)
			must.Nil(t, out)
			all = append(all, conn)
		}
		_, out, ok := enter("192.0.2.7")
		must.True(t, ok)
		must.True(t, out == all[1]) // the oldest of the address with three
		c.changed(all[2], http.StateActive)
		_, out, _ = enter("192.0.2.8")
		must.True(t, out == all[3]) // the other one is busy
		c.changed(all[0], http.StateActive)
		c.changed(all[0], http.StateIdle) // it became idle only now
		_, out, _ = enter("192.0.2.9")
		must.True(t, out == all[4])
		must.MapLen(t, 8, c.open)
		for conn := range c.open {
			c.changed(conn, http.StateActive)
		}
		_, out, ok = enter("192.0.2.10")
		must.False(t, ok)
		must.Nil(t, out)
		for conn := range c.open {
			c.changed(conn, http.StateClosed)
		}
		must.MapEmpty(t, c.hosts)
	})
}

// An address that has half of all connections makes room among its own.
func TestConnsOfOneAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newConns(nil, 8, hclog.NewNullLogger())
		other := &from{addr: "192.0.2.2:1"}
		_, ok := c.enter(other)
		must.True(t, ok)
		var first net.Conn
		for i := range 4 {
			time.Sleep(time.Second)
			conn := &from{addr: "192.0.2.1:1"}
			out, ok := c.enter(conn)
			must.True(t, ok)
			must.Nil(t, out)
			if i == 0 {
				first = conn
			}
		}
		out, ok := c.enter(&from{addr: "192.0.2.1:2"})
		must.True(t, ok)
		must.True(t, out == first)
		must.NotNil(t, c.open[other])
	})
}
