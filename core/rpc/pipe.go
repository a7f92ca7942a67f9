// Package rpc is the gRPC layer between queens and hives: listeners, servers and clients whose
// errors keep their core.Kind.
package rpc

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/core"
)

// pipeBufferBytes is the size of the buffer of each direction of a Pipe's connection.
const pipeBufferBytes = 64 << 10

// Pipe joins a server and its clients within one process, without a socket. It is safe for
// concurrent use.
type Pipe struct{ l pipeListener }

// NewPipe returns a pipe without a listener yet: a Dial waits until the listener accepts.
func NewPipe() *Pipe {
	return &Pipe{l: pipeListener{Listener: bufconn.Listen(pipeBufferBytes)}}
}

// Listener returns the server's end. It is the same for every call; closing it closes the pipe.
func (p *Pipe) Listener() net.Listener { return p.l }

// Dial connects to the server's end and waits until it is accepted. The caller closes the
// connection. Errors: Unavailable if the pipe is closed, Cancelled, DeadlineExceeded.
func (p *Pipe) Dial(ctx context.Context) (net.Conn, error) {
	c, err := p.l.DialContext(ctx)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("dial in process: %w", core.FromContext(ctx))
	}
	return nil, core.Wrap(net.ErrClosed, core.Unavailable, "dial in process")
}

// Close ends the listener and pending dials. It does not touch open connections. It never fails and
// may be called again.
func (p *Pipe) Close() error { return p.l.Close() }

type pipeListener struct{ *bufconn.Listener }

func (l pipeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, net.ErrClosed // its only error
	}
	return pipeConn{c}, nil
}

// pipeConn marks a connection from within the process.
type pipeConn struct{ net.Conn }
