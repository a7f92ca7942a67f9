package main

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

const llama = "@node-llama-cpp/linux-x64@3.22.1"

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+r.URL)
	for _, ref := range []string{llama, "@node-llama-cpp/linux-x64@latest", "@node-llama-cpp/linux-x64"} {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err)
		must.Eq(t, catalog.Manifest{
			Ref: llama, Name: "linux-x64", Kind: catalog.KindEngine, Version: "3.22.1", License: "MIT",
			Files: []catalog.File{{
				Ref: llama, Path: "linux-x64-3.22.1.tgz", SizeBytes: int64(len(r.archive)), Digest: r.digest(),
				Locator: r.URL + "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz",
			}},
		}, m)
		for _, offset := range []int64{0, 1, 300_000, int64(len(r.archive))} {
			var b bytes.Buffer
			must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
			must.True(t, bytes.Equal(r.archive[offset:], b.Bytes()))
		}
	}
	m, err := s.Resolve(t.Context(), "@node-llama-cpp/linux-x64@beta")
	must.NoError(t, err)
	must.Eq(t, "@node-llama-cpp/linux-x64@4.0.0-beta.1", m.Ref)
	must.StrHasPrefix(t, "application/vnd.npm.install-v1+json", r.requests[0].Header.Get("Accept"))
	must.Eq(t, "rbee-catalog-npm/1.0.0", r.requests[0].UserAgent())
}

func TestResolveRefusals(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+r.URL)
	for ref, want := range map[string]struct {
		is   error
		hint string
	}{
		"":                                  {catalog.ErrInvalid, "npm:@scope/package@1.2.3"},
		"../x@1.0.0":                        {catalog.ErrInvalid, "npm:@scope"},
		"@a/b/c@1.0.0":                      {catalog.ErrInvalid, "npm:@scope"},
		"@a/..@1.0.0":                       {catalog.ErrInvalid, "npm:@scope"},
		"x?y@1":                             {catalog.ErrInvalid, "npm:@scope"},
		"x@^1.2":                            {catalog.ErrInvalid, "Ranges"},
		"x@1/../2":                          {catalog.ErrInvalid, "Ranges"},
		"x@":                                {catalog.ErrInvalid, "Ranges"},
		"@node-llama-cpp/linux-x65@3.22.1":  {catalog.ErrNotFound, "If the package is private, set //" + r.host() + "/:_authToken"},
		"linux-x65":                         {catalog.ErrNotFound, "Check the spelling"},
		"@node-llama-cpp/linux-x64@3.22.0":  {catalog.ErrNotFound, "There are 3.21.1, 3.22.1."},
		"@node-llama-cpp/linux-x64@2.0.0":   {catalog.ErrNotFound, "There are 3.9.0, 3.22.1."},
		"@node-llama-cpp/linux-x64@9.0.0":   {catalog.ErrNotFound, "There are 4.0.0-beta.1, 3.22.1."},
		"@node-llama-cpp/linux-x64@nightly": {catalog.ErrNotFound, "3.22.1"},
	} {
		_, err := s.Resolve(t.Context(), ref)
		must.ErrorIs(t, err, want.is, must.Sprint(ref))
		must.StrContains(t, sdk.HintOf(err), want.hint, must.Sprint(ref))
	}
	_, err := newSource("1", nil).Resolve(t.Context(), llama)
	must.ErrorContains(t, err, "not configured")
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	dist := func(key string, value any) func(map[string]any) {
		return editDist(func(d map[string]any) { d[key] = value })
	}
	sha256 := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, tc := range map[string]struct {
		edit   func(map[string]any)
		is     error
		digest string
	}{
		"sha256 only":         {dist("integrity", "sha256-"+sha256), nil, "sha256:" + strings.Repeat("0", 64)},
		"with options":        {dist("integrity", "sha256-"+sha256+"?x=y"), nil, "sha256:" + strings.Repeat("0", 64)},
		"sha1 only":           {dist("integrity", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="), catalog.ErrIntegrity, ""},
		"no integrity":        {dist("integrity", ""), catalog.ErrIntegrity, ""},
		"short integrity":     {dist("integrity", "sha512-"+sha256), catalog.ErrIntegrity, ""},
		"integrity no base64": {dist("integrity", "sha512-!!!"), catalog.ErrIntegrity, ""},
		"no tarball":          {dist("tarball", ""), catalog.ErrIntegrity, ""},
		"tarball as file":     {dist("tarball", "file:///etc/passwd"), catalog.ErrIntegrity, ""},
		"tarball as gopher":   {dist("tarball", "gopher://x/y"), catalog.ErrIntegrity, ""},
		"old licence": {func(d map[string]any) {
			d["versions"].(map[string]any)["3.22.1"].(map[string]any)["license"] = map[string]any{"type": "MIT"}
		}, nil, "*"},
		"no licence":  {func(d map[string]any) { delete(d["versions"].(map[string]any)["3.22.1"].(map[string]any), "license") }, nil, "*"},
		"no versions": {func(d map[string]any) { delete(d, "versions") }, catalog.ErrNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			r.edit = tc.edit
			m, err := configured(t, "registry="+r.URL).Resolve(t.Context(), llama)
			if tc.is != nil {
				must.ErrorIs(t, err, tc.is)
				return
			}
			must.NoError(t, err)
			if tc.digest != "*" {
				must.Eq(t, tc.digest, m.Files[0].Digest)
			}
		})
	}
}

