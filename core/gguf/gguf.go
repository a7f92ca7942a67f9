// Package gguf reads the header of a GGUF model file, within bounds, before any engine sees the
// file.
//
// It trusts nothing in the file: it checks counts, lengths, types and offsets against the file's
// size. A file that passes cannot make a reader allocate more than in proportion to its header, or
// read beyond its end. It never reads tensor data.
package gguf

import (
	"io"
	"math"
	"math/bits"

	"github.com/rbee-project/rbee/core"
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

// File holds the facts in a model's GGUF header. Numbers missing from the header are 0.
type File struct {
	Version       int
	Type          string // "adapter", "mmproj", "imatrix", …: no worker can serve it alone; "model" or empty: a model
	Architecture  string // "llama"; empty only in a later part of a split model
	Name          string
	License       string
	Quantization  string // "Q8_0", "Q4_K_M", …; empty only in a part without tensors
	Parameters    int64  // elements of all tensors
	ContextTokens int    // context length that the model was trained for
	Layers        int
	Embedding     int
	FeedForward   int // context length that the model was trained for
	Heads         int // heads of the widest layer
	KVHeads       int // KV heads of the widest layer
	HeadDimK      int
	HeadDimV      int
	Vocab         int
	Pooling       int // how a text's vectors are pooled, in llama.cpp's numbering; 0: not pooled, or not given
	ChatTemplate  string
	Splits        int   // files that the model is split into; 0 or 1: this is the only one
	SplitNo       int   // index of this part, from 0
	Tensors       int   // tensors in this file
	TensorBytes   int64 // size of all tensors, without padding
	DataOffset    int64 // where tensor data starts in the file
	Alignment     int

	layerKVHeads []int             // per layer where the header gives a list
	splitTensors int               // tensors of all parts together; 0: not given
	ofType       map[uint32]uint64 // bytes per tensor type
}

// Read reads and checks the header of a GGUF file of size bytes. It reads only the header, in
// order, once. For bytes that are not a valid GGUF file of version 2 or 3, it returns
// core.Integrity with a sentence that describes the problem. It wraps errors of r.
func Read(r io.ReaderAt, size int64) (*File, error) {
	p := &parser{in: newReader(r, size), size: uint64(max(size, 0)), alignment: defaultAlignment, keys: map[string]struct{}{}}
	return p.file()
}

// Servable returns why a worker cannot serve the file as a model, or nil if it can. Error:
// Unsupported.
func (f *File) Servable() error {
	var what string
	beside := "the configuration of its worker type"
	switch {
	case f.Type == "adapter":
		what, beside = "an adapter", "adapters in the configuration of the worker type"
	case f.Type == "mmproj" || f.Architecture == "clip":
		what = "a projector for pictures or sound"
	case f.Type == "imatrix" || f.Architecture == "imatrix":
		return core.Errorf(core.Unsupported, "the file is an importance matrix for quantization, not a model")
	default:
		return nil
	}
	return core.Errorf(core.Unsupported, "the file is %s, not a model", what).Hint("Pull the model that it was made for, and name this file in %s.", beside)
}

// Join returns the facts of a model that is split into several files, from all their headers in
// order: those of the first, with the tensors of all. A single whole file joins to itself. It
// returns core.Integrity if parts do not belong together, are missing, or are out of order.
func Join(parts ...*File) (*File, error) {
	if len(parts) == 0 {
		return nil, bad("there is no file")
	}
	whole := *parts[0]
	if want := max(whole.Splits, 1); want != len(parts) {
		return nil, bad("the model is split into %d files, and %d are there", want, len(parts))
	}
	whole.Tensors, whole.TensorBytes, whole.Parameters, whole.ofType = 0, 0, 0, map[uint32]uint64{}
	for i, p := range parts {
		switch {
		case p.SplitNo != i:
			return nil, bad("file %d of %d says that it is number %d", i+1, len(parts), p.SplitNo+1)
		case p.Splits != whole.Splits:
			return nil, bad("file %d of %d says that it is one of %d", i+1, len(parts), p.Splits)
		case p.splitTensors != whole.splitTensors:
			return nil, bad("file %d of %d is of a model with %d tensors, the first of one with %d", i+1, len(parts), p.splitTensors, whole.splitTensors)
		}
		whole.Tensors += p.Tensors
		whole.TensorBytes = sum(whole.TensorBytes, p.TensorBytes)
		whole.Parameters = sum(whole.Parameters, p.Parameters)
		for t, n := range p.ofType {
			whole.ofType[t] = add(whole.ofType[t], n)
		}
	}
	if whole.splitTensors > 0 && whole.splitTensors != whole.Tensors {
		return nil, bad("its %d files have %d tensors together and should have %d", len(parts), whole.Tensors, whole.splitTensors)
	}
	if whole.Tensors == 0 {
		return nil, bad("it has no tensors")
	}
	if whole.Quantization == "" {
		whole.Quantization = dominating(whole.ofType)
	}
	return &whole, nil
}

// sum returns a + b for non-negative numbers, or the largest number on overflow.
func sum(a, b int64) int64 { return int64(min(add(uint64(a), uint64(b)), math.MaxInt64)) }

// mul returns a × b, or the largest number on overflow.
func mul(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

// add returns a + b, or the largest number on overflow.
func add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}
