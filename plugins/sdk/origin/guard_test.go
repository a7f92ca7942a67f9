package origin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

func client(t *testing.T, o origin.Options) *origin.Client {
	t.Helper()
	c, err := origin.New(o)
	must.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func allow(t *testing.T, texts ...string) []netip.Prefix {
	t.Helper()
	p, err := origin.ParsePrefixes(texts)
	must.NoError(t, err)
	return p
}

// counted listens on an address and counts its connections.
func counted(t *testing.T, address string, h http.Handler) (port string, connections *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("this machine has no %s: %v", address, err)
	}
	connections = new(atomic.Int64)
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = l
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	_, port, err = net.SplitHostPort(l.Addr().String())
	must.NoError(t, err)
	return port, connections
}

func answers(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

// forbidden lists hosts that must never be connected to: IANA's special blocks, and spellings that
// disguise them.
func forbidden() map[string]string {
	return map[string]string{
		"loopback":                      "127.0.0.1",
		"loopback, another":             "127.8.9.10",
		"loopback, with a dot":          "127.0.0.1.",
		"loopback IPv6":                 "[::1]",
		"unspecified":                   "0.0.0.0",
		"this network":                  "0.1.2.3",
		"unspecified IPv6":              "[::]",
		"private 10":                    "10.0.0.1",
		"private 172.16":                "172.31.255.254",
		"private 192.168":               "192.168.1.1",
		"carrier-grade NAT":             "100.64.0.1",
		"link-local, cloud metadata":    "169.254.169.254",
		"cloud metadata IPv6":           "[fd00:ec2::254]",
		"link-local IPv6":               "[fe80::1]",
		"link-local IPv6 with zone":     "[fe80::1%25lo]",
		"public IPv6 with zone":         "[2600::1%25lo]",
		"site-local IPv6":               "[fec0::1]",
		"unique local":                  "[fd12:3456::1]",
		"multicast":                     "224.0.0.1",
		"multicast IPv6":                "[ff02::1]",
		"class E":                       "240.0.0.1",
		"broadcast":                     "255.255.255.255",
		"documentation":                 "192.0.2.1",
		"benchmarks":                    "198.18.0.1",
		"protocol assignments":          "192.0.0.1",
		"AS112":                         "192.31.196.1",
		"AS112, direct delegation":      "192.175.48.1",
		"AMT":                           "192.52.193.1",
		"6to4 relay":                    "192.88.99.1",
		"documentation, second":         "198.51.100.1",
		"documentation, third":          "203.0.113.1",
		"documentation IPv6":            "[2001:db8::1]",
		"documentation IPv6, new":       "[3fff::1]",
		"AS112 IPv6":                    "[2620:4f:8000::1]",
		"v4 mapped":                     "[::ffff:127.0.0.1]",
		"v4 mapped, in hex":             "[::ffff:7f00:1]",
		"v4 mapped metadata":            "[::ffff:169.254.169.254]",
		"v4 compatible":                 "[::127.0.0.1]",
		"NAT64 of loopback":             "[64:ff9b::7f00:1]",
		"NAT64 of private":              "[64:ff9b::10.0.0.1]",
		"NAT64 for local use":           "[64:ff9b:1::1]",
		"6to4 of private":               "[2002:a00:1::1]",
		"Teredo":                        "[2001::1]",
		"one decimal number":            "2130706433",
		"one hexadecimal number":        "0x7f000001",
		"one hexadecimal number, upper": "0X7F000001",
		"octal":                         "0177.0.0.1",
		"octal, all":                    "0177.0000.0000.0001",
		"hexadecimal parts":             "0x7f.0x0.0x0.0x1",
		"short":                         "127.1",
		"short, with a dot":             "127.1.",
		"five parts":                    "127.0.0.1.1",
		"leading zeros":                 "127.0.0.01",
		"full-width digits":             "１２７.0.0.1",
		"ideographic full stop":         "127。0。0。1",
		"private, ideographic stops":    "10。0。0。1",
		"circled digits":                "①②⑦.0.0.1",
		"localhost":                     "localhost",
		"localhost, mixed case":         "LocalHost",
		"localhost, with a dot":         "localhost.",
		"below localhost":               "model.localhost",
		"a name that leads to loopback": "loop.example",
		"a name with a v4-mapped":       "mapped.example",
		"a name with private and ULA":   "both.example",
		"a name of the metadata server": "metadata.example",
		"a name with NAT64":             "nat64.example",
	}
}

func names() map[string][][]netip.Addr {
	return map[string][][]netip.Addr{
		"loop.example":     {addrs("127.0.0.1")},
		"mapped.example":   {addrs("::ffff:127.0.0.1")},
		"both.example":     {addrs("10.1.2.3", "fd00::1")},
		"metadata.example": {addrs("169.254.169.254")},
		"nat64.example":    {addrs("64:ff9b::a9fe:a9fe")},
	}
}

func TestForbiddenAddresses(t *testing.T) {
	t.Parallel()
	port, connections := counted(t, "127.0.0.1:0", answers("secret"))
	c := client(t, origin.Options{Resolver: newDNS(names()).resolver(t)})
	for name, host := range forbidden() {
		if t.Failed() {
			break // connecting to most of these hangs, so one failure is enough
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			address := "http://" + host + ":" + port + "/x"
			r, err := c.Get(ctx, address, nil)
			must.Error(t, err, must.Sprint(string(r.Body)))
			must.True(t, errors.Is(err, sdk.ErrForbidden) || errors.Is(err, sdk.ErrInvalid), must.Sprint(err))
			must.Zero(t, connections.Load())
		})
	}
}

