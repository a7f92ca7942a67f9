//go:build !linux && !darwin

package store

import "io/fs"

// stampOf is unsupported on this system: files are always read again.
func stampOf(fs.FileInfo) (stamp, bool) { return stamp{}, false }
