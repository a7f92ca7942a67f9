package worker

import (
	"crypto/subtle"
	"errors"
	"io"
	"net"
)

// guard accepts only connections that begin with opening, and strips it before the reader sees the
// data. It keeps out other programs of the same user, which can reach the socket.
type guard struct {
	*net.UnixListener
	opening string
}

func (g guard) Accept() (net.Conn, error) {
	c, err := g.AcceptUnix()
	switch {
	case err != nil:
		return nil, err
	case g.opening == "":
		return c, nil
	}
	return &guardedConn{UnixConn: c, opening: g.opening}, nil
}

// guardedConn checks the opening on its first Read, under the server's deadline for the header of a
// first request.
type guardedConn struct {
	*net.UnixConn
	opening string // empty once it has matched
}

var errOpening = errors.New("the connection does not begin with the host's opening")

// Read fails unless the connection began with the opening. Only one goroutine may read at a time.
func (c *guardedConn) Read(b []byte) (int, error) {
	if c.opening != "" {
		got := make([]byte, len(c.opening))
		if _, err := io.ReadFull(c.UnixConn, got); err != nil {
			return 0, err
		}
		if subtle.ConstantTimeCompare(got, []byte(c.opening)) != 1 {
			_ = c.Close()
			return 0, errOpening
		}
		c.opening = ""
	}
	return c.UnixConn.Read(b)
}
