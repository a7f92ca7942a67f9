package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

func configured(t *testing.T, allowAny bool, paths ...string) *source {
	t.Helper()
	s := newSource("1.0.0")
	b, err := json.Marshal(map[string]any{"paths": paths, "allow_any": allowAny})
	must.NoError(t, err)
	d, err := s.Configure(t.Context(), sdk.Config{JSON: b})
	must.NoError(t, err)
	must.False(t, d.HasErrors(), must.Sprint(d))
	return s
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "sub", "Tiny.Q8_0.gguf"), "GGUF and the rest")
	for name, s := range map[string]*source{"below a path": configured(t, false, dir), "any": configured(t, true)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := s.Resolve(t.Context(), "//"+filepath.Join(dir, "x", "..", "sub", "Tiny.Q8_0.gguf"))
			must.NoError(t, err)
			must.Eq(t, path, m.Ref)
			must.Eq(t, "Tiny.Q8_0", m.Name)
			want := catalog.File{
				Ref: path, Path: "Tiny.Q8_0.gguf", SizeBytes: 17, Locator: path,
				Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("GGUF and the rest"))),
			}
			must.Eq(t, []catalog.File{want}, m.Files)
			for offset, rest := range map[int64]string{0: "GGUF and the rest", 5: "and the rest", 17: ""} {
				var b bytes.Buffer
				must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &b))
				must.Eq(t, rest, b.String())
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			must.ErrorIs(t, s.Fetch(ctx, m.Files[0], 0, &bytes.Buffer{}), context.Canceled)
			must.ErrorIs(t, s.Fetch(t.Context(), m.Files[0], 18, &bytes.Buffer{}), catalog.ErrInvalid)
		})
	}
}

func TestChangedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "m.gguf"), "GGUF one")
	s := configured(t, false, dir)
	m, err := s.Resolve(t.Context(), path)
	must.NoError(t, err)
	write(t, path, "GGUF three")
	err = s.Fetch(t.Context(), m.Files[0], 0, &bytes.Buffer{})
	must.ErrorIs(t, err, catalog.ErrIntegrity)
	again, err := s.Resolve(t.Context(), path)
	must.NoError(t, err)
	must.NotEq(t, m.Files[0].Digest, again.Files[0].Digest)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	secret := write(t, filepath.Join(outside, "secret.gguf"), "GGUF secret")
	write(t, filepath.Join(dir, "text.gguf"), "no model")
	write(t, filepath.Join(dir, "short.gguf"), "GG")
	must.NoError(t, os.Symlink(secret, filepath.Join(dir, "link.gguf")))
	must.NoError(t, os.Symlink(outside, filepath.Join(dir, "away")))
	must.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe.gguf"), 0o600))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "folder.gguf"), 0o700))
	limited, open := configured(t, false, dir), configured(t, true)
	tests := map[string]struct {
		s    *source
		ref  string
		is   error
		hint string
	}{
		"relative":               {limited, "m.gguf", catalog.ErrInvalid, "whole path"},
		"home":                   {limited, "~/m.gguf", catalog.ErrInvalid, "without ~"},
		"empty":                  {open, "", catalog.ErrInvalid, "whole path"},
		"outside":                {limited, secret, catalog.ErrForbidden, "paths = ["},
		"outside, missing":       {limited, secret + "x", catalog.ErrForbidden, "paths = ["},
		"outside by dots":        {limited, dir + "/../" + filepath.Base(outside) + "/secret.gguf", catalog.ErrForbidden, "paths = ["},
		"a name that begins so":  {limited, dir + "x/m.gguf", catalog.ErrForbidden, "paths = ["},
		"link out of it":         {limited, filepath.Join(dir, "link.gguf"), catalog.ErrForbidden, "A link must lead"},
		"folder link out of it":  {limited, filepath.Join(dir, "away", "secret.gguf"), catalog.ErrForbidden, "A link must lead"},
		"missing":                {limited, filepath.Join(dir, "none.gguf"), catalog.ErrNotFound, "hive's machine"},
		"missing, any":           {open, filepath.Join(dir, "none.gguf"), catalog.ErrNotFound, "hive's machine"},
		"no GGUF":                {limited, filepath.Join(dir, "text.gguf"), catalog.ErrInvalid, "GGUF format"},
		"shorter than its magic": {limited, filepath.Join(dir, "short.gguf"), catalog.ErrInvalid, "GGUF format"},
		"pipe":                   {limited, filepath.Join(dir, "pipe.gguf"), catalog.ErrInvalid, "GGUF format"},
		"pipe, any":              {open, filepath.Join(dir, "pipe.gguf"), catalog.ErrInvalid, "GGUF format"},
		"folder":                 {limited, filepath.Join(dir, "folder.gguf"), catalog.ErrInvalid, "GGUF format"},
		"device":                 {open, "/dev/zero", catalog.ErrInvalid, "GGUF format"},
		"no configuration":       {newSource("1"), secret, catalog.ErrForbidden, "paths = ["},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tc.s.Resolve(t.Context(), tc.ref)
			must.ErrorIs(t, err, tc.is)
			must.StrContains(t, sdk.HintOf(err), tc.hint)
			var b bytes.Buffer
			must.ErrorIs(t, tc.s.Fetch(t.Context(), catalog.File{Locator: tc.ref}, 0, &b), tc.is)
			must.Eq(t, 0, b.Len())
		})
	}
	_, err := open.Resolve(t.Context(), filepath.Join(dir, "link.gguf"))
	must.NoError(t, err, must.Sprint("any file means any"))
}

