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

// silence is how long a queen may take to begin an answer that needs no long work, while there is
// another one to ask.
const silence = 10 * time.Second

// codeStopping is the code of the answer of a queen that stops: it has done nothing.
const codeStopping = "stopping"

var errSilent = errors.New("there was no answer")

// AttemptHeader counts how often a request whose id was made for it was sent, beginning with 1. A
// queen looks at other agents for the id of a request unless this is the first attempt.
const AttemptHeader = "X-Rbee-Attempt"

// call is one request.
type call struct {
	method, path string
	body         []byte    // nil: none
	upload       io.Reader // the body where it is long; read once
	accept       string    // empty: application/json
	lastEvent    string
	requestID    string
	once         bool // must not be done twice: it is sent elsewhere only where it was not sent or not done
	slow         bool // the answer may take its time to begin
	fresh        bool // its id was made for it, so that nobody can have done it the first time it is sent
	model        bool // asks a model: where a queen can find no worker, another one cannot
}

// newTransport makes connections to queens. With several of them one that does not answer is given
// up sooner.
func newTransport(o Options, several bool) (*http.Transport, error) {
	dial, handshake := 5*time.Second, 10*time.Second
	if several {
		dial, handshake = 2*time.Second, 4*time.Second
	}
	config := &tls.Config{ServerName: o.ServerName, MinVersion: tls.VersionTLS12, VerifyConnection: checkQueen}
	if len(o.CACert) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(o.CACert) {
			return nil, core.Errorf(core.Invalid, "there is no certificate in what should be the CA's").Hint("It is the file that begins with -----BEGIN CERTIFICATE-----.")
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

// do makes a request to the queens in turn until one answers, and returns its answer, whose body
// the caller closes, and which queen that is. An answer of status 400 or above is an error.
func (c *Client) do(ctx context.Context, r call) (*http.Response, int, error) {
	order := c.health.order(time.Now())
	var said, last error // what a queen said that could not help, and why the last one said nothing
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
			if !sent && errors.Is(ctx.Err(), context.DeadlineExceeded) { // else the next call would wait for it as well
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

// elsewhere says whether another queen may do better than one that answered with err.
func (r call) elsewhere(err error) bool {
	if stopping, ok := errors.AsType[*stoppingError](err); ok && stopping != nil {
		return r.upload == nil // which is read already
	}
	return core.KindOf(err) == core.Unavailable && !r.once && !r.model
}

// stoppingError is the answer of a queen that has done nothing, since it stops.
type stoppingError struct{ err error }

func (e *stoppingError) Error() string { return e.err.Error() }
func (e *stoppingError) Unwrap() error { return e.err }

// try makes a request to one queen, which is the attempt with this number. sent says that the queen
// may have got it. Where patience is not 0, the header of the answer must be there by then.
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
		h["Idempotency-Key"] = nil // not sent; net/http may send the request again where a used connection was closed meanwhile
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

// answerBody ends its request's context when it is closed.
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
		return core.Errorf(core.Unauthenticated, "%s answers as a queen and is none: %w", at, e).Hint(
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
	if err != nil && strings.Contains(err.Error(), "malformed HTTP") { // net/http's words; the type is its own
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

// spokeFirst ends net/http's error for a server that sends something before it is asked, as SSH's
// does. It is a wrapped nil.
const spokeFirst = "readLoopPeekFailLocked: %!w(<nil>)"

// unwrapURL takes off net/http's repetition of method and address.
func unwrapURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
