package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

// apps returns a forge with typical releases.
func apps(t *testing.T) *forge {
	f := newForge(t)
	f.repos["org/app"] = &repo{releases: []map[string]any{
		published("v2", f.file(21, "org/app", "v2", "app-linux-amd64.zip", true), f.file(22, "org/app", "v2", "app-linux-arm64.zip", true), f.file(23, "org/app", "v2", "app-linux-cuda-12.4-amd64.tar.gz", true), f.file(24, "org/app", "v2", "notes.txt", true)),
		published("v1", f.file(11, "org/app", "v1", "app-linux-amd64.zip", false), f.file(12, "org/app", "v1", "SHA256SUMS", false), f.file(13, "org/app", "v1", "model.gguf", false), f.file(14, "org/app", "v1", "model.gguf.sha256", false), f.file(15, "org/app", "v1", "other.gguf", false)),
	}}
	f.repos["org/private"] = &repo{private: true, releases: []map[string]any{published("v1", f.file(31, "org/private", "v1", "m.gguf", true))}}
	return f
}

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	f := apps(t)
	const exact = "org/app@v2/app-linux-amd64.zip"
	file := content("app-linux-amd64.zip")
	public := f.URL + "/org/app/releases/download/v2/app-linux-amd64.zip"
	for name, tc := range map[string]struct {
		more   string
		url    string
		header map[string]string
	}{
		"without token": {"", public, nil},
		"with token": {`,"token":"` + testToken + `"`, f.URL + "/api/v3/repos/org/app/releases/assets/21", map[string]string{
			"Authorization": "Bearer " + testToken, "Accept": "application/octet-stream", "X-Github-Api-Version": "2022-11-28",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.configured(t, tc.more)
			for _, ref := range []string{"org/app", "org/app@latest", "org/app@v2", "org/app@latest/app-linux-amd64.zip", exact} {
				m, err := s.Resolve(t.Context(), ref)
				must.NoError(t, err)
				m.Notes = nil
				must.Eq(t, catalog.Manifest{Ref: exact, Name: "app-linux-amd64", Kind: catalog.KindEngine, Version: "v2", Files: []catalog.File{{
					Ref: exact, Path: "app-linux-amd64.zip", SizeBytes: int64(len(file)), Digest: "sha256:" + sum(file), Locator: "21 " + public, URL: tc.url, Header: tc.header,
				}}}, m)
				for _, offset := range []int64{0, 9, int64(len(file))} {
					var b bytes.Buffer
					must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
					must.True(t, bytes.Equal(file[offset:], b.Bytes()))
				}
			}
		})
	}
}

func TestDigestsFromChecksumFiles(t *testing.T) {
	t.Parallel()
	f := apps(t)
	for _, more := range []string{"", `,"token":"` + testToken + `"`} {
		s := f.configured(t, more)
		for file, from := range map[string]string{"app-linux-amd64.zip": "SHA256SUMS", "model.gguf": "model.gguf.sha256"} {
			m, err := s.Resolve(t.Context(), "org/app@v1/"+file)
			must.NoError(t, err)
			must.Eq(t, "sha256:"+sum(content(file)), m.Files[0].Digest)
			must.StrContains(t, m.Notes[0], "out of "+from)
		}
		m, err := s.Resolve(t.Context(), "org/app@v1/other.gguf")
		must.NoError(t, err)
		must.Eq(t, "", m.Files[0].Digest)
		must.StrContains(t, m.Notes[0], "is trusted")
		must.Eq(t, catalog.KindModel, m.Kind)
	}
}

func TestFindSum(t *testing.T) {
	t.Parallel()
	d := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		text  string
		alone bool
		want  string
	}{
		"GNU":                {d + "  a.zip", false, d},
		"GNU, binary":        {d + " *a.zip\r\n", false, d},
		"GNU, with a dot":    {d + "  ./a.zip", false, d},
		"BSD":                {"SHA256 (a.zip) = " + strings.ToUpper(d), false, d},
		"alone":              {d + "\n", true, d},
		"alone, not its own": {d + "\n", false, ""},
		"another file":       {d + "  b.zip\nSHA256 (b.zip) = " + d, true, ""},
		"a longer name":      {d + "  xa.zip", false, ""},
		"short":              {d[:40] + "  a.zip", true, ""},
		"nothing":            {"", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, tc.want, findSum(tc.text, "a.zip", tc.alone))
		})
	}
}

