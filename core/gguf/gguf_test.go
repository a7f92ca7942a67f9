package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/badgguf"
	"github.com/rbee-project/rbee/core/gguf"
)

const tiny = "../../plugins/catalog-builtin/rbee-tiny.gguf"

func TestReadSynthetic(t *testing.T) {
	t.Parallel()
	b := badgguf.File(badgguf.GoodEntries(), badgguf.GoodTensors(), badgguf.GoodData)
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
	must.Eq(t, int64(len(b)-badgguf.GoodData), f.DataOffset)
	must.Eq(t, 3, f.Tensors)
	must.Eq(t, 3, f.Version)

	// 2 layers × 2 heads × 32 × 2 bytes × positions; 512 × (4 × (4×64 + 3×128) + 2 × positions) + 4
	// × 3 × slots
	overhead := int64(24<<20 + 384*3)
	must.Eq(t, gguf.Memory{Weights: f.TensorBytes, Cache: 2 * 2 * 32 * 2 * 512, Compute: 512*(4*(256+384)+2*512) + 12*33, Overhead: overhead}, f.Estimate(1, 0))
	must.Eq(t, gguf.Memory{Weights: f.TensorBytes, Cache: 2 * 2 * 32 * 2 * 3 * 256, Compute: 512*(4*(256+384)+2*256) + 12*35, Overhead: overhead}, f.Estimate(3, 200))
	must.Eq(t, f.Estimate(3, 200).Total(), f.EstimateBytes(3, 200))
	must.Eq(t, gguf.Memory{Weights: f.TensorBytes, Cache: 2 * 2 * 32 * 2 * 3 * 256, Compute: 64*(4*(256+384)+2*256) + 12}, f.EstimateDraft(3, 200))
	must.Eq(t, int64(math.MaxInt64), f.EstimateBytes(math.MaxInt, math.MaxInt))
}

