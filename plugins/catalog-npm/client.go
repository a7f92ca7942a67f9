package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

const (
	maxRedirects  = 5
	maxAttempts   = 5 // without any progress
	maxRetryAfter = 30 * time.Second
	dialTimeout   = 15 * time.Second
)

// client sends requests to registries. They carry credentials only for addresses that have some in
// the settings, wherever a redirect leads.
type client struct {
	settings  *settings
	http      *http.Client
	userAgent string
	stall     time.Duration // a transfer that stalls this long is aborted
	backoff   time.Duration // before the first retry; doubled each time
}

// newClient makes a client. private allows addresses of this machine and its own network that no
// setting names.
func newClient(s *settings, userAgent string, stall, backoff time.Duration, private bool) (*client, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	d := &dialer{settings: s, private: private}
	transport := &http.Transport{
		Proxy:               func(r *http.Request) (*url.URL, error) { return s.proxy(r.URL) },
		DialContext:         d.dial,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, InsecureSkipVerify: s.values["strict-ssl"] == "false"},
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
		ForceAttemptHTTP2:   true,
		// More than any sane registry sends.
		MaxResponseHeaderBytes: 256 << 10,
	}
	return &client{
		settings: s, userAgent: userAgent, stall: stall, backoff: backoff,
		// Follow redirects by hand: each hop gets only the credentials of its own address.
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// roots returns the certificates to verify registries with; nil for the system's.
func (s *settings) roots() (*x509.CertPool, error) {
	var pool *x509.CertPool
	add := func(what string, pem []byte) error {
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", what)
		}
		return nil
	}
	inline := s.lists["ca"]
	if v := s.set("ca"); v != "" {
		inline = append(slices.Clip(inline), v)
	}
	if len(inline) > 0 || s.set("cafile") != "" {
		pool = x509.NewCertPool() // npm's own meaning: these and no others
	}
	for _, text := range inline {
		if err := add("npm's setting ca", []byte(strings.ReplaceAll(text, `\n`, "\n"))); err != nil {
			return nil, err
		}
	}
	if name := s.set("cafile"); name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("npm's setting cafile: %w", err)
		}
		if err := add(name, b); err != nil {
			return nil, err
		}
	}
	if name := s.values["extra-ca"]; name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("NODE_EXTRA_CA_CERTS: %w", err)
		}
		if pool == nil {
			if pool, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("the system's certificates: %w", err)
			}
		}
		if err := add(name, b); err != nil {
			return nil, err
		}
	}
	return pool, nil
}

// dialer connects. A host that no setting names, because a registry's answer led to it, must have a
// public address: otherwise anyone who can publish a package could make this machine query its
// neighbours.
type dialer struct {
	settings *settings
	private  bool
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nd := &net.Dialer{Timeout: dialTimeout}
	if !d.private && !d.trusted(address) {
		nd.Control = func(_, resolved string, _ syscall.RawConn) error {
			ip, err := netip.ParseAddrPort(resolved)
			if err != nil {
				return err
			}
			if !public(ip.Addr()) && !slices.ContainsFunc(d.settings.allow, func(p netip.Prefix) bool { return p.Contains(ip.Addr().Unmap()) }) {
				return fmt.Errorf("%w: %s is not a public address", errPrivate, ip.Addr())
			}
			return nil
		}
	}
	return nd.DialContext(ctx, network, address)
}

var errPrivate = errors.New("refused")

// trusted reports whether the settings name this host as a registry, with credentials, or as a
// proxy.
func (d *dialer) trusted(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	for _, h := range []string{address, host} {
		if (h == address || port == "443" || port == "80") && d.settings.known(h) {
			return true
		}
	}
	for _, scheme := range []string{"http", "https"} {
		p, err := d.settings.proxy(&url.URL{Scheme: scheme, Host: "any.invalid"})
		if err == nil && p != nil && strings.EqualFold(p.Hostname(), host) {
			return true
		}
	}
	return false
}

// sharedSpace is the address space of providers' own networks, RFC 6598.
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !sharedSpace.Contains(ip)
}

// do sends a request and follows its redirects. The caller closes the body.
func (c *client) do(ctx context.Context, method string, u *url.URL, header http.Header) (*http.Response, error) {
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		maps.Copy(req.Header, header)
		req.Header.Set("User-Agent", c.userAgent)
		if a := c.settings.authorization(u); a != "" {
			req.Header.Set("Authorization", a)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		next, err := resp.Location()
		_ = resp.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("%s redirects without a usable address: %w", u.Redacted(), catalog.ErrUnavailable)
		}
		if next.Scheme != "https" && (next.Scheme != "http" || u.Scheme == "https") {
			return nil, fmt.Errorf("%s redirects to %s, which is less secure: %w", u.Redacted(), next.Redacted(), catalog.ErrUnavailable)
		}
		next.User = nil
		u = next
	}
	return nil, fmt.Errorf("%s redirects more than %d times: %w", u.Redacted(), maxRedirects, catalog.ErrUnavailable)
}

// errStalled is the cause of a transfer aborted because no bytes arrived.
var errStalled = errors.New("nothing has come for too long")

// watched returns a context that ends when kick has not been called for the stall time.
func (c *client) watched(ctx context.Context) (watched context.Context, kick, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("%w (%s)", errStalled, c.stall)) })
	return ctx, func() { timer.Reset(c.stall) }, func() {
		timer.Stop()
		cancel(context.Canceled)
	}
}

