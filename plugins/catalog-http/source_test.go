package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// web is a server of files with ranges, entity tags and an index. /private/ requires a token; /cdn/
// redirects to another host, which fails the test when it receives one.
type web struct {
	*httptest.Server
	cdn   *httptest.Server
	files map[string][]byte
	index any
	// before is called first and may answer in the server's place by returning true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex // guards below
	requests []*http.Request
}

func newWeb(t testing.TB) *web {
	t.Helper()
	x := &web{files: map[string][]byte{
		"/m/tiny-Q4_0.gguf": bytes.Repeat([]byte("0123456789"), 30_000), "/m/big-00001-of-00002.gguf": []byte("one"), "/m/big-00002-of-00002.gguf": []byte("two"), "/e/engine.tar.gz": []byte("e"),
	}}
	x.Server = httptest.NewServer(x)
	t.Cleanup(x.Close)
	x.cdn = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "Cookie", "Referer"} {
			if r.Header.Get(name) != "" {
				t.Errorf("the other host sees %s", name)
			}
		}
		x.serve(w, r)
	}))
	t.Cleanup(x.cdn.Close)
	return x
}

func (x *web) serve(w http.ResponseWriter, r *http.Request) {
	b, ok := x.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"`+sum(b)[:8]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (x *web) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	x.requests = append(x.requests, r)
	x.mu.Unlock()
	if x.before != nil && x.before(w, r) {
		return
	}
	if strings.HasPrefix(r.URL.Path, "/private/") {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/private")
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/cdn/"); ok {
		http.Redirect(w, r, x.cdn.URL+"/"+rest+"?signature=1", http.StatusFound)
		return
	}
	if r.URL.Path == "/index.json" {
		b, _ := json.Marshal(x.index)
		w.Header().Set("ETag", `"i`+sum(b)[:8]+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return
	}
	x.serve(w, r)
}

func configured(t *testing.T, config string) *source {
	t.Helper()
	s := newSource("1.0.0", nil)
	s.backoff = time.Millisecond
	d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(config), AllowAddresses: []string{"127.0.0.0/8"}})
	must.NoError(t, err)
	must.SliceEmpty(t, d)
	return s
}

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	file := x.files["/m/tiny-Q4_0.gguf"]
	digest := sum(file)
	s := configured(t, `{"auth":[{"origin":"`+x.URL+`","token":"secret"}]}`)
	for ref, exact := range map[string]string{
		x.URL + "/m/tiny-Q4_0.gguf#sha256=" + digest:                  x.URL + "/m/tiny-Q4_0.gguf#sha256=" + digest,
		x.URL + "/m/tiny-Q4_0.gguf@sha256:" + strings.ToUpper(digest): x.URL + "/m/tiny-Q4_0.gguf#sha256=" + digest,
		x.URL + "/private/m/tiny-Q4_0.gguf#sha256=" + digest:          x.URL + "/private/m/tiny-Q4_0.gguf#sha256=" + digest,
		x.URL + "/cdn/m/tiny-Q4_0.gguf#sha256=" + digest:              x.URL + "/cdn/m/tiny-Q4_0.gguf#sha256=" + digest,
		x.URL + "/m/tiny-Q4_0.gguf?a=b#sha256=" + digest:              x.URL + "/m/tiny-Q4_0.gguf?a=b#sha256=" + digest,
	} {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err, must.Sprint(ref))
		at, _, _ := strings.Cut(exact, "#")
		name, _, _ := strings.Cut(strings.TrimPrefix(at, "http://"), ".gguf") // its origin
		must.Eq(t, catalog.Manifest{Ref: exact, Name: name, Kind: catalog.KindModel, Files: []catalog.File{{
			Ref: exact, Path: "tiny-Q4_0.gguf", SizeBytes: int64(len(file)), Digest: "sha256:" + digest, Locator: at, URL: at, Header: map[string]string{"Authorization": "Bearer secret"},
		}}}, m)
		for _, offset := range []int64{0, 7, int64(len(file))} {
			var b bytes.Buffer
			must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
			must.True(t, bytes.Equal(file[offset:], b.Bytes()))
		}
	}
}

