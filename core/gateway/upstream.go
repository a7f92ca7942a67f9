package gateway

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// upstreamIdle is after how long without a request the connections to a worker are forgotten.
const upstreamIdle = 5 * time.Minute

// workersUp has the connections to each worker, made when it is first asked.
type workersUp struct {
	dial    Dial
	timeout time.Duration

	mu sync.Mutex       // guards below
	m  map[string]*pool // by id and nonce: a worker that was started again is another one
}

// dialError tells that nothing was sent, since there was no connection.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func (u *workersUp) pool(w core.Worker) *pool {
	key, now := w.ID+" "+w.Nonce, time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if p, ok := u.m[key]; ok {
		p.asked = now
		return p
	}
	if u.m == nil {
		u.m = map[string]*pool{}
	}
	for k, p := range u.m { // workers that are gone are not announced here
		if now.Sub(p.asked) > upstreamIdle {
			delete(u.m, k)
			p.close()
		}
	}
	p := &pool{hive: w.Hive, asked: now, dial: func(ctx context.Context, patience time.Duration) (*workerConn, error) {
		if patience == 0 || patience > u.timeout {
			patience = u.timeout
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		conn, err := u.dial(ctx, w)
		if err != nil {
			return nil, &dialError{err}
		}
		return newWorkerConn(conn), nil
	}}
	u.m[key] = p
	return p
}

// drop forgets a worker that failed; requests that still run on it are not touched.
func (u *workersUp) drop(w core.Worker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := w.ID + " " + w.Nonce
	if p, ok := u.m[key]; ok {
		delete(u.m, key)
		p.close()
	}
}

// dropIdle closes the unused connections to the workers of a hive.
func (u *workersUp) dropIdle(hive string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		if p.hive == hive {
			delete(u.m, k)
			p.close()
		}
	}
}

func (u *workersUp) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		delete(u.m, k)
		p.close()
	}
}

// question is one request to a worker. Of the client's headers only those that a worker has use for go along: no credentials.
type question struct {
	path, accept, id string // without line ends: they are written as they are
	body             []byte
	patience         time.Duration // for a connection to be made, where another worker can be asked; 0: the longest
}

// write is the request in HTTP/1.1. net/http's own writer takes several times as long, all of it before the first token.
func (q *question) write(w *bufio.Writer) error {
	for _, s := range []string{
		"POST ", q.path, " HTTP/1.1\r\nHost: worker\r\nUser-Agent: rbee\r\nContent-Type: application/json\r\nAccept: ", q.accept,
		"\r\nX-Request-Id: ", q.id, "\r\nContent-Length: ", strconv.Itoa(len(q.body)), "\r\n\r\n",
	} {
		_, _ = w.WriteString(s) // a bufio.Writer keeps its first error
	}
	_, _ = w.Write(q.body)
	return w.Flush()
}

// post asks a worker.
func (u *workersUp) post(ctx context.Context, w core.Worker, q question) (*http.Response, error) {
	return u.pool(w).roundTrip(ctx, q)
}
