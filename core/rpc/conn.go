package rpc

import (
	"container/list"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core/pki"
)

// wire is the connection below TLS. It records whether the other end closed it: crypto/tls takes
// that for a regular end, like a close-notify.
type wire struct {
	net.Conn
	over atomic.Bool
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		w.over.Store(true)
	}
	return n, err
}

// CloseWrite ends one direction without a close-notify.
func (w *wire) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Conn is a connection after its handshake. CloseWrite sends a close-notify in one direction;
// NetConn returns the connection below TLS. If a connection for data or files ends without a
// close-notify, reads return io.ErrUnexpectedEOF.
type Conn struct {
	*tls.Conn
	wire     *wire
	state    tls.ConnectionState
	protocol string
	node     pki.Node
	known    bool
	forget   func(*Conn) // called at the end; may be nil
	declined func()      // called when the other end refuses the certificate of this one; may be nil
	// called when the other end disconnects or the path to it breaks; may be nil
	broke atomic.Pointer[func()]
	end   sync.Once

	// order, place and life belong to a Mux, which guards them.
	order uint64        // 1 for its first connection
	place *list.Element // place in Mux.guests
	life  *time.Timer   // ends a connection without a certificate

	watched bool // heard is maintained
	since   time.Time
	heard   atomic.Int64 // when bytes last arrived, in nanoseconds after since
}

// Peer returns the node at the other end. It returns false if that end showed no certificate.
func (c *Conn) Peer() (pki.Node, bool) { return c.node, c.known }

func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.watched {
		c.heard.Store(int64(time.Since(c.since)))
	}
	if err != nil {
		if (c.protocol == ProtocolData || c.protocol == ProtocolBlob) && errors.Is(err, io.EOF) && c.wire.over.Load() {
			err = io.ErrUnexpectedEOF
		}
		c.failed(err)
	}
	return n, err
}

func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.failed(err)
	}
	return n, err
}

// onBreak registers f to be called when the connection breaks without being closed by this side.
func (c *Conn) onBreak(f func()) { c.broke.Store(&f) }

// failed reports that the connection ended, unless this side closed it or only a deadline passed.
func (c *Conn) failed(err error) {
	if c.declined != nil && isAlert(err) {
		c.declined()
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.broken()
	}
}

func (c *Conn) broken() {
	if f := c.broke.Swap(nil); f != nil {
		(*f)()
	}
}

// Close sends a close-notify and closes.
func (c *Conn) Close() error {
	c.ended()
	return c.Conn.Close()
}

// Abort closes without a close-notify: the other end sees a broken connection.
func (c *Conn) Abort() {
	c.ended()
	_ = c.NetConn().Close()
}

func (c *Conn) ended() {
	c.broke.Store(nil)
	c.end.Do(func() {
		if c.forget != nil {
			c.forget(c)
		}
	})
}

// silence returns the time since the last bytes arrived.
func (c *Conn) silence() time.Duration { return time.Since(c.since) - time.Duration(c.heard.Load()) }

// cut closes a connection whose other end seems dead, and reports it.
func (c *Conn) cut() {
	c.broken()
	c.Abort()
}
