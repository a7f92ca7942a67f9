// Package client is the Go client of rbee's public HTTP API.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// DefaultAddress is where an agent with the default configuration serves the API.
const DefaultAddress = "http://127.0.0.1:7833"

// DefaultSecureAddress is the equivalent for an agent in a cluster.
const DefaultSecureAddress = "https://127.0.0.1:7833"

// maxAnswer bounds an answer that is not a stream, in bytes.
const maxAnswer = 64 << 20

// Options say which queens to ask and how.
type Options struct {
	// Addresses of queens, such as "http://127.0.0.1:7833", "host:7833" or "::1"; empty:
	// DefaultAddress, or https with CACert or ServerName. An address without a scheme uses TLS if
	// CACert or ServerName is set, or if a Token is set and the host is not this machine. A call
	// goes to the queen that answered last, and moves on to the others in turn when that queen
	// cannot be reached or stops. If repeating the request is safe, it also moves on when the
	// connection breaks or the queen is temporarily unable to help, for example without a leader.
	Addresses []string
	// Token is sent as the bearer token; empty: none. It is sent only over TLS, unless TokenInClear
	// is set.
	Token string
	// TokenInClear also sends Token to addresses written with http://, where anyone on the way can
	// read it. See InClear.
	TokenInClear bool
	// CACert holds the PEM certificates of the CAs that must have signed a queen's certificate;
	// empty: the system's.
	CACert []byte
	// ServerName is the name for which a queen's certificate must be valid; empty: the host of the
	// address. Every queen's certificate is valid for "localhost", so that name reaches a queen at
	// any address. A certificate of a cluster must always be a queen's; see checkQueen.
	ServerName string
	// HTTPClient makes the requests; nil: a client without a time limit, since streams last. Close
	// does not close a client passed here.
	HTTPClient *http.Client
	UserAgent  string // empty: "rbee"
}

// Client calls queens. It is safe for concurrent use. Every error is a core.Error with the kind and
// the hint that the queen returned; Unavailable when no queen can be reached.
type Client struct {
	queens []string // their addresses, without a trailing slash
	open   []bool   // for each queen: send it the token even without TLS
	health *health
	token  string
	agent  string
	http   *http.Client
	own    *http.Transport // nil: the caller passed HTTPClient
}

// New returns a client. It does not connect yet. Errors: Invalid for a malformed address or
// certificate.
func New(o Options) (*Client, error) {
	c := &Client{token: o.Token, agent: o.UserAgent, http: o.HTTPClient}
	verified := len(o.CACert) > 0 || o.ServerName != ""
	switch {
	case len(o.Addresses) > 0:
	case verified:
		o.Addresses = []string{DefaultSecureAddress}
	default:
		o.Addresses = []string{DefaultAddress}
	}
	for _, s := range o.Addresses {
		a, err := parseAddress(s, func(host string) bool { return verified || o.Token != "" && !isLoopback(host) })
		if err != nil {
			return nil, err
		}
		c.queens, c.open = append(c.queens, a.url), append(c.open, a.clear && a.spelled && o.TokenInClear)
	}
	c.health = newHealth(len(c.queens))
	if c.agent == "" {
		c.agent = "rbee"
	}
	if c.http == nil {
		var err error
		if c.own, err = newTransport(o, len(c.queens) > 1); err != nil {
			return nil, err
		}
		// A redirect could leak the token to another host; the API uses none.
		c.http = &http.Client{Transport: c.own, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	} else if len(o.CACert) > 0 || o.ServerName != "" {
		return nil, core.Errorf(core.Invalid, "an HTTP client has its own certificates and server name")
	}
	return c, nil
}

// Close drops idle connections. The client remains usable.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// Base returns the URL, without a path, of the queen that is tried first.
func (c *Client) Base() string { return c.queens[0] }

// InClear lists the addresses without TLS to which the token is sent.
func (c *Client) InClear() []string {
	var list []string
	for n, queen := range c.queens {
		if c.open[n] && c.token != "" {
			list = append(list, queen)
		}
	}
	return list
}

// Address returns the address of the queen that answered last, or the first configured one.
func (c *Client) Address() string { return c.queens[c.health.best()] }

// statusError returns the error of an unsuccessful response from the queen at address, and closes
// the response; nil for a successful one.
func statusError(resp *http.Response, address string) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))                                                                           // enough for a message
	if resp.StatusCode == http.StatusBadRequest && strings.HasPrefix(string(body), "Client sent an HTTP request to an HTTPS server") { // net/http's wording
		return core.Errorf(core.Invalid, "the server takes only TLS").Hint("Write the address with https://.")
	}
	var envelope struct {
		Error json.RawMessage `json:"error"`
	}
	if resp.StatusCode < 400 || json.Unmarshal(body, &envelope) != nil || len(envelope.Error) == 0 {
		return notRbee(resp, address, body)
	}
	return errorOf(openai.DecodeError(resp.StatusCode, body))
}

