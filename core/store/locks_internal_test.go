package store

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
)

func openStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), nil)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

// A caller that waits for a locked file may give up, and leaves no open descriptor.
func TestLockedFileGivesUp(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	const name = "partial/a"
	f, err := s.lockedFile(t.Context(), name)
	must.NoError(t, err)
	must.Len(t, 1, coretest.OpenBelow(t, filepath.Join(s.dir, "partial")))
	ctx, cancel := context.WithTimeout(t.Context(), 4*lockPoll)
	defer cancel()
	_, err = s.lockedFile(ctx, name)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.Len(t, 1, coretest.OpenBelow(t, filepath.Join(s.dir, "partial")))
	must.NoError(t, f.Close())
}

// If a file was published or removed while another caller waited for its lock, the name now refers
// to another file. A waiting caller holds no descriptor in the meantime, so a look at the open
// files shows nothing.
func TestLockedFileReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		const name = "partial/a"
		f, err := s.lockedFile(t.Context(), name)
		must.NoError(t, err)
		same, err := s.isStill(f, name)
		must.NoError(t, err)
		must.True(t, same)
		got := make(chan *os.File, 1)
		go func() {
			f, err := s.lockedFile(t.Context(), name)
			must.NoError(t, err)
			got <- f
		}()
		synctest.Wait() // until it waits
		must.Eq(t, 0, len(got))
		must.Len(t, 1, coretest.OpenBelow(t, filepath.Join(s.dir, "partial")))
		must.NoError(t, s.root.Rename(name, "blobs/a"))
		other, err := s.root.Create(name)
		must.NoError(t, err)
		must.NoError(t, other.Close())
		same, err = s.isStill(f, name)
		must.NoError(t, err)
		must.False(t, same)
		next := <-got // the new file is free, even while the old one is held
		same, err = s.isStill(next, name)
		must.NoError(t, err)
		must.True(t, same)
		must.NoError(t, f.Close())
		must.NoError(t, next.Close())
	})
}

func TestContextReader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := contextReader{ctx, strings.NewReader(strings.Repeat("x", 100))}
	_, err := io.ReadFull(r, make([]byte, 10))
	must.NoError(t, err)
	cancel()
	_, err = r.Read(make([]byte, 10))
	must.ErrorIs(t, err, context.Canceled)
}

// The lock of a worker binary's stage is removed with the stage.
func TestStageLockRemoved(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	st, err := s.newStage(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, coretest.OpenBelow(t, filepath.Join(s.dir, "partial")))
	st.discard()
	must.Len(t, 0, coretest.OpenBelow(t, filepath.Join(s.dir, "partial")))
	left, err := os.ReadDir(filepath.Join(s.dir, "partial"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

// A file from an archive has the size in its header and the requested mode whatever the umask is,
// and its errors are reported.
func TestWriteNew(t *testing.T) {
	t.Parallel()
	root, err := os.OpenRoot(t.TempDir())
	must.NoError(t, err)
	defer root.Close()
	wrote := func(int64) {}
	f, err := writeNew(root, "a", 0o700, strings.NewReader("text"), 4, wrote)
	must.NoError(t, err)
	must.Eq(t, 4, f.SizeBytes)
	for _, size := range []int64{3, 5} {
		_, err = writeNew(root, "b", 0o600, strings.NewReader("text"), size, wrote)
		must.ErrorContains(t, err, "has 4 bytes and should have")
		must.NoError(t, root.Remove("b"))
	}
	bad := errors.New("gone")
	_, err = writeNew(root, "c", 0o600, io.MultiReader(strings.NewReader("te"), errReader{bad}), 4, wrote)
	must.ErrorIs(t, err, bad)
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
