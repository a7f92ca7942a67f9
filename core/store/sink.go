package store

import (
	"context"
	"hash/crc32"

	"github.com/rbee-project/rbee/core"
)

// sink receives a part of a file from a source: from pos on, as far as segments are missing and no
// other fetch is filling them. After its first error it accepts nothing more. It is used by one
// goroutine.
type sink struct {
	t     *transfer // set before the first Write
	ctx   context.Context
	p     *partial
	by    uint64 // the source's bit
	pos   int64
	first int64 // segments first to next-1 are taken
	next  int64
	err   error
	fatal bool // the disk failed, so another source would not help
}

// Write accepts the next bytes of the file.
func (w *sink) Write(b []byte) (int, error) {
	n := 0
	for w.err == nil && len(b) > 0 {
		var m int
		m, w.err = w.write(b)
		n += m
		b = b[m:]
	}
	return n, w.err
}

// write writes the bytes that belong to one segment.
func (w *sink) write(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	i := w.pos / segmentBytes
	room, err := w.p.roomFor(w, i)
	if err != nil {
		return 0, err
	}
	if err := w.t.spaceFor(w.pos); err != nil {
		w.fatal = true
		return 0, err
	}
	b = b[:min(int64(len(b)), room)]
	if err := w.t.s.step("write"); err != nil {
		w.fatal = true
		return 0, spaceError(w.t.spec.Path, err)
	}
	n, err := w.p.file.WriteAt(b, w.pos)
	w.pos += int64(n)
	w.t.room.used(int64(n))
	if noteErr := w.p.filled(i, b[:n], w.by); noteErr != nil {
		w.t.s.log.Debug("the progress of a transfer could not be noted", "error", noteErr)
	}
	if err != nil {
		w.fatal = true
		return n, spaceError(w.t.spec.Path, err)
	}
	return n, nil
}

// roomFor returns how many bytes w may write into segment i from its position on, and claims the
// segment if it is free.
func (p *partial) roomFor(w *sink, i int64) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size > 0 && w.pos >= p.size {
		err := core.Errorf(core.Integrity, "%s is longer than the announced %d bytes", w.t.spec.Path, p.size)
		return 0, core.WithHint(err, "It was not used. Try again; if it stays so, choose another version.")
	}
	if i >= w.next {
		if !p.freeLocked(i) || p.segmentLocked(i).n > 0 {
			return 0, ErrEnough
		}
		p.segmentLocked(i).taken = true
		w.next = i + 1
	}
	s := p.segments[i]
	if at := w.pos - i*segmentBytes; s.n != at {
		return 0, ErrEnough // dropped in the meantime because its beginning was damaged
	}
	return p.lengthLocked(i) - s.n, nil
}

// filled records that b was written after segment i's existing bytes.
func (p *partial) filled(i int64, b []byte, by uint64) error {
	if len(b) == 0 {
		return nil
	}
	p.mu.Lock()
	s := &p.segments[i]
	s.n += int64(len(b))
	s.sum = crc32.Update(s.sum, castagnoli, b)
	s.by |= by
	p.there += int64(len(b))
	p.came += int64(len(b))
	whole := p.wholeLocked(i)
	if whole {
		s.taken = false
		p.moveFrontLocked()
		p.changedLocked()
	}
	p.mu.Unlock()
	if !whole {
		return nil
	}
	return p.note(p.segmentLine(i))
}

// release releases the segments that w has claimed but not filled. It records the bytes of
// incomplete ones.
func (p *partial) release(w *sink) error {
	p.mu.Lock()
	at := int64(-1)
	// Segments before its position are complete, or were dropped since and belong to another fetch.
	for i := max(w.first, w.pos/segmentBytes); i < w.next; i++ {
		s := &p.segments[i]
		if s.taken && s.n > 0 {
			at = i
		}
		s.taken = false
	}
	p.moveFrontLocked()
	p.changedLocked()
	p.mu.Unlock()
	if at < 0 {
		return nil
	}
	return p.note(p.segmentLine(at))
}

// finish sets the size of a file whose size was not announced.
func (p *partial) finish(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size <= 0 {
		p.size, p.empty = size, size == 0
		p.moveFrontLocked()
		p.changedLocked()
	}
}
