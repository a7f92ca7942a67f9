package gguf_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
)

const tiny = "../../plugins/catalog-builtin/rbee-tiny.gguf"

func TestReadSynthetic(t *testing.T) {
	t.Parallel()
	b := file(goodEntries(), goodTensors(), goodData)
	f, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
	must.NoError(t, err)
	must.Eq(t, "llama", f.Architecture)
	must.Eq(t, "two [31m words", f.Name)
	must.Eq(t, "apache-2.0", f.License)
	must.Eq(t, "Q4_K_M", f.Quantization)
	must.Eq(t, 256*3+64+128, f.Parameters)
	must.Eq(t, 512, f.ContextTokens)
	must.Eq(t, 2, f.Layers)
	must.Eq(t, 64, f.Embedding)
	must.Eq(t, 128, f.FeedForward)
	must.Eq(t, 4, f.Heads)
	must.Eq(t, 2, f.KVHeads)
	must.Eq(t, 16, f.HeadDimK)
	must.Eq(t, 16, f.HeadDimV)
	must.Eq(t, 3, f.Vocab)
	must.Eq(t, "{{ messages }}", f.ChatTemplate)
	must.Eq(t, 432+256+136, f.TensorBytes)
	must.Eq(t, int64(len(b)-goodData), f.DataOffset)
	must.Eq(t, 3, f.Tensors)
	must.Eq(t, 3, f.Version)

	// weights + 2 layers × 2 heads × 32 × 2 bytes × positions + 512 × 4 × (3 + 4×64 + 2×128)
	compute := int64(512 * 4 * (3 + 256 + 256))
	must.Eq(t, f.TensorBytes+2*2*32*2*512+compute, f.EstimateBytes(1, 0))
	must.Eq(t, f.TensorBytes+2*2*32*2*3*256+compute, f.EstimateBytes(3, 200))
	must.Eq(t, int64(math.MaxInt64), f.EstimateBytes(math.MaxInt, math.MaxInt))
}

func TestReadVariants(t *testing.T) {
	t.Parallel()
	read := func(entries []entry, tensors []tensor, data int) *gguf.File {
		b := file(entries, tensors, data)
		f, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
		must.NoError(t, err)
		return f
	}
	f := read(with(goodEntries(), "general.file_type", uint32(1024+7)), goodTensors(), goodData)
	must.Eq(t, "Q8_0", f.Quantization, must.Sprint("a guessed file type"))
	f = read(with(goodEntries(), "general.file_type", uint32(5)), goodTensors(), goodData)
	must.Eq(t, "Q4_K", f.Quantization, must.Sprint("an unknown file type: the type with the most bytes"))
	f = read(with(goodEntries(), "llama.attention.head_count_kv", []int32{2, 0}), goodTensors(), goodData)
	must.Eq(t, 2, f.KVHeads)
	must.Eq(t, f.TensorBytes+2*32*2*512+512*4*(3+256+256), f.EstimateBytes(1, 0), must.Sprint("one layer of two has a cache"))
	f = read(with(goodEntries(), "llama.attention.key_length", uint32(24)), goodTensors(), goodData)
	must.Eq(t, 24, f.HeadDimK)
	must.Eq(t, 16, f.HeadDimV)
	f = read(with(goodEntries(), "split.count", uint32(3)), goodTensors(), goodData)
	must.Eq(t, 3, f.Splits)
	f = read([]entry{{"general.architecture", "mamba"}}, goodTensors(), goodData)
	must.Eq(t, 0, f.Heads)
	must.Eq(t, f.TensorBytes, f.EstimateBytes(1, 4096))
}

