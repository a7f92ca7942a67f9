package store_test

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/store"
)

// Whatever the store does, and however an operation ends, it leaves no file open except its folder:
// an agent runs for months. Nothing runs beside this test, and no finalizer closes forgotten files.
func TestNothingStaysOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := coretest.OpenBelow(t, os.TempDir())
	s := open(t, t.TempDir())
	step := func(name string, f func() error) {
		t.Helper()
		must.NoError(t, f(), must.Sprint(name))
		left := slices.DeleteFunc(coretest.OpenBelow(t, os.TempDir()), func(path string) bool { return slices.Contains(before, path) || path == s.Dir() })
		must.SliceEmpty(t, left, must.Sprint(name))
	}
	refused := func(kind core.Kind, err error) error {
		must.Eq(t, kind, core.KindOf(err))
		return nil
	}
	quiet := func(core.Progress) {}
	body := tinyModel(t)
	step("a model", func() error {
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch((&origin{body: body}).fetch), nil)
		return err
	})
	step("a wrong one", func() error {
		_, err := s.PutModel(t.Context(), spec("w", body, sha256Of([]byte("other"))), store.Fetch((&origin{body: body}).fetch), nil)
		return refused(core.Integrity, err)
	})
	step("models", func() error { _, err := s.Models(); return err })
	step("a header", func() error { _, err := s.Header("m"); return err })
	step("check a model", func() error { return s.CheckModel(t.Context(), "m", quiet) })
	step("verify a model", func() error { return s.VerifyModel(t.Context(), "m") })
	step("a blob", func() error {
		b, err := s.OpenBlob(sha256Of(body))
		must.NoError(t, err)
		return b.Close()
	})

	step("a folder in place of a blob", func() error {
		hex := strings.Repeat("0f", 32)
		must.NoError(t, os.Mkdir(filepath.Join(s.Dir(), "blobs", "sha256-"+hex), 0o700))
		_, err := s.OpenBlob("sha256:" + hex)
		return refused(core.Integrity, err)
	})
	step("no journal", func() error {
		other := another(9)
		must.NoError(t, os.Mkdir(filepath.Join(s.Dir(), "partial", strings.Replace(sha256Of(other), ":", "-", 1)+".journal"), 0o700))
		_, err := s.PutModel(t.Context(), spec("j", other, sha256Of(other)), store.Fetch((&origin{body: other}).fetch), nil)
		must.Error(t, err)
		return nil
	})
	step("a store that cannot be one", func() error {
		dir := t.TempDir()
		must.NoError(t, os.WriteFile(filepath.Join(dir, "blobs"), nil, 0o600))
		_, err := store.Open(dir, nil)
		must.Error(t, err)
		return nil
	})

	archive := goodArchive(t)
	from := store.Fetch((&origin{body: archive}).fetch)
	binary := binarySpec(t, archive)
	step("a worker binary", func() error { _, err := s.PutBinary(t.Context(), binary, from, nil); return err })
	step("the same", func() error { _, err := s.PutBinary(t.Context(), binary, from, nil); return err })
	step("a new executable with its engine", func() error {
		binary.Version, binary.Executable = "1.0.1", pluginExecutable(t, "#!newer")
		_, err := s.PutBinary(t.Context(), binary, from, nil)
		return err
	})
	step("a damaged archive", func() error {
		bad := binarySpec(t, archive[:len(archive)/2])
		bad.Version = "2.0.0"
		_, err := s.PutBinary(t.Context(), bad, store.Fetch((&origin{body: archive[:len(archive)/2]}).fetch), nil)
		must.Error(t, err)
		return nil
	})
	step("a folder", func() error {
		exe := pluginExecutable(t, "#!folder")
		must.NoError(t, os.MkdirAll(filepath.Join(filepath.Dir(exe), "lib"), 0o700))
		must.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(exe), "lib", "part"), []byte("part"), 0o600))
		_, err := s.PutBinary(t.Context(), store.BinarySpec{Type: "folder", Version: "1.0.0", Executable: exe, Folder: filepath.Dir(exe), Source: "local"}, nil, nil)
		return err
	})
	step("worker binaries", func() error { _, err := s.Binaries(); return err })
	step("check a worker binary", func() error {
		exe, _, err := s.BinaryPaths("cpu")
		must.NoError(t, err)
		return s.CheckBinary(t.Context(), filepath.Dir(exe))
	})
	step("verify a worker binary", func() error { return s.VerifyBinary(t.Context(), "folder") })
	step("a probe", func() error { return s.SetProbe("cpu", store.Probe{Problem: "none"}) })
	step("verify all", func() error { _, err := s.Verify(t.Context(), quiet); return err })
	must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "partial", "sha256-"+strings.Repeat("0", 64)), []byte("left over"), 0o600))
	step("what to clean up", func() error { _, err := s.GC(time.Now(), store.InUse{Folder: nobody}, true); return err })
	step("clean up", func() error {
		_, err := s.GC(time.Now().Add(1000*time.Hour), store.InUse{Folder: nobody}, false)
		return err
	})
	step("what was set aside", func() error { _, err := s.Quarantined(); return err })
	must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "models", "unreadable.json"), []byte("{"), 0o600))
	step("delete a model beside an unreadable one", func() error { _, err := s.DeleteModel("m", false); return err })
	step("delete a worker binary", func() error {
		_, err := s.DeleteBinary("folder", func([]string) error { return nil })
		return err
	})
}
