// Package conn speaks HTTP/1.1 with the data sockets of workers: a pool of connections for each
// worker, one request at a time on each connection.
package conn

import (
	"bufio"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// poolIdle is the idle time after which a worker's connections are dropped.
const poolIdle = 5 * time.Minute

// Pools holds the connections to each worker, opened on its first request. It is safe for
// concurrent use.
type Pools struct {
	dial    func(ctx context.Context, w core.Worker) (net.Conn, error)
	timeout time.Duration

	mu sync.Mutex       // guards below
	m  map[string]*pool // by id and nonce: a restarted worker gets a new pool
}

// NewPools returns Pools that dial workers with dial, each attempt bounded by timeout.
func NewPools(dial func(ctx context.Context, w core.Worker) (net.Conn, error), timeout time.Duration) *Pools {
	return &Pools{dial: dial, timeout: timeout, m: map[string]*pool{}}
}

// DialError reports that no connection could be made, so that nothing was sent.
type DialError struct{ Err error }

func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns the dialer's error.
func (e *DialError) Unwrap() error { return e.Err }

func (u *Pools) pool(w core.Worker) *pool {
	key, now := w.ID+" "+w.Nonce, time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if p, ok := u.m[key]; ok {
		p.asked = now
		return p
	}
	for k, p := range u.m {
		if now.Sub(p.asked) > poolIdle {
			delete(u.m, k)
			p.close()
		}
	}
	p := &pool{worker: w, asked: now, dial: func(ctx context.Context, patience time.Duration) (*workerConn, error) {
		if patience == 0 || patience > u.timeout {
			patience = u.timeout
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		conn, err := u.dial(ctx, w)
		if err != nil {
			return nil, &DialError{err}
		}
		return newWorkerConn(conn), nil
	}}
	u.m[key] = p
	return p
}

// Drop closes the idle connections to a worker. Running requests are unaffected.
func (u *Pools) Drop(w core.Worker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := w.ID + " " + w.Nonce
	if p, ok := u.m[key]; ok {
		delete(u.m, key)
		p.close()
	}
}

// DropHive closes the idle connections to the workers of a hive. Running requests are unaffected.
func (u *Pools) DropHive(hive string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		if p.worker.Hive == hive {
			delete(u.m, k)
			p.close()
		}
	}
}

// DropGone closes the idle connections to workers for which alive returns false: a worker that ends
// closes only its own side. Running requests are unaffected. alive must not call Pools.
func (u *Pools) DropGone(alive func(core.Worker) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		if !alive(p.worker) {
			delete(u.m, k)
			p.close()
		}
	}
}

// Close closes all idle connections.
func (u *Pools) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		delete(u.m, k)
		p.close()
	}
}

// Body is a request body that is not held in memory whole. Only one goroutine uses it at a time.
type Body interface {
	// Size is its length in bytes; negative: unknown.
	Size() int64
	// WriteTo writes the whole body. Errors: *BodyError if the body cannot be read to its end,
	// otherwise those of w.
	WriteTo(w io.Writer) (int64, error)
}

// BodyError reports that a Body could not be read to its end, which is not the worker's fault.
type BodyError struct{ Err error }

func (e *BodyError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *BodyError) Unwrap() error { return e.Err }

// Request is one request to a worker. It carries only what a worker needs: no client headers, and
// so no credentials.
type Request struct {
	Method           string // empty: POST
	Path, Accept, ID string // written verbatim: they contain no line ends
	ContentType      string // written verbatim; empty: JSON
	Body             []byte
	Stream           Body          // replaces Body; nil: Body is sent
	Patience         time.Duration // bounds the dial if others can be asked; 0: the pools' timeout
}

// write sends the request. The writer of net/http takes several times as long, all of it before the
// first token.
func (q *Request) write(w *bufio.Writer) error {
	size, framing := int64(len(q.Body)), "Content-Length: "
	if q.Stream != nil {
		size = q.Stream.Size()
	}
	length := strconv.FormatInt(size, 10)
	if size < 0 {
		framing, length = "Transfer-Encoding: ", "chunked"
	}
	for _, s := range []string{
		cmp.Or(q.Method, "POST"), " ", q.Path, " HTTP/1.1\r\nHost: worker\r\nUser-Agent: rbee\r\nContent-Type: ", cmp.Or(q.ContentType, "application/json"), "\r\nAccept: ", q.Accept,
		"\r\nX-Request-Id: ", q.ID, "\r\n", framing, length, "\r\n\r\n",
	} {
		_, _ = w.WriteString(s) // a bufio.Writer keeps its first error
	}
	switch {
	case q.Stream == nil:
		_, _ = w.Write(q.Body)
	case size >= 0:
		if _, err := q.Stream.WriteTo(w); err != nil {
			return err
		}
	default:
		chunks := httputil.NewChunkedWriter(w)
		if _, err := q.Stream.WriteTo(chunks); err != nil {
			return err
		}
		_ = chunks.Close()
		_, _ = w.WriteString("\r\n")
	}
	return w.Flush()
}

// Post sends a request to a worker and returns the answer as soon as its header has arrived. The
// caller closes the body. When ctx ends, it closes the connection, which tells the worker to stop.
// Errors: *DialError if nothing was sent, *BodyError, the cause of ctx, any other if the connection
// was lost.
func (u *Pools) Post(ctx context.Context, w core.Worker, q Request) (*http.Response, error) {
	return u.pool(w).roundTrip(ctx, q)
}
