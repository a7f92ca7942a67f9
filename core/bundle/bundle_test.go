package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rbee-worker-x")
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "lib"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "rbee-worker-x"), []byte("#!/bin/sh\n"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "lib", "a.py"), []byte("a = 1\n"), 0o644))
	must.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

func TestList(t *testing.T) {
	t.Parallel()
	files, err := List(folder(t))
	must.NoError(t, err)
	must.Eq(t, []File{{Path: "lib/a.py", SizeBytes: 6}, {Path: "rbee-worker-x", SizeBytes: 10, Executable: true}}, files)
	_, err = List(filepath.Join(t.TempDir(), "none"))
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestListRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(dir string) error
		kind  core.Kind
	}{
		"a link":          {func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "lib", "b.py")) }, core.Unsupported},
		"a link folder":   {func(dir string) error { return os.Symlink("/etc", filepath.Join(dir, "etc")) }, core.Unsupported},
		"a fifo":          {func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600) }, core.Unsupported},
		"a writable file": {func(dir string) error { return os.Chmod(filepath.Join(dir, "lib", "a.py"), 0o666) }, core.Forbidden},
		"a writable part": {func(dir string) error { return os.Chmod(filepath.Join(dir, "lib"), 0o777) }, core.Forbidden},
		"a writable root": {func(dir string) error { return os.Chmod(dir, 0o777) }, core.Forbidden},
		"too large":       {func(dir string) error { return os.Truncate(filepath.Join(dir, "lib", "a.py"), MaxBytes+1) }, core.TooLarge},
		"a long path": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "lib", strings.Repeat("x", 240)), nil, 0o600)
		}, core.TooLarge},
	} {
		dir := folder(t)
		must.NoError(t, c.spoil(dir), must.Sprint(name))
		_, err := List(dir)
		must.Eq(t, c.kind, core.KindOf(err), must.Sprintf("%s: %v", name, err))
		must.NotEq(t, "", core.HintOf(err), must.Sprint(name))
	}
}

// The digest covers names, modes and contents.
func TestSum(t *testing.T) {
	t.Parallel()
	base := []File{{Path: "a", Digest: "sha256:1"}, {Path: "b", Digest: "sha256:2"}}
	seen := map[string]bool{Sum(base): true}
	for _, other := range [][]File{
		{{Path: "a", Digest: "sha256:1"}},
		{{Path: "a", Digest: "sha256:1"}, {Path: "c", Digest: "sha256:2"}},
		{{Path: "a", Digest: "sha256:3"}, {Path: "b", Digest: "sha256:2"}},
		{{Path: "a", Digest: "sha256:1", Executable: true}, {Path: "b", Digest: "sha256:2"}},
		{{Path: "a\" false sha256:1\nb", Digest: "sha256:2"}},
	} {
		must.False(t, seen[Sum(other)])
		seen[Sum(other)] = true
	}
	must.Eq(t, Sum(base), Sum([]File{base[0], base[1]}))
}