// body reads a response and resets the stall timer.
type body struct {
	io.ReadCloser
	kick func()
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.kick()
	}
	return n, err
}

// cause returns why a request's context ended, if that is why the request failed.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(c, errStalled) {
		return c
	}
	return err
}

// failure is an unexpected response.
type failure struct {
	url        *url.URL
	status     int
	retryAfter time.Duration
}

func (f *failure) Error() string {
	return fmt.Sprintf("%s answers %d %s", f.url.Redacted(), f.status, http.StatusText(f.status))
}

func (f *failure) temporary() bool {
	return f.status == http.StatusTooManyRequests || f.status == http.StatusRequestTimeout || f.status >= 500 && f.status != http.StatusNotImplemented
}

func failed(u *url.URL, resp *http.Response) *failure {
	f := &failure{url: u, status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		f.retryAfter = min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	return f
}

// again reports whether to retry a failed attempt, and waits before it. attempt counts from 1 since
// the last progress.
func (c *client) again(ctx context.Context, attempt int, err error) bool {
	if ctx.Err() != nil || attempt >= maxAttempts || !temporary(err) {
		return false
	}
	wait := c.backoff << (attempt - 1)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1))
	if f, ok := errors.AsType[*failure](err); ok {
		wait = max(wait, f.retryAfter)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// temporary reports whether the same request may succeed a little later.
func temporary(err error) bool {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.temporary()
	}
	if errors.Is(err, errPrivate) || isCertificate(err) || isSentinel(err) {
		return false
	}
	return true // a connection that broke or failed
}

func isCertificate(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

// isSentinel reports whether err is already classified.
func isSentinel(err error) bool {
	for _, s := range []error{catalog.ErrInvalid, catalog.ErrNotFound, catalog.ErrUnavailable, catalog.ErrUnauthenticated, catalog.ErrForbidden, catalog.ErrUnsupported, catalog.ErrIntegrity} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// explain classifies an error of a request to u, and adds what the user can do about it.
func (c *client) explain(ctx context.Context, u *url.URL, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return c.explainStatus(u, f)
	}
	switch {
	case errors.Is(err, errPrivate):
		return sdk.WithHint(fmt.Errorf("%s: %w: %w", u.Host, bare(err), catalog.ErrForbidden),
			"A registry led to an address inside this network. If that is meant to be, set it as registry in %s, or add the address to hive.download.allow_addresses.", c.settings.file())
	case isSentinel(err):
		return err
	case isCertificate(err):
		return sdk.WithHint(fmt.Errorf("%s cannot be trusted: %w: %w", u.Host, err, catalog.ErrUnavailable),
			"If your network has certificates of its own, set cafile in %s to the file that holds them.", c.settings.file())
	}
	via := ""
	if p, perr := c.settings.proxy(u); perr == nil && p != nil {
		via = " through the proxy " + p.Host
	}
	return sdk.WithHint(fmt.Errorf("%s cannot be reached%s: %w: %w", u.Host, via, bare(err), catalog.ErrUnavailable),
		"Check the network. If it needs a proxy or has a registry of its own, set https-proxy or registry in %s, or NPM_CONFIG_HTTPS_PROXY or NPM_CONFIG_REGISTRY in the agent's environment.", c.settings.file())
}

// bare returns an error without the request's method and address, which may hold a password.
func bare(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func (c *client) explainStatus(u *url.URL, f *failure) error {
	where := f.url
	setting := fmt.Sprintf("//%s/:_authToken in %s", where.Host, c.settings.file())
	switch {
	case f.status == http.StatusUnauthorized || f.status == http.StatusForbidden:
		kind := catalog.ErrUnauthenticated
		hint := fmt.Sprintf("It wants credentials: set %s.", setting)
		if c.settings.authorization(where) != "" {
			hint = fmt.Sprintf("It does not accept the credentials that it is given: renew %s.", setting)
			if f.status == http.StatusForbidden {
				kind = catalog.ErrForbidden
			}
		}
		if len(c.settings.unset) > 0 {
			hint += fmt.Sprintf(" The environment variable %s, which the settings ask for, does not reach the plugin: name it in env of the block catalog \"npm\".", c.settings.unset[0])
		}
		return sdk.WithHint(fmt.Errorf("%w: %w", f, kind), "%s", hint)
	case f.status == http.StatusProxyAuthRequired:
		return sdk.WithHint(fmt.Errorf("%w: %w", f, catalog.ErrUnauthenticated), "The proxy wants credentials: write them into https-proxy in %s.", c.settings.file())
	case f.status == http.StatusNotFound || f.status == http.StatusGone:
		return fmt.Errorf("%w: %w", f, catalog.ErrNotFound)
	case f.temporary():
		return sdk.WithHint(fmt.Errorf("%w: %w", f, catalog.ErrUnavailable), "The registry has trouble. Try again later, or set another registry in %s.", c.settings.file())
	}
	return sdk.WithHint(fmt.Errorf("%w: %w", f, catalog.ErrUnavailable), "Is %s an npm registry? It is set by registry in %s.", u.Host, c.settings.file())
}

// file returns the npmrc to change.
func (s *settings) file() string { return cmp.Or(s.user, "~/.npmrc") }
