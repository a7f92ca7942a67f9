// Package forward passes a worker's requests on to servers that speak OpenAI's HTTP API, and their
// answers back, byte for byte.
//
// It changes only the name of the model in a request, errors that are not in OpenAI's envelope, and
// headers, of which it passes on only a few. A request's credentials never reach the server.
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
	// MaxBody bounds a request's body, in bytes, if it must be held in memory: because the server
	// uses another name for the model, or because another replica may have to take the request.
	MaxBody = 64 << 20
	// idleTime is how long an idle connection is kept for reuse: less than the 5 s after which
	// common servers close it.
	idleTime = 2 * time.Second
	// restTime is how long a replica that could not be reached is tried only after all others.
	restTime = 3 * time.Second

	dialTime       = 5 * time.Second
	maxHeaderBytes = 64 << 10
	copyBytes      = 32 << 10
)

// Target is one server.
type Target struct {
	URL    *url.URL // scheme, host and the path before /v1; with Socket, the host is not looked up
	Socket string   // path of a unix socket; empty: TCP
	Key    string   // sent as a bearer token; empty: none
	TLS    *tls.Config
}

// Options configure a Forwarder.
type Options struct {
	Targets []Target // one server, or several identical ones; at least one
	// Model replaces the model named in a JSON request; empty: requests pass unchanged.
	Model string
	// Reuse keeps connections for further requests. Leave it off for a server that closes its
	// connections after streams: a request might be sent just as the connection closes.
	Reuse bool
	// Hide maps texts that clients must not see in errors, such as paths, to their replacements.
	Hide map[string]string
	// Count receives an answer's usage, as far as the answer reports it; nil: usage is not counted.
	// It may be called from several goroutines.
	Count func(Usage)
}

// Usage is what was counted since the last report, for an answer in progress or at its end.
type Usage struct {
	Prompt    int // prompt tokens, including cached ones
	Cached    int // prompt tokens taken from a cache
	Generated int // generated tokens
}

// Forwarder is an http.Handler that forwards to servers. It is safe for concurrent use. The caller
// must Close it.
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
		Proxy:                  nil, // the operator chose the server; ignore the environment
		TLSClientConfig:        t.TLS,
		TLSHandshakeTimeout:    dialTime,
		DisableCompression:     true, // pass bytes on unchanged
		DisableKeepAlives:      !reuse,
		IdleConnTimeout:        idleTime,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         copyBytes,
		// No ResponseHeaderTimeout: many servers send headers only with the first token.
	}
	return out
}

// Close closes idle connections. Running requests continue.
func (f *Forwarder) Close() {
	for _, t := range f.targets {
		t.transport.CloseIdleConnections()
	}
}

// Spoke returns when a server last sent anything; the zero time if none ever did.
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

// ServeHTTP forwards a request.
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
			panic(http.ErrAbortHandler) // the client has disconnected, or the worker stops
		case unreached(err):
			t.restUntil.Store(time.Now().Add(restTime).UnixNano())
			if again == nil && r.ContentLength != 0 { // the body is already closed and cannot be sent again
				tried = f.all()
			}
			continue
		}
		// The server may have started to process the request, so it is not retried.
		openai.WriteError(w, 0, openai.NewError(http.StatusBadGateway, openai.TypeServer, "", "server_lost", "the server behind this worker ended the connection without an answer"))
		return
	}
}

// pass sends a request to a server and passes its response on. An error means that there was no
// response.
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

// unreached reports whether the request failed before any byte of it was sent.
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

// pick returns the untried server with the fewest requests, resting ones last; nil: all were tried.
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

// body returns what to send: the request's own body, or for JSON a function that returns a reader
// at its beginning. JSON is read completely first: it may have to be changed or sent twice.
// Besides, a server that answers early would close the client's body while the transport still
// reads it, which cuts the answer.
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

// passed lists the request headers that are passed on to the server.
func passed() []string {
	return []string{"Content-Type", "Accept", "X-Request-Id", "Traceparent"}
}

// request returns the request to send to a server.
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

// Ask sends one of the worker's own requests to the n-th server and returns the status and the
// beginning of the response, at most limit bytes.
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

// Len returns the number of servers.
func (f *Forwarder) Len() int { return len(f.targets) }
