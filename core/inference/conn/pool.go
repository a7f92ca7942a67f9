package conn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// connIdle is the idle time after which a connection is closed. Workers keep theirs longer.
	connIdle = time.Minute
	// maxIdleConns bounds the idle connections to one worker.
	maxIdleConns = 64
	// maxAnswerHeader bounds the header of a worker's answer, in bytes.
	maxAnswerHeader = 64 << 10
	// lateAnswer bounds the wait for the answer of a worker that stopped reading the request.
	lateAnswer = time.Second
)

// pool holds the connections to one worker. A request and its answer stay on the caller's
// goroutine: the transport of net/http hands both to other goroutines, and each hand-over costs a
// wake-up before the first token. BenchmarkStream measures it.
type pool struct {
	dial   func(ctx context.Context, patience time.Duration) (*workerConn, error)
	worker core.Worker
	asked  time.Time // time of the last request; guarded by Pools.mu

	mu     sync.Mutex    // guards below
	idle   []*workerConn // longest idle first
	closed bool
}

// workerConn is a connection that carries one request at a time.
type workerConn struct {
	net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	left  int64     // bytes that may still be read
	since time.Time // start of the idle time
}

func newWorkerConn(c net.Conn) *workerConn {
	wc := &workerConn{Conn: c}
	wc.r, wc.w = bufio.NewReaderSize(boundedReader{wc}, 8<<10), bufio.NewWriterSize(c, 8<<10)
	return wc
}

// boundedReader reads at most left bytes of its connection.
type boundedReader struct{ c *workerConn }

var errAnswerHeader = fmt.Errorf("the header of the answer is longer than %d bytes", maxAnswerHeader)

func (b boundedReader) Read(p []byte) (int, error) {
	if b.c.left <= 0 {
		return 0, errAnswerHeader
	}
	n, err := b.c.Conn.Read(p[:min(int64(len(p)), b.c.left)])
	b.c.left -= int64(n)
	return n, err
}

// take returns the most recently used connection, or nil.
func (p *pool) take() *workerConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if time.Since(c.since) < connIdle {
			return c
		}
		_ = c.Close()
	}
	return nil
}

func (p *pool) put(c *workerConn) {
	c.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxIdleConns {
		_ = c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// close drops the idle connections. Those in use close after their answers.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.Close()
	}
	p.idle = nil
}

// roundTrip sends a request and returns the answer as soon as its header has arrived. When ctx
// ends, it closes the connection. A worker may close an idle connection at any moment: roundTrip
// retries on another connection if a reused one was closed before the first byte of an answer, and
// never if a fresh one was. A streamed body uses a fresh connection, as it can be sent only once.
func (p *pool) roundTrip(ctx context.Context, q Request) (*http.Response, error) {
	var lost error // the error of a connection that had carried the whole request
	for {
		c, used := (*workerConn)(nil), true
		if q.Stream == nil {
			c = p.take()
		}
		if c == nil {
			var err error
			if c, err = p.dial(ctx, q.Patience); err != nil {
				if lost != nil { // the request may have killed the worker
					return nil, lost
				}
				return nil, err
			}
			used = false
		}
		resp, sent, answered, err := p.exchange(ctx, c, q)
		if err == nil {
			return resp, nil
		}
		_ = c.Close()
		if _, own := errors.AsType[*BodyError](err); own { // which may end ctx as well
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if answered || !used {
			return nil, err
		}
		if sent {
			lost = err
		}
	}
}

// exchange sends the request and reads the header of the answer. sent reports that the whole
// request was written, answered that at least one byte of the answer arrived.
func (p *pool) exchange(ctx context.Context, c *workerConn, q Request) (resp *http.Response, sent, answered bool, err error) {
	// The connection carries nothing else: closing it tells the worker to stop.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if err != nil {
			stop()
		}
	}()
	c.left = maxAnswerHeader
	err = q.write(c.w)
	sent = err == nil
	if _, own := errors.AsType[*BodyError](err); own {
		return nil, false, false, err
	}
	if !sent {
		// The worker may have refused the request, with a reason, before reading all of it.
		_ = c.SetReadDeadline(time.Now().Add(lateAnswer))
	}
	if _, peekErr := c.r.Peek(1); peekErr != nil {
		return nil, sent, false, errors.Join(err, unexpected(peekErr))
	}
	for {
		if resp, err = http.ReadResponse(c.r, nil); err != nil {
			return nil, sent, true, unexpected(err)
		}
		if resp.StatusCode >= http.StatusOK {
			break // earlier responses are informational
		}
	}
	c.left = math.MaxInt64
	resp.Body = &answerBody{body: resp.Body, ctx: ctx, conn: c, pool: p, stop: stop, keep: !resp.Close && sent}
	return resp, sent, true, nil
}

// unexpected turns the end of the connection into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// answerBody is the body of an answer. At its end the connection returns to the pool; closing the
// body earlier closes the connection.
type answerBody struct {
	body io.ReadCloser
	ctx  context.Context // the request's
	conn *workerConn
	pool *pool
	stop func() bool
	keep bool
	done bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	switch {
	case err == nil || b.done:
	case errors.Is(err, io.EOF):
		b.end(b.keep && b.conn.r.Buffered() == 0) // bytes after the answer belong to no request
	default:
		b.end(false)
		if b.ctx.Err() != nil {
			err = context.Cause(b.ctx)
		}
	}
	return n, err
}

func (b *answerBody) Close() error {
	if !b.done {
		b.end(false)
	}
	return nil
}

func (b *answerBody) end(keep bool) {
	b.done = true
	// Once the context has ended, its AfterFunc may close the connection at any moment.
	if b.stop() && keep {
		b.pool.put(b.conn)
		return
	}
	_ = b.conn.Close()
}
