package store_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/badgguf"
	"github.com/rbee-project/rbee/core/store"
)

// put stores a model of these files.
func put(t *testing.T, s *store.Store, id string, bodies ...[]byte) core.Model {
	t.Helper()
	m, err := s.PutModel(t.Context(), specOf(id, bodies...), serve(bodies...), nil)
	must.NoError(t, err)
	return m
}

func specOf(id string, bodies ...[]byte) store.ModelSpec {
	in := store.ModelSpec{ID: id, Ref: "test:" + id}
	for i, b := range bodies {
		in.Files = append(in.Files, store.FileSpec{Path: strings.Repeat("x", i+1) + ".gguf", SizeBytes: int64(len(b)), Digest: sha256Of(b), Ref: id})
	}
	return in
}

func serve(bodies ...[]byte) store.Fetch {
	return func(_ context.Context, f store.FileSpec, offset int64, w io.Writer) error {
		_, err := w.Write(bodies[len(strings.TrimSuffix(f.Path, ".gguf"))-1][offset:])
		return err
	}
}

// another returns a sound model that differs by n.
func another(n byte) []byte { return append(badgguf.Good(), n) }

func TestDeleteModel(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	shared, own := another(1), another(2)
	put(t, s, "one", shared, own)
	put(t, s, "two", shared)

	dry, err := s.DeleteModel("one", true)
	must.NoError(t, err)
	must.Eq(t, core.ModelDeleteResult{
		Model: "one", FreedBytes: int64(len(own)), Files: []core.File{{Path: "xx.gguf", SizeBytes: int64(len(own)), Digest: sha256Of(own)}}, DryRun: true,
	}, dry)
	must.NoError(t, s.VerifyModel(t.Context(), "one"), must.Sprint("a dry run does nothing"))

	got, err := s.DeleteModel("test:one", false)
	must.NoError(t, err)
	dry.DryRun = false
	must.Eq(t, dry, got)
	_, _, err = s.Model("one")
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.NoError(t, s.VerifyModel(t.Context(), "two"), must.Sprint("what another model needs stays"))
	_, err = s.DeleteModel("one", false)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.NotEq(t, "", core.HintOf(err))

	got, err = s.DeleteModel("two", false)
	must.NoError(t, err)
	must.Eq(t, int64(len(shared)), got.FreedBytes)
	nothingPublished(t, s)
}

// No name leads out of the store. Each pair of models shares a file: whatever the order of the
// records, a deletion keeps the files that the others need.
func TestDeleteModelAmongMany(t *testing.T) {
	t.Parallel()
	ids := []string{"a", "b", "c", "d"}
	bodies := map[string][][]byte{}
	for i, x := range ids { // the first file is not shared
		bodies[x] = [][]byte{another(byte(i))}
	}
	for i, x := range ids {
		for j, y := range ids[i+1:] {
			both := another(byte(10 + 4*i + j))
			bodies[x], bodies[y] = append(bodies[x], both), append(bodies[y], both)
		}
	}
	for _, gone := range ids {
		t.Run(gone, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			for _, id := range ids {
				put(t, s, id, bodies[id]...)
			}
			got, err := s.DeleteModel(gone, false)
			must.NoError(t, err)
			must.Len(t, 1, got.Files, must.Sprint("only what is its own goes"))
			must.Eq(t, sha256Of(bodies[gone][0]), got.Files[0].Digest)
			for _, id := range ids {
				if id != gone {
					must.NoError(t, s.VerifyModel(t.Context(), id))
				}
			}
		})
	}
}

func TestDeleteModelNeverLeavesTheStore(t *testing.T) {
	t.Parallel()
	outer := t.TempDir()
	s := open(t, filepath.Join(outer, "store"))
	put(t, s, "kept", another(1))
	victims := []string{filepath.Join(outer, "victim.json"), filepath.Join(s.Dir(), "victim.json"), filepath.Join(s.Dir(), "blobs", "victim.json")}
	for _, v := range victims {
		must.NoError(t, os.WriteFile(v, []byte(`{"format":1,"model":{"id":"victim","files":[{"path":"x","digest":"sha256:../../victim"}]},"origins":[""]}`), 0o600))
	}
	for _, name := range []string{
		"", ".", "..", "../victim", "../../victim", "models/../../victim", "/etc/passwd", victims[0], "C:victim", `..\victim`, "kept/../../victim", "victim\x00", "../blobs/victim",
		"sha256:" + strings.Repeat("0", 64), "%2e%2e/victim",
	} {
		for _, dry := range []bool{true, false} {
			_, err := s.DeleteModel(name, dry)
			must.Eq(t, core.NotFound, core.KindOf(err), must.Sprintf("%q", name))
		}
	}
	// Neither does the text of a record.
	must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "models", "bad.json"), []byte(`{"format":1,"model":{"id":"bad","files":[{"path":"../../victim.json","digest":"sha256:../../victim.json"}]},"origins":[""]}`), 0o600))
	_, err := s.DeleteModel("bad", false)
	must.NoError(t, err)
	for _, v := range victims {
		_, err := os.Stat(v)
		must.NoError(t, err)
	}
	must.NoError(t, s.VerifyModel(t.Context(), "kept"))
}