func TestResolveWithoutDigest(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	s := configured(t, "{}")
	m, err := s.Resolve(t.Context(), x.URL+"/m/tiny-Q4_0.gguf")
	must.NoError(t, err)
	must.Eq(t, "", m.Files[0].Digest)
	must.Len(t, 1, m.Notes)
	must.StrContains(t, m.Notes[0], "no digest of tiny-Q4_0.gguf is known")
	must.Nil(t, m.Files[0].Header)

	// The digest that the server sends is used, with a note.
	raw, err := hex.DecodeString(sum(x.files["/m/tiny-Q4_0.gguf"]))
	must.NoError(t, err)
	x.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Repr-Digest", "md5=:eA==:, sha-256=:"+base64.StdEncoding.EncodeToString(raw)+":")
		return false
	}
	m, err = s.Resolve(t.Context(), x.URL+"/m/tiny-Q4_0.gguf")
	must.NoError(t, err)
	must.Eq(t, "sha256:"+hex.EncodeToString(raw), m.Files[0].Digest)
	must.StrContains(t, m.Ref, "#sha256="+hex.EncodeToString(raw))
	must.StrContains(t, m.Notes[0], "says that the digest")
}

func TestPartsAndArchives(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	s := configured(t, "{}")
	m, err := s.Resolve(t.Context(), x.URL+"/m/big-00002-of-00002.gguf")
	must.NoError(t, err)
	must.Eq(t, strings.TrimPrefix(x.URL, "http://")+"/m/big", m.Name)
	must.Eq(t, x.URL+"/m/big-00001-of-00002.gguf", m.Ref)
	must.Len(t, 2, m.Files)
	must.Eq(t, "big-00001-of-00002.gguf", m.Files[0].Path)
	_, err = s.Resolve(t.Context(), x.URL+"/m/big-00001-of-00002.gguf#sha256="+sum(nil))
	must.ErrorIs(t, err, catalog.ErrInvalid)
	m, err = s.Resolve(t.Context(), x.URL+"/e/engine.tar.gz")
	must.NoError(t, err)
	must.Eq(t, catalog.KindEngine, m.Kind)
	must.Eq(t, "engine", m.Name)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	s := configured(t, "{}")
	for name, tc := range map[string]struct {
		ref string
		err error
	}{
		"not there":        {x.URL + "/none.gguf", catalog.ErrNotFound},
		"wants a token":    {x.URL + "/private/m/tiny-Q4_0.gguf", catalog.ErrUnauthenticated},
		"no digest":        {x.URL + "/m/tiny-Q4_0.gguf#sha256=12", catalog.ErrInvalid},
		"another fragment": {x.URL + "/m/tiny-Q4_0.gguf#top", catalog.ErrInvalid},
		"weak digest":      {x.URL + "/m/tiny-Q4_0.gguf#md5=00", catalog.ErrInvalid},
		"password":         {"https://me:secret@host.example/m.gguf", catalog.ErrInvalid},
		"no file":          {x.URL + "/", catalog.ErrInvalid},
		"hidden file":      {x.URL + "/.gguf", catalog.ErrInvalid},
		"leads up":         {x.URL + "/..", catalog.ErrInvalid},
		"scheme":           {"ftp://host.example/m.gguf", catalog.ErrInvalid},
		"name, no index":   {"tiny", catalog.ErrNotFound},
		"nothing":          {"", catalog.ErrInvalid},
		"metadata server":  {"http://169.254.169.254/latest/m.gguf", catalog.ErrForbidden},
		"many parts":       {x.URL + "/m/big-00001-of-99999.gguf", catalog.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := s.Resolve(t.Context(), tc.ref)
			must.ErrorIs(t, err, tc.err)
			must.StrNotContains(t, err.Error(), "secret")
		})
	}
	_, err := s.Resolve(t.Context(), x.URL+"/private/m/tiny-Q4_0.gguf")
	must.StrContains(t, sdk.HintOf(err), "auth { origin = \""+x.URL)
	must.Error(t, s.Fetch(t.Context(), catalog.File{Locator: "file:///etc/passwd"}, 0, io.Discard))
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	var asked atomic.Int64
	x.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead || asked.Add(1) > 1 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	s := configured(t, "{}")
	m, err := s.Resolve(t.Context(), x.URL+"/m/big-00001-of-00002.gguf")
	must.NoError(t, err)
	var b bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &b))
	must.Eq(t, "one", b.String())
	must.Eq(t, 2, asked.Load())
	x.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "7200")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	_, err = s.Resolve(t.Context(), x.URL+"/m/tiny-Q4_0.gguf")
	must.ErrorIs(t, err, catalog.ErrUnavailable)
	must.StrContains(t, sdk.HintOf(err), "2h0m0s")
}

