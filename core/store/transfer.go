package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync"
	"sync/atomic"

	"github.com/rbee-project/rbee/core"
)

const (
	parallelFrom = 16 << 20 // smaller files use one connection
	smallestPart = 8 << 20  // parts of a file fetched over several connections
	largestPart  = 64 << 20 // keeps the gaps few, so that hashing can start early
	maxRestarts  = 3        // per source whose file changes during the transfer
)

// arrival is a complete file in partial/ that has the announced size and digest. It is locked until
// it is closed.
type arrival struct {
	*partial
	size   int64
	sha256 digest
}

// errMismatch reports a digest other than the announced one.
var errMismatch = errors.New("digest mismatch")

// transfers fetches files into partial/ while there is room for them on the disk.
type transfers struct {
	*folder

	free func(dir string) (int64, error)

	mu       sync.Mutex          // guards below
	expected int64               // bytes that running transfers have reserved and not yet written
	incoming map[string]*partial // running transfers by their expected digest
}

// transfer fetches one file into partial/.
type transfer struct {
	s      *transfers
	spec   FileSpec
	want   digest
	p      *partial
	sums   *summer
	room   reservation
	report func(core.Progress)

	sources int    // number of sources used
	by      uint64 // bit of the source in use
	// lookedAt is the length of a file of unknown size at the last check of the free space.
	lookedAt atomic.Int64
}

// bring fetches f into partial/ and checks it. It resumes an earlier attempt if the digest is
// known. It calls done once no other process can be fetching the same file: if done returns true,
// there is nothing to fetch, and the arrival is nil.
func (s *transfers) bring(ctx context.Context, f FileSpec, supply Supply, report func(core.Progress), done func() bool) (*arrival, error) {
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
		return nil, fmt.Errorf("fetch %s: %w", f.Path, err)
	}
	p, saved, err := s.openPartial(file, name, f, want)
	if err != nil {
		return nil, err
	}
	if done() {
		p.discard()
		return nil, nil
	}
	t := &transfer{s: s, spec: f, want: want, p: p, sums: newSummer(p, want), report: report, room: reservation{s: s}}
	t.sums.resume(saved)
	s.arriving(want, p)
	err = t.run(ctx, supply.Sources(f))
	s.arrived(want, p)
	t.room.release()
	if err == nil {
		return &arrival{partial: p, size: p.state().size, sha256: t.sums.sha256()}, nil
	}
	if want.algorithm == "" || p.state().there == 0 {
		p.discard()
	} else {
		p.close()
	}
	return nil, err
}

// fatalError is an error that no other source can avoid: the disk's, or the caller's.
type fatalError struct{ err error }

func (f fatalError) Error() string { return f.err.Error() }
func (f fatalError) Unwrap() error { return f.err }

// run fetches the missing bytes from one source after the other, and checks the whole.
func (t *transfer) run(ctx context.Context, sources Sources) error {
	if err := t.room.reserve(t.missing()); err != nil {
		return err
	}
	t.tell()
	if t.p.state().complete() {
		// The check may find that bytes are missing.
		if sound, err := t.fillAndCheck(ctx, nil); sound || err != nil {
			return err
		}
	}
	var failed error
	for {
		source, err := sources.Next(ctx, failed)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case failed != nil && (err != nil || source == nil):
			return failed
		case err != nil:
			return fmt.Errorf("fetch %s: %w", t.spec.Path, err)
		case source == nil:
			return core.Errorf(core.Unavailable, "nobody has %s to offer", t.spec.Path)
		}
		t.by = 1 << min(t.sources+1, 63)
		t.sources++
		failed = t.from(ctx, source)
		if failed == nil {
			return nil
		}
		if fatal, ok := errors.AsType[fatalError](failed); ok {
			return fatal.err
		}
		t.s.log.Debug("a source of a file is given up", "file", t.spec.Path, "error", failed)
	}
}

// from fetches from one source until the file is complete and correct, or the source is of no
// further use.
func (t *transfer) from(ctx context.Context, source Source) error {
	if v, ok := source.(Versioned); ok {
		if version := t.p.versionAt(v.Origin()); version != "" && t.p.state().there > 0 {
			v.Expect(version)
		}
	}
	for restarts := 0; ; {
		sound, err := t.fillAndCheck(ctx, source)
		if sound {
			return nil
		}
		if err == nil {
			continue // some of it was damaged on this machine
		}
		if _, fatal := errors.AsType[fatalError](err); fatal {
			return err
		}
		switch kind := core.KindOf(err); {
		case kind == core.Conflict:
			// Bytes from an earlier process may also be of the old version.
			if err := t.drop(t.by|byEarlier, t.want.algorithm == ""); err != nil {
				return err
			}
			if restarts < maxRestarts {
				restarts++
				t.s.log.Info("a file has changed at its source: fetching it anew", "file", t.spec.Path)
				continue
			}
		case kind == core.Integrity, t.want.algorithm == "":
			// Without a digest there is no proof that the next source has the same version.
			if err := t.drop(t.by, t.want.algorithm == ""); err != nil {
				return err
			}
		}
		return err
	}
}

