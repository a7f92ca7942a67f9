package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/rbee-project/rbee/core"
)

// Blob is a file of a model, opened by its digest. While the file is still arriving, its arrived
// part is readable but unchecked, so readers must compare the digest of the whole themselves. It is
// safe for concurrent use.
type Blob struct {
	file       *os.File
	size       int64
	p          *partial // nil: published
	generation int
}

// OpenBlob opens a file by its announced digest, "sha256:<hex>", or "sha512:<hex>" while it
// arrives. The caller closes it. It returns core.NotFound if the file is neither stored nor
// arriving in this process.
func (s *transfers) OpenBlob(name string) (*Blob, error) {
	d, err := parseDigest(name)
	if err != nil {
		return nil, err
	}
	if d.algorithm == "" {
		return nil, core.Errorf(core.Invalid, "open blob: it has no digest")
	}
	// A file that is published in the meantime is found in its new place.
	for _, open := range []func(digest) (*Blob, error){s.openPublished, s.openArriving, s.openPublished} {
		b, err := open(d)
		if b != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return nil, core.Errorf(core.NotFound, "open blob: there is no file %s in the store", d)
}

func (s *transfers) openPublished(d digest) (*Blob, error) {
	if d.algorithm != "sha256" {
		return nil, nil
	}
	f, err := s.root.Open(blobName(d))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = core.Errorf(core.Integrity, "open blob: it is not a regular file")
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Blob{file: f, size: info.Size()}, nil
}

func (s *transfers) openArriving(d digest) (*Blob, error) {
	s.mu.Lock()
	p := s.incoming[d.String()]
	s.mu.Unlock()
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	b := &Blob{p: p, size: p.size, generation: p.generation}
	p.mu.Unlock()
	f, err := s.root.Open(p.name)
	if err != nil {
		return nil, err
	}
	b.file = f
	return b, nil
}

// Close closes the file.
func (b *Blob) Close() error { return b.file.Close() }

// SizeBytes returns the length of the whole file; 0 while unknown.
func (b *Blob) SizeBytes() int64 {
	if b.p == nil {
		return b.size
	}
	return b.p.state().size
}

// Arriving reports whether part of the file was missing when it was opened.
func (b *Blob) Arriving() bool { return b.p != nil }

// Wait waits until bytes from offset on can be read, and returns the offset up to which they can;
// io.EOF if offset is the file's end. Errors: core.Unavailable if the transfer ended without them,
// core.Conflict if readable bytes were found to be wrong.
func (b *Blob) Wait(ctx context.Context, offset int64) (end int64, err error) {
	if b.p != nil {
		return b.p.wait(ctx, offset, b.generation)
	}
	if offset >= b.size {
		return b.size, io.EOF
	}
	return b.size, nil
}

// ReadAt reads bytes that Wait has reported as readable; see io.ReaderAt.
func (b *Blob) ReadAt(to []byte, offset int64) (int, error) { return b.file.ReadAt(to, offset) }

// arriving registers a transfer for OpenBlob.
func (s *transfers) arriving(want digest, p *partial) {
	if want.algorithm == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incoming[want.String()] = p
}

func (s *transfers) arrived(want digest, p *partial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incoming[want.String()] == p {
		delete(s.incoming, want.String())
	}
}

var _ io.ReaderAt = (*Blob)(nil)
