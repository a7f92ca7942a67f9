package store

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	reserveBytes   = 64 << 20 // left free on the disk whatever is brought in
	spaceCheckStep = 64 << 20 // how often a file of unknown size is held against the free space
	lockPoll       = 50 * time.Millisecond
	reportEvery    = 100 * time.Millisecond
	copyBuffer     = 256 << 10
)

// arrival is a file in partial/ whose bytes are all there and have the announced size and digest. It is locked until it is closed.
type arrival struct {
	s      *Store
	file   *os.File
	name   string // below the store's folder
	size   int64
	sha256 digest
}

// close gives up the lock and leaves the file where it is.
func (a *arrival) close() { _ = a.file.Close() }

// discard removes the file.
func (a *arrival) discard() {
	_ = a.s.root.Remove(a.name)
	a.close()
}

// errMismatch is a digest that is not the announced one.
var errMismatch = errors.New("digest mismatch")

// bring fetches f into partial/ and checks it. What is there of an earlier attempt is kept if its digest and size are known.
// done is asked once nobody else can be bringing the same: if it says true, there is nothing to bring, and the arrival is nil.
func (s *Store) bring(ctx context.Context, f FileSpec, fetch Fetch, report func(core.Progress), done func() bool) (*arrival, error) {
	want, err := parseDigest(f.Digest)
	if err != nil {
		return nil, err
	}
	var name string
	var file *os.File
	if want.algorithm == "" {
		name, file, err = s.tempFile()
	} else {
		name = path.Join(partialDir, want.fileName())
		file, err = s.lockedFile(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("bring %s: %w", f.Path, err)
	}
	a := &arrival{s: s, file: file, name: name}
	if done() {
		a.discard()
		return nil, nil
	}
	for {
		var resumed bool
		resumed, err = s.transfer(ctx, a, f, want, fetch, report)
		if !errors.Is(err, errMismatch) {
			break
		}
		if !resumed {
			break
		}
		// After a power cut the end of a partial file may be anything: once more from the beginning.
		s.log.Warn("an earlier part of a file was damaged: fetching it anew", "file", f.Path)
		if truncErr := file.Truncate(0); truncErr != nil {
			break
		}
	}
	switch {
	case err == nil:
		return a, nil
	case want.algorithm == "" || core.KindOf(err) == core.Integrity:
		a.discard()
	default:
		a.close()
	}
	return nil, err
}

// transfer fetches what is missing of f and checks the whole. resumed says whether it began with bytes of an earlier attempt.
func (s *Store) transfer(ctx context.Context, a *arrival, f FileSpec, want digest, fetch Fetch, report func(core.Progress)) (resumed bool, err error) {
	info, err := a.file.Stat()
	if err != nil {
		return false, err
	}
	offset := info.Size()
	if want.algorithm == "" || f.SizeBytes <= 0 || offset > f.SizeBytes {
		offset = 0
	}
	if err := a.file.Truncate(offset); err != nil {
		return false, err
	}
	w := &sink{ctx: ctx, s: s, file: a.file, spec: f, report: report, sum256: sha256.New()}
	w.sums = w.sum256
	if want.algorithm == "sha512" {
		w.sum512 = sha512.New()
		w.sums = io.MultiWriter(w.sum256, w.sum512)
	}
	if err := w.reserve(f.SizeBytes - offset); err != nil {
		return false, err
	}
	defer w.release()
	if offset > 0 {
		if err := w.rehash(offset); err != nil {
			return true, fmt.Errorf("read the earlier part of %s: %w", f.Path, err)
		}
	}
	w.tell(true)
	if f.SizeBytes <= 0 || offset < f.SizeBytes {
		err := fetch(ctx, f, offset, w)
		if w.err != nil {
			return offset > 0, w.err // the cause, whatever the source made of it
		}
		if err != nil {
			return offset > 0, fmt.Errorf("fetch %s: %w", f.Path, err)
		}
		if err := ctx.Err(); err != nil {
			return offset > 0, err
		}
	}
	w.tell(true)
	if f.SizeBytes > 0 && w.size < f.SizeBytes {
		err := core.Errorf("", core.Integrity, "%s has ended after %d bytes and should have %d", f.Path, w.size, f.SizeBytes)
		return offset > 0, core.WithHint(err, "The file at its origin is shorter than announced, or was cut on the way. Try again; if it stays so, choose another version.")
	}
	a.size, a.sha256 = w.size, sha256Digest(w.sum256.Sum(nil))
	got := a.sha256
	if w.sum512 != nil {
		got = digest{algorithm: "sha512"}
		copy(got.sum[:], w.sum512.Sum(nil))
	}
	if want.algorithm != "" && got != want {
		err := core.E("", core.Integrity, fmt.Errorf("%w: %s is %s and should be %s", errMismatch, f.Path, got, want))
		return offset > 0, core.WithHint(err, "It was not used. The bytes are not those that its publisher announced: try again, and if it stays so, do not trust this origin or the way to it.")
	}
	if err := a.file.Sync(); err != nil {
		return offset > 0, spaceError(f.Path, err)
	}
	return offset > 0, nil
}

// sink is what a source writes a file into. After its first error it takes nothing more.
type sink struct {
	ctx      context.Context // of the transfer that it lives for
	s        *Store
	file     *os.File
	spec     FileSpec
	report   func(core.Progress)
	sum256   hash.Hash
	sum512   hash.Hash // nil unless wanted
	sums     io.Writer
	size     int64
	held     int64 // announced to Store.expected and not yet written
	checked  int64 // size when the free space was last looked at
	reported time.Time
	err      error
}

func (w *sink) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.write(b)
	w.err = err
	return n, err
}