// A refusal must not reveal whether the file exists.
func TestRefusalRevealsNothing(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	s := configured(t, false, t.TempDir())
	write(t, filepath.Join(outside, "a.gguf"), "GGUF")
	_, there := s.Resolve(t.Context(), filepath.Join(outside, "a.gguf"))
	_, missing := s.Resolve(t.Context(), filepath.Join(outside, "b.gguf"))
	must.Eq(t, there.Error(), strings.Replace(missing.Error(), "b.gguf", "a.gguf", 1))
}

// A part of a split model represents all its parts, in order.
func TestSplitModel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var want []string
	for i, body := range []string{"GGUF one", "GGUF two", "GGUF three"} {
		want = append(want, write(t, filepath.Join(dir, fmt.Sprintf("Big-0000%d-of-00003.GGUF", i+1)), body))
	}
	s := configured(t, false, dir)
	for _, ref := range want {
		m, err := s.Resolve(t.Context(), ref)
		must.NoError(t, err)
		must.Eq(t, "Big", m.Name)
		must.Eq(t, want[0], m.Ref)
		must.Len(t, 3, m.Files)
		for i, f := range m.Files {
			must.Eq(t, want[i], f.Locator)
			must.Eq(t, filepath.Base(want[i]), f.Path)
			must.Eq(t, want[0], f.Ref)
		}
	}
	must.NoError(t, os.Remove(want[1]))
	_, err := s.Resolve(t.Context(), want[0])
	must.ErrorIs(t, err, catalog.ErrNotFound)
	must.StrContains(t, err.Error(), "Big-00002-of-00003.GGUF")
	m, err := s.Resolve(t.Context(), write(t, filepath.Join(dir, "odd-00004-of-00003.gguf"), "GGUF"))
	must.NoError(t, err)
	must.Len(t, 1, m.Files)
}

// TestSearchPastBadName omits only the file whose name is not UTF-8.
func TestSearchPastBadName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "b\xff.gguf"), []byte("GGUF"), 0o600); err != nil {
		t.Skipf("this file system takes no such name: %v", err)
	}
	write(t, filepath.Join(dir, "a.gguf"), "GGUF")
	write(t, filepath.Join(dir, "c.gguf"), "GGUF")
	var names []string
	must.NoError(t, configured(t, false, dir).Search(t.Context(), catalog.Query{}, func(i catalog.Item) error {
		must.True(t, utf8.ValidString(i.Name) && utf8.ValidString(i.Ref))
		names = append(names, i.Name)
		return nil
	}))
	must.Eq(t, []string{"a", "c"}, names)
}

