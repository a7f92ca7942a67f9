package hive

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// The folders of a hive are private, even if they were open before; only the group of the run
// folder may still pass through. So are the files in them.
func TestLayoutIsPrivate(t *testing.T) {
	t.Parallel()
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		must.NoError(t, err)
		return info.Mode().Perm()
	}
	for before, want := range map[os.FileMode]os.FileMode{0o777: 0o710, 0o767: 0o700, 0o500: 0o700, 0: 0o700} {
		data := t.TempDir()
		if before != 0 {
			for _, folder := range []string{"hive", "hive/workers", "run"} {
				must.NoError(t, os.MkdirAll(filepath.Join(data, folder), 0o700))
			}
			for _, folder := range []string{"hive/workers", "hive", "run"} {
				must.NoError(t, os.Chmod(filepath.Join(data, folder), before))
			}
		}
		l, err := openLayout(data)
		must.NoError(t, err)
		must.Eq(t, 0o700, mode(l.hive))
		must.Eq(t, 0o700, mode(l.handles))
		must.Eq(t, want, mode(l.run), must.Sprintf("before: %o", before))

		_, err = l.ownID()
		must.NoError(t, err)
		_, err = l.nextIncarnation(time.Now())
		must.NoError(t, err)
		must.NoError(t, writeJSON(l.handleFile("0123456789ab"), map[string]string{"worker": "0123456789ab"}))
		for _, path := range []string{filepath.Join(l.hive, "id"), filepath.Join(l.hive, "incarnation"), l.handleFile("0123456789ab")} {
			must.Eq(t, 0o600, mode(path), must.Sprint(path))
		}
	}
}
