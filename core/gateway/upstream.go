package gateway

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// upstreamIdle is after how long without a request the connections to a worker are forgotten.
const upstreamIdle = 5 * time.Minute

// workersUp has an HTTP transport for each worker, made when it is first asked.
type workersUp struct {
	dial    Dial
	timeout time.Duration

	mu sync.Mutex           // guards below
	m  map[string]*upstream // by id and nonce: a worker that was started again is another one
}

type upstream struct {
	t    *http.Transport
	used time.Time
}

// dialError tells that nothing was sent, since there was no connection.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func (u *workersUp) transport(w core.Worker) *http.Transport {
	key, now := w.ID+" "+w.Nonce, time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if up, ok := u.m[key]; ok {
		up.used = now
		return up.t
	}
	if u.m == nil {
		u.m = map[string]*upstream{}
	}
	for k, up := range u.m { // workers that are gone are not announced here
		if now.Sub(up.used) > upstreamIdle {
			delete(u.m, k)
			up.t.CloseIdleConnections()
		}
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, u.timeout)
			defer cancel()
			conn, err := u.dial(ctx, w)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         8 << 10,
		WriteBufferSize:        8 << 10,
	}
	u.m[key] = &upstream{t: t, used: now}
	return t
}

// drop forgets a worker that failed; requests that still run on it are not touched.
func (u *workersUp) drop(w core.Worker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := w.ID + " " + w.Nonce
	if up, ok := u.m[key]; ok {
		delete(u.m, key)
		up.t.CloseIdleConnections()
	}
}

func (u *workersUp) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, up := range u.m {
		delete(u.m, k)
		up.t.CloseIdleConnections()
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
		// A worker may close an idle connection just as a request is written to it. The empty value is never sent; it tells the transport that this
		// POST may be repeated on a fresh connection when a used one was closed before the first byte of an answer. A fresh one is never repeated.
		"X-Idempotency-Key": {},
	}
	return u.transport(w).RoundTrip(req)
}
