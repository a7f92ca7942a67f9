package logstore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// A vote that cannot be read must not count as never given.
func TestClosedErrors(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "log.db"))
	must.NoError(t, s.SetUint64([]byte("LastVoteTerm"), 7))
	must.NoError(t, s.Close())
	_, err := s.Get([]byte("LastVoteTerm"))
	must.Error(t, err)
	_, err = s.GetUint64([]byte("LastVoteTerm"))
	must.Error(t, err)
}

// A failed open leaves no file open: another attempt would find it in use.
func TestFailedOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log.db")
	must.NoError(t, os.Mkdir(path+tipSuffix, 0o700))
	_, err := Open(path, Options{})
	must.Error(t, err)
	must.SliceEmpty(t, coretest.OpenBelow(t, dir))

	must.NoError(t, os.Remove(path+tipSuffix))
	must.NoError(t, open(t, path).Close())
	_, err = Open(path, Options{openFile: func(name string, _ int, perm os.FileMode) (*os.File, error) {
		return os.OpenFile(name, os.O_RDONLY, perm) // its first write fails
	}})
	must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
	must.SliceEmpty(t, coretest.OpenBelow(t, dir))
}
