package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

const testToken = "ghp_testtoken"

// forge imitates GitHub: the releases API under /api/v3 with entity tags and a rate limit, public
// addresses of files, and another host that serves the bytes, which fails the test when it receives
// a credential.
type forge struct {
	*httptest.Server
	t     testing.TB
	cdn   *httptest.Server
	repos map[string]*repo
	// before is called first and may answer in the server's place by returning true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu          sync.Mutex // guards below
	requests    []*http.Request
	notModified int
}

type repo struct {
	private  bool
	releases []map[string]any // newest first
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := &forge{t: t, repos: map[string]*repo{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	f.cdn = httptest.NewServer(http.HandlerFunc(f.serveCDN))
	t.Cleanup(f.cdn.Close)
	return f
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// content returns the contents of a file by its name.
func content(name string) []byte {
	return bytes.Repeat([]byte(name+"\n"), 3000)
}

// file returns an asset as the API shows it.
func (f *forge) file(id int, repo, tag, name string, digest bool) map[string]any {
	a := map[string]any{
		"id": id, "node_id": "RA_x", "name": name, "label": "", "state": "uploaded", "content_type": "application/zip", "size": len(content(name)), "download_count": 3,
		"url": fmt.Sprintf("%s/api/v3/repos/%s/releases/assets/%d", f.URL, repo, id), "browser_download_url": fmt.Sprintf("%s/%s/releases/download/%s/%s", f.URL, repo, tag, name), "digest": nil,
	}
	if digest {
		a["digest"] = "sha256:" + sum(content(name))
	}
	return a
}

func published(tag string, assets ...map[string]any) map[string]any {
	return map[string]any{"id": 1, "tag_name": tag, "name": tag, "draft": false, "prerelease": false, "created_at": "2026-01-01T00:00:00Z", "assets": assets, "body": "notes"}
}

func say(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest", "status": strconv.Itoa(status)})
}

func (f *forge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	f.mu.Unlock()
	if f.before != nil && f.before(w, r) {
		return
	}
	auth := r.Header.Get("Authorization")
	path, api := strings.CutPrefix(r.URL.Path, "/api/v3/repos/")
	if !api {
		path = strings.TrimPrefix(r.URL.Path, "/")
		if auth != "" {
			f.t.Errorf("the public address sees the token")
		}
	} else if auth != "" && auth != "Bearer "+testToken {
		say(w, http.StatusUnauthorized, "Bad credentials")
		return
	}
	parts := strings.Split(path, "/")
	if len(parts) < 3 || parts[2] != "releases" {
		say(w, http.StatusNotFound, "Not Found")
		return
	}
	x := f.repos[parts[0]+"/"+parts[1]]
	if x == nil || x.private && auth == "" {
		say(w, http.StatusNotFound, "Not Found")
		return
	}
	rest := parts[3:]
	switch {
	case api && len(rest) == 0:
		f.list(w, r, x)
	case api && rest[0] == "latest" && len(x.releases) > 0:
		f.answer(w, r, x.releases[0])
	case api && len(rest) == 2 && rest[0] == "tags":
		for _, rel := range x.releases {
			if rel["tag_name"] == rest[1] {
				f.answer(w, r, rel)
				return
			}
		}
		say(w, http.StatusNotFound, "Not Found")
	case api && len(rest) == 2 && rest[0] == "assets":
		f.asset(w, r, x, rest[1])
	case !api && len(rest) == 3 && rest[0] == "download":
		http.Redirect(w, r, f.cdn.URL+"/release-asset?name="+rest[2]+"&sig=s", http.StatusFound)
	default:
		say(w, http.StatusNotFound, "Not Found")
	}
}

func (f *forge) answer(w http.ResponseWriter, r *http.Request, v any) {
	b, _ := json.Marshal(v)
	tag := `W/"` + sum(b)[:16] + `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("X-RateLimit-Limit", "60")
	w.Header().Set("X-RateLimit-Remaining", "59")
	if r.Header.Get("If-None-Match") == tag {
		f.mu.Lock()
		f.notModified++
		f.mu.Unlock()
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(b)
}

// list returns one release per page.
func (f *forge) list(w http.ResponseWriter, r *http.Request, x *repo) {
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	page = max(page, 1)
	if page < len(x.releases) {
		q := r.URL.Query()
		q.Set("page", strconv.Itoa(page+1))
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?%s>; rel="next", <%s>; rel="last"`, f.URL, r.URL.Path, q.Encode(), f.URL))
	}
	f.answer(w, r, x.releases[page-1:min(page, len(x.releases))])
}

func (f *forge) asset(w http.ResponseWriter, r *http.Request, x *repo, id string) {
	for _, rel := range x.releases {
		for _, a := range rel["assets"].([]map[string]any) {
			if fmt.Sprint(a["id"]) != id {
				continue
			}
			if r.Header.Get("Accept") != "application/octet-stream" {
				f.answer(w, r, a) // metadata instead of the bytes
				return
			}
			http.Redirect(w, r, f.cdn.URL+"/release-asset?name="+a["name"].(string)+"&sig=s", http.StatusFound)
			return
		}
	}
	say(w, http.StatusNotFound, "Not Found")
}

func (f *forge) serveCDN(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"Authorization", "Cookie", "Referer", "X-Github-Api-Version"} {
		if r.Header.Get(name) != "" {
			f.t.Errorf("the other host sees %s", name)
		}
	}
	if r.URL.Query().Get("sig") != "s" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	name := r.URL.Query().Get("name")
	var b []byte
	switch {
	case name == "SHA256SUMS":
		b = []byte(sum(content("app-linux-arm64.zip")) + " *app-linux-arm64.zip\n" + sum(content("app-linux-amd64.zip")) + "  app-linux-amd64.zip\n")
	case strings.HasSuffix(name, ".sha256"):
		b = []byte(strings.ToUpper(sum(content(strings.TrimSuffix(name, ".sha256")))) + "\n")
	default:
		b = content(name)
	}
	w.Header().Set("ETag", `"`+sum(b)[:16]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// configured returns a source that knows the forge, on a machine with Linux and amd64.
func (f *forge) configured(t *testing.T, more string) *source {
	t.Helper()
	s := newSource("1.0.0", nil)
	s.backoff, s.goos, s.goarch = time.Millisecond, "linux", "amd64"
	d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(`{"api":"` + f.URL + `/api/v3"` + more + `}`), AllowAddresses: []string{"127.0.0.0/8"}})
	must.NoError(t, err)
	must.SliceEmpty(t, d)
	return s
}
