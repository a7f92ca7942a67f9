// Package origin is an HTTP client for origins on the internet: it guards addresses, follows
// redirects, keeps credentials where they belong, and bounds replies.
//
// Strangers choose the addresses in a reference, in an origin's reply or in a redirect. A [Client]
// connects only to public addresses, and to private ones that the configuration allows. It checks
// the address that it dials, after the name lookup, so that changing a name's address a moment
// later does not help an attacker. It follows at most 5 redirects, checks each one anew, and never
// follows one from https to http. Headers added by a caller go only to the first origin (scheme,
// host and port); except those of HTTP itself, they are dropped once a redirect leads elsewhere.
//
// A configured proxy resolves names and is trusted to guard them; literal addresses are still
// checked here.
package origin

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// MaxRedirects is the most redirects that a request follows.
const MaxRedirects = 5

// Options configure a Client. The zero value connects to public origins without a proxy and with
// the system's certificates.
type Options struct {
	// Allow lists addresses that may be dialled although they are not public. See ParsePrefixes.
	Allow []netip.Prefix
	// Environ is the environment, in the form of os.Environ, for HTTPS_PROXY, HTTP_PROXY, NO_PROXY
	// and SSL_CERT_FILE.
	Environ   []string
	UserAgent string         // sent if a request sets none; empty: Go's
	Resolver  *net.Resolver  // nil: the system's
	Roots     *x509.CertPool // nil: the system's, plus those of SSL_CERT_FILE in Environ
	// DialTimeout bounds connecting, HeaderTimeout the wait for a reply's header. 0: 15 s and 30 s.
	DialTimeout, HeaderTimeout time.Duration
	// Backoff is the pause before the first retry of a failed request; it doubles each time. 0: 500
	// ms.
	Backoff time.Duration
	// Stall is how long a transfer may receive no bytes before it is aborted. 0: 30 s.
	Stall time.Duration
}

// Client sends requests to origins. It is safe for concurrent use. The caller must Close it.
type Client struct {
	o    Options
	http *http.Client
	rt   *transport
}

// New returns a Client. Errors: ErrInvalid for an unusable proxy or certificate file.
func New(o Options) (*Client, error) {
	o.DialTimeout = cmp.Or(o.DialTimeout, 15*time.Second)
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, 30*time.Second)
	o.Backoff = cmp.Or(o.Backoff, 500*time.Millisecond)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	env := func(names ...string) string {
		for _, name := range names {
			for _, entry := range slices.Backward(o.Environ) {
				if v, ok := strings.CutPrefix(entry, name+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
	if file := env("SSL_CERT_FILE"); o.Roots == nil && file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, sdk.WithHint(fmt.Errorf("SSL_CERT_FILE: %w: %w", err, sdk.ErrInvalid), "Correct the variable in the agent's environment.")
		}
		// Keep the system's roots: on Linux they already include those of the variable, and on
		// macOS Go ignores the variable.
		if o.Roots, err = x509.SystemCertPool(); err != nil {
			o.Roots = x509.NewCertPool()
		}
		if !o.Roots.AppendCertsFromPEM(pem) {
			return nil, sdk.WithHint(fmt.Errorf("SSL_CERT_FILE: %s holds no certificate: %w", file, sdk.ErrInvalid), "It must hold certificates in PEM.")
		}
	}
	proxies := httpproxy.Config{HTTPProxy: env("http_proxy", "HTTP_PROXY"), HTTPSProxy: env("https_proxy", "HTTPS_PROXY")}
	for scheme, set := range map[string]string{"http": proxies.HTTPProxy, "https": proxies.HTTPSProxy} {
		// Otherwise an unreadable setting would silently disable the proxy.
		if p, err := proxies.ProxyFunc()(&url.URL{Scheme: scheme, Host: "any.invalid"}); set != "" && (err != nil || p == nil) {
			return nil, sdk.WithHint(fmt.Errorf("unusable proxy address for %s: %w", scheme, sdk.ErrInvalid), "Correct HTTPS_PROXY or HTTP_PROXY in the agent's environment.")
		}
	}
	proxies.NoProxy = env("no_proxy", "NO_PROXY")
	proxy := proxies.ProxyFunc()
	t := &transport{guard: &guard{allow: o.Allow}, proxy: proxy, userAgent: o.UserAgent}
	t.direct = o.transport(func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		d := &net.Dialer{Timeout: o.DialTimeout, Resolver: o.Resolver, Control: func(_, resolved string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return fmt.Errorf("%s: %w: %w", host, err, sdk.ErrForbidden)
			}
			return t.guard.check(host, at.Addr())
		}}
		return d.DialContext(ctx, network, address)
	})
	// It dials only proxies, which may well be on a private network.
	t.proxied = o.transport((&net.Dialer{Timeout: o.DialTimeout, Resolver: o.Resolver}).DialContext)
	t.proxied.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	return &Client{o: o, rt: t, http: &http.Client{Transport: t, CheckRedirect: checkRedirect}}, nil
}

