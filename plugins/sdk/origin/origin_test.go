package origin_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func loopback(t *testing.T) origin.Options {
	return origin.Options{Allow: allow(t, "127.0.0.0/8"), Backoff: time.Millisecond, UserAgent: "rbee-test/1"}
}

func TestCredentialsFirstOriginOnly(t *testing.T) {
	t.Parallel()
	secret := http.Header{"Authorization": {"Bearer secret"}, "Cookie": {"secret=1"}, "X-Api-Key": {"secret"}, "Range": {"bytes=0-1"}, "Accept": {"*/*"}}
	var seen atomic.Pointer[http.Header]
	var home *httptest.Server
	cdn := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(&r.Header)
		if r.URL.Path == "/back" {
			http.Redirect(w, r, home.URL+"/end", http.StatusFound)
		}
	})
	home = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/same":
			http.Redirect(w, r, "/end", http.StatusFound)
		case "/cdn":
			http.Redirect(w, r, cdn.URL+"/file?sig=1", http.StatusFound)
		case "/user":
			http.Redirect(w, r, strings.Replace(cdn.URL, "http://", "http://me:pw@", 1)+"/file", http.StatusFound)
		case "/back":
			http.Redirect(w, r, cdn.URL+"/back", http.StatusFound)
		default:
			seen.Store(&r.Header)
		}
	})
	c := client(t, loopback(t))
	for name, tc := range map[string]struct {
		path  string
		keeps bool
	}{
		"no redirect":           {"/end", true},
		"same origin":           {"/same", true},
		"another port":          {"/cdn", false},
		"with a password in it": {"/user", false},
		"there and back":        {"/back", false},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, home.URL+tc.path+"?token=secret", nil)
			must.NoError(t, err)
			req.Header = secret.Clone()
			resp, err := c.Do(req)
			must.NoError(t, err)
			_ = resp.Body.Close()
			got := *seen.Load()
			must.Eq(t, "bytes=0-1", got.Get("Range"))
			must.Eq(t, "rbee-test/1", got.Get("User-Agent"))
			must.Eq(t, "", got.Get("Referer"))
			for _, h := range []string{"Authorization", "Cookie", "X-Api-Key"} {
				must.Eq(t, tc.keeps, got.Get(h) != "", must.Sprint(h))
			}
		})
	}
}

func TestRedirectHTTPSToHTTP(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	plain := serve(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) }))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	o := loopback(t)
	o.Environ = []string{"SSL_CERT_FILE=" + ca}
	_, err := client(t, o).Get(t.Context(), s.URL, nil)
	must.ErrorIs(t, err, sdk.ErrForbidden)
	must.ErrorContains(t, err, "without encryption")
	must.Zero(t, asked.Load())

	// Without the variable, the server's certificate is not trusted.
	_, err = client(t, loopback(t)).Get(t.Context(), s.URL, nil)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.ErrorContains(t, err, "cannot be trusted")
	must.StrContains(t, sdk.HintOf(err), "SSL_CERT_FILE")
}

func TestUnusableSettings(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	must.NoError(t, os.WriteFile(empty, []byte("nothing"), 0o600))
	for name, entry := range map[string]string{
		"no such file":   "SSL_CERT_FILE=/no/such/file",
		"no certificate": "SSL_CERT_FILE=" + empty,
		"no proxy":       "HTTPS_PROXY=%zz",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := origin.New(origin.Options{Environ: []string{entry}})
			must.ErrorIs(t, err, sdk.ErrInvalid)
			must.NotEq(t, "", sdk.HintOf(err))
		})
	}
	_, err := origin.New(origin.Options{Roots: x509.NewCertPool(), Environ: []string{"SSL_CERT_FILE=/no/such/file"}})
	must.NoError(t, err, must.Sprint("roots that are given do not come from the environment"))
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	must.NoError(t, err)
	_, err = z.Write(b)
	must.NoError(t, err)
	must.NoError(t, z.Close())
	return out.Bytes()
}

