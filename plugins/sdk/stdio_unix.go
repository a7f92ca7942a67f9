//go:build linux || darwin

package sdk

import (
	"errors"

	"golang.org/x/sys/unix"
)

// rawStderr writes to file descriptor 2 directly, because go-plugin replaces the variable os.Stderr
// while it serves.
type rawStderr struct{}

func (rawStderr) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Write(2, b[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}
