package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

func unused([]string) error { return nil }

func TestDeleteBinary(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	old, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	in.Force = true
	now, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	other := in
	other.Version, other.Force = "1.1.0", false
	second, err := s.PutBinary(t.Context(), other, store.Fetch(o.fetch), nil)
	must.NoError(t, err)

	// A type alone must match only one version.
	_, err = s.DeleteBinary("cpu", unused)
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), second.ID)

	// A worker that runs from any of the revisions keeps all of them.
	var claimed []string
	busy := errors.New("busy")
	_, err = s.DeleteBinary(old.ID, func(folders []string) error { claimed = folders; return busy })
	must.ErrorIs(t, err, busy)
	must.Eq(t, []string{old.Path, now.Path}, claimed)
	must.NoError(t, s.VerifyBinary(t.Context(), old.ID))
	must.DirExists(t, old.Path)

	gone, err := s.DeleteBinary(old.ID, unused)
	must.NoError(t, err)
	must.Eq(t, now.ID, gone.ID)
	must.Eq(t, now.SizeBytes, gone.SizeBytes)
	must.DirNotExists(t, old.Path)
	must.DirNotExists(t, now.Path)
	must.SliceEmpty(t, files(t, s, "partial"))
	_, err = s.DeleteBinary(old.ID, unused)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.NoError(t, s.VerifyBinary(t.Context(), second.ID))

	// Now the type is enough. A damaged binary can be deleted like any other.
	must.NoError(t, os.Remove(filepath.Join(second.Path, "manifest.json")))
	gone, err = s.DeleteBinary("cpu", unused)
	must.NoError(t, err)
	must.Eq(t, second.ID, gone.ID)
	list, err := s.Binaries()
	must.NoError(t, err)
	must.SliceEmpty(t, list)
}

// FAULTS S-10: whatever the name and the contents of the catalog, nothing outside it is written,
// changed or removed.
func TestNothingOutsideTheCatalogIsTouched(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	must.NoError(t, os.MkdirAll(filepath.Join(outside, "1.0.0-llama.cpp-v0.5.0", "engine"), 0o700))
	precious := filepath.Join(outside, "1.0.0-llama.cpp-v0.5.0", "engine", "libggml.so")
	must.NoError(t, os.WriteFile(precious, []byte("ggml"), 0o600))
	s := open(t, filepath.Join(top, "store"))
	archive := goodArchive(t)
	put := func(typ string) (core.WorkerBinary, error) {
		in := binarySpec(t, archive)
		in.Type = typ
		return s.PutBinary(t.Context(), in, store.Fetch((&origin{body: archive}).fetch), nil)
	}
	workers := filepath.Join(s.Dir(), "workers")
	_, err := put("cpu")
	must.NoError(t, err)
	// A type, a version and an engine folder, each a link that points outside.
	must.NoError(t, os.Symlink(outside, filepath.Join(workers, "cuda")))
	must.NoError(t, os.Symlink(filepath.Join(outside, "1.0.0-llama.cpp-v0.5.0"), filepath.Join(workers, "cpu", "9.9.9")))
	metal, err := put("metal")
	must.NoError(t, err)
	must.NoError(t, os.RemoveAll(filepath.Join(metal.Path, "engine")))
	must.NoError(t, os.Symlink(filepath.Dir(precious), filepath.Join(metal.Path, "engine")))

	_, err = put("cuda")
	must.Error(t, err)
	got, err := s.Binary("metal")
	must.NoError(t, err)
	must.NotEq(t, "", got.Damaged)
	for _, id := range []string{"cuda", "cuda@1.0.0-llama.cpp-v0.5.0", "cpu@9.9.9", "..", "../..", "cpu/..", "/", "", ".", "cpu@..", "cpu@1.0.0-llama.cpp-v0.5.0/../..", "partial"} {
		_, err := s.DeleteBinary(id, unused)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(id))
	}
	_, err = s.DeleteBinary("metal", unused) // only the link is removed
	must.NoError(t, err)
	must.NoError(t, s.RemoveSuperseded(func(string) bool { return false }))

	body, err := os.ReadFile(precious)
	must.NoError(t, err)
	must.Eq(t, "ggml", string(body))
	var seen []string
	must.NoError(t, filepath.WalkDir(outside, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			seen = append(seen, p)
		}
		return err
	}))
	must.Eq(t, []string{precious}, seen)
	beside, err := os.ReadDir(top)
	must.NoError(t, err)
	must.SliceLen(t, 2, beside)
	must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))
}
