package gguf

import "math"

// Figures of the engine, measured with llama.cpp v0.5.0 as rbee runs it. An end-to-end test
// compares them with a real worker.
const (
	microBatch      = 512      // positions that the engine processes per step, llama.cpp's n_ubatch
	contextStep     = 256      // contexts are rounded up to a multiple of this
	cacheValueBytes = 2        // F16
	processBytes    = 24 << 20 // the program, its libraries and threads
	vocabEntryBytes = 384      // per token, in the tables of engine and worker
	draftRows       = 32       // draft tokens per step, each with its logits
	draftBatch      = 64       // positions that a draft model processes per step
	embedTokens     = 2048     // positions per step for embeddings from a generating model
)

// Memory is the device memory that a worker needs, in bytes. No part is negative.
type Memory struct {
	Weights  int64 // the tensors as they are
	Cache    int64 // keys and values of all positions of all slots
	Compute  int64 // buffers of one step
	Overhead int64 // the process, and its tables of tokens
}

// Total returns the sum, at most math.MaxInt64.
func (m Memory) Total() int64 { return sum(sum(m.Weights, m.Cache), sum(m.Compute, m.Overhead)) }

// Estimate returns the memory that a worker needs for this model with that many slots and positions
// per slot. slots below 1 count as 1; contextTokens below 1 means the model's own context.
//
//	weights   the tensors
//	cache     per layer: KV heads × (K width + V width) × 2 bytes (F16) × slots × positions rounded up to 256
//	compute   512 positions × (4 bytes × (4 × embedding + 3 × feed-forward width) + 2 bytes × positions per slot)
//	          and 4 bytes × vocabulary × (slots + 32) for the answers and their draft tokens
//	overhead  24 MiB and 384 bytes × vocabulary
//
// An encoder-only model such as BERT has no cache, processes one text at a time whatever the number
// of slots, and has room for as many outputs as a text has positions:
//
//	compute   positions × (4 bytes × (4 × embedding + 3 × feed-forward width + vocabulary) + 2 bytes × positions)
//
// A generating model whose file defines a pooling type may do both: in addition it takes that
// compute memory for texts of at most 2,048 positions, and a cache for them.
//
// For llama-like models of 0.01 to 0.1 GiB it is within 10 % + 16 MiB of what a worker actually
// holds. It ignores sliding windows and recurrent layers (then the estimate is too high), and
// engines without flash attention or with an F32 cache (then it is too low). A CPU engine that
// repacks weights holds a second copy of them, but then the first is a mapped file, which the
// system can reclaim. It excludes a graphics driver's own memory.
func (f *File) Estimate(slots, contextTokens int) Memory {
	m := f.estimate(slots, contextTokens, microBatch, max(slots, 1)+draftRows)
	m.Overhead = clamp(processBytes + vocabEntryBytes*uint64(f.Vocab))
	return m
}

// EstimateDraft returns the device memory that the model takes as the draft model of a worker with
// that many slots and positions per slot: like Estimate, but with steps of 64 positions, one row of
// logits and no process overhead.
func (f *File) EstimateDraft(slots, contextTokens int) Memory {
	return f.estimate(slots, contextTokens, draftBatch, 1)
}

// estimate returns everything but the overhead. batch is the number of positions per step, rows the
// number of them with logits.
func (f *File) estimate(slots, contextTokens int, batch uint64, rows int) Memory {
	if contextTokens < 1 {
		contextTokens = f.ContextTokens
	}
	n := uint64(max(slots, 1))
	context := (uint64(contextTokens) + contextStep - 1) / contextStep * contextStep
	var kvHeads uint64
	for l := range f.Layers {
		heads := f.KVHeads
		if l < len(f.layerKVHeads) {
			heads = f.layerKVHeads[l]
		}
		kvHeads = add(kvHeads, uint64(heads))
	}
	width := 4*uint64(f.Embedding) + 3*uint64(f.FeedForward)
	compute := add(mul(batch, add(4*width, mul(2, context))), mul(4*uint64(f.Vocab), uint64(rows)))
	reading := func(positions uint64) uint64 {
		return mul(positions, add(4*(width+uint64(f.Vocab)), mul(2, positions)))
	}
	cached := mul(n, context)
	switch {
	case f.reads():
		cached, compute = 0, reading(uint64(contextTokens))
	case f.Pooling > 0:
		beside := min(uint64(contextTokens), embedTokens)
		cached, compute = add(cached, beside), add(compute, reading(beside))
	}
	if f.Embedding == 0 { // its shape is unknown
		compute = 0
	}
	return Memory{
		Weights: f.TensorBytes,
		Cache:   clamp(mul(mul(kvHeads, cacheValueBytes*uint64(f.HeadDimK+f.HeadDimV)), cached)),
		Compute: clamp(compute),
	}
}

// reads reports whether models of the architecture are encoder-only: llama.cpp creates no cache for
// them.
func (f *File) reads() bool {
	switch f.Architecture {
	case "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder":
		return true
	}
	return false
}

// EstimateBytes returns the total of Estimate.
func (f *File) EstimateBytes(slots, contextTokens int) int64 {
	return f.Estimate(slots, contextTokens).Total()
}

func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