// fillAndCheck fetches the missing bytes and compares the digest. It returns false without an error
// if part of an earlier attempt turned out to be damaged and was dropped. A nil source fetches
// nothing.
func (t *transfer) fillAndCheck(ctx context.Context, source Source) (sound bool, err error) {
	if err := t.fill(ctx, source); err != nil || !t.p.state().complete() {
		return false, err
	}
	return t.check(ctx)
}

// check compares the digest of the whole file.
func (t *transfer) check(ctx context.Context) (sound bool, err error) {
	got := t.sums.got()
	if t.want.algorithm == "" || got == t.want {
		if err := t.p.file.Sync(); err != nil {
			return false, fatalError{spaceError(t.spec.Path, err)}
		}
		return true, nil
	}
	// After a power cut the existing bytes may be wrong.
	damaged, err := t.p.dropDamaged(ctx)
	if err != nil {
		return false, fatalError{fmt.Errorf("read the existing part of %s: %w", t.spec.Path, err)}
	}
	if damaged > 0 {
		t.s.log.Warn("parts of a file were damaged on this disk: fetching them anew", "file", t.spec.Path, "segments", damaged)
		return false, t.begin()
	}
	// Another source may have sent the wrong bytes: an earlier process that fetched another
	// version, or a hive.
	if t.p.mixed(t.by) {
		t.s.log.Warn("the parts of a file do not belong together: fetching those from elsewhere anew", "file", t.spec.Path)
		return false, t.drop(^t.by, false)
	}
	err = core.Errorf(core.Integrity, "%w: %s is %s and should be %s", errMismatch, t.spec.Path, got, t.want)
	came := t.came()
	if came != "" {
		err = core.Errorf(core.Integrity, "%w: %s is %s", errMismatch, t.spec.Path, came)
	}
	where, quarantineErr := t.quarantine(ctx)
	if quarantineErr != nil {
		return false, fatalError{errors.Join(err, quarantineErr)}
	}
	hint := "It was not used. The bytes are not those that its publisher announced: try again, and if it stays so, do not trust this origin or the way to it."
	if came != "" { // not what the publisher announced
		hint = "It was not used. Something on the way answers in place of the origin, such as a login page or a proxy: open the address in a browser, and try again."
	}
	if where != "" {
		hint += " They were put into " + where + ", where nothing loads them; `rbee store gc` removes them."
	}
	return false, core.WithHint(err, "%s", hint)
}

// came describes what arrived in place of the file, if that is plain to see; otherwise it returns
// an empty string.
func (t *transfer) came() string {
	size := t.p.state().size
	head := make([]byte, min(size, 512))
	if _, err := t.p.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	text := bytes.ToLower(bytes.TrimSpace(bytes.TrimPrefix(head, []byte("\ufeff"))))
	switch {
	case size == 0:
		return "empty: 0 bytes received"
	case bytes.HasPrefix(text, []byte("<!doctype html")), bytes.HasPrefix(text, []byte("<html")):
		return fmt.Sprintf("an HTML page of %d bytes", size)
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}) && path.Ext(t.spec.Path) != ".gz" && path.Ext(t.spec.Path) != ".tgz":
		return fmt.Sprintf("compressed with gzip: %d bytes received", size)
	}
	return ""
}

// drop drops the bytes of the sources in by, and restarts the hash.
func (t *transfer) drop(by uint64, all bool) error {
	if err := t.p.drop(by, all); err != nil {
		return fatalError{spaceError(t.spec.Path, err)}
	}
	return t.begin()
}

// begin restarts the hash, and reserves space for the missing bytes.
func (t *transfer) begin() error {
	t.sums.reset()
	if err := t.room.reserve(t.missing()); err != nil {
		return fatalError{err}
	}
	return nil
}

func (t *transfer) missing() int64 {
	st := t.p.state()
	return st.size - st.there
}

// spaceFor checks now and then whether a file of unknown size still fits.
func (t *transfer) spaceFor(pos int64) error {
	if t.spec.SizeBytes > 0 || pos-t.lookedAt.Load() < spaceCheckStep {
		return nil
	}
	t.lookedAt.Store(pos)
	return t.s.checkSpace(spaceCheckStep)
}

// tell reports the progress.
func (t *transfer) tell() {
	st := t.p.state()
	t.report(core.Progress{Phase: "download " + path.Base(t.spec.Path), Done: st.there, Total: max(t.spec.SizeBytes, 0), Unit: "bytes"})
}

// fill fetches the missing bytes from source and hashes them, over as many connections as the
// source benefits from. It returns when all bytes have arrived and are hashed, or when nothing more
// can be done.
func (t *transfer) fill(ctx context.Context, source Source) error {
	f := &filling{t: t, source: source, ended: make(chan outcome), came: t.p.state().came}
	return f.run(ctx)
}
