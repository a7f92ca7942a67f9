package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

// S-03: a disk that fills up at 37 % of a transfer loses nothing: the transfer fails with the
// reason, the bytes that had arrived are kept, the store still works, and once there is room only
// the rest is fetched.
func TestDiskFullInTheMiddle(t *testing.T) {
	t.Parallel()
	body := noise(10 * mib)
	const at = 3_700_000

	try := func(t *testing.T, s *store.Store, fill, clear func()) {
		first := &place{body: body}
		first.stop = func(pos int64) error {
			if pos == at {
				fill()
			}
			return nil
		}
		err := s.EnsureBlob(t.Context(), fileSpec(body), from(first, &place{body: body}))
		must.Eq(t, core.TooLarge, core.KindOf(err), must.Sprint(err))
		must.ErrorIs(t, err, unix.ENOSPC)
		must.StrContains(t, core.HintOf(err), "what has arrived is kept")
		must.Eq(t, 1, len(first.asked), must.Sprint("no other source can help"))
		_, err = s.Models()
		must.NoError(t, err)
		clear()
		rest := &place{body: body}
		must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), from(rest)))
		published(t, s, body)
		must.LessEq(t, int64(len(body))-at, rest.bytes.Load())
	}
	t.Run("reported by the file system", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		try(t, s, func() {
			s.FailAt(func(step string) error {
				if step == "write" {
					return &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}
				}
				return nil
			})
		}, func() { s.FailAt(nil) })
	})
	t.Run("a small file system", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"); err != nil {
			t.Skipf("mounting needs root: %v", err)
		}
		// Unmount after the store is closed.
		t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		s := open(t, dir)
		ballast := filepath.Join(dir, "ballast")
		try(t, s, func() {
			f, err := os.Create(ballast)
			must.NoError(t, err)
			zeros := make([]byte, mib)
			for err == nil {
				_, err = f.Write(zeros)
			}
			must.ErrorIs(t, err, unix.ENOSPC)
			must.NoError(t, f.Close())
		}, func() { must.NoError(t, os.Remove(ballast)) })

		// A transfer that is known not to fit does not start.
		huge := &place{body: noise(30 * mib)}
		err := s.EnsureBlob(t.Context(), fileSpec(huge.body), from(huge))
		must.Eq(t, core.TooLarge, core.KindOf(err))
		must.Eq(t, 0, len(huge.asked))
		must.SliceEmpty(t, files(t, s, "partial"))
	})
}