// A connection that breaks again and again is mended by asking for the rest, of the same file.
func TestCredentials(t *testing.T) {
	t.Parallel()
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:pässword"))
	for name, tc := range map[string]struct {
		want  string
		npmrc string // %[1]s is the host
		env   []string
	}{
		"token":             {"Bearer t0ken", "//%[1]s/:_authToken=t0ken", nil},
		"token by variable": {"Bearer t0ken", "//%[1]s/:_authToken=${MY_TOKEN}", []string{"MY_TOKEN=t0ken"}},
		"token quoted":      {"Bearer t0#ken", `//%[1]s/:_authToken="t0#ken"`, nil},
		"basic":             {basic, "//%[1]s/:_auth=" + strings.TrimPrefix(basic, "Basic "), nil},
		"user and password": {basic, "//%[1]s/:username=me\n//%[1]s/:_password=" + base64.StdEncoding.EncodeToString([]byte("pässword")), nil},
		"in the address":    {basic, "registry=http://me:p%%C3%%A4ssword@%[1]s/", nil},
		"without a slash":   {"Bearer t0ken", "//%[1]s:_authToken=t0ken", nil},
		"by environment":    {"Bearer t0ken", "", []string{"npm_config_//%[1]s/:_authToken=t0ken"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			r.token = tc.want
			npmrc := "registry=" + r.URL + "\n"
			if tc.npmrc != "" {
				npmrc += fmt.Sprintf(tc.npmrc, r.host())
			}
			var env []string
			for _, e := range tc.env {
				env = append(env, strings.ReplaceAll(e, "%[1]s", r.host()))
			}
			s := configured(t, npmrc, env...)
			m, err := s.Resolve(t.Context(), llama)
			must.NoError(t, err)
			must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, io.Discard))
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r := newRegistry(t, httptest.NewServer)
		r.token = "Bearer right"
		_, err := configured(t, "registry="+r.URL+"\n//"+r.host()+"/:_authToken=wr0ng").Resolve(t.Context(), llama)
		must.ErrorIs(t, err, catalog.ErrUnauthenticated)
		must.StrContains(t, sdk.HintOf(err), "renew //"+r.host()+"/:_authToken")
		must.StrNotContains(t, err.Error()+sdk.HintOf(err), "wr0ng")
		_, err = configured(t, "registry="+r.URL+"\n//"+r.host()+"/:_authToken=${UNKNOWN_TOKEN}").Resolve(t.Context(), llama)
		must.StrContains(t, sdk.HintOf(err), "UNKNOWN_TOKEN")
		_, err = configured(t, "registry="+r.URL+"\n//"+r.host()+"/private/:_authToken=right").Resolve(t.Context(), llama)
		must.ErrorIs(t, err, catalog.ErrUnauthenticated, must.Sprint("credentials of a path are for that path"))
		must.StrContains(t, sdk.HintOf(err), "wants credentials")
	})
}