func TestReadVariants(t *testing.T) {
	t.Parallel()
	read := func(entries []badgguf.Entry, tensors []badgguf.Tensor, data int) *gguf.File {
		b := badgguf.File(entries, tensors, data)
		f, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
		must.NoError(t, err)
		return f
	}
	f := read(badgguf.With(badgguf.GoodEntries(), "general.file_type", uint32(1024+7)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, "Q8_0", f.Quantization, must.Sprint("a guessed file type"))
	f = read(badgguf.With(badgguf.GoodEntries(), "general.file_type", uint32(5)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, "Q4_K", f.Quantization, must.Sprint("an unknown file type: the type with the most bytes"))
	f = read(badgguf.With(badgguf.GoodEntries(), "llama.attention.head_count_kv", []int32{2, 0}), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 2, f.KVHeads)
	must.Eq(t, 2*32*2*512, f.Estimate(1, 0).Cache, must.Sprint("one layer of two has a cache"))
	f = read(badgguf.With(badgguf.GoodEntries(), "llama.attention.key_length", uint32(24)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 24, f.HeadDimK)
	must.Eq(t, 16, f.HeadDimV)
	f = read(badgguf.With(badgguf.GoodEntries(), "llama.attention.value_length", uint32(24)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 16, f.HeadDimK)
	must.Eq(t, 24, f.HeadDimV)
	f = read(badgguf.With(badgguf.GoodEntries(), "split.count", uint32(3)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 3, f.Splits)
	f = read([]badgguf.Entry{{Key: "general.architecture", Value: "mamba"}}, badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 0, f.Heads)
	must.Eq(t, gguf.Memory{Weights: f.TensorBytes, Overhead: 24 << 20}, f.Estimate(1, 4096), must.Sprint("nothing is known of its shape"))
	f = read(badgguf.With(badgguf.With(badgguf.GoodEntries(), "llama.expert_used_count", uint32(4)), "llama.expert_feed_forward_length", uint32(96)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 384, f.FeedForward, must.Sprint("four experts at once"))

	const width = 4*64 + 3*128 + 3 // and the vocabulary
	f = read(badgguf.With(badgguf.GoodEntries(), "llama.pooling_type", uint32(1)), badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, 1, f.Pooling)
	plain := f.Estimate(2, 500)
	f.Pooling = 0
	must.Eq(t, plain.Cache, f.Estimate(2, 500).Cache+2*2*32*2*500, must.Sprint("it reads texts beside"))
	must.Eq(t, plain.Compute, f.Estimate(2, 500).Compute+500*(4*width+2*500))
	f.Pooling = 1
	must.Eq(t, 2048*(4*width+2*2048), f.Estimate(1, 9000).Compute-(512*(4*(256+384)+2*9216)+12*33))
	bert := []badgguf.Entry{
		{Key: "general.architecture", Value: "bert"},
		{Key: "bert.block_count", Value: uint32(2)},
		{Key: "bert.embedding_length", Value: uint32(64)},
		{Key: "bert.feed_forward_length", Value: uint32(128)},
		{Key: "bert.attention.head_count", Value: uint32(4)},
		{Key: "bert.pooling_type", Value: uint32(2)},
		{Key: "tokenizer.ggml.tokens", Value: []string{"a", "b", "c"}},
	}
	f = read(bert, badgguf.GoodTensors(), badgguf.GoodData)
	must.Eq(t, gguf.Memory{Weights: f.TensorBytes, Compute: 500 * (4*width + 2*500), Overhead: 24<<20 + 384*3}, f.Estimate(4, 500), must.Sprint("it only reads"))
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
	must.Less(t, 40<<20, f.EstimateBytes(1, 0))
	must.Greater(t, info.Size(), f.EstimateBytes(1, 0))
}

// Read refuses every file of the corpus with a sentence that describes the problem, and allocates
// no more than for a sound header of that size.
func TestMalformed(t *testing.T) {
	corpus := badgguf.Corpus()
	must.Between(t, 30, len(corpus), 200)
	names := map[string]bool{}
	for _, c := range corpus {
		must.False(t, names[c.Name], must.Sprint(c.Name))
		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			var err error
			allocated := bytesAllocated(func() { _, err = gguf.Read(bytes.NewReader(c.File), int64(len(c.File))) })
			must.ErrorContains(t, err, c.Says)
			must.Eq(t, core.Integrity, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			must.LessEq(t, allocationLimit(len(c.File)), allocated)
		})
	}
}

// allocationLimit returns twice what a header of size bytes may need, plus the reader's own
// buffers.
func allocationLimit(size int) uint64 { return 2*uint64(size) + 256<<10 }

// bytesAllocated returns how much f allocates, including what is freed again. Nothing else may run.
func bytesAllocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A file truncated anywhere is refused, in its header or in its tensors.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	good := badgguf.Good()
	for n := range good {
		_, err := gguf.Read(bytes.NewReader(good[:n]), int64(n))
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprintf("cut after %d of %d bytes", n, len(good)))
	}
	// The given size applies, even if the reader has more.
	_, err := gguf.Read(bytes.NewReader(good), int64(len(good)-1))
	must.ErrorContains(t, err, "beyond the end of the file")
}

// endless is a file of any size: the header's bytes, then one repeated byte.
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
	// empty strings: exactly 64 MiB of lengths
	e := &endless{head: badgguf.File([]badgguf.Entry{{Key: "x", Value: badgguf.List{Of: 8, Count: 8 << 20}}}, badgguf.GoodTensors(), 0)}
	_, err := gguf.Read(e, 1<<50)
	must.ErrorContains(t, err, "more than fit")
	must.Less(t, 1<<20, e.read)

	name := badgguf.Raw{Type: 8, Bytes: binary.LittleEndian.AppendUint64(nil, 1<<40)}
	_, err = gguf.Read(&endless{head: badgguf.File([]badgguf.Entry{{Key: "general.name", Value: name}}, badgguf.GoodTensors(), 0)}, 1<<50)
	must.ErrorContains(t, err, "larger than 64 MiB")
}

// A few bytes that announce much must not make Read allocate much.
func TestAllocation(t *testing.T) {
	b := badgguf.File(badgguf.With(badgguf.GoodEntries(), "x", badgguf.List{Of: 8, Count: 1 << 60}), badgguf.GoodTensors(), badgguf.GoodData)
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

func TestReaderError(t *testing.T) {
	t.Parallel()
	cause := errors.New("disk on fire")
	_, err := gguf.Read(broken{cause}, 1000)
	must.ErrorIs(t, err, cause)
	must.Eq(t, core.Internal, core.KindOf(err))
	_, err = gguf.Read(broken{io.EOF}, 1000)
	must.Eq(t, core.Integrity, core.KindOf(err))
}

func TestJoin(t *testing.T) {
	t.Parallel()
	read := func(files ...[]byte) []*gguf.File {
		var out []*gguf.File
		for _, b := range files {
			f, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
			must.NoError(t, err)
			out = append(out, f)
		}
		return out
	}
	one := read(badgguf.Good())[0]
	whole, err := gguf.Join(one)
	must.NoError(t, err)
	must.Eq(t, one.EstimateBytes(1, 0), whole.EstimateBytes(1, 0))

	parts := read(badgguf.Split()...) // the first holds only the metadata
	must.Len(t, 3, parts)
	must.Eq(t, 0, parts[0].Tensors)
	must.Eq(t, "", parts[1].Architecture)
	whole, err = gguf.Join(parts...)
	must.NoError(t, err)
	must.Eq(t, one.TensorBytes, whole.TensorBytes)
	must.Eq(t, one.Parameters, whole.Parameters)
	must.Eq(t, one.Tensors, whole.Tensors)
	must.Eq(t, one.Architecture, whole.Architecture)
	must.Eq(t, one.Quantization, whole.Quantization)
	must.Eq(t, one.Estimate(2, 100), whole.Estimate(2, 100))

	for name, c := range map[string]struct {
		parts []*gguf.File
		says  string
	}{
		"none":            {nil, "no file"},
		"one is missing":  {parts[:2], "split into 3 files, and 2 are there"},
		"only the first":  {parts[:1], "split into 3 files, and 1 are there"},
		"out of order":    {[]*gguf.File{parts[0], parts[2], parts[1]}, "file 2 of 3 says that it is number 3"},
		"not the first":   {[]*gguf.File{parts[1], parts[1], parts[2]}, "file 1 of 3 says that it is number 2"},
		"one twice":       {[]*gguf.File{parts[0], parts[1], parts[1]}, "file 3 of 3 says that it is number 2"},
		"of another":      {[]*gguf.File{parts[0], parts[1], read(badgguf.Part(2, 3, 9))[0]}, "file 3 of 3 is of a model with 9 tensors"},
		"of more files":   {[]*gguf.File{parts[0], parts[1], read(badgguf.Part(2, 4, 3))[0]}, "says that it is one of 4"},
		"too few tensors": {read(badgguf.Part(0, 2, 7, badgguf.GoodEntries()...), badgguf.Part(1, 2, 7)), "have 6 tensors together and should have 7"},
	} {
		_, err := gguf.Join(c.parts...)
		must.ErrorContains(t, err, c.says, must.Sprint(name))
		must.Eq(t, core.Integrity, core.KindOf(err))
	}
}

func FuzzRead(f *testing.F) {
	f.Add(badgguf.Good())
	f.Add(badgguf.File(badgguf.With(badgguf.GoodEntries(), "llama.attention.head_count_kv", []int32{2, 0}), badgguf.GoodTensors(), badgguf.GoodData))
	for _, part := range badgguf.Split() {
		f.Add(part)
	}
	for _, c := range badgguf.Corpus() {
		if len(c.File) < 64<<10 {
			f.Add(c.File)
		}
	}
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
		possible := got.Architecture != "" || got.SplitNo > 0
		if got.Tensors == 0 {
			possible = possible && got.Splits > 1 && got.TensorBytes == 0 && got.Parameters == 0
		} else {
			possible = possible && got.Quantization != "" && got.TensorBytes > 0 && got.Parameters > 0 && got.DataOffset+got.TensorBytes <= int64(len(b))
		}
		if !possible {
			t.Fatalf("accepted with impossible facts: %+v", got)
		}
		if got.EstimateBytes(4, 4096) < got.TensorBytes {
			t.Fatalf("estimate below the weights: %+v", got)
		}
	})
}
