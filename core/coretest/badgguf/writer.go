// Package badgguf writes GGUF files for tests: valid ones, and a corpus of malformed ones that
// every reader must refuse.
package badgguf

import (
	"bytes"
	"encoding/binary"
	"math"
)

// header writes a GGUF file piece by piece, so that a test can put wrong values anywhere.
type header struct{ bytes.Buffer }

func (h *header) u32(v uint32) { _ = binary.Write(h, binary.LittleEndian, v) }
func (h *header) u64(v uint64) { _ = binary.Write(h, binary.LittleEndian, v) }
func (h *header) str(s string) { h.u64(uint64(len(s))); h.WriteString(s) }
func (h *header) raw(v any)    { _ = binary.Write(h, binary.LittleEndian, v) }
func (h *header) start(version uint32, tensors, keys uint64) {
	h.WriteString("GGUF")
	h.u32(version)
	h.u64(tensors)
	h.u64(keys)
}

// Entry is a metadata entry. The value is a number, a text, a list of them, a List or a Raw.
type Entry struct {
	Key   string
	Value any
}

// List is an array value of the given element type with the elements' raw bytes.
type List struct {
	Of    uint32
	Count uint64
	Bytes []byte
}

// Raw is a value of any type, valid or not.
type Raw struct {
	Type  uint32
	Bytes []byte
}

func (h *header) entry(e Entry) {
	h.str(e.Key)
	switch v := e.Value.(type) {
	case uint8:
		h.u32(0)
		h.raw(v)
	case int32:
		h.u32(5)
		h.raw(v)
	case uint32:
		h.u32(4)
		h.raw(v)
	case float32:
		h.u32(6)
		h.raw(v)
	case bool:
		h.u32(7)
		h.raw(v)
	case string:
		h.u32(8)
		h.str(v)
	case uint64:
		h.u32(10)
		h.raw(v)
	case int64:
		h.u32(11)
		h.raw(v)
	case float64:
		h.u32(12)
		h.raw(v)
	case []string:
		h.u32(9)
		h.u32(8)
		h.u64(uint64(len(v)))
		for _, s := range v {
			h.str(s)
		}
	case []int32:
		h.u32(9)
		h.u32(5)
		h.u64(uint64(len(v)))
		h.raw(v)
	case uint16:
		h.u32(2)
		h.raw(v)
	case List:
		h.u32(9)
		h.u32(v.Of)
		h.u64(v.Count)
		h.Write(v.Bytes)
	case Raw:
		h.u32(v.Type)
		h.Write(v.Bytes)
	default:
		panic("unknown value")
	}
}

// Tensor is an entry in the list of tensors; the type is ggml's number.
type Tensor struct {
	Name   string
	Dims   []uint64
	Type   uint32
	Offset uint64
}

// File returns a GGUF file with this metadata, these tensors and this many bytes of data behind the
// header.
func File(entries []Entry, tensors []Tensor, data int) []byte {
	h := &header{}
	h.start(3, uint64(len(tensors)), uint64(len(entries)))
	for _, e := range entries {
		h.entry(e)
	}
	for _, t := range tensors {
		h.str(t.Name)
		h.u32(uint32(len(t.Dims)))
		for _, d := range t.Dims {
			h.u64(d)
		}
		h.u32(t.Type)
		h.u64(t.Offset)
	}
	for h.Len()%32 != 0 {
		h.WriteByte(0)
	}
	h.Write(make([]byte, data))
	return h.Bytes()
}

// With returns the entries with one more, which replaces an entry of the same name.
func With(entries []Entry, key string, value any) []Entry {
	var out []Entry
	for _, e := range entries {
		if e.Key != key {
			out = append(out, e)
		}
	}
	return append(out, Entry{key, value})
}

// GoodEntries returns the metadata of a small llama.
func GoodEntries() []Entry {
	return []Entry{
		{"tokenizer.ggml.tokens", []string{"<unk>", "a", "b"}},
		{"tokenizer.ggml.scores", List{Of: 6, Count: 3, Bytes: make([]byte, 12)}},
		{"llama.context_length", uint32(512)},
		{"general.architecture", "llama"},
		{"general.name", "two\x1b[31m words"},
		{"general.license", "apache-2.0"},
		{"llama.block_count", uint32(2)},
		{"llama.embedding_length", uint64(64)},
		{"llama.feed_forward_length", int32(128)},
		{"llama.attention.head_count", uint8(4)},
		{"llama.attention.head_count_kv", uint32(2)},
		{"llama.rope.freq_base", float32(10000)},
		{"tokenizer.ggml.add_bos_token", true},
		{"tokenizer.chat_template", "{{ messages }}"},
		{"general.file_type", uint32(15)},
		{"x.deep", List{Of: 9, Count: 1, Bytes: Nested(3)}},
		{"x.double", math.Pi},
	}
}

// Nested returns the bytes of an array value with arrays nested this deep, and an empty list of
// bytes innermost.
func Nested(depth int) []byte {
	h := &header{}
	for range depth - 1 {
		h.u32(9)
		h.u64(1)
	}
	h.u32(0)
	h.u64(0)
	return h.Bytes()
}

// GoodTensors returns the tensors of GoodEntries, which take GoodData bytes.
func GoodTensors() []Tensor {
	return []Tensor{
		{"token_embd.weight", []uint64{256, 3}, 12, 0},      // Q4_K: 3 blocks, 432 bytes
		{"output_norm.weight", []uint64{64}, 0, 448},        // F32: 256 bytes
		{"blk.0.attn_q.weight", []uint64{32, 4, 1}, 8, 704}, // Q8_0: 136 bytes
	}
}

// GoodData is the size of the tensor data of GoodTensors, in bytes.
const GoodData = 704 + 136

// Good returns a valid file made of these.
func Good() []byte { return File(GoodEntries(), GoodTensors(), GoodData) }