// A proxy resolves the address itself, and some parse it as C does.
func TestForbiddenAddressesByProxy(t *testing.T) {
	t.Parallel()
	proxyPort, connections := counted(t, "127.0.0.1:0", answers("secret"))
	c := client(t, origin.Options{Environ: []string{"HTTP_PROXY=http://127.0.0.1:" + proxyPort}})
	for name, host := range forbidden() {
		if strings.HasSuffix(host, ".example") {
			continue // a proxy guards names itself
		}
		t.Run(name, func(t *testing.T) {
			_, err := c.Get(t.Context(), "http://"+host+"/x", nil)
			must.Error(t, err)
			must.True(t, errors.Is(err, sdk.ErrForbidden) || errors.Is(err, sdk.ErrInvalid), must.Sprint(err))
			must.Zero(t, connections.Load())
		})
	}
	r, err := c.Get(t.Context(), "http://origin.example/x", nil)
	must.NoError(t, err)
	must.Eq(t, "secret", string(r.Body))
	must.One(t, connections.Load())
}

func TestRefusedSchemes(t *testing.T) {
	t.Parallel()
	c := client(t, origin.Options{Allow: allow(t, "127.0.0.0/8")})
	for _, address := range []string{
		"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/", "//127.0.0.1/", "http:127.0.0.1", "http:///x", "https://", "HTTP+unix://x/", "jar:http://x/", "",
		"http://127.0.0.1:0/", "http://127.0.0.1:99999/", "http://user:secret@127.0.0.1/",
	} {
		t.Run(address, func(t *testing.T) {
			_, err := c.Get(t.Context(), address, nil)
			must.Error(t, err)
			must.True(t, errors.Is(err, sdk.ErrForbidden) || errors.Is(err, sdk.ErrInvalid), must.Sprint(err))
			must.StrNotContains(t, err.Error(), "secret")
		})
	}
}

func TestAllowedAddresses(t *testing.T) {
	t.Parallel()
	port, _ := counted(t, "127.0.0.1:0", answers("hello"))
	resolver := newDNS(names()).resolver(t)
	for name, tc := range map[string]struct{ prefix, host string }{
		"network":         {"127.0.0.0/8", "127.0.0.1"},
		"one address":     {"127.0.0.1", "127.0.0.1"},
		"mapped host":     {"127.0.0.1/32", "[::ffff:127.0.0.1]"},
		"mapped prefix":   {"::ffff:127.0.0.0/104", "127.0.0.1"},
		"name":            {"127.0.0.1/32", "loop.example"},
		"localhost":       {"127.0.0.1/32", "localhost"},
		"trailing dot":    {"127.0.0.1/32", "loop.example."},
		"everything":      {"0.0.0.0/0", "127.0.0.1"},
		"host bits":       {"127.0.0.77/8", "127.0.0.1"},
		"mapped by a DNS": {"127.0.0.1/32", "mapped.example"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := client(t, origin.Options{Allow: allow(t, tc.prefix), Resolver: resolver})
			r, err := c.Get(t.Context(), "http://"+tc.host+":"+port, nil)
			must.NoError(t, err)
			must.Eq(t, "hello", string(r.Body))
		})
	}
	_, err := origin.ParsePrefixes([]string{"10.0.0.0/33"})
	must.ErrorIs(t, err, sdk.ErrInvalid)
	_, err = origin.ParsePrefixes([]string{"fe80::1%lo"})
	must.ErrorIs(t, err, sdk.ErrInvalid)
}

func TestRefusalHint(t *testing.T) {
	t.Parallel()
	c := client(t, origin.Options{Resolver: newDNS(names()).resolver(t)})
	_, err := c.Get(t.Context(), "https://metadata.example/latest?token=secret", nil)
	must.ErrorIs(t, err, sdk.ErrForbidden)
	must.StrContains(t, err.Error(), "metadata.example leads to 169.254.169.254")
	must.StrContains(t, sdk.HintOf(err), `"169.254.169.254/32"`)
	must.StrContains(t, sdk.HintOf(err), "hive.download.allow_addresses")
	must.StrNotContains(t, err.Error()+sdk.HintOf(err), "secret")
}

