package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"time"
)

// SetFree makes the store believe in that much free space.
func (s *Store) SetFree(bytes int64) { s.free = func(string) (int64, error) { return bytes, nil } }

// SetLimits bounds archives.
func (s *Store) SetLimits(entries int, bytes int64) {
	s.limits.entries, s.limits.bytes = entries, bytes
}

// FailAt makes a step fail.
func (s *Store) FailAt(fail func(step string) error) { s.fail = fail }

// Clean does what Open does with leftovers, at another time.
func (s *Store) Clean(now time.Time) error { return s.cleanPartial(now) }

// ParseDigest is for tests.
func ParseDigest(text string) (string, error) {
	d, err := parseDigest(text)
	return d.String(), err
}

// WalkArchive gives the names below prefix of a tar archive, which is compressed first, and how many bytes their files had.
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
