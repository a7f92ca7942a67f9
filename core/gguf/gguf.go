// Package gguf reads the header of a GGUF model file, within bounds, before any engine sees the file.
//
// It trusts nothing that the file says: counts, lengths, types and offsets are checked against the file's size, so that a file that passes
// cannot make a reader allocate more than its header is worth or look beyond its end. Tensor data is never read.
package gguf

import (
	"io"
	"math"
	"math/bits"
)

// Limits of what Read accepts.
const (
	MaxHeaderBytes   = 64 << 20 // metadata and tensor list together
	MaxKeyBytes      = 64 << 10
	MaxTemplateBytes = 1 << 20
	MaxKeys          = 1 << 16
	MaxTensors       = 1 << 17
	MaxArrayDepth    = 4
)

// File is what a GGUF header says about a model. Numbers that the header does not give are 0.
type File struct {
	Version       int
	Architecture  string // "llama"; never empty
	Name          string
	License       string
	Quantization  string // "Q8_0", "Q4_K_M", …; never empty
	Parameters    int64  // elements of all tensors
	ContextTokens int    // what the model was trained for
	Layers        int
	Embedding     int
	FeedForward   int // of the widest layer
	Heads         int // of the widest layer
	KVHeads       int // of the widest layer
	HeadDimK      int
	HeadDimV      int
	Vocab         int
	ChatTemplate  string
	Splits        int   // files that the model is split into; 0 or 1: this one is all
	Tensors       int   // tensors in this file
	TensorBytes   int64 // of the tensors, without padding
	DataOffset    int64 // where tensor data starts in the file
	Alignment     int

	layerKVHeads []int // per layer where the header gives a list
}

// Read reads and checks the header of a GGUF file of size bytes. It reads only the header, in order, once.
// Bytes that are not a GGUF file of version 2 or 3, or that lie about themselves, are core.Integrity, with a sentence that says what is wrong.
// An error of r is returned as it is, wrapped.
func Read(r io.ReaderAt, size int64) (*File, error) {
	p := &parser{in: newReader(r, size), size: uint64(max(size, 0)), alignment: defaultAlignment, keys: map[string]struct{}{}}
	return p.file()
}

// microBatch is how many positions the engine works on at once: llama.cpp's default n_ubatch.
const microBatch = 512

// EstimateBytes is the device memory that a worker with this model, so many slots, and so many positions per slot needs, in bytes.
// slots below 1 count as 1; contextTokens below 1 means the model's own. It is the sum of
//
//	weights   the tensors as they are
//	KV cache  per layer: KV heads × (K width + V width) × 2 bytes (F16) × slots × positions rounded up to 256
//	compute   512 positions × 4 bytes × (vocabulary + 4 × embedding + 2 × feed-forward width)
//
// where 512 is the engine's micro-batch and the vocabulary term its logits. Sliding windows and flash attention's absence are not
// considered: the first makes the estimate too high, the second too low. A CPU engine that repacks weights keeps a second copy of them.
// A result beyond int64 is math.MaxInt64.
func (f *File) EstimateBytes(slots, contextTokens int) int64 {
	if contextTokens < 1 {
		contextTokens = f.ContextTokens
	}
	positions := mul(uint64(max(slots, 1)), (uint64(contextTokens)+255)/256*256)
	var kvHeads uint64
	for l := range f.Layers {
		heads := f.KVHeads
		if l < len(f.layerKVHeads) {
			heads = f.layerKVHeads[l]
		}
		kvHeads = add(kvHeads, uint64(heads))
	}
	kv := mul(mul(kvHeads, 2*uint64(f.HeadDimK+f.HeadDimV)), positions)
	compute := mul(microBatch*4, uint64(f.Vocab)+4*uint64(f.Embedding)+2*uint64(f.FeedForward))
	return int64(min(add(add(uint64(f.TensorBytes), kv), compute), math.MaxInt64))
}

// mul is a × b, or the largest number where that overflows.
func mul(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

// add is a + b, or the largest number where that overflows.
func add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}
