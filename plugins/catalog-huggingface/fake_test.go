package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

const (
	commit     = "0123456789abcdef0123456789abcdef01234567"
	testToken  = "hf_testtoken"
	otherToken = "hf_stranger"
)

// hub imitates the Hub: the API of models, and files that are redirected to another host, which
// requires a signature and fails the test when it receives a credential.
type hub struct {
	*httptest.Server
	t     testing.TB
	cdn   *httptest.Server
	repos map[string]*repo
	// before is called first and may answer in the Hub's place by returning true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex // guards below
	requests []*http.Request
	ranges   []string // requested from the other host
}

type repo struct {
	files   map[string][]byte
	gated   string // "", "auto", "manual"
	private bool
	movedTo string
	card    map[string]any
	noLFS   bool // the API omits digests
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{t: t, repos: map[string]*repo{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	h.cdn = httptest.NewServer(http.HandlerFunc(h.serveCDN))
	t.Cleanup(h.cdn.Close)
	return h
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func fail(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.Header().Set("X-Error-Message", message)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": message})
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	h.requests = append(h.requests, r)
	h.mu.Unlock()
	if h.before != nil && h.before(w, r) {
		return
	}
	auth := r.Header.Get("Authorization")
	if auth != "" && auth != "Bearer "+testToken && auth != "Bearer "+otherToken {
		fail(w, http.StatusUnauthorized, "", "Invalid credentials in Authorization header")
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/api/models":
		h.serveSearch(w, r)
	case len(parts) >= 6 && parts[0] == "api" && parts[1] == "models" && parts[4] == "revision":
		h.serveModel(w, r, parts[2]+"/"+parts[3], strings.Join(parts[5:], "/"))
	case len(parts) >= 5 && parts[2] == "resolve":
		h.serveFile(w, r, parts[0]+"/"+parts[1], parts[3], strings.Join(parts[4:], "/"))
	default:
		fail(w, http.StatusNotFound, "", "Sorry, we can't find the page you are looking for.")
	}
}

// repo returns a repository that the request may see, or answers with an error.
func (h *hub) repo(w http.ResponseWriter, r *http.Request, id, revision string) *repo {
	x := h.repos[id]
	switch {
	case x == nil || x.private && r.Header.Get("Authorization") != "Bearer "+testToken:
		status := http.StatusNotFound
		if r.Header.Get("Authorization") == "" {
			status = http.StatusUnauthorized // hides which private ones exist
		}
		fail(w, status, "RepoNotFound", "Repository not found")
		return nil
	case !slices.Contains([]string{"main", "v1", "refs/pr/1", commit}, revision):
		fail(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return nil
	}
	return x
}

func (h *hub) serveModel(w http.ResponseWriter, r *http.Request, id, revision string) {
	x := h.repo(w, r, id, revision)
	if x == nil {
		return
	}
	if x.movedTo != "" {
		w.Header().Set("Location", "/api/models/"+x.movedTo+"/revision/"+url.PathEscape(revision)+"?"+r.URL.RawQuery)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	var siblings []map[string]any
	names := []string{".gitattributes", "README.md"}
	for name := range x.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		s := map[string]any{"rfilename": name}
		if b, ok := x.files[name]; ok && r.URL.Query().Get("blobs") == "true" {
			s["size"], s["blobId"] = len(b), strings.Repeat("a", 40)
			if !x.noLFS {
				s["lfs"] = map[string]any{"sha256": sum(b), "size": len(b), "pointerSize": 135}
			}
		}
		siblings = append(siblings, s)
	}
	var gated any = false
	if x.gated != "" {
		gated = x.gated
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("ETag", `W/"1"`)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"_id": "66", "id": id, "modelId": id, "author": "org", "sha": commit, "private": x.private, "gated": gated, "disabled": false, "downloads": 7, "likes": 2,
		"tags": []string{"gguf", "license:apache-2.0", "region:us"}, "cardData": x.card, "gguf": map[string]any{"total": 1, "architecture": "llama"}, "siblings": siblings,
		"createdAt": "2026-01-01T00:00:00.000Z", "usedStorage": 1,
	})
}

// serveSearch returns two models per page.
func (h *hub) serveSearch(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var ids []string
	for id := range h.repos {
		if strings.Contains(strings.ToLower(id), strings.ToLower(q.Get("search"))) && q.Get("filter") == "gguf" {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	at := 0
	_, _ = fmt.Sscan(q.Get("cursor"), &at)
	end := min(at+2, len(ids))
	found := []map[string]any{}
	for _, id := range ids[at:end] {
		found = append(found, map[string]any{"_id": "1", "id": id, "modelId": id, "likes": 2, "downloads": 7, "tags": []string{"gguf", "license:mit"}, "private": false})
	}
	if end < len(ids) {
		q.Set("cursor", fmt.Sprint(end))
		w.Header().Set("Link", fmt.Sprintf(`<%s/api/models?%s>; rel="next"`, h.URL, q.Encode()))
	}
	_ = json.NewEncoder(w).Encode(found)
}

func (h *hub) serveFile(w http.ResponseWriter, r *http.Request, id, revision, file string) {
	x := h.repo(w, r, id, revision)
	if x == nil {
		return
	}
	if x.gated != "" && r.Header.Get("Authorization") != "Bearer "+testToken {
		status := http.StatusForbidden
		if r.Header.Get("Authorization") == "" {
			status = http.StatusUnauthorized
		}
		fail(w, status, "GatedRepo", "Access to model "+id+" is restricted. You must have access to it and be authenticated to access it.")
		return
	}
	b, ok := x.files[file]
	if !ok {
		fail(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	w.Header().Set("X-Repo-Commit", commit)
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(b)))
	w.Header().Set("X-Linked-Etag", `"`+sum(b)+`"`)
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Location", h.cdn.URL+"/repos/"+sum(b)+"?"+url.Values{"id": {id}, "file": {file}, "X-Amz-Signature": {"signed"}}.Encode())
	w.WriteHeader(http.StatusFound)
}

func (h *hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"Authorization", "Cookie", "Referer"} {
		if r.Header.Get(name) != "" {
			h.t.Errorf("the other host sees %s: %q", name, r.Header.Get(name))
		}
	}
	q := r.URL.Query()
	x := h.repos[q.Get("id")]
	if r.Method != http.MethodGet || q.Get("X-Amz-Signature") != "signed" || x == nil {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	h.mu.Lock()
	h.ranges = append(h.ranges, r.Header.Get("Range"))
	h.mu.Unlock()
	b := x.files[q.Get("file")]
	w.Header().Set("ETag", `"`+sum(b)+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// configured returns a source for the hub, with more variables and the text of its config block.
func (h *hub) configured(t *testing.T, config string, env ...string) *source {
	t.Helper()
	s := newSource("1.0.0", slices.Concat([]string{"HF_ENDPOINT=" + h.URL, "HF_HOME=" + filepath.Join(t.TempDir(), "hf")}, env))
	s.environ = append(slices.Clone(env), s.environ...)
	s.backoff = time.Millisecond
	if config == "" {
		config = "{}"
	}
	d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(config), AllowAddresses: []string{"127.0.0.0/8"}})
	must.NoError(t, err)
	must.False(t, d.HasErrors(), must.Sprint(d))
	return s
}
