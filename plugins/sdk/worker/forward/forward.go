// Package forward passes a worker's requests on to servers that speak OpenAI's HTTP API, and their
// answers back, as the bytes that they are.
//
// Changed are only: the name of the model in a request, errors that are not in OpenAI's envelope,
// and headers, of which few are passed on. A request's credentials never reach the server.
package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	// MaxBody bounds a request's body that must be held: one whose model is named differently at
	// the server, or that another replica may have to take.
	MaxBody = 64 << 20
	// idleTime is how long a connection is kept for reuse: less than the 5 s after which common
	// servers close one.
	idleTime = 2 * time.Second
	// restTime is how long a replica that could not be reached is asked last.
	restTime = 3 * time.Second

	dialTime       = 5 * time.Second
	maxHeaderBytes = 64 << 10
	copyBytes      = 32 << 10
)

// Target is one server.
type Target struct {
	URL    *url.URL // scheme, host and the path before /v1; the host is not looked up where Socket is set
	Socket string   // path of a unix socket; empty: TCP
	Key    string   // sent as a bearer token; empty: none
	TLS    *tls.Config
}

// Options say what a Forwarder does.
type Options struct {
	Targets []Target // one server, or several that are alike; at least one
	// Model replaces the model that a JSON request names; empty: requests pass unchanged.
	Model string
	// Reuse keeps connections for further requests. A server that closes its connections after
	// streams must not have it: a request may be sent into the end of a connection.
	Reuse bool
	// Hide maps texts that clients must not see in errors, such as paths, to what they see instead.
	Hide map[string]string
	// Count is told what an answer used, as far as the answer says; nil: nobody. It may be called
	// from several goroutines.
	Count func(Usage)
}

// Usage is what has been counted since the last report, of an answer that comes, or of one that has
// ended.
type Usage struct {
	Prompt    int // tokens of the prompt, cached ones included
	Cached    int // of those, taken from a cache
	Generated int // tokens
}

// Forwarder is a http.Handler over servers. It is safe for concurrent use. Close it.
type Forwarder struct {
	o       Options
	targets []*target
	buffers sync.Pool
}

type target struct {
	Target
	transport *http.Transport
	active    atomic.Int64
	restUntil atomic.Int64 // Unix nanoseconds
	spoke     atomic.Int64 // likewise: when it last sent anything
}

// New returns a Forwarder. It panics without a target.
func New(o Options) *Forwarder {
	if len(o.Targets) == 0 {
		panic("forward: no target")
	}
	if o.Count == nil {
		o.Count = func(Usage) {}
	}
	f := &Forwarder{o: o, buffers: sync.Pool{New: func() any { return new([copyBytes]byte) }}}
	for _, t := range o.Targets {
		f.targets = append(f.targets, newTarget(t, o.Reuse))
	}
	return f
}

func newTarget(t Target, reuse bool) *target {
	dialer := &net.Dialer{Timeout: dialTime}
	out := &target{Target: t}
	out.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if t.Socket != "" {
				network, addr = "unix", t.Socket
			}
			return dialer.DialContext(ctx, network, addr)
		},
		Proxy:                  nil, // the server is named by the operator, whatever the environment says
		TLSClientConfig:        t.TLS,
		TLSHandshakeTimeout:    dialTime,
		DisableCompression:     true, // bytes stay what they are
		DisableKeepAlives:      !reuse,
		IdleConnTimeout:        idleTime,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         copyBytes,
		// No ResponseHeaderTimeout: many servers send headers with the first token.
	}
	return out
}

// Close closes idle connections. Requests that run go on.
func (f *Forwarder) Close() {
	for _, t := range f.targets {
		t.transport.CloseIdleConnections()
	}
}

// Spoke returns when a server last sent anything; zero: never.
func (f *Forwarder) Spoke() time.Time {
	var last int64
	for _, t := range f.targets {
		last = max(last, t.spoke.Load())
	}
	if last == 0 {
		return time.Time{}
	}
	return time.Unix(0, last)
}

// ServeHTTP passes a request on.
func (f *Forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, again, err := f.body(r)
	if err != nil {
		refuseBody(w, err)
		return
	}
	tried := map[*target]bool{}
	for {
		t := f.pick(tried)
		if t == nil {
			w.Header().Set("Retry-After", "2")
			openai.WriteError(w, 0, openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "server_unreachable", "the server behind this worker cannot be reached"))
			return
		}
		tried[t] = true
		req := t.request(r, body)
		if again != nil {
			req.Body, req.ContentLength = io.NopCloser(again()), again().Size()
			req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(again()), nil }
		}
		err := f.pass(w, t, req)
		if err == nil {
			return
		}
		switch {
		case r.Context().Err() != nil:
			panic(http.ErrAbortHandler) // the client is gone, or the worker stops
		case unreached(err):
			t.restUntil.Store(time.Now().Add(restTime).UnixNano())
			if again == nil && r.ContentLength != 0 { // the body is closed
				tried = f.all()
			}
			continue
		}
		// It may have begun to work on the request.
		openai.WriteError(w, 0, openai.NewError(http.StatusBadGateway, openai.TypeServer, "", "server_lost", "the server behind this worker ended the connection without an answer"))
		return
	}
}