func (o Options) transport(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:           dial,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots},
		TLSHandshakeTimeout:   o.DialTimeout,
		ResponseHeaderTimeout: o.HeaderTimeout,
		// More than any sane origin sends.
		MaxResponseHeaderBytes: 256 << 10,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
		// A file's digest is that of its raw bytes, and replies are decompressed with a limit.
		DisableCompression: true,
	}
}

// Close closes idle connections.
func (c *Client) Close() {
	c.rt.direct.CloseIdleConnections()
	c.rt.proxied.CloseIdleConnections()
}

// HTTP returns the client for callers that need an *http.Client. Its errors are raw; classify them
// with Explain.
func (c *Client) HTTP() *http.Client { return c.http }

// Do sends req, follows its redirects and returns the reply, whatever its status. The caller closes
// the body, which is not bounded. Errors: see Explain.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil { // the body of a refused redirect is already closed
		return nil, c.Explain(req.Context(), req.URL, err)
	}
	return resp, nil
}

// transport checks a request's address and sends it directly or through a proxy.
type transport struct {
	guard           *guard
	proxy           func(*url.URL) (*url.URL, error)
	userAgent       string
	direct, proxied *http.Transport
}

// RoundTrip sends one request.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	via, err := t.proxy(req.URL)
	if err == nil {
		err = t.guard.checkURL(req.URL)
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if t.userAgent != "" && req.Header.Get("User-Agent") == "" {
		req = req.Clone(req.Context())
		req.Header.Set("User-Agent", t.userAgent)
	}
	if via != nil {
		return t.proxied.RoundTrip(req)
	}
	return t.direct.RoundTrip(req)
}

// errRedirect reports a redirect that was refused.
var errRedirect = errors.New("redirect refused")

// checkRedirect checks the next hop and removes the headers that it must not see. net/http has
// already copied the first request's headers to it.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	if len(via) > MaxRedirects {
		return fmt.Errorf("%w: %s redirects more than %d times: %w", errRedirect, first.URL.Host, MaxRedirects, sdk.ErrUnavailable)
	}
	if last.URL.Scheme == "https" && req.URL.Scheme == "http" {
		return fmt.Errorf("%w: %s redirects to %s without encryption: %w", errRedirect, last.URL.Host, req.URL.Host, sdk.ErrForbidden)
	}
	req.URL.User = nil
	req.Header.Del("Referer") // the previous address may hold a signature
	// Once a redirect has left the origin, headers are never restored: whoever controls the
	// redirect back is not the origin that they are for.
	left := !SameOrigin(first.URL, req.URL) || slices.ContainsFunc(via, func(r *http.Request) bool { return !SameOrigin(first.URL, r.URL) })
	if left {
		maps.DeleteFunc(req.Header, func(name string, _ []string) bool { return !slices.Contains(plainHeaders(), name) })
	}
	return nil
}

// plainHeaders returns the headers that do not identify the caller.
func plainHeaders() []string {
	return []string{"Accept", "Accept-Encoding", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range", "User-Agent"}
}

// SameOrigin reports whether two addresses have the same scheme, host and port.
func SameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if u.Port() != "" {
			return u.Port()
		}
		return map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// Redact returns u without the parts that may be secret: name, password, query and fragment.
func Redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
