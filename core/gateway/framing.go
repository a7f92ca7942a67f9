package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
)

// framedConn counts the lengths that a client states, as net/http drops the one of a request that
// comes in chunks without a word.
type framedConn struct {
	net.Conn
	at     int          // how much of lengthName the line has so far; -1: it is another one
	stated atomic.Int64 // lines that state a length, those within bodies too
	used   atomic.Int64 // of which requests have had
}

const lengthName = "content-length:"

// watchFraming wraps a connection whose bytes are those of the requests.
func watchFraming(c net.Conn) net.Conn {
	if _, ok := c.(*tls.Conn); ok { // the server must see that it is one
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

// CloseWrite lets the server say that there is nothing more to come.
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

// framedTwice reports whether a request may have stated its length beside sending chunks: then its
// connection must not be used again, RFC 9112 6.1. It is called once for each request.
func framedTwice(r *http.Request) bool {
	c, ok := r.Context().Value(framingKey{}).(*framedConn)
	chunked := len(r.TransferEncoding) > 0
	switch {
	case !ok:
		return chunked && r.ProtoMajor == 1 // through TLS nobody can tell
	case !chunked:
		if r.Header.Get("Content-Length") != "" {
			c.used.Add(1)
		}
		return false
	}
	return c.stated.Load() > c.used.Load()
}
