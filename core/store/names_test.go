package store_test

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/core/store"
)

func TestModelNames(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	o := &origin{body: body}
	for _, id := range []string{"", ".", "..", "a..b", "../m", "a//b", "/m", "a/", "a:b:c", "a+b", "a=b", "a b", ".hidden", "-m", "m\x00", "ü", strings.Repeat("m", 201)} {
		_, err := s.PutModel(t.Context(), spec(id, body, sha256Of(body)), store.Fetch(o.fetch), nil)
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprintf("%q", id))
		in := spec("m", body, sha256Of(body))
		in.Files[0].Path = "../x"
		_, err = s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
		must.Eq(t, core.Invalid, core.KindOf(err))
	}
	must.Eq(t, 0, o.fetches.Load())
	nothingPublished(t, s)

	put := func(id, ref string, aliases ...string) error {
		in := spec(id, body, sha256Of(body))
		in.Ref, in.Aliases = ref, aliases
		_, err := s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
		return err
	}
	must.NoError(t, put("llama-3.2", "a:1", "small"))
	must.NoError(t, put("qwen2", "a:2"), must.Sprint("the same blob under another name"))
	must.Eq(t, 1, o.fetches.Load())
	must.Eq(t, core.Conflict, core.KindOf(put("mixed", "a:3", "small")))
	must.Eq(t, core.Conflict, core.KindOf(put("mixed", "a:3", "qwen2")))
	must.Eq(t, core.Conflict, core.KindOf(put("LLAMA-3.2", "a:3")))
	must.NoError(t, put("llama-3.2", "b:1"), must.Sprint("the same files from elsewhere"))
	other := append(bytes.Clone(body), 0)
	in := spec("llama-3.2", other, sha256Of(other))
	in.Ref = "b:2"
	_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: other}).fetch), nil)
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.NotEq(t, "", core.HintOf(err))
	in.Ref = "a:1"
	m, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: other}).fetch), nil)
	must.NoError(t, err, must.Sprint("the same reference has new files"))
	must.Eq(t, sha256Of(other), m.Digest)

	for name, hint := range map[string]string{"lama-3.2": "llama-3.2", "llama": "llama-3.2", "smal": "small", "QWEN3": "qwen2", "mistral": "rbee model list"} {
		_, _, err := s.Model(name)
		must.Eq(t, core.NotFound, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), hint)
	}
}

// Two models with the same file name stay separate, are found by every unambiguous spelling, and
// share their common files.
func TestModelIDsFromPlaces(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	other := append(bytes.Clone(body), 0)
	dir := t.TempDir()
	s := open(t, dir)
	put := func(id, ref string, body []byte) {
		in := spec("tiny", body, sha256Of(body))
		in.ID, in.Ref = id, ref
		_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: body}).fetch), nil)
		must.NoError(t, err)
	}
	put("hf.co/alice/tiny:Q4_K_M", "huggingface:alice/tiny/tiny.gguf@0a", body)
	put("hf.co/bob/tiny:Q4_K_M", "huggingface:bob/tiny/tiny.gguf@0b", other)
	put("mine", "file:/srv/mine.gguf", body)
	must.Len(t, 2, files(t, s, "blobs"), must.Sprint("one content is stored once"))
	must.FileExists(t, filepath.Join(dir, "models", "hf.co+alice+tiny=Q4_K_M.json"))

	s = open(t, dir)
	for name, want := range map[string]string{"alice/tiny": "hf.co/alice/tiny:Q4_K_M", "BOB/tiny:q4_k_m": "hf.co/bob/tiny:Q4_K_M", "hf:bob/tiny": "hf.co/bob/tiny:Q4_K_M", "mine": "mine"} {
		m, path, err := s.Model(name)
		must.NoError(t, err, must.Sprint(name))
		must.EqOp(t, want, m.ID)
		must.FileExists(t, path)
	}
	_, _, err := s.Model("tiny")
	must.EqOp(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, err.Error(), "hf.co/alice/tiny:Q4_K_M, hf.co/bob/tiny:Q4_K_M")

	result, err := s.DeleteModel("alice/tiny", false)
	must.NoError(t, err)
	must.EqOp(t, 0, result.FreedBytes, must.Sprint("mine needs the file"))
	m, _, err := s.Model("tiny")
	must.NoError(t, err)
	must.EqOp(t, "hf.co/bob/tiny:Q4_K_M", m.ID)
}

// A store written by an earlier version, whose ids are bare file names, is still readable; its
// models have their old names and the names that they would get today.
func TestOldStore(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	dir := t.TempDir()
	hex := strings.TrimPrefix(sha256Of(body), "sha256:")
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "blobs"), 0o700))
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "models"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256-"+hex), body, 0o600))
	record, err := os.ReadFile("testdata/tiny-Q4_K_M.json")
	must.NoError(t, err)
	record = bytes.ReplaceAll(bytes.ReplaceAll(record, []byte("DIGEST"), []byte(sha256Of(body))), []byte("12345"), fmt.Append(nil, len(body)))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "models", "tiny-Q4_K_M.json"), record, 0o600))

	s := open(t, dir)
	for _, name := range []string{"tiny-Q4_K_M", "small", "huggingface:alice/tiny-GGUF/tiny-Q4_K_M.gguf@0a", "hf.co/alice/tiny-GGUF:Q4_K_M", "alice/tiny", "TINY-q4_k_m"} {
		m, _, err := s.Model(name)
		must.NoError(t, err, must.Sprint(name))
		must.EqOp(t, "tiny-Q4_K_M", m.ID)
	}
	in := spec("tiny", body, sha256Of(body))
	in.ID, in.Ref = "hf.co/alice/tiny-GGUF:Q4_K_M", "huggingface:alice/tiny-GGUF/tiny-Q4_K_M.gguf@0b"
	o := &origin{body: body}
	_, err = s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.EqOp(t, 0, o.fetches.Load(), must.Sprint("the file is there"))
	_, err = s.DeleteModel("tiny-Q4_K_M", false)
	must.NoError(t, err)
	m, _, err := s.Model("tiny-Q4_K_M")
	must.NoError(t, err)
	must.EqOp(t, "hf.co/alice/tiny-GGUF:Q4_K_M", m.ID)
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"rbee-tiny", "../x", "a..b", "sha256:00", "", "a/b", strings.Repeat("a", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if file := path.Base(store.RecordName(s)); modelname.Valid(s) {
			if id, ok := store.RecordID(file); !ok || id != s || store.RecordName(s) != "models/"+file || !filepath.IsLocal(file) || len(file) > 255 {
				t.Fatalf("%q has the record %q, which is that of %q", s, store.RecordName(s), id)
			}
		}
		if d, err := store.ParseDigest(s); err == nil && d != s {
			t.Fatalf("%q became %q", s, d)
		}
		core.Nearest(s, []string{"rbee-tiny", s})
	})
}
