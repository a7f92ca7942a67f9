package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"time"
)

// SetFree makes the store assume that much free space.
func (s *Store) SetFree(bytes int64) { s.free = func(string) (int64, error) { return bytes, nil } }

// SetLimits bounds archives.
func (s *Store) SetLimits(entries int, bytes int64) {
	s.limits.entries, s.limits.bytes = entries, bytes
}

// SetBoot replaces the store's boot id.
func (s *Store) SetBoot(boot func() string) { s.boot = boot }

// FailAt makes a step fail.
func (s *Store) FailAt(fail func(step string) error) { s.fail = fail }

// Clean does what Open does with leftovers, at another time.
func (s *Store) Clean(now time.Time) error { return s.cleanPartial(now) }

// ParseDigest parses a digest.
func ParseDigest(text string) (string, error) {
	d, err := parseDigest(text)
	return d.String(), err
}

// RecordName and RecordID convert between a model's id and its record's file name.
var (
	RecordName = recordName
	RecordID   = recordID
)

// WalkArchive compresses a tar archive and returns the names below prefix and the total size of
// their files.
func WalkArchive(ctx context.Context, raw []byte, prefix string, limit int64) (names []string, total int64, err error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(raw)
	_ = z.Close()
	a := archive{file: bytes.NewReader(b.Bytes()), size: int64(b.Len()), prefix: prefix, limits: defaultLimits}
	a.limits.bytes = limit
	err = a.walk(ctx, func(name string, _ *tar.Header, r io.Reader) error {
		names = append(names, name)
		n, err := io.Copy(io.Discard, r)
		total += n
		if err != nil {
			return a.readError(ctx, err)
		}
		return nil
	})
	return names, total, err
}

// EnsureBlob fetches a file that need not be a GGUF.
func (s *Store) EnsureBlob(ctx context.Context, f FileSpec, from Supply) error {
	_, err := s.ensureBlob(ctx, f, false, from, nil)
	return err
}

// Journal returns how many lines of a journal are valid, and where they end.
func Journal(b []byte) (lines int, end int64) {
	l, end, _ := readJournal(bytes.NewReader(b))
	return len(l), end
}

// AtBoot sets the store's boot id, as if the machine had restarted.
func (s *Store) AtBoot(id string) { s.boot = func() string { return id } }

// Replay returns how many bytes a journal records as present, and how many of them from the
// beginning without a gap.
func Replay(b []byte, size, fileSize int64) (there, front int64) {
	lines, _, _ := readJournal(bytes.NewReader(b))
	p := &partial{size: size}
	p.replay(lines, fileSize, "boot")
	return p.there, p.front
}
