package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/disk"
)

// C-08: a function's effect is on disk when it returns, and no file gets its name before its data.
func TestPowerLoss(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		folder := filepath.Join(dir, "a", "b", "c")
		must.NoError(t, disk.MakeFolder(folder+"/"))
		ack("a folder")
		file := filepath.Join(folder, "file")
		must.NoError(t, disk.Replace(file, []byte("one"), 0o600))
		ack("a file")
		must.NoError(t, disk.Replace(file, []byte("two"), 0o644))
		ack("a file with other contents")
		must.NoError(t, disk.Append(file, "three"))
		ack("a line")
		must.NoError(t, disk.Append(filepath.Join(folder, "other"), "four"))
		ack("a line of a new file")
		must.NoError(t, disk.Rename(file, filepath.Join(folder, "renamed")))
		ack("another name")
		must.NoError(t, disk.Rename(filepath.Join(folder, "renamed"), filepath.Join(dir, "a", "moved")))
		ack("another folder")
		must.NoError(t, disk.Remove(filepath.Join(dir, "a", "moved")))
		ack("a file that is gone")
	}})
}

// A folder whose creator was interrupted before syncing it is synced by the next caller.
func TestPowerLossOldFolder(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		must.NoError(t, os.Mkdir(filepath.Join(dir, "old"), 0o700))
		must.NoError(t, disk.MakeFolder(filepath.Join(dir, "old")))
		ack("a folder")
	}})
}

func TestUnnamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := disk.Unnamed(dir)
	must.NoError(t, err)
	_, err = f.WriteString("text")
	must.NoError(t, err)
	info, err := f.Stat()
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
	names, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, names)
	b := make([]byte, 4)
	_, err = f.ReadAt(b, 0)
	must.NoError(t, err)
	must.Eq(t, "text", string(b))
	must.NoError(t, f.Close())
	_, err = disk.Unnamed(filepath.Join(dir, "missing"))
	must.ErrorIs(t, err, os.ErrNotExist)
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	must.NoError(t, disk.MakeFolder(dir))
	for name, want := range map[string]os.FileMode{"secret": 0o600, "public": 0o644} {
		must.NoError(t, disk.Replace(filepath.Join(dir, name), nil, want))
		info, err := os.Stat(filepath.Join(dir, name))
		must.NoError(t, err)
		must.Eq(t, want, info.Mode().Perm())
	}
	must.NoError(t, disk.Append(filepath.Join(dir, "lines"), "x"))
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Dir(dir): 0o700, filepath.Join(dir, "lines"): 0o600} {
		info, err := os.Stat(path)
		must.NoError(t, err)
		must.Eq(t, want, info.Mode().Perm())
	}
}

// A file that cannot be replaced keeps its content, and no temporary file remains.
func TestReplaceFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	must.Error(t, disk.Replace(filepath.Join(dir, "folder"), []byte("x"), 0o600))
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 1, entries)
	must.NoError(t, disk.Remove(filepath.Join(dir, "none")))
	must.Error(t, disk.Remove(filepath.Join(dir, "none", "none", "\x00")))
}
