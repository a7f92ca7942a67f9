package confine

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// The group gets access only as admitted: it may enter the folders on the way and read and execute
// what is at the path, but never write. Other users get no access.
func TestAdmit(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	folder := filepath.Join(root, "a", "b")
	must.NoError(t, os.MkdirAll(folder, 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(root, "a", "beside"), nil, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(folder, "data"), nil, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(folder, "program"), nil, 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(folder, "public"), nil, 0o644))
	must.NoError(t, os.Symlink("../beside", filepath.Join(folder, "link")))
	must.NoError(t, os.Chmod(root, 0o700))
	modes := func() map[string]fs.FileMode {
		all := map[string]fs.FileMode{}
		must.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			must.NoError(t, err)
			info, err := d.Info()
			must.NoError(t, err)
			if rel, _ := filepath.Rel(root, path); rel != "a/b/link" {
				all[rel] = info.Mode().Perm()
			}
			return nil
		}))
		return all
	}
	u := &User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	closed := map[string]fs.FileMode{".": 0o700, "a": 0o700, "a/b": 0o700, "a/beside": 0o600, "a/b/data": 0o600, "a/b/program": 0o700, "a/b/public": 0o644}
	must.Eq(t, closed, modes())
	must.NoError(t, u.Admit(folder, filepath.Join(root, "a", "beside")))
	must.NoError(t, u.Pass(folder, filepath.Join(root, "a", "beside")))
	must.Eq(t, closed, modes(), must.Sprint("what is outside stays as it is"))
	must.NoError(t, u.Pass(root, folder))
	must.Eq(t, 0o710, modes()["."])
	must.Eq(t, 0o710, modes()["a"])
	must.Eq(t, 0o700, modes()["a/b"])
	for range 2 {
		must.NoError(t, u.Admit(root, folder))
		must.Eq(t, map[string]fs.FileMode{".": 0o710, "a": 0o710, "a/b": 0o750, "a/beside": 0o600, "a/b/data": 0o640, "a/b/program": 0o750, "a/b/public": 0o644}, modes())
	}
	must.NoError(t, os.Chmod(folder, 0o777))
	must.NoError(t, u.Own(folder))
	must.Eq(t, 0o700, modes()["a/b"])
	must.NoError(t, os.Chmod(filepath.Join(root, "a"), 0o700))
	must.NoError(t, u.Enters(folder))
	must.Error(t, (&User{UID: u.UID + 1, GID: u.GID + 1}).Enters(folder))
	must.Error(t, u.Admit(root, filepath.Join(root, "none", "none")))
}
