package badgguf

import (
	"bytes"
	"math"
	"strings"
)

// Case is a file that must be refused, and a part of the expected error.
type Case struct {
	Name string
	File []byte
	Says string
}

// Corpus returns the malformed files, each with a different defect.
func Corpus() []Case {
	head := func(version uint32, tensors, keys uint64, rest ...byte) []byte {
		h := &header{}
		h.start(version, tensors, keys)
		h.Write(rest)
		return h.Bytes()
	}
	entries := func(key string, value any) []byte {
		return File(With(GoodEntries(), key, value), GoodTensors(), GoodData)
	}
	tensors := func(data int, t ...Tensor) []byte { return File(GoodEntries(), t, data) }
	good := Good()
	long := strings.Repeat("k", 80<<10)
	return []Case{
		{"empty", nil, "ends in the middle of its header, after 0 bytes"},
		{"three bytes", []byte("GGU"), "ends in the middle"},
		{"other magic", []byte("GGML\x03\x00\x00\x00 and so on and so forth"), "does not start with GGUF"},
		{"zip", append([]byte("PK\x03\x04"), make([]byte, 100)...), "does not start with GGUF"},
		{"version 0", head(0, 1, 1, make([]byte, 99)...), "version is 0"},
		{"version 1", head(1, 1, 1, make([]byte, 99)...), "version is 1"},
		{"version 4", head(4, 1, 1, make([]byte, 99)...), "version is 4"},
		{"big endian", head(3<<24, 1, 1, make([]byte, 99)...), "big-endian"},
		{"all keys of the world", head(3, 1, math.MaxUint64, make([]byte, 99)...), "metadata entries, more than fit"},
		{"more keys than bytes", head(3, 1, 9, make([]byte, 99)...), "claims 9 metadata entries"},
		{"all tensors of the world", head(3, math.MaxUint64, 0, make([]byte, 99)...), "tensors, more than fit"},
		{"more tensors than bytes", head(3, 5, 0, make([]byte, 99)...), "claims 5 tensors"},
		{"no tensors", File(GoodEntries(), nil, 0), "has no tensors"},
		{"cut in the metadata", good[:150], "more than fit"},
		{"cut in the tensor list", good[:len(good)-GoodData-60], "ends in the middle"},
		{"cut in the data", good[:len(good)-1], "blk.0.attn_q.weight lies beyond the end of the file"},
		{"key length wraps", head(3, 1, 1, append(bytes.Repeat([]byte{0xff}, 8), make([]byte, 99)...)...), "ends in the middle"},
		{"key too long", File(append(GoodEntries(), Entry{long, true}), GoodTensors(), GoodData), "key has 81920 bytes, more than the allowed 65536"},
		{"key without a name", File(append(GoodEntries(), Entry{"", true}), GoodTensors(), GoodData), "has no name"},
		{"key twice", File(append(GoodEntries(), Entry{"general.name", "again"}), GoodTensors(), GoodData), "general.name stands in it twice"},
		{"value type 13", entries("x", Raw{13, make([]byte, 8)}), "x has the unknown type 13"},
		{"value type -1", entries("x", Raw{math.MaxUint32, make([]byte, 8)}), "unknown type 4294967295"},
		{"bool of 2", entries("x", Raw{7, []byte{2}}), "neither true nor false"},
		{"string longer than the file", entries("x", Raw{8, []byte{0, 0, 0, 0, 0, 0, 0, 1}}), "ends in the middle"},
		{"list of unknown", entries("x", List{Of: 99, Count: 1, Bytes: make([]byte, 64)}), "unknown type 99"},
		{"list longer than the file", entries("x", List{Of: 4, Count: math.MaxUint64 / 4}), "more than fit"},
		{"strings longer than the file", entries("x", List{Of: 8, Count: math.MaxUint64}), "more than fit"},
		{"list nested 5 deep", entries("x", Raw{9, Nested(5)}), "nested more than 4 deep"},
		{"list nested 1000 deep", entries("x", Raw{9, Nested(1000)}), "nested more than 4 deep"},
		{"heads of 2^20 layers", entries("llama.attention.head_count", List{Of: 0, Count: 1 << 20, Bytes: make([]byte, 1<<20)}), "more than a model has layers"},
		{"negative heads per layer", entries("llama.attention.head_count", []int32{4, -4}), "is -4"},
		{"negative context", entries("llama.context_length", int32(-1)), "cannot be negative"},
		{"context of 2^63", entries("llama.context_length", uint64(1)<<63), "which no model has"},
		{"a billion layers", entries("llama.block_count", uint32(1_000_000_000)), "layers, more than any"},
		{"no layers", entries("llama.block_count", uint32(0)), "claims to have no layers"},
		{"odd rotation", File(append(GoodEntries(), Entry{"llama.rope.dimension_count", uint32(15)}), GoodTensors(), GoodData), "which are not pairs"},
		{"alignment 0", entries("general.alignment", uint32(0)), "not a power of two"},
		{"alignment 48", entries("general.alignment", uint32(48)), "not a power of two"},
		{"alignment as text", entries("general.alignment", "32"), "not a 32-bit number"},
		{"alignment beyond the file", entries("general.alignment", uint32(1)<<31), "not a multiple of 2147483648"},
		{"template of 2 MiB", entries("tokenizer.chat_template", strings.Repeat("x", 2<<20)), "more than the allowed 1048576"},
		{"named template of 2 MiB", entries("tokenizer.chat_template.tool_use", strings.Repeat("x", 2<<20)), "more than the allowed 1048576"},
		{"no architecture", File([]Entry{{"general.name", "x"}}, GoodTensors(), GoodData), "does not say its architecture"},
		{"architecture with a slash", entries("general.architecture", "../llama"), "architecture is called ../llama"},
		{"tensor name too long", tensors(64, Tensor{strings.Repeat("t", 64), []uint64{1}, 0, 0}), "more than the allowed 63"},
		{"tensor twice", tensors(128, Tensor{"t", []uint64{1}, 0, 0}, Tensor{"t", []uint64{1}, 0, 32}), "tensor t stands in it twice"},
		{"5 dimensions", tensors(64, Tensor{"t", []uint64{1, 1, 1, 1, 1}, 0, 0}), "5 dimensions"},
		{"dimension of 0", tensors(64, Tensor{"t", []uint64{4, 0}, 0, 0}), "dimension of 0"},
		{"elements overflow 64 bits", tensors(64, Tensor{"t", []uint64{1 << 33, 1 << 33}, 0, 0}), "more elements than can be counted"},
		{"elements wrap to few", tensors(64, Tensor{"t", []uint64{1 << 62, 4, 1}, 0, 0}), "more elements than can be counted"},
		{"bytes overflow 64 bits", tensors(64, Tensor{"t", []uint64{1 << 62, 1}, 27, 0}), "beyond the end of the file"},
		{"removed tensor type", tensors(64, Tensor{"t", []uint64{32}, 4, 0}), "unknown type 4"},
		{"tensor type -1", tensors(64, Tensor{"t", []uint64{32}, math.MaxUint32, 0}), "unknown type"},
		{"row of half a block", tensors(64, Tensor{"t", []uint64{16, 2}, 8, 0}), "not whole blocks of Q8_0"},
		{"offset off the grid", tensors(64, Tensor{"t", []uint64{1}, 0, 4}), "not a multiple of 32"},
		{"offset beyond the file", tensors(64, Tensor{"t", []uint64{1}, 0, 1 << 40}), "beyond the end of the file"},
		{"offset wraps", tensors(64, Tensor{"t", []uint64{64}, 0, math.MaxUint64 - 31}), "beyond the end of the file"},
		{"tensors overlap", tensors(512, Tensor{"a", []uint64{64}, 0, 0}, Tensor{"b", []uint64{8}, 0, 224}), "tensors a and b overlap"},
		{"same offset", tensors(512, Tensor{"a", []uint64{64}, 0, 0}, Tensor{"b", []uint64{64}, 0, 0}), "overlap"},
		{"part 2 of 2 that is part 3", Part(2, 2, 5, GoodEntries()...), "it says that it is file 3 of 2"},
		{"part of a million", Part(0, 60000, 5, GoodEntries()...), "one of 60000 files"},
		{"first part without an architecture", Part(0, 2, 5), "does not say its architecture"},
		{"split count as -1", entries("split.count", int32(-1)), "cannot be negative"},
		{"negative alignment", entries("general.alignment", int32(-32)), "not a 32-bit number"},
		{"heads of 2^40", entries("llama.attention.head_count", uint64(1)<<40), "which no model has"},
		{"heads of 2^31-1 in a layer", entries("llama.attention.head_count_kv", []int32{2, math.MaxInt32}), "which no model has"},
	}
}

// Part returns one file of a split model, with GoodTensors. tensors is the total number of tensors
// that the file claims for all parts.
func Part(no, count, tensors uint32, entries ...Entry) []byte {
	return File(split(no, count, tensors, entries), GoodTensors(), GoodData)
}

// Split returns the model of Good in three files, as llama-gguf-split writes them: the first holds
// only the metadata, the others only their part number.
func Split() [][]byte {
	all := GoodTensors()
	last := []Tensor{{all[2].Name, all[2].Dims, all[2].Type, 0}}
	return [][]byte{
		File(split(0, 3, 3, GoodEntries()), nil, 0),
		File(split(1, 3, 3, nil), all[:2], 704),
		File(split(2, 3, 3, nil), last, GoodData-704),
	}
}

func split(no, count, tensors uint32, entries []Entry) []Entry {
	return append(entries, Entry{"split.no", uint16(no)}, Entry{"split.count", uint16(count)}, Entry{"split.tensors.count", int32(tensors)})
}
