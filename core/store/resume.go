package store

import (
	"encoding"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
)

// openPartial opens the partial file of f, or starts a new one. It takes ownership of file, which
// is locked, and closes it on error. It restarts a file without a digest, since its parts may not
// belong together.
func (s *transfers) openPartial(file *os.File, name string, f FileSpec, want digest) (p *partial, saved *journalHash, err error) {
	p = &partial{s: s, file: file, name: name, size: max(f.SizeBytes, 0), news: make(chan struct{})}
	if want.algorithm == "" {
		err = file.Truncate(0)
	} else {
		saved, err = p.resume()
	}
	if err != nil {
		p.close()
		return nil, nil, spaceError(name, err)
	}
	return p, saved, nil
}

// resume loads the journal as far as the file has its bytes, and begins a new section of it.
func (p *partial) resume() (*journalHash, error) {
	file, err := p.s.root.OpenFile(journalName(p.name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p.notes = &journal{file: file}
	info, err := p.file.Stat()
	if err != nil {
		return nil, err
	}
	lines, end, err := readJournal(file)
	if err != nil {
		return nil, err
	}
	boot := p.s.boot()
	var saved *journalHash
	switch {
	case len(lines) == 0 && end == 0 && info.Size() > 0 && info.Size() <= p.size:
		// A user or an earlier version of rbee put the file there; that version kept no journal and
		// wrote from start to end.
		if err := p.adopt(info.Size()); err != nil {
			return nil, err
		}
	case len(lines) == 0 || !p.begins(lines[0]):
		if err := p.file.Truncate(0); err != nil {
			return nil, err
		}
		end = 0
	default:
		saved = p.replay(lines, info.Size(), boot)
	}
	if err := file.Truncate(end); err != nil {
		return nil, err
	}
	p.notes.end = end
	begin := &journalBegin{Format: journalFormat, Size: p.size, Segment: segmentBytes, Boot: boot}
	if err := p.note(journalLine{Begin: begin}); err != nil {
		return nil, err
	}
	if end == 0 {
		for i := range p.segments {
			if err := p.note(p.segmentLine(int64(i))); err != nil {
				return nil, err
			}
		}
	}
	return saved, nil
}

func (p *partial) begins(l journalLine) bool {
	b := l.Begin
	return b != nil && b.Format == journalFormat && b.Segment == segmentBytes && b.Size == p.size
}

// segmentLine returns the journal's line for a segment.
func (p *partial) segmentLine(i int64) journalLine {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.segments[i]
	return journalLine{Segment: &journalSegment{Index: i, N: s.n, Sum: s.sum}}
}

// replay applies the lines. It returns the last saved digest state that is still valid: the state
// covers what was written, which is on the disk only if the machine has not restarted.
func (p *partial) replay(lines []journalLine, fileSize int64, boot string) (saved *journalHash) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := ""
	p.origins = map[string]string{}
	for _, l := range lines {
		switch {
		case l.Begin != nil:
			if since != l.Begin.Boot {
				saved = nil
			}
			since = l.Begin.Boot
		case l.Segment != nil:
			g := l.Segment
			if g.Index < 0 || g.Index > fileSize/segmentBytes || g.N <= 0 || g.N > p.lengthLocked(g.Index) || g.Index*segmentBytes+g.N > fileSize {
				continue // the disk has lost these bytes
			}
			s := p.segmentLocked(g.Index)
			s.n, s.sum, s.by = g.N, g.Sum, byEarlier
		case l.Dropped != nil:
			if i := *l.Dropped; i >= 0 && i < int64(len(p.segments)) {
				p.segments[i] = segment{}
			}
			saved = nil
		case l.Hash != nil:
			saved = l.Hash
		case l.Origin != nil:
			p.origins[l.Origin.Origin] = l.Origin.Version
		}
	}
	for _, s := range p.segments {
		p.there += s.n
	}
	p.moveFrontLocked()
	if since != boot || boot == "" || saved != nil && (saved.At <= 0 || saved.At > p.front) {
		saved = nil
	}
	return saved
}

// adopt accepts the file's first n bytes as they are.
func (p *partial) adopt(n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	buf := make([]byte, segmentBytes)
	for at := int64(0); at < n; at += segmentBytes {
		b := buf[:min(segmentBytes, n-at)]
		if _, err := io.ReadFull(io.NewSectionReader(p.file, at, n-at), b); err != nil {
			return fmt.Errorf("read the existing part: %w", err)
		}
		p.segments = append(p.segments, segment{n: int64(len(b)), sum: crc32.Checksum(b, castagnoli), by: byEarlier})
	}
	p.there = n
	p.moveFrontLocked()
	return nil
}

// restore loads a saved state into a digest. It returns false if the state is invalid, for example
// from another version of Go.
func restore(h hash.Hash, state []byte) bool {
	u, ok := h.(encoding.BinaryUnmarshaler)
	return ok && u.UnmarshalBinary(state) == nil
}

// saveState returns the state of a digest, or nil if h is nil.
func saveState(h hash.Hash) []byte {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil
	}
	b, err := m.MarshalBinary()
	if err != nil {
		return nil
	}
	return b
}