func TestReadTiny(t *testing.T) {
	t.Parallel()
	r, err := os.Open(tiny)
	must.NoError(t, err)
	defer r.Close()
	info, err := r.Stat()
	must.NoError(t, err)
	f, err := gguf.Read(r, info.Size())
	must.NoError(t, err)
	must.Eq(t, "llama", f.Architecture)
	must.Eq(t, "Q8_0", f.Quantization)
	must.Eq(t, 2755008, f.Parameters)
	must.Eq(t, 1024, f.ContextTokens)
	must.Eq(t, 6, f.Layers)
	must.Eq(t, 192, f.Embedding)
	must.Eq(t, 6, f.Heads)
	must.Eq(t, 2, f.KVHeads)
	must.Eq(t, 512, f.FeedForward)
	must.Eq(t, 2048, f.Vocab)
	must.StrContains(t, strings.ToLower(f.License), "apache-2.0")
	must.StrContains(t, f.ChatTemplate, "<|im_start|>")
	must.Less(t, info.Size(), f.TensorBytes)
	must.Less(t, 20<<20, f.EstimateBytes(1, 0))
	must.Greater(t, info.Size(), f.EstimateBytes(1, 0))
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	head := func(version uint32, tensors, keys uint64, rest ...byte) []byte {
		h := &header{}
		h.start(version, tensors, keys)
		h.Write(rest)
		return h.Bytes()
	}
	entries := func(key string, value any) []byte {
		return file(with(goodEntries(), key, value), goodTensors(), goodData)
	}
	tensors := func(data int, t ...tensor) []byte { return file(goodEntries(), t, data) }
	good := file(goodEntries(), goodTensors(), goodData)
	long := strings.Repeat("k", 80<<10)
	tests := map[string]struct {
		file []byte
		says string
	}{
		"empty":                        {nil, "ends in the middle of its header, after 0 bytes"},
		"three bytes":                  {[]byte("GGU"), "ends in the middle"},
		"other magic":                  {[]byte("GGML\x03\x00\x00\x00 and so on and so forth"), "does not start with GGUF"},
		"zip":                          {append([]byte("PK\x03\x04"), make([]byte, 100)...), "does not start with GGUF"},
		"version 0":                    {head(0, 1, 1, make([]byte, 99)...), "version is 0"},
		"version 1":                    {head(1, 1, 1, make([]byte, 99)...), "version is 1"},
		"version 4":                    {head(4, 1, 1, make([]byte, 99)...), "version is 4"},
		"big endian":                   {head(3<<24, 1, 1, make([]byte, 99)...), "big-endian"},
		"all keys of the world":        {head(3, 1, math.MaxUint64, make([]byte, 99)...), "metadata entries, more than fit"},
		"more keys than bytes":         {head(3, 1, 9, make([]byte, 99)...), "claims 9 metadata entries"},
		"all tensors of the world":     {head(3, math.MaxUint64, 0, make([]byte, 99)...), "tensors, more than fit"},
		"more tensors than bytes":      {head(3, 5, 0, make([]byte, 99)...), "claims 5 tensors"},
		"no tensors":                   {file(goodEntries(), nil, 0), "has no tensors"},
		"cut in the metadata":          {good[:150], "more than fit"},
		"cut in the tensor list":       {good[:len(good)-goodData-60], "ends in the middle"},
		"cut in the data":              {good[:len(good)-1], "blk.0.attn_q.weight lies beyond the end of the file"},
		"key length wraps":             {head(3, 1, 1, append(bytes.Repeat([]byte{0xff}, 8), make([]byte, 99)...)...), "ends in the middle"},
		"key too long":                 {file(append(goodEntries(), entry{long, true}), goodTensors(), goodData), "key has 81920 bytes, more than the allowed 65536"},
		"key without a name":           {file(append(goodEntries(), entry{"", true}), goodTensors(), goodData), "has no name"},
		"key twice":                    {file(append(goodEntries(), entry{"general.name", "again"}), goodTensors(), goodData), "general.name stands in it twice"},
		"value type 13":                {entries("x", raw{13, make([]byte, 8)}), "x has the unknown type 13"},
		"value type -1":                {entries("x", raw{math.MaxUint32, make([]byte, 8)}), "unknown type 4294967295"},
		"bool of 2":                    {entries("x", raw{7, []byte{2}}), "neither true nor false"},
		"string longer than the file":  {entries("x", raw{8, []byte{0, 0, 0, 0, 0, 0, 0, 1}}), "ends in the middle"},
		"list of unknown":              {entries("x", list{of: 99, count: 1, bytes: make([]byte, 64)}), "unknown type 99"},
		"list longer than the file":    {entries("x", list{of: 4, count: math.MaxUint64 / 4}), "more than fit"},
		"strings longer than the file": {entries("x", list{of: 8, count: math.MaxUint64}), "more than fit"},
		"list nested 5 deep":           {entries("x", raw{9, nested(5)}), "nested more than 4 deep"},
		"list nested 1000 deep":        {entries("x", raw{9, nested(1000)}), "nested more than 4 deep"},
		"heads of 2^20 layers":         {entries("llama.attention.head_count", list{of: 0, count: 1 << 20, bytes: make([]byte, 1<<20)}), "more than a model has layers"},
		"negative heads per layer":     {entries("llama.attention.head_count", []int32{4, -4}), "is -4"},
		"negative context":             {entries("llama.context_length", int32(-1)), "cannot be negative"},
		"context of 2^63":              {entries("llama.context_length", uint64(1)<<63), "which no model has"},
		"a billion layers":             {entries("llama.block_count", uint32(1_000_000_000)), "layers, more than any"},
		"alignment 0":                  {entries("general.alignment", uint32(0)), "not a power of two"},
		"alignment 48":                 {entries("general.alignment", uint32(48)), "not a power of two"},
		"alignment as text":            {entries("general.alignment", "32"), "not a 32-bit number"},
		"alignment beyond the file":    {entries("general.alignment", uint32(1)<<31), "not a multiple of 2147483648"},
		"template of 2 MiB":            {entries("tokenizer.chat_template", strings.Repeat("x", 2<<20)), "more than the allowed 1048576"},
		"named template of 2 MiB":      {entries("tokenizer.chat_template.tool_use", strings.Repeat("x", 2<<20)), "more than the allowed 1048576"},
		"no architecture":              {file([]entry{{"general.name", "x"}}, goodTensors(), goodData), "does not say its architecture"},
		"architecture with a slash":    {entries("general.architecture", "../llama"), "architecture is called ../llama"},
		"tensor name too long":         {tensors(64, tensor{strings.Repeat("t", 64), []uint64{1}, 0, 0}), "more than the allowed 63"},
		"tensor twice":                 {tensors(128, tensor{"t", []uint64{1}, 0, 0}, tensor{"t", []uint64{1}, 0, 32}), "tensor t stands in it twice"},
		"5 dimensions":                 {tensors(64, tensor{"t", []uint64{1, 1, 1, 1, 1}, 0, 0}), "5 dimensions"},
		"dimension of 0":               {tensors(64, tensor{"t", []uint64{4, 0}, 0, 0}), "dimension of 0"},
		"elements overflow 64 bits":    {tensors(64, tensor{"t", []uint64{1 << 33, 1 << 33}, 0, 0}), "more elements than can be counted"},
		"elements wrap to few":         {tensors(64, tensor{"t", []uint64{1 << 62, 4, 1}, 0, 0}), "more elements than can be counted"},
		"bytes overflow 64 bits":       {tensors(64, tensor{"t", []uint64{1 << 62, 1}, 27, 0}), "beyond the end of the file"},
		"removed tensor type":          {tensors(64, tensor{"t", []uint64{32}, 4, 0}), "unknown type 4"},
		"tensor type -1":               {tensors(64, tensor{"t", []uint64{32}, math.MaxUint32, 0}), "unknown type"},
		"row of half a block":          {tensors(64, tensor{"t", []uint64{16, 2}, 8, 0}), "not whole blocks of Q8_0"},
		"offset off the grid":          {tensors(64, tensor{"t", []uint64{1}, 0, 4}), "not a multiple of 32"},
		"offset beyond the file":       {tensors(64, tensor{"t", []uint64{1}, 0, 1 << 40}), "beyond the end of the file"},
		"offset wraps":                 {tensors(64, tensor{"t", []uint64{64}, 0, math.MaxUint64 - 31}), "beyond the end of the file"},
		"tensors overlap":              {tensors(512, tensor{"a", []uint64{64}, 0, 0}, tensor{"b", []uint64{8}, 0, 224}), "tensors a and b overlap"},
		"same offset":                  {tensors(512, tensor{"a", []uint64{64}, 0, 0}, tensor{"b", []uint64{64}, 0, 0}), "overlap"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := gguf.Read(bytes.NewReader(tc.file), int64(len(tc.file)))
			must.ErrorContains(t, err, tc.says)
			must.Eq(t, core.Integrity, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
		})
	}
}

