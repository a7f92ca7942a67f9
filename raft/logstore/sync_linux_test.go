package logstore

import (
	"os"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// C-09: the disk accepts every write, fails one fsync, and recovers. What the kernel then holds is
// unknown: the store must not write again, and everything acknowledged before is still there when
// it is opened again. Without fsync there would be no error, and the test notices that as well.
func TestFailedSyncIsPermanent(t *testing.T) {
	t.Parallel()
	// /dev/null accepts writes at any offset, but cannot sync.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must.NoError(t, err)
	t.Cleanup(func() { _ = null.Close() })
	for name, write := range map[string]func(*Store) error{
		"entries":  func(s *Store) error { return s.StoreLog(entry(4, 1)) },
		"a vote":   func(s *Store) error { return s.Set([]byte("k"), []byte("v")) },
		"deletion": func(s *Store) error { return s.DeleteRange(1, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := path(t)
			var fd int
			s, err := Open(p, Options{openFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(name, flag, perm)
				if err == nil {
					fd = int(f.Fd()) //nolint:gosec // a number of a descriptor
				}
				return f, err
			}})
			must.NoError(t, err)
			must.NoError(t, s.StoreLogs(entries(1, 3, 1)))

			disk, err := syscall.Dup(fd)
			must.NoError(t, err)
			must.NoError(t, syscall.Dup3(int(null.Fd()), fd, syscall.O_CLOEXEC))
			failed := write(s)
			must.NoError(t, syscall.Dup3(disk, fd, syscall.O_CLOEXEC)) // the disk has recovered
			must.NoError(t, syscall.Close(disk))

			must.ErrorIs(t, failed, syscall.EINVAL)
			must.Eq(t, core.Unavailable, core.KindOf(failed))
			must.Eq(t, failed, write(s))
			must.Eq(t, failed, s.StoreLog(entry(4, 1)))
			must.Eq(t, failed, s.Err())
			select {
			case <-s.Failed():
			default:
				t.Fatal("nobody is told that the store failed")
			}
			must.NoError(t, s.Close())

			s = open(t, p)
			check(t, s, 1, 3)
			must.NoError(t, s.StoreLog(entry(4, 1)))
		})
	}
}
