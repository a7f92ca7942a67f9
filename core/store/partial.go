package store

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// partial is a file being fetched: it tracks which bytes have arrived and which fetch fills which
// part. It is safe for concurrent use.
//
// The file is cut into segments. One connection at a time fills a segment from its beginning. The
// journal records what has arrived in earlier attempts.
type partial struct {
	s    *transfers
	file *os.File // locked until closed
	name string   // relative to the store's folder
	// nil: not resumable, because its parts may not belong together
	notes *journal

	mu         sync.Mutex // guards below
	size       int64      // 0: unknown, unless it is empty
	empty      bool       // its source reported it as empty
	segments   []segment
	front      int64             // all bytes before it have arrived
	there      int64             // number of bytes that have arrived
	came       int64             // number of bytes that have arrived in this process
	origins    map[string]string // recorded versions of the file at its sources
	generation int               // incremented whenever existing bytes are dropped
	ended      bool              // no more bytes will arrive
	news       chan struct{}     // closed and replaced when any of the above changes
}

// segment is a part of the file. There may be fewer segments than the file needs while the rest is
// missing.
type segment struct {
	n   int64  // number of its bytes that have arrived, from its beginning
	sum uint32 // CRC-32C of those bytes
	// sources that fetched them: bit 0 stands for an earlier process, bits 1 to 63 for this one's
	// sources
	by    uint64
	taken bool // a fetch is filling it
}

// journalName returns the journal's name for a partial file.
func journalName(name string) string { return name + journalSuffix }

// close releases the lock and leaves the files where they are.
func (p *partial) close() {
	p.end()
	if p.notes != nil {
		_ = p.notes.file.Close()
	}
	_ = p.file.Close()
}

// discard removes the files and releases the lock.
func (p *partial) discard() {
	p.remove()
	p.close()
}

// remove removes the files; close releases the lock.
func (p *partial) remove() {
	p.forget()
	_ = p.s.root.Remove(p.name)
}

// forget removes the journal, because the file moves elsewhere.
func (p *partial) forget() {
	if p.notes != nil {
		_ = p.s.root.Remove(journalName(p.name))
	}
}

// end tells concurrent readers that no more bytes will arrive.
func (p *partial) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.changedLocked()
}

func (p *partial) changedLocked() {
	close(p.news)
	p.news = make(chan struct{})
}

// byEarlier is the bit of an earlier process in segment.by.
const byEarlier = 1

// state is a snapshot of a partial.
type state struct {
	size, front, there, came int64
	empty                    bool
	news                     <-chan struct{} // closed at the next change
}

// complete reports whether all bytes have arrived.
func (st state) complete() bool { return st.empty || st.size > 0 && st.front == st.size }

func (p *partial) state() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return state{size: p.size, front: p.front, there: p.there, came: p.came, empty: p.empty, news: p.news}
}

// lengthLocked returns the full length of segment i.
func (p *partial) lengthLocked(i int64) int64 {
	if p.size <= 0 {
		return segmentBytes
	}
	return max(min(segmentBytes, p.size-i*segmentBytes), 0)
}

func (p *partial) wholeLocked(i int64) bool {
	return i < int64(len(p.segments)) && p.segments[i].n == p.lengthLocked(i) && p.segments[i].n > 0
}

func (p *partial) freeLocked(i int64) bool {
	return p.lengthLocked(i) > 0 && (i >= int64(len(p.segments)) || !p.segments[i].taken && !p.wholeLocked(i))
}

func (p *partial) segmentLocked(i int64) *segment {
	for int64(len(p.segments)) <= i {
		p.segments = append(p.segments, segment{})
	}
	return &p.segments[i]
}

func (p *partial) moveFrontLocked() {
	for i := p.front / segmentBytes; i < int64(len(p.segments)); i++ {
		p.front = i*segmentBytes + p.segments[i].n
		if !p.wholeLocked(i) {
			return
		}
	}
}

// claim takes the first missing part that no fetch is filling, of at most most bytes or a little
// more (0: as far as it extends). to is -1 if the size is unknown. ok is false if no part is
// missing.
func (p *partial) claim(most int64) (w *sink, from, to int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.front / segmentBytes
	for n := int64(len(p.segments)); i < n && !p.freeLocked(i); {
		i++
	}
	if !p.freeLocked(i) {
		return nil, 0, 0, false
	}
	from = i*segmentBytes + p.segmentLocked(i).n
	w = &sink{p: p, pos: from, first: i, next: i}
	if p.size <= 0 {
		p.segmentLocked(i).taken = true
		w.next = i + 1
		return w, from, -1, true
	}
	for p.freeLocked(w.next) && (most <= 0 || w.next*segmentBytes-from < most) {
		p.segmentLocked(w.next).taken = true
		w.next++
		if w.next < int64(len(p.segments)) && p.segments[w.next].n > 0 {
			break // its beginning has arrived
		}
	}
	return w, from, min(w.next*segmentBytes, p.size), true
}

