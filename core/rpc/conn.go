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

// wire is what is below TLS. It notes that the other end closed it: crypto/tls takes that for a
// regular end, as it does a goodbye.
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

// CloseWrite ends one direction without a goodbye.
func (w *wire) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Conn is a connection after its handshake. CloseWrite says goodbye in one direction, NetConn is
// what is below TLS. The end of a connection for data or files without a goodbye is
// io.ErrUnexpectedEOF.
type Conn struct {
	*tls.Conn
	wire     *wire
	state    tls.ConnectionState
	protocol string
	node     pki.Node
	known    bool
	forget   func(*Conn) // told of the end; may be nil
	// told that the other end, or the way there, is gone; may be nil
	broke atomic.Pointer[func()]
	end   sync.Once

	// Of a Mux, which guards them.
	order uint64        // 1 for its first connection
	place *list.Element // in Mux.guests
	life  *time.Timer   // ends a connection without a certificate

	watched bool // heard is kept
	since   time.Time
	heard   atomic.Int64 // nanoseconds after since: when bytes last came
}

// Peer returns the node at the other end; false when it showed no certificate.
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

// onBreak has f called when the connection breaks that this side has not closed.
func (c *Conn) onBreak(f func()) { c.broke.Store(&f) }

// failed tells of the end of the connection, unless this side made it or a deadline was all there
// was.
func (c *Conn) failed(err error) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.broken()
	}
}

func (c *Conn) broken() {
	if f := c.broke.Swap(nil); f != nil {
		(*f)()
	}
}

// Close says goodbye and closes.
func (c *Conn) Close() error {
	c.ended()
	return c.Conn.Close()
}

// Abort closes without a goodbye: the other end sees a cut.
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

// silence is for how long nothing has come.
func (c *Conn) silence() time.Duration { return time.Since(c.since) - time.Duration(c.heard.Load()) }

// cut closes a connection whose other end seems to be gone, and tells so.
func (c *Conn) cut() {
	c.broken()
	c.Abort()
}