func FuzzFindSum(f *testing.F) {
	f.Add(strings.Repeat("ab", 32)+"  a.zip\nSHA256 (a.zip) = "+strings.Repeat("cd", 32), true)
	f.Fuzz(func(t *testing.T, text string, alone bool) {
		if d := findSum(text, "a.zip", alone); d != "" && !sha256OK.MatchString(d) {
			t.Errorf("%q is no digest", d)
		}
	})
}

// The files of a llama.cpp release, by their real names.
func llama() []asset {
	var out []asset
	for _, suffix := range []string{
		"bin-macos-arm64.tar.gz", "bin-macos-x64.tar.gz", "bin-ubuntu-x64.tar.gz", "bin-ubuntu-s390x.tar.gz", "bin-ubuntu-vulkan-x64.tar.gz", "bin-ubuntu-rocm-7.2-x64.tar.gz", "bin-ubuntu-arm64.tar.gz",
		"bin-win-cpu-arm64.zip", "bin-win-cpu-x64.zip", "bin-win-cuda-12.4-x64.zip", "bin-win-cuda-13.1-x64.zip", "bin-win-hip-radeon-x64.zip", "bin-win-opencl-adreno-arm64.zip", "bin-win-sycl-x64.zip",
		"bin-win-vulkan-x64.zip", "xcframework.zip", "bin-910b-openEuler-aarch64-aclgraph.tar.gz", "bin-310p-openEuler-x86.tar.gz",
	} {
		out = append(out, asset{Name: "llama-b7000-" + suffix})
	}
	return append(out, asset{Name: "cudart-llama-bin-win-cuda-12.4-x64.zip"}, asset{Name: "SHA256SUMS"})
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		goos, goarch, backend string
		assets                []asset
		want                  string
		err                   error
	}{
		"linux":                   {"linux", "amd64", "cpu", llama(), "llama-b7000-bin-ubuntu-x64.tar.gz", nil},
		"linux, arm":              {"linux", "arm64", "cpu", llama(), "llama-b7000-bin-ubuntu-arm64.tar.gz", nil},
		"linux, vulkan":           {"linux", "amd64", "vulkan", llama(), "llama-b7000-bin-ubuntu-vulkan-x64.tar.gz", nil},
		"linux, rocm":             {"linux", "amd64", "rocm", llama(), "llama-b7000-bin-ubuntu-rocm-7.2-x64.tar.gz", nil},
		"linux, no cuda":          {"linux", "amd64", "cuda", llama(), "", catalog.ErrNotFound},
		"mac":                     {"darwin", "arm64", "metal", llama(), "llama-b7000-bin-macos-arm64.tar.gz", nil},
		"mac, cpu":                {"darwin", "amd64", "cpu", llama(), "llama-b7000-bin-macos-x64.tar.gz", nil},
		"windows":                 {"windows", "amd64", "cpu", llama(), "llama-b7000-bin-win-cpu-x64.zip", nil},
		"windows, two for cuda":   {"windows", "amd64", "cuda", llama(), "", catalog.ErrInvalid},
		"another system":          {"freebsd", "amd64", "cpu", llama(), "", catalog.ErrNotFound},
		"x86_64":                  {"linux", "amd64", "cpu", []asset{{Name: "a_linux_x86_64.tgz"}, {Name: "a_linux_aarch64.tgz"}}, "a_linux_x86_64.tgz", nil},
		"the only one":            {"linux", "amd64", "cpu", []asset{{Name: "model.gguf"}, {Name: "README.md"}}, "model.gguf", nil},
		"the only one, elsewhere": {"linux", "amd64", "cpu", []asset{{Name: "app-macos-arm64.zip"}}, "", catalog.ErrNotFound},
		"nothing of use":          {"linux", "amd64", "cpu", []asset{{Name: "app.deb"}}, "", catalog.ErrNotFound},
		"not uploaded yet":        {"linux", "amd64", "cpu", []asset{{Name: "model.gguf", State: "starter"}}, "", catalog.ErrNotFound},
		"a name that leads away":  {"linux", "amd64", "cpu", []asset{{Name: "../model.gguf"}}, "", catalog.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &source{goos: tc.goos, goarch: tc.goarch, set: settings{backend: "cpu"}}
			ref := reference{owner: "o", repo: "r", tag: "b7000"}
			if tc.backend != "cpu" {
				ref.backend = tc.backend
			}
			a, _, err := s.choose(ref, tc.assets)
			if tc.err != nil {
				must.ErrorIs(t, err, tc.err)
				must.NotEq(t, "", sdk.HintOf(err))
				return
			}
			must.NoError(t, err)
			must.Eq(t, tc.want, a.Name)
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := apps(t)
	none, good, bad := f.configured(t, ""), f.configured(t, `,"token":"`+testToken+`"`), f.configured(t, `,"token":"ghp_expired"`)
	for name, tc := range map[string]struct {
		s    *source
		ref  string
		err  error // nil: success
		hint string
	}{
		"no repository":     {none, "org/none", catalog.ErrNotFound, "GITHUB_TOKEN"},
		"no release":        {good, "org/app@v9", catalog.ErrNotFound, "Check the spelling"},
		"private":           {none, "org/private@v1", catalog.ErrNotFound, "private"},
		"private, let in":   {good, "org/private@v1", nil, ""},
		"expired":           {bad, "org/app", catalog.ErrUnauthenticated, "expired"},
		"no such file":      {none, "org/app@v2/none.zip", catalog.ErrNotFound, "app-linux-amd64.zip, app-linux-arm64.zip"},
		"no use":            {none, "org/app@v2/notes.txt", catalog.ErrNotFound, "app-linux-amd64.zip"},
		"no such backend":   {none, "org/app@v2:vulkan", catalog.ErrNotFound, "app-linux-amd64.zip"},
		"a backend":         {none, "org/app@v2:cuda", nil, ""},
		"no repo":           {none, "org", catalog.ErrInvalid, "github:OWNER/REPO"},
		"leads up":          {none, "org/..", catalog.ErrInvalid, "github:OWNER/REPO"},
		"tag with a slash":  {none, "org/app@a/b/c", catalog.ErrInvalid, "github:OWNER/REPO"},
		"file leads up":     {none, "org/app@v1/..", catalog.ErrInvalid, "github:OWNER/REPO"},
		"nothing":           {none, "", catalog.ErrInvalid, "github:OWNER/REPO"},
		"no tag":            {none, "org/app@", catalog.ErrInvalid, "github:OWNER/REPO"},
		"query in the name": {none, "org/app?x@v1", catalog.ErrInvalid, "github:OWNER/REPO"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tc.s.Resolve(t.Context(), tc.ref)
			if tc.err == nil {
				must.NoError(t, err)
				return
			}
			must.ErrorIs(t, err, tc.err)
			must.StrContains(t, sdk.HintOf(err), tc.hint)
			must.StrNotContains(t, err.Error()+sdk.HintOf(err), "ghp_")
		})
	}
	for _, locator := range []string{"", "21", "21 file:///etc/passwd", "x http://127.0.0.1/"} {
		must.Error(t, none.Fetch(t.Context(), catalog.File{Ref: "org/app@v2/a.zip", Locator: locator}, 0, io.Discard))
	}
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		status int
		header map[string]string
		more   string
		hint   string
		asked  int64
	}{
		"primary, 403":    {403, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": fmt.Sprint(now.Add(40 * time.Minute).Unix())}, "", "after 12:40:00 UTC", 1},
		"secondary, 403":  {403, map[string]string{"Retry-After": "60"}, "", "after 12:01:00 UTC", 1},
		"secondary, 429":  {429, map[string]string{"Retry-After": "3600"}, "", "after 13:00:00 UTC", 1},
		"without a time":  {429, nil, "", "later", 4},
		"without a token": {403, map[string]string{"X-RateLimit-Remaining": "0"}, "", "With a token the limit is much higher", 1},
		"with a token":    {403, map[string]string{"X-RateLimit-Remaining": "0"}, `,"token":"` + testToken + `"`, "Try again", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := apps(t)
			var asked atomic.Int64
			f.before = func(w http.ResponseWriter, _ *http.Request) bool {
				asked.Add(1)
				for k, v := range tc.header {
					w.Header().Set(k, v)
				}
				say(w, tc.status, "API rate limit exceeded for 192.0.2.1.")
				return true
			}
			s := f.configured(t, tc.more)
			s.now = func() time.Time { return now }
			_, err := s.Resolve(t.Context(), "org/app")
			must.ErrorIs(t, err, catalog.ErrUnavailable)
			must.StrContains(t, err.Error(), "limit of requests")
			must.StrContains(t, sdk.HintOf(err), tc.hint)
			must.Eq(t, tc.asked, asked.Load())
		})
	}
}

