package client

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// DefaultPort is the port of an address that names neither port nor scheme.
const DefaultPort = 7833

// queenAddress is the address of one queen.
type queenAddress struct {
	url     string // scheme, host and port, without a trailing slash
	clear   bool   // without TLS
	spelled bool   // the scheme was written out
}

// parseAddress parses a queen's address as people write it: "host", "host:port", "::1",
// "[::1]:7833", ":7833", "7833", each with or without a scheme, and with the path /v1 that OpenAI
// clients use. 0.0.0.0 and [::], on which an agent listens, mean this machine. Without a scheme,
// the port defaults to DefaultPort and the address uses TLS if secure returns true for its host.
// With a scheme, the port defaults to the scheme's. Errors: Invalid.
func parseAddress(s string, secure func(host string) bool) (queenAddress, error) {
	shown := s[strings.LastIndex(s, "@")+1:] // without a password
	bad := core.Errorf(core.Invalid, "%q is not the address of a queen", shown).Hint("Write it as host or host:7833, or as https://host:7833 in a cluster.")
	rest := strings.TrimSpace(s)
	scheme, after, spelled := strings.Cut(rest, "://")
	if spelled {
		if scheme, rest = strings.ToLower(scheme), after; scheme != "http" && scheme != "https" {
			return queenAddress{}, bad
		}
	}
	rest, path, _ := strings.Cut(rest, "/")
	if path = strings.Trim(path, "/"); path != "" && path != "v1" || strings.ContainsAny(rest, "@?#\\") {
		return queenAddress{}, bad
	}
	host, port, ok := splitAddress(rest)
	if !ok {
		return queenAddress{}, bad
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		if host = "127.0.0.1"; ip.Is6() && !ip.Is4In6() {
			host = "::1"
		}
	}
	if !spelled {
		if scheme = "http"; secure(host) {
			scheme = "https"
		}
		if port == "" {
			port = strconv.Itoa(DefaultPort)
		}
	}
	hostport := strings.ReplaceAll(host, "%", "%25") // of an IPv6 zone
	switch {
	case port != "":
		hostport = net.JoinHostPort(hostport, port)
	case strings.Contains(host, ":"):
		hostport = "[" + hostport + "]"
	}
	a := queenAddress{url: scheme + "://" + hostport, clear: scheme == "http", spelled: spelled}
	if u, err := url.Parse(a.url); err != nil || u.Hostname() == "" || u.Path != "" {
		return queenAddress{}, bad
	}
	return a, nil
}

// splitAddress splits host and port; an empty port was not given, and an empty host means this
// machine.
func splitAddress(s string) (host, port string, ok bool) {
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	ip, err := netip.ParseAddr(bare)
	bracketed := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]")
	switch {
	case err == nil && (bare == s || bracketed && ip.Is6()):
		return bare, "", true
	case s == "" || bracketed:
		return "", "", false
	case strings.Trim(s, "0123456789") == "":
		host, port = "127.0.0.1", s
	case strings.Contains(s, ":"):
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", "", false
		}
		if host == "" {
			host = "127.0.0.1"
		}
		if _, err := netip.ParseAddr(host); err != nil && strings.HasPrefix(s, "[") {
			return "", "", false
		}
	default:
		return s, "", !strings.ContainsAny(s, " \t\r\n[]%")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, port, err == nil && n > 0 && !strings.ContainsAny(host, " \t\r\n[]")
}

// isLoopback reports whether a host is certainly this machine.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// lookupTimeout bounds the look-up of a name before falling back to a proxy.
const lookupTimeout = 2 * time.Second

// direct bypasses the proxy that proxy returns for requests to private addresses: a proxy in
// another network could not reach them, and would see the tokens of requests without TLS.
func direct(proxy func(*http.Request) (*url.URL, error), lookup func(ctx context.Context, host string) ([]netip.Addr, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		p, err := proxy(r)
		if p == nil || err != nil || isPrivate(r.Context(), r.URL.Hostname(), lookup) {
			return nil, err
		}
		return p, nil
	}
}

// isPrivate reports whether a host is not on the internet. A name that does not resolve here counts
// as public: the proxy may know it.
func isPrivate(ctx context.Context, host string, lookup func(context.Context, string) ([]netip.Addr, error)) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return isPrivateAddress(ip)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if !strings.Contains(host, ".") || slices.ContainsFunc([]string{".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa"}, func(s string) bool { return strings.HasSuffix(host, s) }) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := lookup(ctx, host)
	return err == nil && slices.ContainsFunc(ips, isPrivateAddress)
}

func isPrivateAddress(ip netip.Addr) bool {
	ip = ip.Unmap()
	shared := netip.MustParsePrefix("100.64.0.0/10") // RFC 6598; used by VPNs
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || shared.Contains(ip)
}
