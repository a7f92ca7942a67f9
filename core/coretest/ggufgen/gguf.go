package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
)

// GGUF v3 value types that this writer needs.
const (
	kvUint16  = 2
	kvUint32  = 4
	kvInt32   = 5
	kvFloat32 = 6
	kvBool    = 7
	kvString  = 8
	kvArray   = 9
)

// ggml tensor types.
const (
	typeF32  = 0
	typeF16  = 1
	typeQ4_0 = 2
	typeQ8_0 = 8
)

const alignment = 32

type kv struct {
	key string
	val any
}

// tensor describes one tensor. dims[0] is the contiguous (row) dimension.
type tensor struct {
	name  string
	dims  []uint64
	typ   uint32
	write func(w io.Writer) error
}

func (t tensor) elements() uint64 {
	n := uint64(1)
	for _, d := range t.dims {
		n *= d
	}
	return n
}

func (t tensor) bytes() uint64 {
	n := t.elements()
	switch t.typ {
	case typeF32:
		return n * 4
	case typeF16:
		return n * 2
	case typeQ8_0:
		return n / 32 * 34
	case typeQ4_0:
		return n / 32 * 18
	}
	panic("unknown tensor type")
}

type countWriter struct {
	w *bufio.Writer
	n uint64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	return n, err
}

func (c *countWriter) u32(v uint32) { _ = binary.Write(c, binary.LittleEndian, v) }
func (c *countWriter) u64(v uint64) { _ = binary.Write(c, binary.LittleEndian, v) }
func (c *countWriter) str(s string) { c.u64(uint64(len(s))); _, _ = io.WriteString(c, s) }

func (c *countWriter) pad() {
	if r := c.n % alignment; r != 0 {
		_, _ = c.Write(make([]byte, alignment-r))
	}
}

func (c *countWriter) kv(e kv) error {
	c.str(e.key)
	switch v := e.val.(type) {
	case uint32:
		c.u32(kvUint32)
		c.u32(v)
	case uint16:
		c.u32(kvUint16)
		_ = binary.Write(c, binary.LittleEndian, v)
	case int32:
		c.u32(kvInt32)
		c.u32(uint32(v))
	case float32:
		c.u32(kvFloat32)
		c.u32(math.Float32bits(v))
	case bool:
		c.u32(kvBool)
		b := byte(0)
		if v {
			b = 1
		}
		_, _ = c.Write([]byte{b})
	case string:
		c.u32(kvString)
		c.str(v)
	case []string:
		c.u32(kvArray)
		c.u32(kvString)
		c.u64(uint64(len(v)))
		for _, s := range v {
			c.str(s)
		}
	case []float32:
		c.u32(kvArray)
		c.u32(kvFloat32)
		c.u64(uint64(len(v)))
		_ = binary.Write(c, binary.LittleEndian, v)
	case []int32:
		c.u32(kvArray)
		c.u32(kvInt32)
		c.u64(uint64(len(v)))
		_ = binary.Write(c, binary.LittleEndian, v)
	default:
		return fmt.Errorf("metadata %q: unsupported type %T", e.key, v)
	}
	return nil
}

// writeGGUF writes the file under a temporary name and renames it when complete.
func writeGGUF(path string, meta []kv, tensors []tensor) error {
	tmp := path + ".part"
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	w := &countWriter{w: bufio.NewWriterSize(f, 1<<20)}
	_, _ = io.WriteString(w, "GGUF")
	w.u32(3)
	w.u64(uint64(len(tensors)))
	w.u64(uint64(len(meta)))
	for _, e := range meta {
		if err := w.kv(e); err != nil {
			return err
		}
	}
	off := uint64(0)
	for _, t := range tensors {
		w.str(t.name)
		w.u32(uint32(len(t.dims)))
		for _, d := range t.dims {
			w.u64(d)
		}
		w.u32(t.typ)
		w.u64(off)
		off += (t.bytes() + alignment - 1) / alignment * alignment
	}
	w.pad()
	for _, t := range tensors {
		start := w.n
		if err := t.write(w); err != nil {
			return fmt.Errorf("tensor %s: %w", t.name, err)
		}
		if w.n-start != t.bytes() {
			return fmt.Errorf("tensor %s: wrote %d bytes, want %d", t.name, w.n-start, t.bytes())
		}
		w.pad()
	}
	if err := w.w.Flush(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// writeSplit writes the model into several files, as llama-gguf-split does: path names the first,
// -00001-of-0000N.gguf.
func writeSplit(path string, parts int, meta []kv, tensors []tensor) error {
	per := (len(tensors) + parts - 1) / parts
	for i := range parts {
		mine := append([]kv(nil), kv{"split.no", uint16(i)}, kv{"split.count", uint16(parts)}, kv{"split.tensors.count", int32(len(tensors))})
		if i == 0 {
			mine = append(append([]kv(nil), meta...), mine...)
		}
		some := tensors[min(i*per, len(tensors)):min((i+1)*per, len(tensors))]
		if err := writeGGUF(fmt.Sprintf("%s-%05d-of-%05d.gguf", path, i+1, parts), mine, some); err != nil {
			return err
		}
	}
	return nil
}

// f16 converts a float32 to IEEE half precision (round to nearest, no NaN handling).
func f16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	exp := int32(b>>23&0xff) - 127 + 15
	man := b & 0x7fffff
	switch {
	case exp >= 31:
		return sign | 0x7c00
	case exp <= 0:
		if exp < -10 {
			return sign
		}
		man |= 0x800000
		shift := uint32(14 - exp)
		return sign | uint16((man+(1<<(shift-1)))>>shift)
	}
	return sign + uint16(uint32(exp)<<10) + uint16((man+0x1000)>>13)
}
