package logstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// A vote that cannot be read is no vote that was never given.
func TestClosedTells(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "log.db"))
	must.NoError(t, s.SetUint64([]byte("LastVoteTerm"), 7))
	must.NoError(t, s.Close())
	_, err := s.Get([]byte("LastVoteTerm"))
	must.Error(t, err)
	_, err = s.GetUint64([]byte("LastVoteTerm"))
	must.Error(t, err)
}

// What cannot be opened leaves nothing open: another attempt would find it in use.
func TestFailedOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log.db")
	must.NoError(t, os.Mkdir(path+tipSuffix, 0o700))
	_, err := Open(path, Options{})
	must.Error(t, err)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("descriptors are counted on Linux alone")
	}
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name())) // it may be closed meanwhile
		must.False(t, strings.HasPrefix(to, dir+"/"), must.Sprint(to))
	}
}