// A host that a registry redirects to does not get the registry's credentials.
func TestCredentialsStayHome(t *testing.T) {
	t.Parallel()
	home, other := newRegistry(t, httptest.NewServer), newRegistry(t, httptest.NewServer)
	home.token, home.archive = "Bearer t0ken", other.archive
	npmrc := "registry=" + home.URL + "\n//" + home.host() + "/:_authToken=t0ken"
	silent := func(t *testing.T) {
		t.Helper()
		other.mu.Lock()
		defer other.mu.Unlock()
		must.SliceNotEmpty(t, other.requests)
		for _, q := range other.requests {
			must.Eq(t, "", q.Header.Get("Authorization"))
		}
	}
	home.tarball = other.URL + "/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"
	s := configured(t, npmrc)
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, io.Discard))
	silent(t)

	home.tarball = ""
	m, err = s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	home.before = func(w http.ResponseWriter, q *http.Request) bool {
		http.Redirect(w, q, other.URL+q.URL.Path, http.StatusFound)
		return true
	}
	var b bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &b))
	must.True(t, bytes.Equal(other.archive, b.Bytes()))
	silent(t)
}

// A registry must not make this machine query its neighbours.
func TestScopes(t *testing.T) {
	t.Parallel()
	own, common := newRegistry(t, httptest.NewServer), newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+common.URL+"\n@node-llama-cpp:registry="+own.URL)
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	must.StrHasPrefix(t, own.URL, m.Files[0].Locator)
	must.Eq(t, 0, common.count("GET", ""))
	_, err = s.Resolve(t.Context(), "plain@3.22.1")
	must.NoError(t, err)
	must.Eq(t, 1, common.count("GET", "/plain"))
}

