package gateway

import (
	"bytes"
	"context"
	"net/http"
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
	p := &pool{asked: now, dial: func(ctx context.Context) (*workerConn, error) {
		ctx, cancel := context.WithTimeout(ctx, u.timeout)
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

func (u *workersUp) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, p := range u.m {
		delete(u.m, k)
		p.close()
	}
}

// post sends body to a worker as it is. Of the client's headers only those that a worker has use for go along: no credentials.
func (u *workersUp) post(ctx context.Context, w core.Worker, path string, body []byte, id, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker"+path, bytes.NewReader(body))
	if err != nil {
		return nil, core.E("ask worker", core.Internal, err)
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"},
		"Accept":       {accept},
		"X-Request-Id": {id},
		"User-Agent":   {"rbee"},
	}
	return u.pool(w).roundTrip(req)
}