// drop drops the bytes that the sources in by have fetched. If all is set, it drops the rest as
// well.
func (p *partial) drop(by uint64, all bool) error {
	p.mu.Lock()
	var gone []int64
	for i := range p.segments {
		if s := &p.segments[i]; s.n > 0 && (all || s.by&by != 0) {
			gone = append(gone, int64(i))
		}
	}
	p.dropLocked(gone)
	if p.there == 0 {
		p.empty = false
	}
	p.mu.Unlock()
	return p.noteDropped(gone)
}

func (p *partial) dropLocked(gone []int64) {
	for _, i := range gone {
		s := &p.segments[i]
		p.there -= s.n
		s.n, s.sum, s.by = 0, 0, 0
		p.front = min(p.front, i*segmentBytes)
	}
	if len(gone) > 0 {
		p.generation++
		p.changedLocked()
	}
}

// dropSegments drops the given segments.
func (p *partial) dropSegments(gone ...int64) error {
	p.mu.Lock()
	p.dropLocked(gone)
	p.mu.Unlock()
	return p.noteDropped(gone)
}

func (p *partial) noteDropped(gone []int64) error {
	for _, i := range gone {
		if err := p.note(journalLine{Dropped: &i}); err != nil {
			return err
		}
	}
	return nil
}

// note appends a line to the journal. If the disk is too full for the line, less can be resumed,
// but nothing else is lost.
func (p *partial) note(l journalLine) error {
	if p.notes == nil {
		return nil
	}
	return p.notes.append(l)
}

// mixed reports whether sources other than those in by have fetched some of the bytes.
func (p *partial) mixed(by uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.segments, func(s segment) bool { return s.by&^by != 0 })
}

// fromEarlier reports whether an earlier process has fetched part of segment i.
func (p *partial) fromEarlier(i int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.segments[i].by&byEarlier != 0
}

// versionAt returns the recorded version at an origin; empty: unknown.
func (p *partial) versionAt(origin string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.origins[origin]
}

func (p *partial) noteVersion(origin, version string) error {
	p.mu.Lock()
	if p.origins == nil {
		p.origins = map[string]string{}
	}
	p.origins[origin] = version
	p.mu.Unlock()
	return p.note(journalLine{Origin: &journalOrigin{Origin: origin, Version: version}})
}

// sound compares an existing segment with its sum. buf must hold at least segmentBytes; afterwards
// it starts with the segment's bytes.
func (p *partial) sound(i int64, buf []byte) (b []byte, sound bool, err error) {
	p.mu.Lock()
	s := p.segments[i]
	p.mu.Unlock()
	b = buf[:s.n]
	n, err := p.file.ReadAt(b, i*segmentBytes)
	if n == len(b) {
		err = nil
	}
	if errors.Is(err, io.EOF) {
		return nil, false, nil // the disk has lost its end
	}
	if err != nil {
		return nil, false, err
	}
	return b, crc32.Checksum(b, castagnoli) == s.sum, nil
}

// dropDamaged compares all segments with their sums and drops those that differ.
func (p *partial) dropDamaged(ctx context.Context) (dropped int, err error) {
	p.mu.Lock()
	var there []int64
	for i := range p.segments {
		if p.segments[i].n > 0 {
			there = append(there, int64(i))
		}
	}
	p.mu.Unlock()
	buf := make([]byte, segmentBytes)
	var gone []int64
	for _, i := range there {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		_, sound, err := p.sound(i, buf)
		if err != nil {
			return 0, err
		}
		if !sound {
			gone = append(gone, i)
		}
	}
	return len(gone), p.dropSegments(gone...)
}

// wait waits for the first byte from offset on, and returns the offset up to which bytes have
// arrived.
func (p *partial) wait(ctx context.Context, offset int64, generation int) (end int64, err error) {
	for {
		p.mu.Lock()
		end = p.untilLocked(offset)
		changed, ended, news, size := p.generation != generation, p.ended, p.news, p.size
		p.mu.Unlock()
		switch {
		case changed:
			return 0, core.Errorf(core.Conflict, "what had arrived was dropped")
		case end > offset:
			return end, nil
		case size > 0 && offset >= size:
			return size, io.EOF
		case ended:
			return 0, core.Errorf(core.Unavailable, "the transfer has ended before it was complete")
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-news:
		}
	}
}

// untilLocked checks at most 64 segments, so that a reader of a long file does not scan all of them
// for each part.
func (p *partial) untilLocked(offset int64) int64 {
	if offset < 0 {
		return offset
	}
	first := offset / segmentBytes
	end := offset
	for i := first; i < min(int64(len(p.segments)), first+64); i++ {
		end = max(end, i*segmentBytes+p.segments[i].n)
		if !p.wholeLocked(i) {
			break
		}
	}
	return end
}