// Mirrors often pass on npm's own addresses.
func TestTarballHosts(t *testing.T) {
	t.Parallel()
	const public = defaultRegistry + "@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"
	for name, tc := range map[string]struct{ registry, setting, tarball, want string }{
		"npm's own is replaced":      {"", "", public, "%s/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"},
		"below the registry's path":  {"/npm/", "", public, "%s/npm/@node-llama-cpp/linux-x64/-/linux-x64-3.22.1.tgz"},
		"not if that is forbidden":   {"", "never", public, public},
		"another's is left alone":    {"", "", "https://cdn.example.org/x.tgz", "https://cdn.example.org/x.tgz"},
		"another's if that is asked": {"", "always", "https://cdn.example.org/a/x.tgz", "%s/a/x.tgz"},
		"relative":                   {"", "", "/a/x.tgz", "%s/a/x.tgz"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, httptest.NewServer)
			r.tarball = tc.tarball
			s := configured(t, "registry="+r.URL+tc.registry+"\nreplace-registry-host="+tc.setting+"\nproxy=http://127.0.0.1:1\nnoproxy=127.0.0.1")
			s.client.backoff = 1
			m, err := s.Resolve(t.Context(), llama)
			must.NoError(t, err)
			want := tc.want
			if strings.Contains(want, "%s") {
				want = fmt.Sprintf(want, r.URL)
			}
			must.Eq(t, want, m.Files[0].Locator)
		})
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	s := configured(t, "registry="+r.URL)
	var items []catalog.Item
	emit := func(i catalog.Item) error { items = append(items, i); return nil }
	must.NoError(t, s.Search(t.Context(), catalog.Query{Text: "llama", Kind: catalog.KindEngine}, emit))
	must.Eq(t, []catalog.Item{{Ref: llama, Kind: catalog.KindEngine, Name: "@node-llama-cpp/linux-x64", Summary: "for Linux", License: "MIT"}}, items)
	before := r.count("GET", "search")
	must.NoError(t, s.Search(t.Context(), catalog.Query{Text: "llama", Kind: catalog.KindModel}, emit))
	must.NoError(t, s.Search(t.Context(), catalog.Query{}, emit))
	must.Eq(t, before, r.count("GET", "search"), must.Sprint("nobody is asked"))
	r.before = func(w http.ResponseWriter, _ *http.Request) bool { http.NotFound(w, nil); return true }
	must.NoError(t, s.Search(t.Context(), catalog.Query{Text: "llama"}, emit), must.Sprint("many mirrors cannot be searched"))
	r.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
	must.ErrorIs(t, s.Search(t.Context(), catalog.Query{Text: "llama"}, emit), catalog.ErrUnavailable)
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	empty := home(t, "")
	unreadable := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(unreadable, []byte("no certificate"), 0o600))
	for name, tc := range map[string]struct {
		json    string
		npmrc   string
		summary string
		at      string
		warning bool
	}{
		"relative userconfig": {`{"userconfig":"x"}`, "", "Not a whole path", "userconfig", false},
		"missing userconfig":  {`{"userconfig":"` + empty + `/none"}`, "", "No such file", "userconfig", false},
		"registry":            {`{"registry":"ftp://x"}`, "", "Unusable registry", "registry", false},
		"registry in npmrc":   {`{}`, "registry=nonsense", "Unusable registry", "", false},
		"proxy":               {`{}`, "proxy=http://", "Unusable proxy", "", false},
		"cafile missing":      {`{}`, "cafile=/none", "Unusable certificates", "", false},
		"cafile empty":        {`{}`, "cafile=" + unreadable, "Unusable certificates", "", false},
		"no check":            {`{}`, "strict-ssl=false", "Certificates are not checked", "", true},
		"variable":            {`{}`, "//x/:_authToken=${NOT_THERE}", "Variable not set", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSource("1", []string{"HOME=" + home(t, tc.npmrc), "npm_config_globalconfig=/dev/null"})
			d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(tc.json)})
			must.NoError(t, err)
			must.SliceLen(t, 1, d, must.Sprint(d))
			must.Eq(t, tc.summary, d[0].Summary)
			must.Eq(t, tc.warning, !d.HasErrors())
			must.StrHasSuffix(t, ".", d[0].Detail)
			if tc.at != "" {
				must.Eq(t, []any{tc.at}, d[0].Path)
			}
		})
	}
}

// Uses the real registry, with this machine's npm settings.
func TestLive(t *testing.T) {
	if os.Getenv("RBEE_TEST_LIVE_NPM") != "1" {
		t.Skip("set RBEE_TEST_LIVE_NPM=1 to ask the real registry")
	}
	s := newSource("0.0.0-test", os.Environ())
	d, err := s.Configure(t.Context(), sdk.Config{})
	must.NoError(t, err)
	must.False(t, d.HasErrors(), must.Sprint(d))
	m, err := s.Resolve(t.Context(), llama)
	must.NoError(t, err)
	must.Eq(t, llama, m.Ref)
	must.StrHasPrefix(t, "sha512:", m.Files[0].Digest)
	h := sha512.New()
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, h))
	must.Eq(t, m.Files[0].Digest, "sha512:"+hex.EncodeToString(h.Sum(nil)))
	t.Logf("%+v", m)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, httptest.NewServer)
	dir := home(t, "registry="+r.URL)
	target := sdktest.CatalogInProcess(func() catalog.Source {
		return newSource("1.2.3", []string{"HOME=" + dir, "npm_config_globalconfig=/dev/null"})
	})
	sdktest.Catalog(t, target, sdktest.CatalogOptions{BadConfig: json.RawMessage(`{"registry":"ftp://x"}`), Ref: llama, NoRef: "@node-llama-cpp/linux-x64@1.0.0", Query: "llama"})
}
