//go:build !linux && !darwin

package sdk

import "os"

// rawStderr writes to os.Stderr, whatever it is at the time of the write.
type rawStderr struct{}

func (rawStderr) Write(b []byte) (int, error) { return os.Stderr.Write(b) }

func stdoutToStderr() error { return ErrUnsupported }