func TestReplyLimits(t *testing.T) {
	t.Parallel()
	large := make([]byte, origin.MaxReplyBytes+1)
	_, _ = rand.NewChaCha8([32]byte{}).Read(large) // random, so that it cannot be compressed
	// below the limit when decompressed, so that only the ratio gives it away
	bomb := zipped(t, make([]byte, 4<<20))
	var listing bytes.Buffer
	for i := range 20000 {
		fmt.Fprintf(&listing, `{"rfilename":"model-Q4_K_M-%05d.gguf","size":%d},`, i, i*i)
	}
	for name, tc := range map[string]struct {
		body     []byte
		encoding string
		chunked  bool
		err      error
	}{
		"plain":                 {body: []byte(`{"a":1}`)},
		"gzip":                  {body: zipped(t, []byte(`{"a":1}`)), encoding: "gzip"},
		"JSON of many names":    {body: zipped(t, listing.Bytes()), encoding: "gzip"},
		"too large, announced":  {body: large, err: sdk.ErrTooLarge},
		"too large, chunked":    {body: large, chunked: true, err: sdk.ErrTooLarge},
		"too large when packed": {body: zipped(t, large), encoding: "gzip", err: sdk.ErrTooLarge},
		"bomb":                  {body: bomb, encoding: "gzip", err: sdk.ErrTooLarge},
		"no gzip":               {body: []byte("plain"), encoding: "gzip", err: sdk.ErrIntegrity},
		"unknown encoding":      {body: []byte("x"), encoding: "br", err: sdk.ErrIntegrity},
		"no body":               {encoding: "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if tc.encoding != "" {
					w.Header().Set("Content-Encoding", tc.encoding)
				}
				if tc.chunked {
					_ = http.NewResponseController(w).Flush() // an error means that the client disconnected
				} else {
					w.Header().Set("Content-Length", strconv.Itoa(len(tc.body)))
				}
				_, _ = w.Write(tc.body)
			})
			r, err := client(t, loopback(t)).Get(t.Context(), s.URL, nil)
			if tc.err == nil {
				must.NoError(t, err)
				return
			}
			must.ErrorIs(t, err, tc.err)
			must.Len(t, 0, r.Body)
		})
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status int
		err    error
		asked  int64
	}{
		"not modified":      {304, nil, 1},
		"unauthenticated":   {401, sdk.ErrUnauthenticated, 1},
		"forbidden":         {403, sdk.ErrForbidden, 1},
		"not found":         {404, sdk.ErrNotFound, 1},
		"gone":              {410, sdk.ErrNotFound, 1},
		"proxy credentials": {407, sdk.ErrUnauthenticated, 1},
		"teapot":            {418, sdk.ErrUnavailable, 1},
		"too many":          {429, sdk.ErrUnavailable, 4},
		"broken":            {500, sdk.ErrUnavailable, 4},
		"not implemented":   {501, sdk.ErrUnavailable, 1},
		"overloaded":        {503, sdk.ErrUnavailable, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.Header().Set("X-Error-Code", "Why")
				w.WriteHeader(tc.status)
				if tc.status != 304 {
					_, _ = io.WriteString(w, "the reason")
				}
			})
			r, err := client(t, loopback(t)).Get(t.Context(), s.URL+"/p?token=secret", nil)
			must.Eq(t, tc.asked, asked.Load())
			if tc.err == nil {
				must.NoError(t, err)
				must.Eq(t, tc.status, r.Status)
				return
			}
			must.ErrorIs(t, err, tc.err)
			must.StrNotContains(t, err.Error()+sdk.HintOf(err), "secret")
			e, ok := errors.AsType[*origin.StatusError](err)
			must.True(t, ok)
			must.Eq(t, "Why", e.Header.Get("X-Error-Code"))
			must.Eq(t, "the reason", string(e.Body))
			must.Eq(t, s.URL+"/p", e.URL)
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		resp := &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {text}}}
		must.Eq(t, want, origin.NewStatusError(resp, nil, now).RetryAfter, must.Sprint(text))
	}
}

func TestRetryAfterLong(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	_, err := client(t, loopback(t)).Get(t.Context(), s.URL, nil)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.StrContains(t, sdk.HintOf(err), "1h0m0s")
	must.One(t, asked.Load())
}

func TestRetryAfterShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked int
		began := time.Now()
		c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
			asked++
			r := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok"))}
			if asked == 1 {
				r.StatusCode = 429
				r.Header.Set("Retry-After", "20")
			}
			return r, nil
		})
		r, err := c.Get(t.Context(), "https://origin.example/", nil)
		must.NoError(t, err)
		must.Eq(t, "ok", string(r.Body))
		must.Eq(t, 2, asked)
		must.GreaterEq(t, 20*time.Second, time.Since(began))
	})
}

func TestCancelledRequest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := client(t, loopback(t)).Get(ctx, s.URL, nil)
	must.ErrorIs(t, err, context.Canceled)
}

func TestUnreachableOrigin(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(nil)
	s.Close()
	_, err := client(t, loopback(t)).Get(t.Context(), s.URL+"/x?token=secret", nil)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.StrContains(t, sdk.HintOf(err), "HTTPS_PROXY")
	must.StrNotContains(t, err.Error(), "secret")
	must.StrNotContains(t, err.Error(), "proxy ")

	o := loopback(t)
	proxy := strings.TrimPrefix(s.URL, "http://")
	o.Environ = []string{"HTTP_PROXY=" + proxy}
	_, err = client(t, o).Get(t.Context(), "http://origin.example/", nil)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.ErrorContains(t, err, "origin.example cannot be reached through the proxy "+proxy)
}
