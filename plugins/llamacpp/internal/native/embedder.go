package native

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// Rank is the pooling of models that score texts.
const Rank = "rank"

// poolings are the ways to combine a text's vectors into one, by their names in settings.
var poolings = map[string]llama.PoolingType{
	"mean": llama.PoolingTypeMean, "cls": llama.PoolingTypeCLS, "last": llama.PoolingTypeLast, Rank: llama.PoolingTypeRank,
}

// Pooling returns how the model's file combines a text's vectors into one: "mean", "cls", "last" or
// Rank; empty: unspecified, or not combined.
func (m *Model) Pooling() string {
	arch, _ := m.meta("general.architecture")
	text, ok := m.meta(arch + ".pooling_type")
	n, err := strconv.Atoi(text)
	if !ok || err != nil {
		return ""
	}
	for name, p := range poolings {
		if int(p) == n {
			return name
		}
	}
	return ""
}

// Embedder computes vectors of texts. It is not safe for concurrent use.
type Embedder struct {
	model  *Model
	handle llama.Context
	mem    llama.Memory // 0: the model has no cache
	batch  llama.Batch
	size   int // of a vector
}

// NewEmbedder creates an Embedder for batches of at most texts texts with at most tokens tokens in
// total. The caller must free it before the model.
func (m *Model) NewEmbedder(tokens, texts, threads int, pooling string) (*Embedder, error) {
	params := llama.ContextDefaultParams()
	params.NCtx, params.NBatch, params.NUbatch = uint32(tokens), uint32(tokens), uint32(tokens) // a text is read in one piece
	params.NSeqMax = uint32(texts)
	params.NThreads, params.NThreadsBatch = int32(threads), int32(threads)
	params.Embeddings = 1
	params.PoolingType = poolings[pooling]
	params.KVUnified = 1
	params.NoPerf = 1
	theLibrary.logs.forget()
	handle, err := llama.InitFromModel(m.handle, params)
	if err != nil {
		return nil, fmt.Errorf("the engine could not create a context for embeddings%s", theLibrary.logs.explain())
	}
	mem, err := llama.GetMemory(handle)
	if err != nil {
		mem = 0
	}
	size := m.EmbeddingSize()
	if pooling == Rank {
		size = int(llama.ModelNClsOut(m.handle))
	}
	return &Embedder{model: m, handle: handle, mem: mem, batch: llama.BatchInit(int32(tokens), 0, 1), size: size}, nil
}

// Free frees the embedder.
func (e *Embedder) Free() error { return errors.Join(llama.BatchFree(e.batch), llama.Free(e.handle)) }

// SetThreads changes the number of threads.
func (e *Embedder) SetThreads(n int) { llama.SetNThreads(e.handle, int32(n), int32(n)) }

// Threads returns the number of threads.
func (e *Embedder) Threads() int { return int(llama.NThreads(e.handle)) }

// Embed returns the vector of each text, not normalised, or with Rank its scores. Texts must not be
// empty.
func (e *Embedder) Embed(texts [][]Token) ([][]float32, error) {
	if e.mem != 0 {
		if err := llama.MemoryClear(e.mem, true); err != nil {
			return nil, fmt.Errorf("clear the cache for embeddings: %w", err)
		}
	}
	if err := e.batch.Clear(); err != nil {
		return nil, fmt.Errorf("the batch could not be built: %w", err)
	}
	for seq, text := range texts {
		for pos, t := range text {
			if err := e.batch.Add(llama.Token(t), llama.Pos(pos), []llama.SeqId{llama.SeqId(seq)}, true); err != nil {
				return nil, fmt.Errorf("the batch could not be built: %w", err)
			}
		}
	}
	run := llama.Decode
	if e.model.encodes() {
		run = llama.Encode
	}
	theLibrary.logs.forget()
	if code, err := run(e.handle, e.batch); err != nil || code != 0 {
		return nil, errors.Join(err, fmt.Errorf("the engine could not read the texts: it returned %d%s", code, theLibrary.logs.explain()))
	}
	out := make([][]float32, len(texts))
	for seq := range texts {
		v, err := llama.GetEmbeddingsSeq(e.handle, llama.SeqId(seq), int32(e.size))
		if err != nil || v == nil {
			return nil, errors.Join(err, errors.New("the engine returned no vector"))
		}
		out[seq] = append([]float32{}, v...) // copied out of the engine's memory
	}
	return out, nil
}
