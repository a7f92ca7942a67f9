// Package client is the Go client of rbee's public HTTP API.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// DefaultAddress is where an agent with the default configuration serves the API.
const DefaultAddress = "http://127.0.0.1:7833"

// maxAnswer bounds an answer that is not a stream, in bytes.
const maxAnswer = 64 << 20

// Options says which queens to ask and how.
type Options struct {
	// Addresses of queens, such as "http://127.0.0.1:7833" or "host:7833"; empty: DefaultAddress.
	// A call goes to the one that answered last, then to the others in turn.
	Addresses []string
	Token     string // sent as bearer token; empty: none
	// CACert are the PEM certificates that queens' certificates must be signed by; empty: the system's. With them, an address without a scheme is https.
	CACert []byte
	// ServerName is the name that queens' certificates must be for; empty: that of the address. Every node's certificate is for "localhost", so that
	// name reaches a queen whatever it is called on the way.
	ServerName string
	// HTTPClient makes the requests; nil: one without a time limit, since streams last. The client never closes one that is given.
	HTTPClient *http.Client
	UserAgent  string // empty: "rbee"
}

// Client asks queens. It is safe for concurrent use. Every error is a core.Error with the kind and the hint that the queen gave;
// Unavailable when no queen can be reached.
type Client struct {
	addresses []string // without a slash at the end
	current   atomic.Int32
	token     string
	agent     string
	http      *http.Client
	own       *http.Transport // nil: the caller's
}

// New returns a client. It connects to nothing yet. Errors: Invalid for an address that cannot be read.
func New(o Options) (*Client, error) {
	c := &Client{token: o.Token, agent: o.UserAgent, http: o.HTTPClient}
	if len(o.Addresses) == 0 {
		o.Addresses = []string{DefaultAddress}
	}
	for _, a := range o.Addresses {
		address, err := parseAddress(a)
		if err != nil {
			return nil, err
		}
		c.addresses = append(c.addresses, address)
	}
	if c.agent == "" {
		c.agent = "rbee"
	}
	if c.http == nil {
		c.own = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: time.Second,
		}
		// A redirect could lead the token to a stranger; the API has none.
		c.http = &http.Client{Transport: c.own, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return c, nil
}

// Close drops idle connections. The client can be used on.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

func parseAddress(s string) (string, error) {
	full := strings.TrimSpace(s)
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return "", core.WithHint(core.Errorf("", core.Invalid, "%q is not the address of a queen", s), "Write it as http://host:7833.")
	}
	return u.Scheme + "://" + u.Host, nil
}

// Address is the queen that answered last, or the first configured one.
func (c *Client) Address() string { return c.addresses[c.current.Load()] }

// call is one request.
type call struct {
	method, path string
	body         []byte // nil: none
	accept       string // empty: application/json
	lastEvent    string
	once         bool // must not be sent twice: only a connection that was refused is tried elsewhere
}

// do makes a request to the queens in turn until one answers, and returns its answer, whose body the caller closes. An answer of status 400 or above is an error.
func (c *Client) do(ctx context.Context, r call) (*http.Response, error) {
	first := int(c.current.Load())
	var last error
	for i := range c.addresses {
		n := (first + i) % len(c.addresses)
		resp, err := c.try(ctx, c.addresses[n], r)
		if err == nil {
			c.current.Store(int32(n)) //nolint:gosec // a handful of addresses
			return resp, statusError(resp)
		}
		if ctx.Err() != nil {
			return nil, core.E("", core.KindOf(ctx.Err()), context.Cause(ctx))
		}
		last = err
		if op, ok := errors.AsType[*net.OpError](err); r.once && (!ok || op.Op != "dial") {
			return nil, core.WithHint(core.Errorf("", core.Unavailable, "the connection to %s broke: %w", c.addresses[n], unwrapURL(err)), "It is not known whether the request was carried out: look before you repeat it.")
		}
	}
	return nil, c.unreachable(last)
}

func (c *Client) try(ctx context.Context, address string, r call) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, address+r.path, body)
	if err != nil {
		return nil, err
	}
	h := req.Header
	h.Set("User-Agent", c.agent)
	h.Set("Accept", "application/json")
	if r.accept != "" {
		h.Set("Accept", r.accept)
	}
	if r.body != nil {
		h.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	if r.lastEvent != "" {
		h.Set("Last-Event-ID", r.lastEvent)
	}
	return c.http.Do(req)
}

func (c *Client) unreachable(err error) error {
	return core.WithHint(core.Errorf("", core.Unavailable, "no agent answers at %s: %w", strings.Join(c.addresses, ", "), unwrapURL(err)),
		"Start one with `rbee agent -dev`, or say where one runs with RBEE_ADDR.")
}

// unwrapURL takes off net/http's repetition of method and address.
func unwrapURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// statusError is nil for an answer of success; otherwise the error that the answer tells, and the answer is closed.
func statusError(resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what came is enough for a message
	if resp.StatusCode < 400 {
		return notRbee(fmt.Sprintf("status %d", resp.StatusCode))
	}
	return errorOf(openai.DecodeError(resp.StatusCode, body))
}

// errorOf is a queen's or a worker's error as a classified one.
func errorOf(e *openai.Error) error {
	kind := core.Kind(e.Kind)
	if kind == "" {
		kind = kindOfStatus(e.Status)
	}
	return &core.Error{Kind: kind, Hint: e.Hint, Err: errors.New(e.Error())}
}

// kindOfStatus is for answers that name no kind, such as those of workers and of proxies in between.
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

func notRbee(what string) error {
	return core.WithHint(core.Errorf("", core.Invalid, "the server answers as no rbee agent does: %s", what), "Look whether the address is right.")
}

// fetch makes a request and decodes its answer.
func fetch[T any](ctx context.Context, c *Client, r call) (T, error) {
	v, _, err := fetchWithHeader[T](ctx, c, r)
	return v, err
}

func fetchWithHeader[T any](ctx context.Context, c *Client, r call) (T, http.Header, error) {
	var v T
	resp, err := c.do(ctx, r)
	if err != nil {
		return v, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case ctx.Err() != nil:
		return v, nil, core.E("", core.KindOf(ctx.Err()), context.Cause(ctx))
	case err != nil:
		return v, nil, core.Errorf("", core.Unavailable, "the answer was cut: %w", err)
	case len(body) > maxAnswer:
		return v, nil, core.Errorf("", core.TooLarge, "the answer is longer than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, nil, notRbee(err.Error())
	}
	return v, resp.Header, nil
}

// list is the form of every list of the API.
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