// endless is a file of any size that is the header's bytes and then one byte for ever.
type endless struct {
	head []byte
	rest byte
	read int64
}

func (e *endless) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = e.rest
	}
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	e.read += int64(len(p))
	return len(p), nil
}

func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	h := &header{}
	h.start(3, 1, 1)
	h.str("x")
	h.u32(9)
	h.u32(8)
	h.u64(8 << 20) // empty strings: exactly 64 MiB of lengths
	e := &endless{head: h.Bytes()}
	_, err := gguf.Read(e, 1<<50)
	must.ErrorContains(t, err, "more than fit")
	must.Less(t, 1<<20, e.read)

	h = &header{}
	h.start(3, 1, 1)
	h.str("general.name")
	h.u32(8)
	h.u64(1 << 40)
	_, err = gguf.Read(&endless{head: h.Bytes()}, 1<<50)
	must.ErrorContains(t, err, "larger than 64 MiB")
}

// A few bytes that claim much must not make Read allocate much.
func TestAllocation(t *testing.T) {
	b := file(with(goodEntries(), "x", list{of: 8, count: 1 << 60}), goodTensors(), goodData)
	result := testing.Benchmark(func(b2 *testing.B) {
		b2.ReportAllocs()
		for b2.Loop() {
			_, _ = gguf.Read(bytes.NewReader(b), int64(len(b)))
		}
	})
	must.Less(t, 64<<10, result.AllocedBytesPerOp())
}

