package hive

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// maxLogBytes is the size at which a worker's log is rotated, and how much a rotation keeps.
	maxLogBytes = 16 << 20
	// logEvery is the interval between checks of the size of a worker's log. What is written
	// meanwhile exceeds the bound.
	logEvery = 2 * time.Second
)

// olderLog returns the path of the older piece, which receives the content of a worker's log at
// rotation.
func olderLog(path string) string { return path + ".1" }

// boundLog rotates the log of a worker that has become too long. A failure is logged once, until a
// rotation succeeds again, and retried at the next check. Only the supervisor calls it, which also
// removes the worker's folder: nothing is written to a folder that is being removed.
func (sv *supervisor) boundLog(w *worker) {
	rotated, err := rotateLog(sv.disk.logFile(w.id()), sv.logBytes)
	switch {
	case err != nil && !w.logFailed:
		w.logFailed = true
		sv.log.Warn("rotate the log of a worker", "worker", w.id(), "error", err)
	case err == nil && rotated:
		w.logFailed = false
	}
}

// rotateLog moves the last limit bytes of a log to the older piece beside it, whose first line may
// be torn, and reports whether the log was over the limit and is empty now. The previous older
// piece is removed first, so that both take at most about twice the limit.
//
// The log is the standard error of a process that outlives the hive, so no other file can take its
// place: the content is copied, and the file truncated in place. Writers have it open with O_APPEND
// and continue at its new start. What was appended during the copy is copied last, up to limit
// bytes, and the truncation follows at once: only lines written between these two system calls are
// lost.
//
// If no copy can be made, for example on a full disk, the log is truncated nevertheless, as an
// unbounded log is worse; the error reports it. Errors: Internal.
func rotateLog(path string, limit int64) (rotated bool, err error) {
	const op = "rotate worker log"
	info, err := os.Lstat(path)
	if err != nil {
		return false, core.Wrap(err, core.Internal, op)
	}
	if !info.Mode().IsRegular() { // opening a pipe would block
		return false, core.Errorf(core.Internal, "%s: %s is no regular file", op, path)
	}
	if info.Size() <= limit {
		return false, nil
	}
	log, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, core.Wrap(err, core.Internal, op)
	}
	defer log.Close()
	older, copyErr := copyEnd(log, olderLog(path), limit)
	if copyErr == nil {
		copyErr, err = moveRest(log, older, limit)
	} else {
		err = log.Truncate(0)
	}
	if err != nil {
		return false, core.Wrap(errors.Join(copyErr, err), core.Internal, op)
	}
	if copyErr != nil {
		return true, core.Errorf(core.Internal, "%s: %s had more than %d bytes and was truncated without a whole copy: %w", op, path, limit, copyErr)
	}
	return true, nil
}

// moveRest appends to the copy of a log what was written since, at most limit bytes, truncates the
// log at once, and closes the copy.
func moveRest(log, older *os.File, limit int64) (copyErr, truncateErr error) {
	_, copyErr = io.Copy(older, io.LimitReader(log, limit))
	truncateErr = log.Truncate(0)
	return errors.Join(copyErr, older.Close()), truncateErr
}

// copyEnd publishes the last limit bytes of a log under a name and returns the copy, to which more
// can be written. The log's offset is then where the copy ended. It does not sync: a loss of power
// ends the worker, and the next hive removes its folder.
func copyEnd(log *os.File, to string, limit int64) (_ *os.File, err error) {
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := log.Seek(max(info.Size()-limit, 0), io.SeekStart); err != nil {
		return nil, err
	}
	temp := to + ".new" // a fixed name: replaces what a killed hive left
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = os.Remove(temp)
		}
	}()
	if _, err := io.Copy(f, io.LimitReader(log, limit)); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, to); err != nil {
		return nil, err
	}
	return f, nil
}
