package store_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

// pluginFolder creates a plugin that is a folder: its executable, a library, and an executable
// tool.
func pluginFolder(t *testing.T) store.BinarySpec {
	t.Helper()
	dir := t.TempDir()
	exe := filepath.Join(dir, "run.py")
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "lib", "deep"), 0o700))
	for name, mode := range map[string]os.FileMode{"run.py": 0o700, "lib/part.py": 0o600, "lib/deep/tool": 0o700} {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte("text of "+name), 0o600))
		must.NoError(t, os.Chmod(path, mode))
	}
	return store.BinarySpec{Type: "py", Version: "1.0.0", Executable: exe, Folder: dir, Source: "local"}
}

// A folder is installed whole, and each file keeps its executable bit from the folder it was copied
// from.
func TestFolderPlugin(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	spec := pluginFolder(t)
	b, err := s.PutBinary(t.Context(), spec, nil, nil)
	must.NoError(t, err)
	must.Eq(t, "", b.Damaged)
	must.NoError(t, s.VerifyBinary(t.Context(), "py"))
	must.Eq(t, []string{"lib/deep/tool", "lib/part.py", "manifest.json", "rbee-worker-py"}, files(t, s, "workers/py/1.0.0"))
	exe, _, err := s.BinaryPaths("py")
	must.NoError(t, err)
	must.Eq(t, filepath.Join(b.Path, "rbee-worker-py"), exe)
	for name, mode := range map[string]os.FileMode{"rbee-worker-py": 0o755, "lib/part.py": 0o644, "lib/deep/tool": 0o755} {
		path := filepath.Join(b.Path, name)
		info, err := os.Stat(path)
		must.NoError(t, err)
		must.Eq(t, mode, info.Mode(), must.Sprint(name))
		// The executable bit is part of the digest.
		must.NoError(t, os.Chmod(path, mode^0o111))
		now, err := s.Binary("py")
		must.NoError(t, err)
		must.StrContains(t, now.Damaged, name+" has mode", must.Sprint(name))
		must.NoError(t, os.Chmod(path, mode))
	}
	now, err := s.Binary("py")
	must.NoError(t, err)
	must.Eq(t, "", now.Damaged)
	again, err := s.PutBinary(t.Context(), spec, nil, nil)
	must.NoError(t, err)
	must.Eq(t, b, again)
}

// A file that changes between its digest and its copy is not installed.
func TestCodeChangesDuringCopy(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"run.py", "lib/part.py", "lib/deep/tool"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			spec := pluginFolder(t)
			s.FailAt(func(step string) error {
				if step != "executable" {
					return nil
				}
				f, err := os.OpenFile(filepath.Join(spec.Folder, name), os.O_WRONLY, 0)
				must.NoError(t, err)
				_, err = f.WriteString("TEXT") // same length as before
				must.NoError(t, err)
				return f.Close()
			})
			_, err := s.PutBinary(t.Context(), spec, nil, nil)
			must.Eq(t, core.Conflict, core.KindOf(err))
			must.ErrorContains(t, err, "was changed while it was copied")
			nothingPublished(t, s)
			must.SliceEmpty(t, files(t, s, "partial"))
			s.FailAt(nil)
			_, err = s.PutBinary(t.Context(), spec, nil, nil)
			must.NoError(t, err)
		})
	}
	t.Run("the engine's copy", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		archive := goodArchive(t)
		supply := store.Fetch((&origin{body: archive}).fetch)
		b, err := s.PutBinary(t.Context(), binarySpec(t, archive), supply, nil)
		must.NoError(t, err)
		spoil(t, filepath.Join(b.Path, "engine", "libggml.so"))
		next := binarySpec(t, archive)
		next.Version = "1.0.1"
		_, err = s.PutBinary(t.Context(), next, supply, nil)
		must.Eq(t, core.Integrity, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "--force")
		next.Force = true
		_, err = s.PutBinary(t.Context(), next, supply, nil)
		must.NoError(t, err)
	})
}

// A plugin's folder must be that of its executable, and must leave the store its own names.
func TestFolderPluginRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*store.BinarySpec){
		"another's folder": func(b *store.BinarySpec) { b.Folder = filepath.Dir(b.Folder) },
		"engine": func(b *store.BinarySpec) {
			must.NoError(t, os.Rename(filepath.Join(b.Folder, "lib"), filepath.Join(b.Folder, "engine")))
		},
		"manifest": func(b *store.BinarySpec) {
			must.NoError(t, os.WriteFile(filepath.Join(b.Folder, "manifest.json"), nil, 0o600))
		},
		"state": func(b *store.BinarySpec) {
			must.NoError(t, os.WriteFile(filepath.Join(b.Folder, "state.json"), nil, 0o600))
		},
	} {
		s := open(t, t.TempDir())
		spec := pluginFolder(t)
		change(&spec)
		_, err := s.PutBinary(t.Context(), spec, nil, nil)
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name, err))
		nothingPublished(t, s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := open(t, t.TempDir())
	_, err := s.PutBinary(ctx, pluginFolder(t), nil, nil)
	must.ErrorIs(t, err, context.Canceled)
}

// Another process may publish the same entry just before: both exist, and this one is newer.
func TestPublishBesideAnotherProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	spec := pluginFolder(t)
	tries := 0
	s.FailAt(func(step string) error {
		if step == "publish" {
			if tries++; tries == 1 {
				_, err := other.PutBinary(t.Context(), spec, nil, nil)
				return err
			}
		}
		return nil
	})
	b, err := s.PutBinary(t.Context(), spec, nil, nil)
	must.NoError(t, err)
	must.Eq(t, 2, tries)
	must.Eq(t, "1.0.0~2", filepath.Base(b.Path))
	must.NoError(t, s.VerifyBinary(t.Context(), "py"))
	must.SliceEmpty(t, files(t, s, "partial"))
}

// Only the owner can look into what a store creates, whatever is put there.
func TestEveryFolderIsPrivate(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store"))
	archive := goodArchive(t)
	supply := store.Fetch((&origin{body: archive}).fetch)
	for _, version := range []string{"1.0.0", "1.0.1"} { // the second copies the first one's engine
		in := binarySpec(t, archive)
		in.Version = version
		_, err := s.PutBinary(t.Context(), in, supply, nil)
		must.NoError(t, err)
	}
	_, err := s.PutBinary(t.Context(), pluginFolder(t), nil, nil)
	must.NoError(t, err)
	putSplit(t, s)
	folders := 0
	must.NoError(t, filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		must.NoError(t, err)
		if d.IsDir() {
			folders++
			info, err := d.Info()
			must.NoError(t, err)
			must.Eq(t, 0o700|os.ModeDir, info.Mode(), must.Sprint(path))
		}
		return nil
	}))
	must.Greater(t, 15, folders)
}
