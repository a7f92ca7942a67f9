// Package origintest has what tests of transfers from origins share: a count of open bodies, and
// bodies that are slow or get stuck.
package origintest

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Bodies counts the bodies of a client's replies. A body that stays open keeps its connection for
// ever.
type Bodies struct {
	All, Open atomic.Int64
	base      http.RoundTripper
}

// Watch counts the bodies of a client's replies from now on.
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

// Body is a body that knows whether it was closed.
type Body struct {
	io.ReadCloser
	Closed atomic.Bool
	of     *Bodies // nil: none
}

// Close closes the body.
func (b *Body) Close() error {
	if b.Closed.CompareAndSwap(false, true) && b.of != nil {
		b.of.Open.Add(-1)
	}
	return b.ReadCloser.Close()
}

// Stuck is a body that brings nothing until the context of its request ends.
type Stuck struct{ Context context.Context } //nolint:containedctx // of one request

// Read implements io.Reader.
func (s Stuck) Read([]byte) (int, error) {
	<-s.Context.Done()
	return 0, s.Context.Err()
}

// Close does nothing.
func (Stuck) Close() error { return nil }

// Slow is a body of Left bytes that come one at a time, each after a pause.
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

// Reply returns a reply that states no length.
func Reply(status int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: body, ContentLength: -1}
}
