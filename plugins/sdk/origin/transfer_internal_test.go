package origin

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

func TestContentRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][3]int64{
		"bytes 5-9/10": {5, 10, 1}, "bytes */10": {0, 10, 1}, "bytes 5-9/*": {5, -1, 1}, "bytes 0-0/1": {0, 1, 1},
		"": {}, "5-9/10": {}, "bytes 9-5/10": {}, "bytes 5-10/10": {}, "bytes -5-9/10": {}, "bytes a-b/c": {}, "bytes 5-9": {}, "bytes 5-9/-1": {}, "bytes 5/10": {},
	} {
		start, whole, ok := contentRange(text)
		must.Eq(t, want[2] == 1, ok, must.Sprint(text))
		if ok {
			must.Eq(t, [2]int64{want[0], want[1]}, [2]int64{start, whole}, must.Sprint(text))
		}
	}
}

// An address that an IPv6-only network reaches through NAT64 is judged by the IPv4 address in it.
func TestGuardNAT64(t *testing.T) {
	t.Parallel()
	allow, err := ParsePrefixes([]string{"10.1.2.77/24", "fd00::1/64"})
	must.NoError(t, err)
	must.Eq(t, "[10.1.2.0/24 fd00::/64]", fmt.Sprint(allow))
	g := &guard{allow: allow}
	for text, ok := range map[string]bool{
		"8.8.8.8": true, "64:ff9b::8.8.8.8": true, "::ffff:8.8.8.8": true, "2600::1": true,
		"10.1.2.3": true, "64:ff9b::10.1.2.3": true, "::ffff:10.1.2.3": true, "fd00::9": true,
		"10.1.3.3": false, "64:ff9b::10.1.3.3": false, "fd00:0:0:1::9": false, "2600::1%eth0": false,
	} {
		err := g.check("host", netip.MustParseAddr(text))
		must.Eq(t, ok, err == nil, must.Sprint(text))
		must.Eq(t, !ok, errors.Is(err, sdk.ErrForbidden), must.Sprint(text))
	}
}

func TestSameOrigin(t *testing.T) {
	t.Parallel()
	for other, same := range map[string]bool{
		"https://a.example": true, "https://A.example:443/x": true,
		"http://a.example": false, "http://a.example:443": false, "https://a.example:444": false, "https://b.example": false,
	} {
		u, err := url.Parse(other)
		must.NoError(t, err)
		must.Eq(t, same, SameOrigin(&url.URL{Scheme: "https", Host: "a.example"}, u), must.Sprint(other))
	}
}

// With default options, no step of a request can hang forever.
func TestDefaultDeadlines(t *testing.T) {
	t.Parallel()
	c, err := New(Options{})
	must.NoError(t, err)
	for _, tr := range []*http.Transport{c.rt.direct, c.rt.proxied} {
		must.Eq(t, 15*time.Second, tr.TLSHandshakeTimeout)
		must.Eq(t, 30*time.Second, tr.ResponseHeaderTimeout)
		must.Eq(t, 30*time.Second, tr.IdleConnTimeout)
	}
}

// An IPv4 prefix written as IPv6 is an IPv4 prefix.
func TestParsePrefixes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10.0.0.0/8": "[10.0.0.0/8]", "10.1.2.3/32": "[10.1.2.3/32]", "::ffff:10.1.2.3/120": "[10.1.2.0/24]", "::ffff:0.0.0.0/96": "[0.0.0.0/0]",
		"fd00::1/128": "[fd00::1/128]", "fd00::1/96": "[fd00::/96]", "fd00::/8": "[fd00::/8]",
		"10.0.0.0/33": "", "10.1.2.3": "[10.1.2.3/32]", "fd00::1": "[fd00::1/128]", "fd00::1%eth0": "", "": "", "host/8": "", "fd00::1%eth0/64": "",
	} {
		got, err := ParsePrefixes([]string{text})
		must.Eq(t, want != "", err == nil, must.Sprintf("%q: %v", text, err))
		if want != "" {
			must.Eq(t, want, fmt.Sprint(got), must.Sprint(text))
		}
	}
}

// A Retry-After within the bound is honoured; a longer one becomes a hint.
func TestRetryAfterBound(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{0, MaxRetryAfter, MaxRetryAfter + time.Second} {
		err := &StatusError{Status: http.StatusServiceUnavailable, RetryAfter: wait}
		must.Eq(t, wait <= MaxRetryAfter, Temporary(err))
		must.Eq(t, wait > MaxRetryAfter, strings.Contains(sdk.HintOf(explainStatus(err, err)), "try again in"), must.Sprint(wait))
	}
}
