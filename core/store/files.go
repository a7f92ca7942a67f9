package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	lockPoll    = 50 * time.Millisecond
	reportEvery = 100 * time.Millisecond
	copyBuffer  = 256 << 10
)

// lockedFile opens a file of the store, creating it if missing, and waits for its lock.
func (s *folder) lockedFile(ctx context.Context, name string) (*os.File, error) {
	for {
		f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, spaceError(name, err)
		}
		locked, err := tryLock(f)
		if err == nil && locked {
			var same bool
			if same, err = s.isStill(f, name); same {
				return f, nil
			}
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		if locked {
			continue // its last owner published or removed it in the meantime
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// isStill reports whether name still refers to the open file.
func (s *folder) isStill(f *os.File, name string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(mine, there), nil
}

// contextReader fails once its context ends.
type contextReader struct {
	ctx context.Context // context of the one copy that this reader serves
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
