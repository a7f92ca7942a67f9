//go:build linux || darwin

package store

import "golang.org/x/sys/unix"

// freeBytes returns how many bytes an ordinary user may still write on dir's file system.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // of another type on darwin
	}
}
