package gateway

import (
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/rbee-project/rbee/core"
)

const maxRequestID = 128

// requestID is the client's own where it is harmless in a header and a log, else a new one.
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

// guard refuses what a web page of a stranger can make a browser send: requests under another name
// that resolves to loopback (DNS rebinding), and writes from another origin.
func (g *Gateway) guard(r *http.Request) error {
	if onLoopback(r) && !g.hostAllowed(r.Host) {
		g.metrics.refused.WithLabelValues(refusedHost).Inc()
		return core.Errorf(core.Forbidden, "the host name %q is not one of this server's", clip(r.Host, 100)).Hint(
			"Use localhost or 127.0.0.1, or add the name to the configuration.")
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	if origin := r.Header.Get("Origin"); origin != "" || r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) || len(r.Header.Values("Origin")) != 1 || r.Header.Get("Sec-Fetch-Site") == "cross-site" {
			g.metrics.refused.WithLabelValues(refusedOrigin).Inc()
			return core.Errorf(core.Forbidden, "requests from web pages of another origin are refused").Hint(
				"Call the API from a program, or from a page that this server's own address serves.")
		}
	}
	return nil
}

// onLoopback says whether r came in on a loopback address, where only programs of this machine,
// browsers included, can be the client. What is not known counts as loopback; a unix socket does
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

func (g *Gateway) hostAllowed(host string) bool {
	if host == "" { // HTTP/1.0, as health checks of proxies send it; browsers cannot
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
	return err == nil && ip.Zone() == "" && ip.Unmap().IsLoopback()
}
