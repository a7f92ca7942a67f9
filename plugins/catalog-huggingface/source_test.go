package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

// tiny returns a hub with one typical repository.
func tiny(t *testing.T) *hub {
	h := newHub(t)
	h.repos["org/Tiny-GGUF"] = &repo{
		card: map[string]any{"license": "apache-2.0", "base_model": "org/Tiny"},
		files: map[string][]byte{
			"Tiny-Q4_K_M.gguf": bytes.Repeat([]byte("0123456789"), 20_000), "Tiny-Q8_0.gguf": bytes.Repeat([]byte("abcdefghij"), 30_000), "mmproj-Tiny-F16.gguf": []byte("p"),
			"BF16/Tiny BF16+x-00001-of-00002.gguf": []byte("part one"), "BF16/Tiny BF16+x-00002-of-00002.gguf": []byte("part two"),
		},
	}
	return h
}

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	s := h.configured(t, "", "HF_TOKEN="+testToken)
	file := h.repos["org/Tiny-GGUF"].files["Tiny-Q4_K_M.gguf"]
	exact := "org/Tiny-GGUF/Tiny-Q4_K_M.gguf@" + commit
	for _, ref := range []string{"org/Tiny-GGUF", "org/Tiny-GGUF:q4_k_m", "org/Tiny-GGUF@v1", "org/Tiny-GGUF@refs/pr/1", exact} {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err)
		m.Notes = nil
		must.Eq(t, catalog.Manifest{
			Ref: exact, Name: "hf.co/org/Tiny-GGUF:Q4_K_M", Kind: catalog.KindModel, Version: commit, License: "apache-2.0",
			Files: []catalog.File{{
				Ref: exact, Path: "Tiny-Q4_K_M.gguf", SizeBytes: int64(len(file)), Digest: "sha256:" + sum(file), Locator: "Tiny-Q4_K_M.gguf",
				URL: h.URL + "/org/Tiny-GGUF/resolve/" + commit + "/Tiny-Q4_K_M.gguf", Header: map[string]string{"Authorization": "Bearer " + testToken},
			}},
		}, m)
		for _, offset := range []int64{0, 1, 150_000, int64(len(file))} {
			var b bytes.Buffer
			must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
			must.True(t, bytes.Equal(file[offset:], b.Bytes()))
		}
	}
	must.SliceContains(t, h.ranges, "bytes=150000-")
	must.Eq(t, "rbee-catalog-huggingface/1.0.0", h.requests[0].UserAgent())
}

func TestFetchAllParts(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	s := h.configured(t, "")
	m, err := s.Resolve(t.Context(), "org/Tiny-GGUF:BF16")
	must.NoError(t, err)
	must.Len(t, 2, m.Files)
	must.StrContains(t, m.Files[0].URL, "/BF16/Tiny%20BF16+x-00001-of-00002.gguf")
	for i, want := range []string{"part one", "part two"} {
		must.Nil(t, m.Files[i].Header)
		var b bytes.Buffer
		must.NoError(t, s.Fetch(t.Context(), m.Files[i], 0, &b))
		must.Eq(t, want, b.String())
	}
}

func TestResolveChoiceNotes(t *testing.T) {
	t.Parallel()
	m, err := tiny(t).configured(t, "").Resolve(t.Context(), "org/Tiny-GGUF")
	must.NoError(t, err)
	must.Eq(t, []string{"Q4_K_M is chosen of Q4_K_M, Q8_0, BF16; hf:org/Tiny-GGUF:QUANT asks for another"}, m.Notes)
}

func TestResolveMovedModel(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	h.repos["old/Tiny"] = &repo{movedTo: "org/Tiny-GGUF"}
	m, err := h.configured(t, "", "HF_TOKEN="+testToken).Resolve(t.Context(), "old/Tiny:Q8_0")
	must.NoError(t, err)
	must.Eq(t, "org/Tiny-GGUF/Tiny-Q8_0.gguf@"+commit, m.Ref)
}

