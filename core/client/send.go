package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
)

// silence bounds how long a queen may take to begin an answer that needs no long work, while other
// queens are left to ask.
const silence = 10 * time.Second

// codeStopping is the error code of a queen that is stopping: it has not carried out the request.
const codeStopping = "stopping"

var errSilent = errors.New("there was no answer")

// AttemptHeader counts how often a request with a generated ID was sent, starting with 1. A queen
// searches other agents for the ID of a request unless this is the first attempt.
const AttemptHeader = "X-Rbee-Attempt"

// call is one request.
type call struct {
	method, path string
	body         []byte    // nil: none
	upload       io.Reader // a long body; read once
	accept       string    // empty: application/json
	lastEvent    string
	requestID    string
	once         bool // must not be done twice: resent only if it was not carried out
	slow         bool // the answer may take long to begin
	fresh        bool // its ID was just generated, so that the first attempt cannot be a repetition
	model        bool // an inference request: all queens find the same workers
}

// newTransport makes connections to queens. With several queens, it gives up sooner on one that
// does not answer.
func newTransport(o Options, several bool) (*http.Transport, error) {
	dial, handshake := 5*time.Second, 10*time.Second
	if several {
		dial, handshake = 2*time.Second, 4*time.Second
	}
	config := &tls.Config{ServerName: o.ServerName, MinVersion: tls.VersionTLS12, VerifyConnection: checkQueen}
	if len(o.CACert) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(o.CACert) {
			return nil, core.Errorf(core.Invalid, "no certificate in the CA file").Hint("It is the file that begins with -----BEGIN CERTIFICATE-----.")
		}
	}
	lookup := func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	return &http.Transport{
		Proxy:                 direct(http.ProxyFromEnvironment, lookup),
		DialContext:           (&net.Dialer{Timeout: dial}).DialContext,
		TLSClientConfig:       config,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   handshake,
		ExpectContinueTimeout: time.Second,
	}, nil
}

// do sends a request to the queens in turn until one answers. It returns the answer, whose body the
// caller closes, and the index of that queen. An answer with status 400 or above is an error.
func (c *Client) do(ctx context.Context, r call) (*http.Response, int, error) {
	order := c.health.order(time.Now())
	var said, last error // said: a queen's own error; last: why the last queen gave no answer
	attempt := 1
	for i, n := range order {
		var patience time.Duration
		if r.method == http.MethodGet && !r.slow && i < len(order)-1 {
			patience = silence
		}
		token := c.tokenFor(n)
		resp, sent, err := c.try(ctx, c.queens[n], token, attempt, r, patience)
		if sent {
			attempt++
		}
		if err == nil {
			if err = statusError(resp, c.queens[n]); err == nil {
				c.health.answered(n)
				return resp, n, nil
			}
			if core.KindOf(err) == core.Unauthenticated && token != c.token {
				err = core.WithHint(err, "The token was not sent, as everybody on the way to %s could read it. Write the address with https://.", c.queens[n])
			}
			if !r.elsewhere(err) {
				c.health.answered(n)
				return nil, n, err
			}
			c.health.fails(n, time.Now())
			if said == nil {
				said = err
			}
			continue
		}
		if ctx.Err() != nil {
			if !sent && errors.Is(ctx.Err(), context.DeadlineExceeded) { // or the next call waits as well
				c.health.fails(n, time.Now())
			}
			return nil, n, core.FromContext(ctx)
		}
		c.health.fails(n, time.Now())
		if last = err; sent && r.once {
			return nil, n, core.Errorf(core.Unavailable, "the connection to %s broke: %w", c.queens[n], unwrapURL(err)).Hint("It is not known whether the request was carried out: look before you repeat it.")
		}
	}
	if said != nil {
		return nil, 0, said
	}
	return nil, 0, c.unreachable(last)
}

// tokenFor returns the token to send to a queen.
func (c *Client) tokenFor(n int) string {
	if strings.HasPrefix(c.queens[n], "https://") || c.open[n] {
		return c.token
	}
	return ""
}

// elsewhere reports whether another queen may succeed where one returned err.
func (r call) elsewhere(err error) bool {
	if stopping, ok := errors.AsType[*stoppingError](err); ok && stopping != nil {
		return r.upload == nil // it has already been read
	}
	return core.KindOf(err) == core.Unavailable && !r.once && !r.model
}