func TestSearch(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "qwen", "qwen2-q4.gguf"), "GGUF 1")
	write(t, filepath.Join(dir, "Qwen2.GGUF"), "GGUF 22")
	write(t, filepath.Join(dir, "readme.txt"), "x")
	write(t, filepath.Join(dir, ".hidden", "qwen2.gguf"), "GGUF")
	write(t, filepath.Join(dir, "big-00001-of-00002.gguf"), "GGUF")
	write(t, filepath.Join(dir, "big-00002-of-00002.gguf"), "GGUF 2")
	write(t, filepath.Join(dir, "mmproj-qwen2.gguf"), "GGUF")
	write(t, filepath.Join(dir, "1/2/3/4/5/6/7/qwen2.gguf"), "GGUF")
	must.NoError(t, os.Symlink(write(t, filepath.Join(outside, "qwen2.gguf"), "GGUF"), filepath.Join(dir, "out-qwen2.gguf")))
	must.NoError(t, os.Symlink("Qwen2.GGUF", filepath.Join(dir, "alias.gguf")))
	s := configured(t, false, dir, filepath.Join(dir, "not-there"))
	search := func(q catalog.Query) (names []string) {
		must.NoError(t, s.Search(t.Context(), q, func(i catalog.Item) error {
			must.Eq(t, catalog.KindModel, i.Kind)
			must.True(t, filepath.IsAbs(i.Ref))
			must.Greater(t, 0, i.SizeBytes)
			names = append(names, i.Name)
			return nil
		}))
		return names
	}
	must.Eq(t, []string{"Qwen2", "alias", "big", "qwen2-q4"}, search(catalog.Query{}), must.Sprint("a split model is one"))
	must.Eq(t, []string{"Qwen2", "qwen2-q4"}, search(catalog.Query{Text: "qwen2"}))
	must.Eq(t, []string{"qwen2-q4"}, search(catalog.Query{Text: "QWEN2-Q4", Kind: catalog.KindModel}))
	must.Eq(t, []string{"Qwen2"}, search(catalog.Query{Limit: 1}))
	must.SliceEmpty(t, search(catalog.Query{Kind: catalog.KindEngine}))
	must.SliceEmpty(t, search(catalog.Query{Text: "llama"}))
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "m.gguf"), "GGUF")
	for json, want := range map[string]string{
		`{"paths":["models"]}`:                             "Not a whole path",
		`{"paths":["` + dir + `","~/models"]}`:             "Not a whole path",
		`{"paths":["` + file + `"]}`:                       "Not a folder",
		`{"paths":["` + filepath.Join(dir, "none") + `"]}`: "No such folder",
	} {
		d, err := newSource("1").Configure(t.Context(), sdk.Config{JSON: []byte(json)})
		must.NoError(t, err)
		must.SliceLen(t, 1, d)
		must.Eq(t, want, d[0].Summary)
		must.Eq(t, want != "No such folder", d.HasErrors())
		must.Eq(t, "paths", d[0].Path[0].(string))
	}
	_, err := newSource("1").Configure(t.Context(), sdk.Config{JSON: []byte(`[`)})
	must.Error(t, err)
	d, err := newSource("1").Configure(t.Context(), sdk.Config{})
	must.NoError(t, err)
	must.SliceEmpty(t, d)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "m.gguf"), "GGUF and the rest")
	config, err := json.Marshal(map[string]any{"paths": []string{dir}})
	must.NoError(t, err)
	sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return newSource("1.2.3") }), sdktest.CatalogOptions{
		Config: config, BadConfig: json.RawMessage(`{"paths":["models"]}`), Ref: path, NoRef: filepath.Join(dir, "none.gguf"), Query: "m",
	})
}
