// Package gguf reads the header of a GGUF model file, within bounds, before any engine sees the file.
//
// It trusts nothing that the file says: counts, lengths, types and offsets are checked against the file's size, so that a file that passes
// cannot make a reader allocate more than its header is worth or look beyond its end. Tensor data is never read.
package gguf

import "io"

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
	Quantization  string // "Q8_0", "Q4_K_M", …; "unknown" where nothing says it
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
func Read(r io.ReaderAt, size int64) (*File, error) { return read(r, size) }