func TestDeleteDamagedModel(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	body := another(1)
	put(t, s, "torn", body)
	put(t, s, "sharing", body, another(2))
	// Files of an unreadable record are kept: it may be a newer version's.
	name := filepath.Join(s.Dir(), "models", "torn.json")
	text, err := os.ReadFile(name)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(name, bytes.Replace(text, []byte(`"format": 1`), []byte(`"format": 9`), 1), 0o600))
	got, err := s.DeleteModel("sharing", false)
	must.NoError(t, err)
	must.Len(t, 1, got.Files)
	must.Eq(t, sha256Of(another(2)), got.Files[0].Digest)
	must.Len(t, 1, files(t, s, "blobs"))

	got, err = s.DeleteModel("torn", false)
	must.NoError(t, err)
	must.Eq(t, 0, got.FreedBytes, must.Sprint("nobody knows any more what it had"))

	put(t, s, "changed", another(3))
	_, path, err := s.Model("changed")
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{1}, len(another(3))), 0o600))
	must.Eq(t, core.Integrity, core.KindOf(s.VerifyModel(t.Context(), "changed")))
	_, err = s.DeleteModel("changed", false)
	must.NoError(t, err)
	must.Eq(t, []string{strings.Replace(sha256Of(body), ":", "-", 1)}, files(t, s, "blobs"), must.Sprint("what was set aside is gone as well"))
}

// A model that is about to need a file keeps it, and fetches it again if it disappears all the
// same.
func TestDeleteDuringDownload(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	shared := another(1)
	put(t, s, "old", shared)
	deleted := false
	s.FailAt(func(step string) error {
		if step == "record" && !deleted {
			deleted = true
			got, err := s.DeleteModel("old", false)
			must.NoError(t, err)
			must.Eq(t, 0, got.FreedBytes, must.Sprint("a file that is about to be needed stays"))
		}
		return nil
	})
	put(t, s, "new", shared)
	must.True(t, deleted)
	must.NoError(t, s.VerifyModel(t.Context(), "new"))

	// This holds even if another process removes the file behind the store's back.
	removed := false
	s.FailAt(func(step string) error {
		if step == "record" && !removed {
			removed = true
			must.NoError(t, os.Remove(filepath.Join(s.Dir(), "blobs", strings.Replace(sha256Of(shared), ":", "-", 1))))
		}
		return nil
	})
	put(t, s, "newer", shared)
	must.True(t, removed)
	must.NoError(t, s.VerifyModel(t.Context(), "newer"))
}

func TestSplitModel(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	parts := badgguf.Split()
	m := put(t, s, "split", parts...)
	must.Eq(t, int64(len(parts[0])+len(parts[1])+len(parts[2])), m.SizeBytes)
	must.Eq(t, "Q4_K_M", m.Quantization)
	whole := put(t, s, "whole", badgguf.Good())
	must.Eq(t, whole.Parameters, m.Parameters)
	must.Eq(t, whole.EstimateBytes, m.EstimateBytes)
	must.Len(t, 3, m.Files)

	for range 2 {
		_, path, err := s.Model("split")
		must.NoError(t, err)
		must.Eq(t, "model-00001-of-00003.gguf", filepath.Base(path))
		for i, name := range []string{"model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
			must.NoError(t, err)
			must.True(t, bytes.Equal(parts[i], b))
		}
		// The folder of links is rebuilt if another process has changed it.
		must.NoError(t, os.RemoveAll(filepath.Dir(path)))
		must.NoError(t, os.MkdirAll(path, 0o700))
	}
	h, err := s.Header("split")
	must.NoError(t, err)
	w, err := s.Header("whole")
	must.NoError(t, err)
	must.Eq(t, w.Estimate(3, 100), h.Estimate(3, 100))

	got, err := s.DeleteModel("split", false)
	must.NoError(t, err)
	must.Len(t, 3, got.Files)
	must.SliceEmpty(t, files(t, s, "parts"))
	entries, err := os.ReadDir(filepath.Join(s.Dir(), "parts"))
	must.NoError(t, err)
	must.SliceEmpty(t, entries)
	must.NoError(t, s.VerifyModel(t.Context(), "whole"))
}

func TestSplitModelIncomplete(t *testing.T) {
	t.Parallel()
	p := badgguf.Split()
	for name, c := range map[string]struct {
		files [][]byte
		kind  core.Kind
		says  string
	}{
		"only the first":  {[][]byte{p[0]}, core.Unsupported, "split into 3 GGUF files"},
		"one is missing":  {[][]byte{p[0], p[1]}, core.Unsupported, "split into 3 GGUF files"},
		"only the second": {[][]byte{p[1]}, core.Unsupported, "this is number 2"},
		"out of order":    {[][]byte{p[0], p[2], p[1]}, core.Integrity, "says that it is number 3"},
		"of another":      {[][]byte{p[0], p[1], badgguf.Part(2, 3, 9)}, core.Integrity, "is of a model with 9 tensors"},
		"a broken part":   {[][]byte{p[0], p[1][:len(p[1])-1], p[2]}, core.Integrity, "beyond the end of the file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			_, err := s.PutModel(t.Context(), specOf("m", c.files...), serve(c.files...), nil)
			must.ErrorContains(t, err, c.says)
			must.Eq(t, c.kind, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			nothingPublished(t, s)
		})
	}
}

// TestFoldersArePrivate checks that only the owner can look into what a store creates.
func TestFoldersArePrivate(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store"))
	put(t, s, "one", another(1))
	must.NoError(t, filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		must.NoError(t, err)
		info, err := d.Info()
		must.NoError(t, err)
		must.Eq(t, 0, info.Mode().Perm()&0o077, must.Sprint(path, info.Mode()))
		return nil
	}))
}
