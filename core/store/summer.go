package store

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"io"
	"sync/atomic"
)

const saveEvery = 16 << 20 // a killed process loses the hash of at most this many bytes

// summer hashes a partial's bytes from the beginning, shortly after they arrive: they are still in
// the page cache then, and the work spreads over two processors. It first compares bytes from an
// earlier process with their segment's sum. One goroutine at a time calls its methods.
type summer struct {
	p      *partial
	sum256 hash.Hash
	sum512 hash.Hash    // nil unless wanted
	at     atomic.Int64 // number of bytes hashed; read by other goroutines
	saved  int64
}

func newSummer(p *partial, want digest) *summer {
	s := &summer{p: p, sum256: sha256.New()}
	if want.algorithm == "sha512" {
		s.sum512 = sha512.New()
	}
	return s
}

// resume continues from a saved state, if it is valid.
func (s *summer) resume(saved *journalHash) {
	if saved == nil {
		return
	}
	if !restore(s.sum256, saved.SHA256) || s.sum512 != nil && !restore(s.sum512, saved.SHA512) {
		s.reset()
		return
	}
	s.at.Store(saved.At)
	s.saved = saved.At
}

func (s *summer) reset() {
	s.sum256.Reset()
	if s.sum512 != nil {
		s.sum512.Reset()
	}
	s.at.Store(0)
	s.saved = 0
}

// run hashes until all bytes of the file are done. It fails with the context's error or the disk's.
func (s *summer) run(ctx context.Context) error {
	buf := make([]byte, segmentBytes)
	for {
		st := s.p.state()
		at := s.at.Load()
		switch {
		case st.complete() && at == st.size:
			return nil
		case at == st.front || st.front-at < segmentBytes && !st.complete():
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-st.news:
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.next(at, st.front, buf); err != nil {
			return err
		}
	}
}

// next hashes the rest of the segment that contains at. It drops a segment that has changed.
func (s *summer) next(at, front int64, buf []byte) error {
	i := at / segmentBytes
	b, err := s.read(i, at, front, buf)
	if err != nil || b == nil {
		return err
	}
	_, _ = s.sum256.Write(b) // hashes do not fail
	if s.sum512 != nil {
		_, _ = s.sum512.Write(b)
	}
	at += int64(len(b))
	s.at.Store(at)
	if at-s.saved >= saveEvery {
		s.saved = at
		line := &journalHash{At: at, SHA256: saveState(s.sum256)}
		if s.sum512 != nil {
			line.SHA512 = saveState(s.sum512)
		}
		if err := s.p.note(journalLine{Hash: line}); err != nil {
			s.p.s.log.Debug("the progress of a transfer could not be noted", "error", err)
		}
	}
	return nil
}

// read returns the bytes of segment i from at on, or nil if they have been dropped.
func (s *summer) read(i, at, front int64, buf []byte) ([]byte, error) {
	if !s.p.fromEarlier(i) {
		b := buf[:min(front, (i+1)*segmentBytes)-at]
		_, err := s.p.file.ReadAt(b, at)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // another process has truncated it
		}
		return b, err
	}
	b, sound, err := s.p.sound(i, buf)
	if err != nil {
		return nil, err
	}
	if !sound {
		s.p.s.log.Warn("a part of a file was damaged on this disk: fetching it anew", "segment", i)
		return nil, s.p.dropSegments(i)
	}
	return b[at-i*segmentBytes:], nil
}

func (s *summer) sha256() digest { return sha256Digest(s.sum256.Sum(nil)) }

// got returns the digest in the wanted algorithm.
func (s *summer) got() digest {
	if s.sum512 == nil {
		return s.sha256()
	}
	d := digest{algorithm: "sha512"}
	copy(d.sum[:], s.sum512.Sum(nil))
	return d
}