// pass sends a request to a server and passes its answer on. Errors: there is no answer.
func (f *Forwarder) pass(w http.ResponseWriter, t *target, req *http.Request) error {
	t.active.Add(1)
	defer t.active.Add(-1)
	resp, err := t.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	f.answer(w, t, resp)
	return nil
}

// unreached says that no byte of a request has left.
func unreached(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func (f *Forwarder) all() map[*target]bool {
	all := map[*target]bool{}
	for _, t := range f.targets {
		all[t] = true
	}
	return all
}

// pick returns the server with the fewest requests among those not tried, one that rests last; nil:
// none is left.
func (f *Forwarder) pick(tried map[*target]bool) *target {
	now := time.Now().UnixNano()
	var best *target
	resting := func(t *target) bool { return t.restUntil.Load() > now }
	for _, t := range f.targets {
		if tried[t] {
			continue
		}
		if best == nil || resting(best) && !resting(t) || resting(best) == resting(t) && t.active.Load() < best.active.Load() {
			best = t
		}
	}
	return best
}

// body returns what to send: the request's own body, or for JSON a function that returns it from
// its beginning. JSON is read whole first: it may have to be changed or sent twice, and a server
// that answers early would close the client's body under the transport that still reads it, which
// cuts the answer.
func (f *Forwarder) body(r *http.Request) (io.ReadCloser, func() *bytes.Reader, error) {
	isJSON := strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") || r.Header.Get("Content-Type") == ""
	if r.Method != http.MethodPost || !isJSON {
		return r.Body, nil, nil
	}
	whole, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return nil, nil, err
	}
	if len(whole) > MaxBody {
		return nil, nil, errTooLarge
	}
	if f.o.Model != "" {
		whole = replaceModel(whole, f.o.Model)
	}
	return nil, func() *bytes.Reader { return bytes.NewReader(whole) }, nil
}

var errTooLarge = errors.New("the body is too large")

func refuseBody(w http.ResponseWriter, err error) {
	if errors.Is(err, errTooLarge) {
		openai.WriteError(w, 0, openai.NewError(http.StatusRequestEntityTooLarge, openai.TypeInvalidRequest, "", openai.CodeTooLarge, "the body is over %d MiB", MaxBody>>20))
		return
	}
	openai.WriteError(w, 0, openai.Invalid("", "the body cannot be read to its end"))
}

// passed are the headers of a request that a server sees.
func passed() []string {
	return []string{"Content-Type", "Accept", "X-Request-Id", "Traceparent"}
}

// request makes the request for a server.
func (t *target) request(r *http.Request, body io.ReadCloser) *http.Request {
	u := *t.URL
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/")+r.URL.Path, ""
	u.RawQuery = r.URL.RawQuery
	out := (&http.Request{Method: r.Method, URL: &u, Host: u.Host, Header: http.Header{}, Body: body, ContentLength: r.ContentLength}).WithContext(r.Context())
	if r.ContentLength == 0 {
		out.Body = nil
	}
	for _, name := range passed() {
		if v := r.Header[name]; v != nil {
			out.Header[name] = v
		}
	}
	out.Header.Set("Accept-Encoding", "identity")
	out.Header.Set("User-Agent", "rbee")
	if t.Key != "" {
		out.Header.Set("Authorization", "Bearer "+t.Key)
	}
	return out
}

// Ask sends a request of the worker's own to the n-th server and returns its status and the
// beginning of its answer, at most limit bytes.
func (f *Forwarder) Ask(ctx context.Context, n int, method, path, body string, limit int64) (status int, answer []byte, err error) {
	t := f.targets[n]
	r, err := http.NewRequestWithContext(ctx, method, "http://server"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	req := t.request(r, r.Body)
	req.Close = true
	resp, err := t.transport.RoundTrip(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the server: %w", err)
	}
	defer resp.Body.Close()
	t.spoke.Store(time.Now().UnixNano())
	answer, err = io.ReadAll(io.LimitReader(resp.Body, limit))
	return resp.StatusCode, answer, err
}

// Len returns how many servers there are.
func (f *Forwarder) Len() int { return len(f.targets) }