func TestReplyCache(t *testing.T) {
	t.Parallel()
	f := apps(t)
	s := f.configured(t, "")
	for range 3 {
		m, err := s.Resolve(t.Context(), "org/app@latest")
		must.NoError(t, err)
		must.Eq(t, "org/app@v2/app-linux-amd64.zip", m.Ref)
	}
	must.Eq(t, 2, f.notModified)
	// A new release is seen at once.
	f.repos["org/app"].releases = append([]map[string]any{published("v3", f.file(41, "org/app", "v3", "app-linux-amd64.zip", true))}, f.repos["org/app"].releases...)
	m, err := s.Resolve(t.Context(), "org/app@latest")
	must.NoError(t, err)
	must.Eq(t, "v3", m.Version)
	// However many there are, memory stays bounded.
	for i := range 2 * maxRemembered {
		id := fmt.Sprintf("org/app%d", i)
		f.repos[id] = &repo{releases: []map[string]any{published("v1", f.file(1000+i, id, "v1", "m.gguf", true))}}
		_, err := s.Resolve(t.Context(), id)
		must.NoError(t, err)
	}
	must.LessEq(t, maxRemembered, len(s.replies))
}

func TestSearchPages(t *testing.T) {
	t.Parallel()
	f := apps(t)
	s := f.configured(t, "")
	refs := func(q catalog.Query) (out []string) {
		must.NoError(t, s.Search(t.Context(), q, func(i catalog.Item) error {
			out = append(out, i.Ref)
			return nil
		}))
		return out
	}
	must.Eq(t, []string{
		"org/app@v2/app-linux-amd64.zip", "org/app@v2/app-linux-arm64.zip", "org/app@v2/app-linux-cuda-12.4-amd64.tar.gz", "org/app@v1/app-linux-amd64.zip", "org/app@v1/model.gguf", "org/app@v1/other.gguf",
	}, refs(catalog.Query{Text: "org/app"}))
	must.Eq(t, []string{"org/app@v1/model.gguf", "org/app@v1/other.gguf"}, refs(catalog.Query{Text: "org/app", Kind: catalog.KindModel}))
	must.Len(t, 4, refs(catalog.Query{Text: "org/app", Limit: 4}))
	before := len(f.requests)
	must.SliceEmpty(t, refs(catalog.Query{Text: "llama"}))
	must.SliceEmpty(t, refs(catalog.Query{}))
	must.Len(t, before, f.requests)
	must.SliceEmpty(t, refs(catalog.Query{Text: "org/none"}))
	// Listing continues with the remembered pages.
	must.Len(t, 6, refs(catalog.Query{Text: "org/app"}))
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	must.NoError(t, os.WriteFile(token, []byte("a\n"), 0o600))
	for name, tc := range map[string]struct {
		config string
		env    []string
		want   string
		at     any // of the diagnostic; nil: none
	}{
		"nothing":             {"{}", nil, "", nil},
		"variable":            {"{}", []string{"GH_TOKEN=c", "GITHUB_TOKEN=b"}, "b", nil},
		"gh's":                {"{}", []string{"GH_TOKEN=c"}, "c", nil},
		"file":                {`{"token_file":"` + token + `"}`, []string{"GITHUB_TOKEN=b"}, "a", nil},
		"not for another api": {`{"api":"https://github.example/api/v3"}`, []string{"GITHUB_TOKEN=b"}, "", nil},
		"api":                 {`{"api":"github.example"}`, nil, "", "api"},
		"api with password":   {`{"api":"https://a:b@github.example"}`, nil, "", "api"},
		"backend":             {`{"backend":"CUDA!"}`, nil, "", "backend"},
		"relative file":       {`{"token_file":"~/token"}`, nil, "", "token_file"},
		"no file":             {`{"token_file":"/no/such/file"}`, nil, "", "token_file"},
		"two lines":           {`{"token":"a\nb"}`, nil, "", "token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSource("1", tc.env)
			d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(tc.config)})
			must.NoError(t, err)
			if tc.at != nil {
				must.Len(t, 1, d)
				must.Eq(t, []any{tc.at}, d[0].Path)
				return
			}
			must.SliceEmpty(t, d)
			got, err := s.set.bearer()
			must.NoError(t, err)
			must.Eq(t, tc.want, got)
		})
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	f := apps(t)
	for name, more := range map[string]string{"without token": "", "with token": `,"token":"` + testToken + `"`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return newSource("1.0.0", nil) }), sdktest.CatalogOptions{
				Config: json.RawMessage(`{"api":"` + f.URL + `/api/v3"` + more + `}`), BadConfig: json.RawMessage(`{"api":"nowhere"}`),
				Ref: "org/app@v2/app-linux-amd64.zip", NoRef: "org/none", Query: "org/app", AllowAddresses: []string{"127.0.0.0/8"},
			})
		})
	}
}