// stoppingError is the answer of a stopping queen, which has not carried out the request.
type stoppingError struct{ err error }

func (e *stoppingError) Error() string { return e.err.Error() }
func (e *stoppingError) Unwrap() error { return e.err }

// try sends a request to one queen, as the given attempt. sent reports whether the queen may have
// received it. If patience is not 0, the header of the answer must arrive within it.
func (c *Client) try(ctx context.Context, address, token string, attempt int, r call, patience time.Duration) (resp *http.Response, sent bool, err error) {
	var body io.Reader
	switch {
	case r.upload != nil:
		body = io.NopCloser(r.upload)
	case r.body != nil:
		body = bytes.NewReader(r.body)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(traced, r.method, address+r.path, body)
	if err != nil {
		cancel(nil)
		return nil, false, err
	}
	h := req.Header
	h.Set("User-Agent", c.agent)
	h.Set("Accept", "application/json")
	if r.accept != "" {
		h.Set("Accept", r.accept)
	}
	switch {
	case r.upload != nil:
		h.Set("Content-Type", "application/octet-stream")
	case r.body != nil:
		h.Set("Content-Type", "application/json")
	}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	if r.lastEvent != "" {
		h.Set("Last-Event-ID", r.lastEvent)
	}
	if r.fresh {
		h.Set(AttemptHeader, strconv.Itoa(attempt))
	}
	if r.requestID != "" {
		h.Set("X-Request-Id", r.requestID)
	}
	if !r.once && r.upload == nil {
		h["Idempotency-Key"] = nil // not sent; net/http may then resend on a new connection
	}
	if patience > 0 {
		timer := time.AfterFunc(patience, func() { cancel(errSilent) })
		defer timer.Stop()
	}
	resp, err = c.http.Do(req)
	if err != nil {
		if errors.Is(context.Cause(ctx), errSilent) {
			err = errSilent
		}
		cancel(nil)
		dial, ok := errors.AsType[*net.OpError](err)
		return nil, !(ok && dial.Op == "dial" || c.own != nil && !connected.Load()), err
	}
	resp.Body = &answerBody{resp.Body, cancel}
	return resp, true, nil
}

// answerBody cancels its request's context when it is closed.
type answerBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *answerBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

func (c *Client) unreachable(err error) error {
	at := strings.Join(c.queens, ", ")
	if e, ok := errors.AsType[*notQueenError](err); ok {
		return core.Errorf(core.Unauthenticated, "%s answers but is not a queen: %w", at, e).Hint(
			"Look where the queens are, `rbee status`. If one should be there, a machine of the cluster answers in its place: revoke that node, `rbee tls revoke`.")
	}
	switch bad, isBad := errors.AsType[*tls.CertificateVerificationError](err); {
	case isBad:
		return core.Errorf(core.Unauthenticated, "the certificate that was shown at %s cannot be trusted: %w", at, bad.Err).Hint(
			"Give the certificate of the cluster's CA with RBEE_CACERT, which is ca.pem on every node, and see that the address is one of the node's names.")
	case errors.Is(err, http.ErrSchemeMismatch):
		return core.Errorf(core.Invalid, "the server at %s has no TLS", at).Hint("Write the address with http://.")
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return foreign(core.Invalid, at, "it does not speak TLS")
	}
	if err != nil && strings.Contains(err.Error(), "malformed HTTP") { // net/http's type is unexported
		if strings.Contains(err.Error(), `"\x15\x03`) { // a TLS alert
			return core.Errorf(core.Invalid, "the server at %s takes only TLS", at).Hint("Write the address with https://.")
		}
		return foreign(core.Invalid, at, "it does not speak HTTP")
	}
	if err != nil && strings.HasSuffix(err.Error(), spokeFirst) {
		return foreign(core.Invalid, at, "it does not speak HTTP")
	}
	return core.Errorf(core.Unavailable, "no agent answers at %s: %w", at, unwrapURL(err)).Hint(
		"Start one with `rbee agent -dev`, or say where one runs with RBEE_ADDR.")
}

// spokeFirst ends net/http's error for a server that sends data before it is asked, as SSH servers
// do. It contains a wrapped nil.
const spokeFirst = "readLoopPeekFailLocked: %!w(<nil>)"

// unwrapURL removes the method and address that net/http repeats.
func unwrapURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
