//go:build linux || darwin

package node

import "syscall"

// freeBytes returns the free space of a folder's file system.
func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil //nolint:gosec // a block is not smaller than nothing
}
