package e2e

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a separate file system with little space at a folder.
func smallDisk(t testing.TB, dir string, bytes string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root")
	}
	must.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size="+bytes+",mode=0700"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// fill uses up the space of a small disk and returns a function that frees it.
func fill(dir string) (free func() error, err error) {
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		_, err := f.Write(block)
		switch {
		case errors.Is(err, unix.ENOSPC):
			block = block[:len(block)/2]
		case err != nil:
			return nil, err
		}
	}
	return func() error { return os.Remove(path) }, nil
}

// frozenDisk mounts at a folder a disk that can be frozen: writes to it block, reads do not.
func frozenDisk(t testing.TB, dir string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a disk that stops needs root")
	}
	for _, program := range []string{"mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("a disk that stops needs %s", program)
		}
	}
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	must.NoError(t, err)
	must.NoError(t, f.Truncate(256<<20))
	must.NoError(t, f.Close())
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop,nosuid,nodev", image, dir}} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Skipf("a disk that stops: %v: %s", err, out)
		}
	}
	d := &disk{dir: dir}
	t.Cleanup(func() {
		_ = d.freeze(false)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return d
}

// disk is a file system that can be frozen.
type disk struct{ dir string }

func (d *disk) freeze(stop bool) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	request := uint(fithaw)
	if stop {
		request = fifreeze
	}
	return unix.IoctlSetInt(int(f.Fd()), request, 0) //nolint:gosec // a file descriptor fits
}

// The disks do what the other tests rely on.
func TestDisks(t *testing.T) {
	t.Parallel()
	small := t.TempDir()
	smallDisk(t, small, "4m")
	free, err := fill(small)
	must.NoError(t, err)
	must.ErrorIs(t, os.WriteFile(filepath.Join(small, "more"), make([]byte, 64<<10), 0o600), unix.ENOSPC)
	must.NoError(t, free())
	must.NoError(t, os.WriteFile(filepath.Join(small, "more"), make([]byte, 64<<10), 0o600))

	dir := t.TempDir()
	d := frozenDisk(t, dir)
	f, err := os.Create(filepath.Join(dir, "file"))
	must.NoError(t, err)
	must.NoError(t, d.freeze(true))
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(f, "x")
		written <- errors.Join(err, f.Sync(), f.Close())
	}()
	select {
	case <-written:
		_ = d.freeze(false)
		t.Fatal("a disk that stands still took a write")
	case <-time.After(200 * time.Millisecond):
	}
	must.NoError(t, d.freeze(false))
	must.NoError(t, <-written)
}
