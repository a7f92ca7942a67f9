package gguf_test

import (
	"bytes"
	"encoding/binary"
	"math"
)

// header writes a GGUF file piece by piece, so that a test can lie at any place.
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

type entry struct {
	key   string
	value any
}

// list is an array value of the given element type with the elements' raw bytes.
type list struct {
	of    uint32
	count uint64
	bytes []byte
}

// raw is a value of any type, right or wrong.
type raw struct {
	typ   uint32
	bytes []byte
}

func (h *header) entry(e entry) {
	h.str(e.key)
	switch v := e.value.(type) {
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
	case list:
		h.u32(9)
		h.u32(v.of)
		h.u64(v.count)
		h.Write(v.bytes)
	case raw:
		h.u32(v.typ)
		h.Write(v.bytes)
	default:
		panic("unknown value")
	}
}

type tensor struct {
	name   string
	dims   []uint64
	typ    uint32
	offset uint64
}

// file is a GGUF file with its metadata, tensors and this much data behind the header.
func file(entries []entry, tensors []tensor, data int) []byte {
	h := &header{}
	h.start(3, uint64(len(tensors)), uint64(len(entries)))
	for _, e := range entries {
		h.entry(e)
	}
	for _, t := range tensors {
		h.str(t.name)
		h.u32(uint32(len(t.dims)))
		for _, d := range t.dims {
			h.u64(d)
		}
		h.u32(t.typ)
		h.u64(t.offset)
	}
	for h.Len()%32 != 0 {
		h.WriteByte(0)
	}
	h.Write(make([]byte, data))
	return h.Bytes()
}

// with is entries with one more, which replaces one of the same name.
func with(entries []entry, key string, value any) []entry {
	var out []entry
	for _, e := range entries {
		if e.key != key {
			out = append(out, e)
		}
	}
	return append(out, entry{key, value})
}

func goodEntries() []entry {
	return []entry{
		{"tokenizer.ggml.tokens", []string{"<unk>", "a", "b"}},
		{"tokenizer.ggml.scores", list{of: 6, count: 3, bytes: make([]byte, 12)}},
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
		{"x.deep", list{of: 9, count: 1, bytes: nested(3)}},
		{"x.double", math.Pi},
	}
}

// nested is the bytes of an array value, so many arrays deep, with an empty list of bytes at the bottom.
func nested(depth int) []byte {
	h := &header{}
	for range depth - 1 {
		h.u32(9)
		h.u64(1)
	}
	h.u32(0)
	h.u64(0)
	return h.Bytes()
}

func goodTensors() []tensor {
	return []tensor{
		{"token_embd.weight", []uint64{256, 3}, 12, 0},      // Q4_K: 3 blocks, 432 bytes
		{"output_norm.weight", []uint64{64}, 0, 448},        // F32: 256 bytes
		{"blk.0.attn_q.weight", []uint64{32, 4, 1}, 8, 704}, // Q8_0: 136 bytes
	}
}

const goodData = 704 + 136
