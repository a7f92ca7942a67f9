package native

import (
	"errors"
	"fmt"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
)

// ContextParams say how large a context is and how it computes.
type ContextParams struct {
	Sequences    int // each has Tokens positions
	Tokens       int
	BatchTokens  int // tokens of a step, at most
	Threads      int
	KVType       string // "f16", "q8_0" or "f32"
	OutputTokens int    // tokens of a step whose logits are wanted, at most
}

// Context is a model's cache and computation: the decoder of a batch.Scheduler. It is not safe for
// concurrent use.
type Context struct {
	model  *Model
	handle llama.Context
	mem    llama.Memory
	batch  llama.Batch
	seqs   [][]llama.SeqId // by sequence, as a batch wants them
	vocab  int
}

var _ batch.Decoder = (*Context)(nil)

// NewContext makes a context. The caller frees it, before the model.
func (m *Model) NewContext(p ContextParams) (*Context, error) {
	params := llama.ContextDefaultParams()
	params.NCtx, params.NSeqMax = uint32(p.Tokens*p.Sequences), uint32(p.Sequences)
	params.NBatch, params.NUbatch = uint32(p.BatchTokens), uint32(p.BatchTokens)
	params.NThreads, params.NThreadsBatch = int32(p.Threads), int32(p.Threads)
	kind := llama.GGMLTypeF16
	switch p.KVType {
	case "q8_0":
		kind = llama.GGMLTypeQ8_0
	case "f32":
		kind = llama.GGMLTypeF32
	}
	params.TypeK, params.TypeV = kind, kind
	params.NOutputsMax = uint32(p.OutputTokens)
	params.KVUnified = 0 // a shared cache makes every sequence look through everybody's positions
	params.NoPerf = 1
	theLibrary.logs.forget()
	handle, err := llama.InitFromModel(m.handle, params)
	if err != nil {
		return nil, fmt.Errorf("the engine made no context%s", theLibrary.logs.explain())
	}
	mem, err := llama.GetMemory(handle)
	if err != nil {
		return nil, errors.Join(err, llama.Free(handle))
	}
	c := &Context{model: m, handle: handle, mem: mem, batch: llama.BatchInit(int32(p.BatchTokens), 0, 1), vocab: m.VocabSize()}
	for i := range p.Sequences {
		c.seqs = append(c.seqs, []llama.SeqId{llama.SeqId(i)})
	}
	return c, nil
}

// Free frees the context.
func (c *Context) Free() error { return errors.Join(llama.BatchFree(c.batch), llama.Free(c.handle)) }

// SequenceTokens returns the number of positions of each sequence.
func (c *Context) SequenceTokens() int { return int(llama.NCtxSeq(c.handle)) }

// Decode evaluates one batch. It returns batch.ErrFull where the cache has no room, and then has
// changed nothing.
func (c *Context) Decode(entries []batch.Entry) error {
	if err := c.batch.Clear(); err != nil {
		return fmt.Errorf("the batch could not be built: %w", err)
	}
	for _, e := range entries {
		if err := c.batch.Add(llama.Token(e.Token), llama.Pos(e.Pos), c.seqs[e.Seq], e.Logits); err != nil {
			return fmt.Errorf("the batch could not be built: %w", err)
		}
	}
	theLibrary.logs.forget()
	code, err := llama.Decode(c.handle, c.batch)
	switch {
	case err != nil:
		return err
	case code == 1:
		return batch.ErrFull
	case code != 0:
		return fmt.Errorf("decoding returned %d%s", code, theLibrary.logs.explain())
	}
	return nil
}

// Logits returns the logits of an entry of the last batch, in the engine's memory: they are valid
// until the next Decode and must not be changed. It returns nil where the entry asked for none.
func (c *Context) Logits(entry int) []float32 {
	logits, err := llama.GetLogitsIth(c.handle, int32(entry), c.vocab)
	if err != nil {
		return nil
	}
	return logits
}

// Remove drops a sequence's positions from the given one on. It reports false where the cache
// cannot be cut there, as one with recurrent layers cannot: then nothing has changed.
func (c *Context) Remove(seq, from int) bool {
	done, err := llama.MemorySeqRm(c.mem, llama.SeqId(seq), llama.Pos(from), -1)
	return err == nil && done
}
