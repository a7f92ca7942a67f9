package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/rbee-project/rbee/core"
)

const hint = "Fetch the model again from where it was published. If it is refused again, the published file itself is broken."

// bad returns an error that describes what is wrong with the file.
func bad(format string, args ...any) error {
	return core.Errorf(core.Integrity, "not a sound GGUF file: "+format, args...).Hint(hint)
}

// reader reads the header in order through a small buffer, never beyond the end of the file or the
// header's limit. It keeps its first error.
type reader struct {
	src   io.ReaderAt
	pos   uint64 // position of the next byte to return
	end   uint64
	whole bool // end is the file's end, not the header's limit
	buf   []byte
	have  []byte // part of buf that was read but not returned yet
	err   error
}

func newReader(src io.ReaderAt, size int64) *reader {
	end := uint64(max(size, 0))
	r := &reader{src: src, end: min(end, MaxHeaderBytes), whole: end <= MaxHeaderBytes}
	r.buf = make([]byte, min(64<<10, r.end))
	return r
}

// left returns how many bytes remain for the header.
func (r *reader) left() uint64 { return r.end - r.pos }

// short records that the header is longer than its bounds.
func (r *reader) short() {
	if r.err != nil {
		return
	}
	if r.whole {
		r.err = bad("it ends in the middle of its header, after %d bytes", r.end)
	} else {
		r.err = bad("its header is larger than %d MiB", MaxHeaderBytes>>20)
	}
}

// next returns n bytes (at most the buffer's size), valid until the next call; nil after an error.
func (r *reader) next(n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > r.left() {
		r.short()
		return nil
	}
	if uint64(len(r.have)) < n {
		kept := copy(r.buf, r.have)
		want := min(uint64(len(r.buf)), uint64(kept)+r.left()-uint64(len(r.have)))
		got, err := r.src.ReadAt(r.buf[kept:want], int64(r.pos)+int64(kept))
		if uint64(kept+got) < n {
			if err == nil || errors.Is(err, io.EOF) {
				r.err = bad("it ends after %d bytes although it should have more", r.pos+uint64(kept+got))
			} else {
				r.err = fmt.Errorf("read gguf header: %w", err)
			}
			return nil
		}
		r.have = r.buf[:kept+got]
	}
	out := r.have[:n]
	r.have = r.have[n:]
	r.pos += n
	return out
}

func (r *reader) skip(n uint64) {
	if r.err != nil {
		return
	}
	if n > r.left() {
		r.short()
		return
	}
	r.pos += n
	r.have = r.have[min(n, uint64(len(r.have))):]
}

func (r *reader) u32() uint32 {
	if b := r.next(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.next(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// text reads a string of at most limit bytes; what names it in errors.
func (r *reader) text(what string, limit uint64) string {
	n := r.u64()
	if r.err != nil {
		return ""
	}
	if n > r.left() {
		r.short()
		return ""
	}
	if n > limit {
		r.err = bad("%s has %d bytes, more than the allowed %d", what, n, limit)
		return ""
	}
	out := make([]byte, 0, n)
	for uint64(len(out)) < n && r.err == nil {
		out = append(out, r.next(min(n-uint64(len(out)), uint64(len(r.buf))))...)
	}
	return string(out)
}

// integer reads a number of an integer type. It refuses negative ones: no wanted fact can be
// negative.
func (r *reader) integer(key string, t valueType) uint64 {
	width, _ := t.width()
	b := r.next(width)
	if b == nil {
		return 0
	}
	var v int64
	switch t {
	case typeUint8:
		return uint64(b[0])
	case typeUint16:
		return uint64(binary.LittleEndian.Uint16(b))
	case typeUint32:
		return uint64(binary.LittleEndian.Uint32(b))
	case typeUint64:
		return binary.LittleEndian.Uint64(b)
	case typeInt8:
		v = int64(int8(b[0]))
	case typeInt16:
		v = int64(int16(binary.LittleEndian.Uint16(b)))
	case typeInt32:
		v = int64(int32(binary.LittleEndian.Uint32(b)))
	case typeInt64:
		v = int64(binary.LittleEndian.Uint64(b))
	case typeFloat32, typeFloat64, typeBool, typeString, typeArray:
	}
	if v < 0 {
		r.err = bad("%s is %d: it cannot be negative", key, v)
	}
	return uint64(max(v, 0))
}
