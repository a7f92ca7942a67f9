//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock locks the file for this open file; Close and the end of the process release the lock. It
// returns false if another open file, in this or another process, holds it.
func tryLock(f *os.File) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var locked error
	if err := conn.Control(func(fd uintptr) { locked = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return false, err
	}
	switch {
	case locked == nil:
		return true, nil
	case errors.Is(locked, unix.EWOULDBLOCK), errors.Is(locked, unix.EINTR):
		return false, nil
	}
	return false, fmt.Errorf("lock %s: %w", f.Name(), locked)
}

// noSpace reports whether err means that the disk, or the user's quota, is full.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// taken reports whether a rename failed because a folder with that name exists.
func taken(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}