// errorOf converts a queen's or a worker's error to a classified one.
func errorOf(e *openai.Error) error {
	kind := core.Kind(e.Kind)
	if kind == "" {
		kind = kindOfStatus(e.Status)
	}
	err := core.WithHint(core.WithKind(errors.New(e.Error()), kind), "%s", e.Hint)
	if e.Code != nil && *e.Code == codeStopping {
		return &stoppingError{err}
	}
	return err
}

// kindOfStatus classifies answers that name no kind, such as those of workers and of proxies in
// between.
func kindOfStatus(status int) core.Kind {
	switch status {
	case http.StatusUnauthorized:
		return core.Unauthenticated
	case http.StatusForbidden:
		return core.Forbidden
	case http.StatusNotFound:
		return core.NotFound
	case http.StatusConflict:
		return core.Conflict
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return core.TooLarge
	case http.StatusTooManyRequests:
		return core.Overloaded
	case http.StatusNotImplemented:
		return core.Unsupported
	case http.StatusBadGateway:
		return core.WorkerLost
	case http.StatusServiceUnavailable:
		return core.Unavailable
	case http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return core.DeadlineExceeded
	}
	if status >= 400 && status < 500 {
		return core.Invalid
	}
	return core.Internal
}

// maxForeign bounds how much of a foreign server's answer is shown, in characters.
const maxForeign = 120

// notRbee returns the error for an answer that does not come from rbee: another server listens at
// this address, or a proxy cannot reach its queen.
func notRbee(resp *http.Response, address string, body []byte) error {
	kind := core.Invalid
	if resp.StatusCode >= 400 && resp.StatusCode != http.StatusNotFound { // perhaps from a proxy
		kind = kindOfStatus(resp.StatusCode)
	}
	said := "it answered " + resp.Status
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "")), " ")
	switch {
	case media == "text/html" || strings.HasPrefix(text, "<"):
		said += " with an HTML page"
	case text != "":
		if r := []rune(text); len(r) > maxForeign {
			text = string(r[:maxForeign]) + "…"
		}
		said += fmt.Sprintf(": %q", text)
	}
	return foreign(kind, address, said)
}

// ForeignError reports that something other than rbee answers at an address.
type ForeignError struct {
	Address string // including the scheme
	said    string
}

func (e *ForeignError) Error() string {
	return "the server at " + e.Address + " is not rbee: " + e.said
}

func foreign(kind core.Kind, address, said string) error {
	return core.WithHint(core.WithKind(&ForeignError{address, said}, kind),
		"Name the address of an agent, or end that server where an agent should be. Behind a proxy, look at the proxy.")
}

// fetch makes a request and decodes its answer.
func fetch[T any](ctx context.Context, c *Client, r call) (T, error) {
	v, _, err := fetchWithHeader[T](ctx, c, r)
	return v, err
}

func fetchWithHeader[T any](ctx context.Context, c *Client, r call) (T, http.Header, error) {
	var v T
	header, err := c.read(ctx, r, func(body []byte) error { return json.Unmarshal(body, &v) })
	return v, header, err
}

// read makes a request and passes the body of its answer to decode.
func (c *Client) read(ctx context.Context, r call, decode func(body []byte) error) (http.Header, error) {
	resp, n, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case ctx.Err() != nil:
		return nil, core.FromContext(ctx)
	case err != nil:
		return nil, core.Errorf(core.Unavailable, "the answer was cut: %w", err)
	case len(body) > maxAnswer:
		return nil, core.Errorf(core.TooLarge, "the answer is longer than %d bytes", maxAnswer)
	}
	if err := decode(body); err != nil {
		return nil, notRbee(resp, c.queens[n], body)
	}
	return resp.Header, nil
}

// list is the JSON form of every list in the API.
type list[T any] struct {
	Data []T `json:"data"`
}

func fetchList[T any](ctx context.Context, c *Client, path string, opts ...ReadOption) ([]T, error) {
	l, err := fetchOne[list[T]](ctx, c, path, opts...)
	return l.Data, err
}

func fetchOne[T any](ctx context.Context, c *Client, path string, opts ...ReadOption) (T, error) {
	r := readingOf(opts)
	v, header, err := fetchWithHeader[T](ctx, c, call{method: http.MethodGet, path: r.path(path)})
	if err == nil {
		r.report(header)
	}
	return v, err
}
