package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// writeCache puts a file into a cache the way Hugging Face's tools do.
func writeCache(t *testing.T, hub, org, repo, file string, content []byte) {
	t.Helper()
	dir := filepath.Join(hub, "models--"+org+"--"+repo)
	for _, sub := range []string{"blobs", "refs", filepath.Join("snapshots", commit, filepath.Dir(file))} {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	must.NoError(t, os.WriteFile(filepath.Join(dir, "refs", "main"), []byte(commit), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "blobs", sum(content)), content, 0o600))
	link := filepath.Join(dir, "snapshots", commit, file)
	up, err := filepath.Rel(filepath.Dir(link), filepath.Join(dir, "blobs", sum(content)))
	must.NoError(t, err)
	must.NoError(t, os.Symlink(up, link))
}

func TestResolveCached(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	dir := t.TempDir()
	file := h.repos["org/Tiny-GGUF"].files["Tiny-Q4_K_M.gguf"]
	writeCache(t, dir, "org", "Tiny-GGUF", "Tiny-Q4_K_M.gguf", file)
	s := h.configured(t, "", "HF_HUB_CACHE="+dir)
	m, err := s.Resolve(t.Context(), "org/Tiny-GGUF:Q4_K_M")
	must.NoError(t, err)
	must.Eq(t, "", m.Files[0].URL)
	must.Eq(t, "sha256:"+sum(file), m.Files[0].Digest)
	must.Len(t, 1, m.Notes)
	must.StrContains(t, m.Notes[0], "Hugging Face cache")
	for _, offset := range []int64{0, 7, int64(len(file))} {
		var b bytes.Buffer
		must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
		must.True(t, bytes.Equal(file[offset:], b.Bytes()))
	}
	must.SliceEmpty(t, h.ranges)

	// Files that are missing or incomplete are fetched from the Hub; with the cache disabled, all
	// are.
	m, err = s.Resolve(t.Context(), "org/Tiny-GGUF:Q8_0")
	must.NoError(t, err)
	must.NotEq(t, "", m.Files[0].URL)
	m, err = h.configured(t, `{"cache":false}`, "HF_HUB_CACHE="+dir).Resolve(t.Context(), "org/Tiny-GGUF:Q4_K_M")
	must.NoError(t, err)
	must.NotEq(t, "", m.Files[0].URL)
	must.NoError(t, os.Truncate(filepath.Join(dir, "models--org--Tiny-GGUF/blobs", sum(file)), 100))
	m, err = s.Resolve(t.Context(), "org/Tiny-GGUF:Q4_K_M")
	must.NoError(t, err)
	must.NotEq(t, "", m.Files[0].URL)
	var b bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &b))
	must.True(t, bytes.Equal(file, b.Bytes()))
}

func TestResolveOffline(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	h.before = func(http.ResponseWriter, *http.Request) bool {
		t.Error("the Hub is asked")
		return false
	}
	dir := t.TempDir()
	writeCache(t, dir, "org", "Tiny-GGUF", "sub/Tiny-Q4_K_M.gguf", []byte("tiny"))
	writeCache(t, dir, "org", "Tiny-GGUF", "README.md", []byte("read me"))
	s := h.configured(t, "", "HF_HUB_CACHE="+dir, "HF_HUB_OFFLINE=1")
	for _, ref := range []string{"org/Tiny-GGUF", "org/Tiny-GGUF:Q4_K_M", "org/Tiny-GGUF@" + commit, "org/Tiny-GGUF/sub/Tiny-Q4_K_M.gguf"} {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err)
		must.Eq(t, "org/Tiny-GGUF/sub/Tiny-Q4_K_M.gguf@"+commit, m.Ref)
		must.Eq(t, []catalog.File{{Ref: m.Ref, Path: "sub/Tiny-Q4_K_M.gguf", Locator: "sub/Tiny-Q4_K_M.gguf", SizeBytes: 4, Digest: "sha256:" + sum([]byte("tiny"))}}, m.Files)
		var b bytes.Buffer
		must.NoError(t, s.Fetch(t.Context(), m.Files[0], 1, &b))
		must.Eq(t, "iny", b.String())
	}
	for _, ref := range []string{"org/other", "org/Tiny-GGUF@v1"} {
		_, err := s.Resolve(t.Context(), ref)
		must.ErrorIs(t, err, catalog.ErrUnavailable, must.Sprint(ref))
		must.StrContains(t, sdk.HintOf(err), "HF_HUB_OFFLINE")
	}
	must.NoError(t, s.Search(t.Context(), catalog.Query{Text: "tiny"}, func(catalog.Item) error { return nil }))
	f := catalog.File{Ref: "org/Tiny-GGUF/x.gguf@" + commit, Path: "x.gguf", Locator: "x.gguf"}
	must.ErrorIs(t, s.Fetch(t.Context(), f, 0, &bytes.Buffer{}), catalog.ErrUnavailable)
}

func TestCacheStaysInside(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	dir := t.TempDir()
	writeCache(t, dir, "org", "Tiny-GGUF", "Tiny-Q8_0.gguf", []byte("x"))
	secret := filepath.Join(t.TempDir(), "secret")
	must.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	must.NoError(t, os.Symlink(secret, filepath.Join(dir, "models--org--Tiny-GGUF/snapshots", commit, "Tiny-Q4_K_M.gguf")))
	s := h.configured(t, "", "HF_HUB_CACHE="+dir, "HF_HUB_OFFLINE=1")
	_, err := s.Resolve(t.Context(), "org/Tiny-GGUF:Q4_K_M")
	must.ErrorIs(t, err, catalog.ErrNotFound)
	for _, locator := range []string{"Tiny-Q4_K_M.gguf", "../../../../secret", "/etc/passwd", ""} {
		var b bytes.Buffer
		must.Error(t, s.Fetch(t.Context(), catalog.File{Ref: "org/Tiny-GGUF/x.gguf@" + commit, Locator: locator}, 0, &b))
		must.Zero(t, b.Len())
	}
}
