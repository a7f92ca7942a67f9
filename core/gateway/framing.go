package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
)

// framedConn counts the lengths that a client states, as net/http silently drops the length of a
// chunked request.
type framedConn struct {
	net.Conn
	at     int          // matched bytes of lengthName in this line; -1: no match
	stated atomic.Int64 // lines that state a length, including lines within bodies
	used   atomic.Int64 // those that belong to requests so far
}

const lengthName = "content-length:"

// watchFraming wraps a plain-text connection.
func watchFraming(c net.Conn) net.Conn {
	if _, ok := c.(*tls.Conn); ok { // the server must see the *tls.Conn itself
		return c
	}
	return &framedConn{Conn: c, at: -1}
}

// Read is part of net.Conn. Only one goroutine calls it at a time.
func (c *framedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for _, x := range b[:n] {
		switch {
		case x == '\n':
			c.at = 0
		case c.at < 0:
		case x|0x20 != lengthName[c.at]|0x20:
			c.at = -1
		default:
			if c.at++; c.at == len(lengthName) {
				c.stated.Add(1)
				c.at = -1
			}
		}
	}
	return n, err
}

// CloseWrite lets the server signal the end of its output.
func (c *framedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

type framingKey struct{}

func withFraming(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, framingKey{}, c)
}

// framedTwice reports whether a chunked request may have stated a length as well: then its
// connection must not be reused, RFC 9112 6.1. It is called once per request.
func framedTwice(r *http.Request) bool {
	c, ok := r.Context().Value(framingKey{}).(*framedConn)
	chunked := len(r.TransferEncoding) > 0
	switch {
	case !ok:
		return chunked && r.ProtoMajor == 1 // unknown under TLS
	case !chunked:
		if r.Header.Get("Content-Length") != "" {
			c.used.Add(1)
		}
		return false
	}
	return c.stated.Load() > c.used.Load()
}
