package gateway

import (
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rbee-project/rbee/core"
)

const maxRequestID = 128

// requestID returns the client's own id if it is safe in a header and a log, otherwise a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > maxRequestID {
		return rand.Text()
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:/+=@", rune(c)) {
			return rand.Text()
		}
	}
	return id
}

// guard keeps hostile web pages away from the API.
type guard struct {
	hosts   map[string]bool // Options.Hosts, lower case
	origins map[string]bool // Options.Origins, lower case
	refused *prometheus.CounterVec
}

func newGuard(o Options, m *Metrics) guard {
	g := guard{hosts: map[string]bool{}, origins: map[string]bool{}, refused: m.refused}
	for _, h := range o.Hosts {
		g.hosts[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	for _, origin := range o.Origins {
		g.origins[strings.ToLower(origin)] = true
	}
	return g
}

// check refuses what a hostile web page can make a browser send: requests under a foreign name that
// resolves to loopback (DNS rebinding), and writes from another origin. It tells browsers which
// pages may read the answer.
func (g *guard) check(w *response, r *http.Request) error {
	if onLoopback(r) && !g.hostAllowed(r.Host) {
		g.refused.WithLabelValues(refusedHost).Inc()
		return core.Errorf(core.Forbidden, "the host name %q is not one of this server's", clip(r.Host, 100)).Hint(
			"Use localhost or 127.0.0.1, or add the name to http { allow_hosts } in the configuration.")
	}
	origin := r.Header.Get("Origin")
	if origin == "" && r.Header.Get("Sec-Fetch-Site") != "cross-site" {
		return nil
	}
	if g.originAllowed(r) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", origin)
		h.Add("Vary", "Origin")
		h.Set("Access-Control-Expose-Headers", "X-Request-Id, X-Rbee-Worker, X-Rbee-Route, Retry-After")
		return nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || sameOrigin(r) {
		return nil
	}
	g.refused.WithLabelValues(refusedOrigin).Inc()
	return core.Errorf(core.Forbidden, "requests from web pages of another origin are refused").Hint(
		"Call the API from a program, or add the page's origin to http { allow_origins } in the configuration.")
}

// originAllowed reports whether the configuration allows the page that sent r to call the API.
func (g *guard) originAllowed(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) != 1 || origins[0] == "" {
		return false
	}
	return g.origins["*"] || g.origins[strings.ToLower(origins[0])]
}

// sameOrigin reports whether the page that sent r was served by this server.
func sameOrigin(r *http.Request) bool {
	u, err := url.Parse(r.Header.Get("Origin"))
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) && len(r.Header.Values("Origin")) == 1 && r.Header.Get("Sec-Fetch-Site") != "cross-site"
}

const (
	preflightAge = "600" // seconds that a browser may cache the answer
	maxPreflight = 1024  // bytes of the headers that a page requests
)

// preflight answers a CORS preflight request, and reports whether r is one. The guard has already
// accepted the page.
func (g *guard) preflight(w *response, r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" || w.Header().Get("Access-Control-Allow-Origin") == "" {
		return false
	}
	w.route = "OPTIONS"
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS")
	if wanted := r.Header.Get("Access-Control-Request-Headers"); wanted != "" && len(wanted) <= maxPreflight {
		h.Set("Access-Control-Allow-Headers", wanted)
	}
	h.Set("Access-Control-Max-Age", preflightAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}

// tidyPath corrects frequent results of joining a base URL and a route: doubled slashes and a
// doubled version.
func tidyPath(u *url.URL) {
	if u.RawPath != "" {
		return // it contains escapes, which stay unchanged
	}
	for strings.Contains(u.Path, "//") {
		u.Path = strings.ReplaceAll(u.Path, "//", "/")
	}
	if rest, ok := strings.CutPrefix(u.Path, "/v1/v1/"); ok {
		u.Path = "/v1/" + rest
	}
}

// onLoopback reports whether r arrived on a loopback address, where only programs of this machine,
// browsers included, can be the client. An unknown address counts as loopback; a unix socket does
// not, since no browser can reach it.
func onLoopback(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	switch a := addr.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return false
	}
	return true
}

func (g *guard) hostAllowed(host string) bool {
	if host == "" { // HTTP/1.0, as in health checks of proxies; browsers cannot send it
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "localhost" || g.hosts[name] {
		return true
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	return err == nil && ip.Zone() == "" && (ip.Unmap().IsLoopback() || ip.Unmap().IsUnspecified())
}