func TestIndex(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	file := x.files["/m/tiny-Q4_0.gguf"]
	x.index = []map[string]any{
		{"name": "tiny", "url": "m/tiny-Q4_0.gguf", "sha256": sum(file), "size": len(file), "license": "MIT", "summary": "A small one.", "version": "2"},
		{"name": "big", "files": []map[string]any{{"url": "m/big-00001-of-00002.gguf"}, {"url": "/m/big-00002-of-00002.gguf", "sha256": sum([]byte("two"))}}},
		{"name": "engine", "url": x.URL + "/e/engine.tar.gz"},
	}
	s := configured(t, `{"index":["`+x.URL+`/index.json"]}`)
	names := func(q catalog.Query) (out []string) {
		must.NoError(t, s.Search(t.Context(), q, func(i catalog.Item) error {
			out = append(out, i.Name)
			return nil
		}))
		return out
	}
	must.Eq(t, []string{"tiny", "big", "engine"}, names(catalog.Query{}))
	must.Eq(t, []string{"tiny"}, names(catalog.Query{Text: "SMALL"}))
	must.Eq(t, []string{"engine"}, names(catalog.Query{Kind: catalog.KindEngine}))
	must.Len(t, 1, x.requests) // the index is remembered

	exact := "tiny@" + sum(file)[:16]
	for _, ref := range []string{"tiny", exact} {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err)
		at := x.URL + "/m/tiny-Q4_0.gguf"
		must.Eq(t, catalog.Manifest{Ref: exact, Name: "tiny", Kind: catalog.KindModel, Version: "2", License: "MIT", Files: []catalog.File{{
			Ref: exact, Path: "tiny-Q4_0.gguf", SizeBytes: int64(len(file)), Digest: "sha256:" + sum(file), Locator: at, URL: at,
		}}}, m)
	}
	m, err := s.Resolve(t.Context(), "big")
	must.NoError(t, err)
	must.Len(t, 2, m.Files)
	must.Len(t, 1, m.Notes)
	_, err = s.Resolve(t.Context(), "tiny@0000000000000000")
	must.ErrorIs(t, err, catalog.ErrNotFound)
	_, err = s.Resolve(t.Context(), "none")
	must.ErrorIs(t, err, catalog.ErrNotFound)
	must.StrContains(t, sdk.HintOf(err), "tiny, big, engine")

	// A stale index is revalidated.
	later := time.Now().Add(2 * indexFresh)
	s.now = func() time.Time { return later }
	must.Len(t, 3, names(catalog.Query{}))
	last := x.requests[len(x.requests)-1]
	must.NotEq(t, "", last.Header.Get("If-None-Match"))
	x.index = []map[string]any{}
	later = later.Add(2 * indexFresh)
	must.SliceEmpty(t, names(catalog.Query{}))
}

