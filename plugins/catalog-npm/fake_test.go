package main

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// registry imitates an npm registry: documents under the escaped name, archives with ranges and
// entity tags.
type registry struct {
	*httptest.Server
	archive []byte
	token   string // required, unless empty
	tarball string // of the document; empty: under this server
	// before is called first and may answer in the registry's place by returning true.
	before func(w http.ResponseWriter, r *http.Request) bool
	edit   func(doc map[string]any)

	mu       sync.Mutex // guards requests
	requests []*http.Request
}

func newRegistry(t *testing.T, start func(http.Handler) *httptest.Server) *registry {
	t.Helper()
	r := &registry{archive: bytes.Repeat([]byte("engine archive "), 40_000)}
	r.Server = start(r)
	t.Cleanup(r.Close)
	return r
}

// tlsServer starts a server that does not log TLS errors of its clients.
func tlsServer(h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	return s
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req)
	r.mu.Unlock()
	if r.before != nil && r.before(w, req) {
		return
	}
	if r.token != "" && req.Header.Get("Authorization") != r.token {
		http.Error(w, `{"error":"unauthorized"}`, http.StatusUnauthorized)
		return
	}
	switch req.URL.EscapedPath() {
	case "/@node-llama-cpp%2flinux-x64", "/npm/@node-llama-cpp%2flinux-x64", "/plain":
		w.Header().Set("Content-Type", "application/vnd.npm.install-v1+json")
		_ = json.NewEncoder(w).Encode(r.document())
	case "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz", "/npm/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz":
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.archive))
	case "/-/v1/search":
		if !strings.Contains("node-llama-cpp", req.URL.Query().Get("text")) {
			_, _ = io.WriteString(w, `{"objects":[],"total":0}`)
			return
		}
		_, _ = fmt.Fprint(w, `{"objects":[{"package":{"name":"@node-llama-cpp/linux-x64","version":"3.22.1","description":"for Linux\nmore","license":"MIT"}},{"package":{"name":"../bad","version":"1"}}]}`)
	default:
		http.NotFound(w, req)
	}
}

func (r *registry) document() map[string]any {
	tarball := r.tarball
	if tarball == "" {
		tarball = r.URL + "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"
	}
	sum := sha512.Sum512(r.archive)
	release := func(v string) map[string]any {
		return map[string]any{
			"name": "@node-llama-cpp/linux-x64", "version": v, "license": "MIT", "os": []string{"linux"}, "cpu": []string{"arm64", "x64"}, "libc": []string{"glibc"},
			"dist": map[string]any{"tarball": tarball, "integrity": "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk= sha512-" + base64.StdEncoding.EncodeToString(sum[:]), "shasum": "da39"},
		}
	}
	doc := map[string]any{
		"name": "@node-llama-cpp/linux-x64", "dist-tags": map[string]string{"latest": "3.22.1", "beta": "4.0.0-beta.1"},
		"versions": map[string]any{"3.9.0": release("3.9.0"), "3.21.1": release("3.21.1"), "3.22.1": release("3.22.1"), "4.0.0-beta.1": release("4.0.0-beta.1")},
	}
	if r.edit != nil {
		r.edit(doc)
	}
	return doc
}

// editDist changes the dist block of version 3.22.1.
func editDist(change func(map[string]any)) func(map[string]any) {
	return func(doc map[string]any) {
		change(doc["versions"].(map[string]any)["3.22.1"].(map[string]any)["dist"].(map[string]any))
	}
}

func (r *registry) count(method, suffix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.requests {
		if q.Method == method && strings.HasSuffix(q.URL.Path, suffix) {
			n++
		}
	}
	return n
}

func (r *registry) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL, "http://"), "https://")
}

func (r *registry) digest() string {
	sum := sha512.Sum512(r.archive)
	return "sha512:" + hex.EncodeToString(sum[:])
}

// home returns a folder with the given npmrc.
func home(t *testing.T, npmrc string) string {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, ".npmrc"), []byte(npmrc), 0o600))
	return dir
}

// configured returns a source with the given npmrc and environment, allowed to connect to this
// machine.
func configured(t *testing.T, npmrc string, environ ...string) *source {
	t.Helper()
	s := newSource("1.0.0", append([]string{"HOME=" + home(t, npmrc), "npm_config_globalconfig=/dev/null"}, environ...))
	s.backoff, s.stall, s.private = time.Millisecond, 10*time.Second, true
	d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(`{"registry":"","userconfig":""}`)})
	must.NoError(t, err)
	must.False(t, d.HasErrors(), must.Sprint(d))
	t.Cleanup(func() { s.client.close() })
	return s
}

// connectProxy returns an HTTP proxy for plain requests and tunnels that records the hosts.
func connectProxy(t *testing.T) (addr string, hosts func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Host+" "+r.Header.Get("Proxy-Authorization"))
		mu.Unlock()
		if r.Method == http.MethodConnect {
			http.Error(w, "no tunnels here", http.StatusForbidden)
			return
		}
		out, err := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		out.Header = r.Header.Clone()
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_, _ = w.Write(b.Bytes())
	}))
	t.Cleanup(p.Close)
	u, err := url.Parse(p.URL)
	must.NoError(t, err)
	return u.Host, func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), seen...) }
}

// flaky writes n bytes of the archive from a request's range and breaks the connection.
func flaky(w http.ResponseWriter, r *http.Request, archive []byte, n int) {
	start := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(archive)-1, len(archive)))
	}
	w.Header().Set("ETag", `"one"`)
	w.Header().Set("Content-Length", fmt.Sprint(len(archive)-start))
	if start > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(archive[start:min(start+n, len(archive))])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}