type broken struct{ err error }

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, b.err }

func TestReaderErrorIsNotTheFilesFault(t *testing.T) {
	t.Parallel()
	cause := errors.New("disk on fire")
	_, err := gguf.Read(broken{cause}, 1000)
	must.ErrorIs(t, err, cause)
	must.Eq(t, core.Internal, core.KindOf(err))
	_, err = gguf.Read(broken{io.EOF}, 1000)
	must.Eq(t, core.Integrity, core.KindOf(err))
}

func FuzzRead(f *testing.F) {
	good := file(goodEntries(), goodTensors(), goodData)
	f.Add(good)
	f.Add(good[:150])
	f.Add(file(with(goodEntries(), "x", raw{9, nested(9)}), goodTensors(), goodData))
	f.Add(file(goodEntries(), []tensor{{"t", []uint64{1 << 62, 4}, 0, 0}}, 64))
	f.Add(file(with(goodEntries(), "llama.attention.head_count_kv", []int32{2, 0}), goodTensors(), goodData))
	if b, err := os.ReadFile(tiny); err == nil {
		f.Add(b[:96<<10])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if core.KindOf(err) != core.Integrity {
				t.Fatalf("kind %s: %v", core.KindOf(err), err)
			}
			return
		}
		if got.Architecture == "" || got.Quantization == "" || got.TensorBytes <= 0 || got.Parameters <= 0 || got.DataOffset+got.TensorBytes > int64(len(b)) {
			t.Fatalf("accepted with impossible facts: %+v", got)
		}
		if got.EstimateBytes(4, 4096) < got.TensorBytes {
			t.Fatalf("estimate below the weights: %+v", got)
		}
	})
}