func (w *sink) write(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if w.spec.SizeBytes > 0 && int64(len(b)) > w.spec.SizeBytes-w.size {
		err := core.Errorf("", core.Integrity, "%s is longer than the announced %d bytes", w.spec.Path, w.spec.SizeBytes)
		return 0, core.WithHint(err, "It was not used. Try again; if it stays so, choose another version.")
	}
	if w.spec.SizeBytes <= 0 && w.size-w.checked >= spaceCheckStep {
		if err := w.s.checkSpace(spaceCheckStep); err != nil {
			return 0, err
		}
		w.checked = w.size
	}
	n, err := w.file.WriteAt(b, w.size)
	_, _ = w.sums.Write(b[:n]) // hashes do not fail
	w.size += int64(n)
	w.wrote(int64(n))
	if err != nil {
		return n, spaceError(w.spec.Path, err)
	}
	w.tell(false)
	return n, nil
}

// rehash takes the file's first n bytes into the sums.
func (w *sink) rehash(n int64) error {
	got, err := io.CopyBuffer(w.sums, contextReader{w.ctx, io.NewSectionReader(w.file, 0, n)}, make([]byte, copyBuffer))
	w.size = got
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (w *sink) tell(always bool) {
	now := time.Now()
	if !always && now.Sub(w.reported) < reportEvery {
		return
	}
	w.reported = now
	w.report(core.Progress{Phase: "download " + path.Base(w.spec.Path), Done: w.size, Total: max(w.spec.SizeBytes, 0), Unit: "bytes"})
}

// reserve refuses more bytes than there is room for, beside what other transfers have announced.
func (w *sink) reserve(n int64) error {
	if n <= 0 {
		return nil
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if err := w.s.checkSpaceLocked(n); err != nil {
		return err
	}
	w.s.expected += n
	w.held = n
	return nil
}

// wrote hands back what is on disk now.
func (w *sink) wrote(n int64) {
	n = min(n, w.held)
	if n == 0 {
		return
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.expected -= n
	w.held -= n
}

func (w *sink) release() { w.wrote(w.held) }

// checkSpace refuses n bytes that do not fit on the disk.
func (s *Store) checkSpace(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkSpaceLocked(n)
}

func (s *Store) checkSpaceLocked(n int64) error {
	free, err := s.free(s.dir)
	if err != nil {
		s.log.Warn("free space unknown", "error", err)
		return nil // a full disk will say so itself
	}
	missing := n - (free - s.expected - reserveBytes)
	if missing <= 0 {
		return nil
	}
	return core.WithHint(core.Errorf("", core.TooLarge, "%d bytes do not fit on the disk of the store: %d bytes are missing", n, missing),
		"Free at least %s on the disk of %s, or set store_dir to a folder on a larger one.", humanBytes(missing), s.dir)
}

// spaceError explains a write error by a full disk where that is the cause.
func spaceError(what string, err error) error {
	if err == nil {
		return nil
	}
	if noSpace(err) {
		return core.WithHint(core.Errorf("", core.TooLarge, "write %s: %w", what, err), "The disk is full. Free some space and try again: what has arrived is kept.")
	}
	return fmt.Errorf("write %s: %w", what, err)
}

// lockedFile opens a file of the store, which it makes where it is missing, and waits until it has its lock.
func (s *Store) lockedFile(ctx context.Context, name string) (*os.File, error) {
	var poll *time.Ticker
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
			continue // its last owner published or removed it meanwhile
		}
		if poll == nil {
			poll = time.NewTicker(lockPoll)
			defer poll.Stop()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-poll.C:
		}
	}
}

// isStill says whether the open file is the one that name stands for.
func (s *Store) isStill(f *os.File, name string) (bool, error) {
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

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context // of the one copy that it lives for
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