func TestResolveMissingDigest(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	h.repos["org/Tiny-GGUF"].noLFS = true
	m, err := h.configured(t, "").Resolve(t.Context(), "org/Tiny-GGUF:Q8_0")
	must.NoError(t, err)
	must.Eq(t, "sha256:"+sum(h.repos["org/Tiny-GGUF"].files["Tiny-Q8_0.gguf"]), m.Files[0].Digest)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	h.repos["org/gated"] = &repo{gated: "manual", files: map[string][]byte{"gated-Q4_K_M.gguf": []byte("g")}}
	h.repos["org/private"] = &repo{private: true, files: map[string][]byte{"private-Q4_K_M.gguf": []byte("p")}}
	none, good, stranger, bad := h.configured(t, ""), h.configured(t, "", "HF_TOKEN="+testToken), h.configured(t, "", "HF_TOKEN="+otherToken), h.configured(t, "", "HF_TOKEN=hf_revoked")
	for name, tc := range map[string]struct {
		s          *source
		ref        string
		err        error // nil: success
		text, hint string
	}{
		"gated, without token":   {none, "org/gated", catalog.ErrUnauthenticated, "accepted its licence", "Accept the licence at " + h.URL + "/org/gated"},
		"gated, says which":      {none, "org/gated", catalog.ErrUnauthenticated, "gated", "HF_TOKEN"},
		"gated, another account": {stranger, "org/gated", catalog.ErrForbidden, "is not let in", "Accept the licence at " + h.URL + "/org/gated"},
		"gated, let in":          {good, "org/gated", nil, "", ""},
		"private":                {none, "org/private", catalog.ErrNotFound, "no repository org/private", "HF_TOKEN"},
		"private, wrong account": {stranger, "org/private", catalog.ErrNotFound, "that the token may see", "what the token may read"},
		"private, let in":        {good, "org/private", nil, "", ""},
		"not there":              {none, "org/nothing", catalog.ErrNotFound, "no repository org/nothing", "Check the spelling"},
		"no such revision":       {none, "org/Tiny-GGUF@v9", catalog.ErrNotFound, "no revision v9", "/tree/main"},
		"no such quantisation":   {none, "org/Tiny-GGUF:Q2_K", catalog.ErrNotFound, "no quantisation Q2_K", "Q4_K_M, Q8_0, BF16"},
		"a token that is no use": {bad, "org/Tiny-GGUF", catalog.ErrUnauthenticated, "does not accept the token", "revoked"},
		"malformed":              {none, "nothing", catalog.ErrInvalid, "no repository", "hf:ORG/REPO"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tc.s.Resolve(t.Context(), tc.ref)
			if tc.err == nil {
				must.NoError(t, err)
				return
			}
			must.ErrorIs(t, err, tc.err)
			must.StrContains(t, err.Error(), tc.text)
			must.StrContains(t, sdk.HintOf(err), tc.hint)
			must.StrNotContains(t, err.Error()+sdk.HintOf(err), "hf_")
		})
	}
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	var n atomic.Int64
	wait := "3600"
	h.before = func(w http.ResponseWriter, _ *http.Request) bool {
		n.Add(1)
		w.Header().Set("Retry-After", wait)
		fail(w, http.StatusTooManyRequests, "", "We had to rate limit your IP.")
		return true
	}
	_, err := h.configured(t, "").Resolve(t.Context(), "org/Tiny-GGUF")
	must.ErrorIs(t, err, catalog.ErrUnavailable)
	must.StrContains(t, sdk.HintOf(err), "try again in 1h0m0s")
	must.StrContains(t, sdk.HintOf(err), "HF_TOKEN")
	must.One(t, n.Load())
	// A short rate limit is waited for.
	h2 := tiny(t)
	var m atomic.Int64
	h2.before = func(w http.ResponseWriter, _ *http.Request) bool {
		if m.Add(1) > 1 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusTooManyRequests, "", "We had to rate limit your IP.")
		return true
	}
	_, err = h2.configured(t, "").Resolve(t.Context(), "org/Tiny-GGUF")
	must.NoError(t, err)
	must.Eq(t, 2, m.Load())
}

func TestNotAHub(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	h.before = func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, "<html>")
		return true
	}
	s := h.configured(t, "")
	_, err := s.Resolve(t.Context(), "org/Tiny-GGUF")
	must.ErrorIs(t, err, catalog.ErrUnavailable)
	must.StrContains(t, sdk.HintOf(err), "HF_ENDPOINT")
	must.ErrorIs(t, s.Search(t.Context(), catalog.Query{Text: "x"}, func(catalog.Item) error { return nil }), catalog.ErrUnavailable)
}

func TestSearchPages(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for i := range 5 {
		h.repos[fmt.Sprintf("org/tiny-%d", i)] = &repo{}
	}
	s := h.configured(t, "", "HF_TOKEN="+testToken)
	names := func(q catalog.Query) (out []string) {
		must.NoError(t, s.Search(t.Context(), q, func(i catalog.Item) error {
			out = append(out, i.Ref)
			return nil
		}))
		return out
	}
	all := []string{"org/tiny-0", "org/tiny-1", "org/tiny-2", "org/tiny-3", "org/tiny-4"}
	must.Eq(t, all, names(catalog.Query{Text: "tiny"}))
	must.Eq(t, all[:3], names(catalog.Query{Text: "tiny", Limit: 3}))
	must.SliceEmpty(t, names(catalog.Query{Text: "tiny", Kind: catalog.KindEngine}))
	before := len(h.requests)
	must.SliceEmpty(t, names(catalog.Query{Text: "tiny", Exact: true})) // names without a slash do not exist here
	must.Len(t, before, h.requests)
	must.Eq(t, all[:1], names(catalog.Query{Text: "org/tiny-0", Exact: true}))

	// A next page on another host gets neither the token nor a request.
	var asked atomic.Int64
	elsewhere := newHub(t)
	elsewhere.before = func(http.ResponseWriter, *http.Request) bool {
		asked.Add(1)
		return false
	}
	h.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Link", "<"+elsewhere.URL+"/api/models>; rel=\"next\"")
		return false
	}
	names(catalog.Query{Text: "tiny"})
	must.Zero(t, asked.Load())
}

func TestSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	must.NoError(t, os.WriteFile(file, []byte(testToken+"\n"), 0o600))
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "xdg/huggingface"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "xdg/huggingface/token"), []byte(testToken), 0o600))
	for name, tc := range map[string]struct {
		config string
		env    []string
		want   string
	}{
		"none":                      {},
		"block":                     {config: `{"token":"a"}`, env: []string{"HF_TOKEN=b"}, want: "a"},
		"file of the block":         {config: `{"token_file":"` + file + `"}`, env: []string{"HF_TOKEN=b"}, want: testToken},
		"HF_TOKEN":                  {env: []string{"HF_TOKEN= b "}, want: "b"},
		"the older name":            {env: []string{"HUGGING_FACE_HUB_TOKEN=c"}, want: "c"},
		"HF_TOKEN_PATH":             {env: []string{"HF_TOKEN_PATH=" + file}, want: testToken},
		"HF_HOME":                   {env: []string{"HF_HOME=" + dir}, want: testToken},
		"XDG_CACHE_HOME":            {env: []string{"HF_HOME=", "XDG_CACHE_HOME=" + filepath.Join(dir, "xdg")}, want: testToken},
		"asked not to":              {env: []string{"HF_TOKEN=b", "HF_HUB_DISABLE_IMPLICIT_TOKEN=1"}},
		"a block is not implicit":   {config: `{"token":"a"}`, env: []string{"HF_HUB_DISABLE_IMPLICIT_TOKEN=1"}, want: "a"},
		"empty is as good as unset": {env: []string{"HF_TOKEN=", "HUGGING_FACE_HUB_TOKEN=c"}, want: "c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSource("1", tc.env)
			d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(tc.config)})
			must.NoError(t, err)
			must.False(t, d.HasErrors(), must.Sprint(d))
			got, err := s.set.bearer()
			must.NoError(t, err)
			must.Eq(t, tc.want, got)
		})
	}
	for name, tc := range map[string]struct {
		config string
		env    []string
		at     string
		warn   bool
	}{
		"endpoint":          {config: `{"endpoint":"ftp://x"}`, at: "endpoint"},
		"HF_ENDPOINT":       {env: []string{"HF_ENDPOINT=huggingface.co"}, at: "endpoint"},
		"password":          {config: `{"endpoint":"https://me:secret@x"}`, at: "endpoint"},
		"relative file":     {config: `{"token_file":"~/token"}`, at: "token_file"},
		"no file":           {config: `{"token_file":"/no/such/file"}`, at: "token_file"},
		"two lines":         {config: `{"token":"a\nb"}`, at: "token"},
		"in the clear":      {config: `{"token":"a","endpoint":"http://hub.example"}`, at: "endpoint", warn: true},
		"unusable variable": {env: []string{"SSL_CERT_FILE=/no/such/file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSource("1", tc.env)
			d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(tc.config)})
			must.NoError(t, err)
			must.Len(t, 1, d)
			must.Eq(t, !tc.warn, d.HasErrors())
			if tc.at != "" {
				must.Eq(t, []any{tc.at}, d[0].Path)
			}
		})
	}
}

func TestPrivateHub(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	s := newSource("1", []string{"HF_ENDPOINT=" + h.URL})
	d, err := s.Configure(t.Context(), sdk.Config{})
	must.NoError(t, err)
	must.SliceEmpty(t, d)
	_, err = s.Resolve(t.Context(), "org/Tiny-GGUF")
	must.ErrorIs(t, err, catalog.ErrForbidden)
	must.StrContains(t, sdk.HintOf(err), "hive.download.allow_addresses")
	must.SliceEmpty(t, h.requests)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	h := tiny(t)
	sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source {
		return newSource("1.0.0", []string{"HF_HOME=" + t.TempDir()})
	}), sdktest.CatalogOptions{
		Config: json.RawMessage(`{"endpoint":"` + h.URL + `","token":"` + testToken + `"}`), BadConfig: json.RawMessage(`{"endpoint":"nowhere"}`),
		Ref: "org/Tiny-GGUF", NoRef: "org/nothing", Query: "tiny", AllowAddresses: []string{"127.0.0.0/8"},
	})
}
