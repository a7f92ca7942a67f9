//go:build !linux && !darwin

package sdk

import "os"

// rawStderr writes to standard error as it is at the moment of writing.
type rawStderr struct{}

func (rawStderr) Write(b []byte) (int, error) { return os.Stderr.Write(b) }

func stdoutToStderr() error { return ErrUnsupported }
