// Package origintest holds helpers for tests of transfers from origins: a count of open bodies, and
// bodies that are slow or hang.
package origintest

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Bodies counts a client's reply bodies. A body that is never closed leaks its connection.
type Bodies struct {
	All, Open atomic.Int64
	base      http.RoundTripper
}

// Watch starts counting the bodies of a client's replies.
func Watch(c *http.Client) *Bodies {
	b := &Bodies{base: c.Transport}
	c.Transport = b
	return b
}

// RoundTrip implements http.RoundTripper.
func (b *Bodies) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.base.RoundTrip(r)
	if err == nil {
		b.All.Add(1)
		b.Open.Add(1)
		resp.Body = &Body{ReadCloser: resp.Body, of: b}
	}
	return resp, err
}

// Body is a body that records whether it was closed.
type Body struct {
	io.ReadCloser
	Closed atomic.Bool
	of     *Bodies // nil: not counted
}

// Close closes the body.
func (b *Body) Close() error {
	if b.Closed.CompareAndSwap(false, true) && b.of != nil {
		b.of.Open.Add(-1)
	}
	return b.ReadCloser.Close()
}

// Stuck is a body that returns no bytes until the context of its request ends.
type Stuck struct{ Context context.Context } //nolint:containedctx // of one request

// Read implements io.Reader.
func (s Stuck) Read([]byte) (int, error) {
	<-s.Context.Done()
	return 0, s.Context.Err()
}

// Close does nothing.
func (Stuck) Close() error { return nil }

// Slow is a body of Left bytes that returns one at a time, with a pause before each.
type Slow struct {
	Context context.Context //nolint:containedctx // of one request
	Left    int
	Pause   time.Duration
}

// Read implements io.Reader.
func (s *Slow) Read(p []byte) (int, error) {
	if s.Left == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(s.Pause):
	case <-s.Context.Done():
		return 0, s.Context.Err()
	}
	s.Left--
	p[0] = 'x'
	return 1, nil
}

// Close does nothing.
func (*Slow) Close() error { return nil }

// Reply returns a reply without a Content-Length.
func Reply(status int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: body, ContentLength: -1}
}