func TestUnusableIndex(t *testing.T) {
	t.Parallel()
	at, err := url.Parse("https://models.example/dir/index.json")
	must.NoError(t, err)
	for name, body := range map[string]string{
		"no JSON":        "<html>",
		"no list":        `"x"`,
		"no name":        `[{"url":"a.gguf"}]`,
		"name with path": `[{"name":"a/b","url":"a.gguf"}]`,
		"twice":          `[{"name":"a","url":"a.gguf"},{"name":"a","url":"b.gguf"}]`,
		"no file":        `[{"name":"a"}]`,
		"url and files":  `[{"name":"a","url":"a.gguf","files":[{"url":"b.gguf"}]}]`,
		"digest":         `[{"name":"a","url":"a.gguf","sha256":"12"}]`,
		"scheme":         `[{"name":"a","url":"file:///etc/passwd"}]`,
		"size":           `[{"name":"a","url":"a.gguf","size":-1}]`,
		"kind":           `[{"name":"a","url":"a.gguf","kind":"virus"}]`,
		"in the clear":   `[{"name":"a","url":"http://models.example/a.gguf"}]`,
		"same file":      `[{"name":"a","files":[{"url":"x/a.gguf"},{"url":"y/a.gguf"}]}]`,
		"no file name":   `[{"name":"a","url":"/"}]`,
		"password":       `[{"name":"a","url":"https://me:secret@models.example/a.gguf"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parseIndex(at, []byte(body))
			must.Error(t, err)
		})
	}
	good, err := parseIndex(at, []byte(`{"models":[{"name":"a","url":"a.gguf"},{"name":"b","url":"http://models.example/a.gguf","sha256":"`+strings.Repeat("0", 64)+`"}]}`))
	must.NoError(t, err)
	must.Eq(t, "https://models.example/dir/a.gguf", good[0].links[0].url.String())

	x := newWeb(t)
	x.index = "nothing"
	s := configured(t, `{"index":["`+x.URL+`/index.json"]}`)
	_, err = s.Resolve(t.Context(), "a")
	must.ErrorIs(t, err, catalog.ErrIntegrity)
	must.StrContains(t, sdk.HintOf(err), `"sha256"`)
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`[{"name":"a","url":"a.gguf","sha256":"00"}]`))
	f.Add([]byte(`{"models":[{"name":"a","files":[{"url":"//x/a.gguf"}]}]}`))
	at := &url.URL{Scheme: "https", Host: "models.example", Path: "/index.json"}
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parseIndex(at, body)
		if err != nil {
			return
		}
		for _, e := range list {
			for _, l := range e.links {
				name, err := l.file()
				if err != nil || !filepath.IsLocal(name) || strings.ContainsAny(name, `/\`) || !isURL(l.url.String()) || l.url.User != nil {
					t.Errorf("%q at %s", name, l.url)
				}
			}
		}
	})
}

func FuzzParseLink(f *testing.F) {
	f.Add("https://h/m.gguf#sha256=" + strings.Repeat("0", 64))
	f.Add("http://h/a@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parseLink(text)
		if err != nil {
			return
		}
		again, err := parseLink(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("%q becomes %q, and that %q (%v)", text, l, again, err)
		}
	})
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	must.NoError(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	s := configured(t, fmt.Sprintf(`{"auth":[{"origin":"https://models.example/","token_file":%q}]}`, token))
	for address, want := range map[string]string{
		"https://models.example/x": "Bearer secret", "https://models.example:443/x": "Bearer secret", "https://MODELS.example/x": "Bearer secret",
		"http://models.example/x": "", "https://models.example:8443/x": "", "https://a.models.example/x": "", "https://models.example.evil/x": "",
	} {
		u, err := url.Parse(address)
		must.NoError(t, err)
		h, err := s.header(u)
		must.NoError(t, err)
		must.Eq(t, want, h.Get("Authorization"), must.Sprint(address))
	}
	for name, tc := range map[string]struct {
		config string
		path   []any
	}{
		"index":         {`{"index":["https://a.example/i.json","nothing"]}`, []any{"index", 1}},
		"origin":        {`{"auth":[{"origin":"models.example","token":"a"}]}`, []any{"auth", 0, "origin"}},
		"path":          {`{"auth":[{"origin":"https://models.example/x","token":"a"}]}`, []any{"auth", 0, "origin"}},
		"no token":      {`{"auth":[{"origin":"https://models.example"}]}`, []any{"auth", 0}},
		"relative file": {`{"auth":[{"origin":"https://models.example","token_file":"~/x"}]}`, []any{"auth", 0, "token_file"}},
		"two lines":     {`{"auth":[{"origin":"https://models.example","token":"a\nb"}]}`, []any{"auth", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := newSource("1", nil).Configure(t.Context(), sdk.Config{JSON: json.RawMessage(tc.config)})
			must.NoError(t, err)
			must.Len(t, 1, d)
			must.Eq(t, tc.path, d[0].Path)
		})
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	x := newWeb(t)
	file := x.files["/m/tiny-Q4_0.gguf"]
	x.index = []map[string]any{{"name": "tiny", "url": "m/tiny-Q4_0.gguf", "sha256": sum(file), "size": len(file), "license": "MIT"}}
	for name, ref := range map[string]string{"index": "tiny", "address": x.URL + "/m/tiny-Q4_0.gguf#sha256=" + sum(file), "parts": x.URL + "/m/big-00001-of-00002.gguf"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return newSource("1.0.0", nil) }), sdktest.CatalogOptions{
				Config: json.RawMessage(`{"index":["` + x.URL + `/index.json"]}`), BadConfig: json.RawMessage(`{"index":["nowhere"]}`),
				Ref: ref, NoRef: x.URL + "/none.gguf", Query: "tiny", AllowAddresses: []string{"127.0.0.0/8"},
			})
		})
	}
}