// The name resolves to an allowed address in one lookup and to another one in the next.
func TestAlternatingLookups(t *testing.T) {
	t.Parallel()
	port, good := counted(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close") // forces a new lookup for the next request
	}))
	_, bad := counted(t, "127.0.0.2:"+port, answers("secret"))
	var turns [][]netip.Addr
	for i := range 40 {
		turns = append(turns, addrs(fmt.Sprintf("127.0.0.%d", 1+i%2)))
	}
	turns = append(turns, addrs("127.0.0.2", "127.0.0.1"), addrs("127.0.0.1", "127.0.0.2"), addrs("::1", "127.0.0.2"), addrs("127.0.0.2"))
	d := newDNS(map[string][][]netip.Addr{"flip.example": turns})
	c := client(t, origin.Options{Allow: allow(t, "127.0.0.1/32"), Resolver: d.resolver(t)})
	refusals := 0
	for range turns {
		_, err := c.Get(t.Context(), "http://flip.example:"+port, nil)
		if err != nil {
			must.ErrorIs(t, err, sdk.ErrForbidden)
			refusals++
		}
	}
	must.Zero(t, bad.Load())
	must.Eq(t, 22, refusals) // 20 of the alternating answers, and two of the last four
	must.Eq(t, 22, good.Load())
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	var to atomic.Pointer[string]
	var hops atomic.Int64
	port, _ := counted(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/start":
			w.Header().Set("Location", *to.Load())
			w.WriteHeader(http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/hop/"):
			hops.Add(1)
			http.Redirect(w, r, "/hop/", http.StatusTemporaryRedirect)
		case r.URL.Path == "/again":
			http.Redirect(w, r, *to.Load(), http.StatusSeeOther)
		}
	}))
	_, bad := counted(t, "127.0.0.2:"+port, answers("secret"))
	d := newDNS(map[string][][]netip.Addr{"evil.example": {addrs("127.0.0.2")}, "good.example": {addrs("127.0.0.1")}})
	c := client(t, origin.Options{Allow: allow(t, "127.0.0.1/32"), Resolver: d.resolver(t)})
	for name, tc := range map[string]struct {
		to  string
		err error // nil: it succeeds
	}{
		"same origin":          {"/done", nil},
		"allowed host":         {"http://good.example:" + port + "/done", nil},
		"forbidden host":       {"http://evil.example:" + port + "/", sdk.ErrForbidden},
		"forbidden address":    {"http://127.0.0.2:" + port + "/", sdk.ErrForbidden},
		"mapped":               {"http://[::ffff:127.0.0.2]:" + port + "/", sdk.ErrForbidden},
		"decimal":              {"http://2130706434:" + port + "/", sdk.ErrForbidden},
		"octal":                {"http://0177.0.0.2:" + port + "/", sdk.ErrForbidden},
		"short":                {"http://127.2:" + port + "/", sdk.ErrForbidden},
		"without a scheme":     {"//evil.example:" + port + "/", sdk.ErrForbidden},
		"credentials":          {"http://me:secret@127.0.0.2:" + port + "/", sdk.ErrForbidden},
		"file":                 {"file:///etc/passwd", sdk.ErrForbidden},
		"gopher":               {"gopher://127.0.0.1:" + port + "/", sdk.ErrForbidden},
		"metadata":             {"http://169.254.169.254/latest/meta-data", sdk.ErrForbidden},
		"for ever":             {"/hop/", sdk.ErrUnavailable},
		"five, then forbidden": {"/again?1", sdk.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			to.Store(&tc.to)
			hops.Store(0)
			_, err := c.Get(t.Context(), "http://127.0.0.1:"+port+"/start", nil)
			if tc.err == nil {
				must.NoError(t, err)
			} else {
				must.ErrorIs(t, err, tc.err)
				must.StrNotContains(t, err.Error(), "secret")
			}
			must.Zero(t, bad.Load())
			if tc.to == "/hop/" {
				must.Eq(t, origin.MaxRedirects, hops.Load())
			}
		})
	}
}

func FuzzHosts(f *testing.F) {
	for _, host := range forbidden() {
		f.Add(host)
	}
	f.Add("huggingface.co")
	c, err := origin.New(origin.Options{Environ: []string{"HTTP_PROXY=http://127.0.0.1:1"}})
	must.NoError(f, err)
	f.Cleanup(c.Close)
	f.Fuzz(func(t *testing.T, host string) {
		u, err := url.Parse("http://" + host + "/")
		if err != nil || u.Host == "" {
			return
		}
		// Only names whose last part is not a number, and public addresses, may pass.
		if c.Check(u) != nil {
			return
		}
		name := strings.TrimSuffix(u.Hostname(), ".")
		if a, err := netip.ParseAddr(name); err == nil {
			if a = a.Unmap(); a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
				t.Errorf("%q gets through", host)
			}
			return
		}
		last := name[strings.LastIndexByte(name, '.')+1:]
		if last == "" || strings.Trim(last, "0123456789") == "" || strings.HasPrefix(strings.ToLower(last), "0x") && strings.Trim(strings.ToLower(last[2:]), "0123456789abcdef") == "" {
			t.Errorf("%q gets through, and C reads it as a number", host)
		}
	})
}
