package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func TestBadReplies(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter)
		is     error
		hint   string
	}{
		"a login page": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>Welcome to the hotel</html>") }, catalog.ErrUnavailable, "portal"},
		"cut JSON":     {func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"versions":{"1.0.0":`) }, catalog.ErrUnavailable, "portal"},
		"too much":     {func(w http.ResponseWriter) { _, _ = w.Write(bytes.Repeat([]byte(" "), maxReplyBytes+1)) }, catalog.ErrUnsupported, ""},
		"a bomb": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 64 {
				_, _ = z.Write(make([]byte, 1<<20))
			}
			_ = z.Close()
		}, catalog.ErrUnsupported, ""},
		"teapot":    {func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) }, catalog.ErrUnavailable, "Is "},
		"forbidden": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }, catalog.ErrUnauthenticated, ":_authToken in "},
		"trouble":   {func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, catalog.ErrUnavailable, "Try again later"},
		"busy":      {func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) }, catalog.ErrUnavailable, "Try again later"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			r.before = func(w http.ResponseWriter, _ *http.Request) bool { tc.answer(w); return true }
			_, err := configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
			must.ErrorIs(t, err, tc.is)
			must.StrContains(t, sdk.HintOf(err), tc.hint)
			attempts := 1
			if name == "trouble" || name == "busy" {
				attempts = maxAttempts
			}
			must.Eq(t, attempts, r.count("GET", "linux-x64"))
		})
	}
}

func TestRetriesAndRecovers(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	var n atomic.Int64
	r.before = func(w http.ResponseWriter, _ *http.Request) bool {
		switch n.Add(1) {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		case 2:
			panic(http.ErrAbortHandler)
		}
		return false
	}
	_, err := configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
	must.NoError(t, err)
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	gone := l.Addr().String()
	must.NoError(t, l.Close())
	s := configured(t, "registry=http://"+gone)
	_, err = s.Resolve(t.Context(), llama)
	must.ErrorIs(t, err, catalog.ErrUnavailable)
	must.ErrorContains(t, err, gone+" cannot be reached: ")
	must.StrContains(t, sdk.HintOf(err), "NPM_CONFIG_HTTPS_PROXY")
	must.StrContains(t, sdk.HintOf(err), ".npmrc")

	s = configured(t, "registry=https://registry.invalid\nhttps-proxy=http://me:secret@"+gone)
	_, err = s.Resolve(t.Context(), llama)
	must.ErrorContains(t, err, "registry.invalid cannot be reached through the proxy "+gone)
	must.StrNotContains(t, err.Error(), "secret")
}

func TestFetchMends(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	var ranges, ifRanges []string
	r.before = func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, ".tgz") {
			return false
		}
		ranges, ifRanges = append(ranges, q.Header.Get("Range")), append(ifRanges, q.Header.Get("If-Range"))
		must.Eq(t, "identity", q.Header.Get("Accept-Encoding"))
		flaky(w, q, r.archive, 100_000)
		return true
	}
	s := configured(t, "registry="+r.URL)
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	var b bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &b))
	must.True(t, bytes.Equal(r.archive, b.Bytes()))
	must.Eq(t, []string{"", "bytes=100000-", "bytes=200000-", "bytes=300000-", "bytes=400000-", "bytes=500000-"}, ranges)
	must.Eq(t, []string{"", `"one"`, `"one"`, `"one"`, `"one"`, `"one"`}, ifRanges)
}

func TestFetchFaults(t *testing.T) {
	t.Parallel()
	type answer func(w http.ResponseWriter, q *http.Request, archive []byte, n int)
	whole := func(w http.ResponseWriter, etag string, archive []byte) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Length", fmt.Sprint(len(archive)))
		_, _ = w.Write(archive)
	}
	for name, tc := range map[string]struct {
		offset int64
		answer answer // of the n-th request
		is     error  // nil: all bytes from the offset arrive
	}{
		"ranges ignored": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) { whole(w, "", a) }},
		"ranges ignored after a break": {answer: func(w http.ResponseWriter, q *http.Request, a []byte, n int) {
			if n == 1 {
				flaky(w, q, a, 5000)
			}
			whole(w, `"one"`, a)
		}},
		"changed after a break": {answer: func(w http.ResponseWriter, q *http.Request, a []byte, n int) {
			if n == 1 {
				flaky(w, q, a, 5000)
			}
			whole(w, `"two"`, a)
		}, is: catalog.ErrIntegrity},
		"another size": {answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) { whole(w, "", a[1:]) }, is: catalog.ErrIntegrity},
		"another range": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(a)-1, len(a)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(a)
		}, is: catalog.ErrIntegrity},
		"no range": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(a)
		}, is: catalog.ErrIntegrity},
		"range of another file": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) {
			w.Header().Set("Content-Range", "bytes 1000-1999/2000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(a[:1000])
		}, is: catalog.ErrIntegrity},
		"too many bytes in a range": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, a []byte, _ int) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 1000-%d/%d", len(a)-1, len(a)))
			w.WriteHeader(http.StatusPartialContent)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(append(a[1000:len(a):len(a)], "more"...))
		}, is: catalog.ErrIntegrity},
		"too few, without a length": {answer: func(w http.ResponseWriter, q *http.Request, a []byte, n int) {
			start := 0
			if _, err := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &start); err == nil {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(a)-1, len(a)))
				w.WriteHeader(http.StatusPartialContent)
			}
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(a[start:min(len(a), start+250_000)])
		}},
		"not satisfiable": {offset: 1000, answer: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) {
			w.Header().Set("Content-Range", "bytes */900")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, is: catalog.ErrIntegrity},
		"gone": {answer: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) { w.WriteHeader(http.StatusNotFound) }, is: catalog.ErrNotFound},
		"always fails": {answer: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) {
			w.WriteHeader(http.StatusInternalServerError)
		}, is: catalog.ErrUnavailable},
		"breaks without a byte": {answer: func(http.ResponseWriter, *http.Request, []byte, int) { panic(http.ErrAbortHandler) }, is: catalog.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			s := configured(t, "registry="+r.URL)
			m, err := s.Resolve(t.Context(), llama)
			must.NoError(t, err)
			var n atomic.Int64
			r.before = func(w http.ResponseWriter, q *http.Request) bool {
				tc.answer(w, q, r.archive, int(n.Add(1)))
				return true
			}
			var b bytes.Buffer
			err = s.Fetch(t.Context(), m.Files[0], tc.offset, &b)
			if tc.is == nil {
				must.NoError(t, err)
				must.True(t, bytes.Equal(r.archive[tc.offset:], b.Bytes()))
				return
			}
			must.ErrorIs(t, err, tc.is)
			must.True(t, bytes.HasPrefix(r.archive[tc.offset:], b.Bytes()), must.Sprint("what was written is the file's"))
		})
	}
}

func TestFetchStall(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+r.URL)
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	s.client.stall = 300 * time.Millisecond
	var n atomic.Int64
	r.before = func(w http.ResponseWriter, q *http.Request) bool {
		if n.Add(1) > 1 {
			return false
		}
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(r.archive)))
		_, _ = w.Write(r.archive[:1000])
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done() // stall
		return true
	}
	var b bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &b))
	must.True(t, bytes.Equal(r.archive, b.Bytes()))
	must.GreaterEq(t, 2, n.Load())

	r.before = func(_ http.ResponseWriter, q *http.Request) bool { <-q.Context().Done(); return true }
	s.client.stall = 5 * time.Millisecond
	err = s.Fetch(t.Context(), m.Files[0], 0, &b)
	must.ErrorIs(t, err, catalog.ErrUnavailable)
	must.ErrorContains(t, err, "nothing has come for too long")
}

func TestFetchCancel(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+r.URL)
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	r.before = func(w http.ResponseWriter, q *http.Request) bool {
		cancel()
		<-q.Context().Done()
		return true
	}
	must.ErrorIs(t, s.Fetch(ctx, m.Files[0], 0, io.Discard), context.Canceled)

	r.before = nil
	failing := writer(func([]byte) (int, error) { return 0, io.ErrShortWrite })
	must.ErrorIs(t, s.Fetch(t.Context(), m.Files[0], 0, failing), io.ErrShortWrite, must.Sprint("not repeated"))
	for _, locator := range []string{"", "file:///etc/passwd", "http://me:secret@host/x", "::"} {
		f := m.Files[0]
		f.Locator = locator
		err := s.Fetch(t.Context(), f, 0, io.Discard)
		must.ErrorIs(t, err, catalog.ErrInvalid)
		must.StrNotContains(t, err.Error(), "secret")
	}
	must.ErrorIs(t, s.Fetch(t.Context(), m.Files[0], int64(len(r.archive))+1, io.Discard), catalog.ErrInvalid)
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

func TestRedirects(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	var n atomic.Int64
	r.before = func(w http.ResponseWriter, q *http.Request) bool {
		n.Add(1)
		http.Redirect(w, q, q.URL.Path, http.StatusFound)
		return true
	}
	_, err := configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
	must.ErrorContains(t, err, "redirects more than 5 times")
	must.Eq(t, maxRedirects+1, int(n.Load()))

	secure := newRegistry(t, tlsServer)
	secure.before = func(w http.ResponseWriter, q *http.Request) bool {
		http.Redirect(w, q, r.URL+q.URL.Path, http.StatusFound)
		return true
	}
	_, err = configured(t, "registry="+secure.URL+"\nstrict-ssl=false").Resolve(t.Context(), llama)
	must.ErrorContains(t, err, "less secure")
	r.before = func(w http.ResponseWriter, q *http.Request) bool {
		http.Redirect(w, q, "file:///etc/passwd", http.StatusFound)
		return true
	}
	_, err = configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
	must.ErrorContains(t, err, "less secure")
}

func TestNoNeighbours(t *testing.T) {
	t.Parallel()
	home, other := newRegistry(t, httptest.NewServer), newRegistry(t, httptest.NewServer)
	for _, target := range []string{other.URL, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), strings.Replace(other.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		s := configured(t, "registry="+home.URL)
		c, err := newClient(s.client.settings, "x", time.Second, time.Millisecond, false)
		must.NoError(t, err)
		s.client = c
		home.tarball = target + "/x.tgz"
		m, err := s.Resolve(t.Context(), llama)
		must.NoError(t, err, must.Sprint("the registry itself may be here: the settings name it"))
		err = s.Fetch(t.Context(), m.Files[0], 0, io.Discard)
		must.ErrorIs(t, err, catalog.ErrForbidden)
		must.StrContains(t, sdk.HintOf(err), "inside this network")
	}
	must.SliceEmpty(t, other.requests)

	// Unless the configuration allows it.
	s := configured(t, "registry="+home.URL)
	settings := *s.client.settings
	settings.allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	var err error
	s.client, err = newClient(&settings, "x", time.Second, time.Millisecond, false)
	must.NoError(t, err)
	home.tarball = other.URL + "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, io.Discard))
}

func TestProxies(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		npmrc string
		env   []string
		used  bool
	}{
		"proxy":            {"proxy=http://me:pw@PROXY", nil, true},
		"without a scheme": {"proxy=PROXY", nil, true},
		"by environment":   {"", []string{"http_proxy=http://PROXY"}, true},
		"npm's variable":   {"", []string{"NPM_CONFIG_PROXY=http://PROXY"}, true},
		"not for this":     {"proxy=http://PROXY\nnoproxy=example.org,127.0.0.1", nil, false},
		"not for any":      {"proxy=http://PROXY\nnoproxy=*", nil, false},
		"noproxy variable": {"proxy=http://PROXY", []string{"NO_PROXY=127.0.0.1"}, false},
		"another's port":   {"proxy=http://PROXY\nnoproxy=127.0.0.1:1", nil, true},
		"switched off":     {"proxy=null", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			addr, hosts := connectProxy(t)
			var env []string
			for _, e := range tc.env {
				env = append(env, strings.ReplaceAll(e, "PROXY", addr))
			}
			for i, e := range env { // variable names contain the word as well
				if strings.HasPrefix(e, "NPM_CONFIG_"+addr) {
					env[i] = strings.Replace(e, "NPM_CONFIG_"+addr, "NPM_CONFIG_PROXY", 1)
				}
				if strings.HasPrefix(e, "NO_"+addr) {
					env[i] = strings.Replace(e, "NO_"+addr, "NO_PROXY", 1)
				}
			}
			s := configured(t, "registry="+r.URL+"\n"+strings.ReplaceAll(tc.npmrc, "PROXY", addr), env...)
			m, err := s.Resolve(t.Context(), llama)
			must.NoError(t, err)
			must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, io.Discard))
			must.Eq(t, tc.used, len(hosts()) > 0)
			if name == "proxy" {
				must.StrContains(t, hosts()[0], base64.StdEncoding.EncodeToString([]byte("me:pw")))
			}
		})
	}
	t.Run("https", func(t *testing.T) {
		t.Parallel()
		addr, hosts := connectProxy(t)
		s := configured(t, "registry=https://registry.invalid\nproxy=http://127.0.0.1:1\nhttps-proxy=http://"+addr)
		_, err := s.Resolve(t.Context(), llama)
		must.ErrorIs(t, err, catalog.ErrUnavailable)
		must.SliceContains(t, hosts(), "registry.invalid:443 ")
	})
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, tlsServer)
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}))
	file := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(file, []byte(cert), 0o600))
	for name, tc := range map[string]struct {
		npmrc string
		env   []string
	}{
		"cafile":              {"cafile=" + file, nil},
		"ca":                  {`ca="` + strings.ReplaceAll(cert, "\n", `\n`) + `"`, nil},
		"ca list":             {`ca[]="` + strings.ReplaceAll(cert, "\n", `\n`) + `"`, nil},
		"NODE_EXTRA_CA_CERTS": {"", []string{"NODE_EXTRA_CA_CERTS=" + file}},
		"not checked":         {"strict-ssl=false", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := configured(t, "registry="+r.URL+"\n"+tc.npmrc, tc.env...).Resolve(t.Context(), llama)
			must.NoError(t, err)
		})
	}
	t.Run("unknown", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, tlsServer)
		_, err := configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
		must.ErrorIs(t, err, catalog.ErrUnavailable)
		must.StrContains(t, sdk.HintOf(err), "set cafile")
		must.SliceEmpty(t, r.requests)
	})
}
