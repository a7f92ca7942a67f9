package native

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
)

// ContextParams sets the size of a context and how it computes.
type ContextParams struct {
	Sequences    int // each has Tokens positions
	Tokens       int
	BatchTokens  int // maximum tokens of a step
	Threads      int
	KVType       string // "f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1" or "q4_0"
	Flash        string // flash attention: "on", "off", or anything else for on where supported
	OutputTokens int    // maximum tokens of a step with logits
}

// Context is a model's cache and computation: the decoder of a batch.Scheduler. It is not safe for
// concurrent use, except for SetThreads.
type Context struct {
	model  *Model
	handle llama.Context
	mem    llama.Memory
	batch  llama.Batch
	seqs   [][]llama.SeqId // by sequence, in the form that a batch takes
	vocab  int
	scales string // of the model's adapters, as last set by Adapt

	wanted  atomic.Int32 // threads set by SetThreads
	threads int32        // threads last set in the engine
}

var _ batch.Decoder = (*Context)(nil)

// NewContext creates a context. The caller must free it before the model.
func (m *Model) NewContext(p ContextParams) (*Context, error) {
	params := llama.ContextDefaultParams()
	params.NCtx, params.NSeqMax = uint32(p.Tokens*p.Sequences), uint32(p.Sequences)
	params.NBatch, params.NUbatch = uint32(p.BatchTokens), uint32(p.BatchTokens)
	params.NThreads, params.NThreadsBatch = int32(p.Threads), int32(p.Threads)
	kind, ok := kvTypes()[p.KVType]
	if !ok {
		kind = llama.GGMLTypeF16
	}
	params.TypeK, params.TypeV = kind, kind
	params.FlashAttentionType = llama.FlashAttentionTypeAuto
	switch p.Flash {
	case "on":
		params.FlashAttentionType = llama.FlashAttentionTypeEnabled
	case "off":
		params.FlashAttentionType = llama.FlashAttentionTypeDisabled
	}
	params.NOutputsMax = uint32(p.OutputTokens)
	params.KVUnified = 0 // with a unified cache every sequence scans the positions of all
	params.NoPerf = 1
	theLibrary.logs.forget()
	handle, err := llama.InitFromModel(m.handle, params)
	if err != nil {
		return nil, fmt.Errorf("the engine could not create a context%s", theLibrary.logs.explain())
	}
	mem, err := llama.GetMemory(handle)
	if err != nil {
		return nil, errors.Join(err, llama.Free(handle))
	}
	c := &Context{model: m, handle: handle, mem: mem, batch: llama.BatchInit(int32(p.BatchTokens), 0, 1), vocab: m.VocabSize()}
	c.wanted.Store(int32(p.Threads))
	c.threads = int32(p.Threads)
	for i := range p.Sequences {
		c.seqs = append(c.seqs, []llama.SeqId{llama.SeqId(i)})
	}
	return c, nil
}

// kvTypes maps cache types to the engine's numbers.
func kvTypes() map[string]llama.GGMLType {
	return map[string]llama.GGMLType{
		"f16": llama.GGMLTypeF16, "bf16": llama.GGMLTypeBF16, "f32": llama.GGMLTypeF32, "q8_0": llama.GGMLTypeQ8_0,
		"q5_1": llama.GGMLTypeQ5_1, "q5_0": llama.GGMLTypeQ5_0, "q4_1": llama.GGMLTypeQ4_1, "q4_0": llama.GGMLTypeQ4_0,
	}
}

// Free frees the context.
func (c *Context) Free() error { return errors.Join(llama.BatchFree(c.batch), llama.Free(c.handle)) }

// SetThreads sets the number of threads from the next Decode on. It is safe for concurrent use.
func (c *Context) SetThreads(n int) { c.wanted.Store(int32(n)) }

// Threads returns the number of threads of the last Decode.
func (c *Context) Threads() int { return int(llama.NThreads(c.handle)) }

// SequenceTokens returns the number of positions of each sequence.
func (c *Context) SequenceTokens() int { return int(llama.NCtxSeq(c.handle)) }

// Decode evaluates one batch. It returns batch.ErrFull, without changing anything, when the cache
// has no room.
func (c *Context) Decode(entries []batch.Entry) error {
	if err := c.batch.Clear(); err != nil {
		return fmt.Errorf("the batch could not be built: %w", err)
	}
	for _, e := range entries {
		if err := c.batch.Add(llama.Token(e.Token), llama.Pos(e.Pos), c.seqs[e.Seq], e.Logits); err != nil {
			return fmt.Errorf("the batch could not be built: %w", err)
		}
	}
	if n := c.wanted.Load(); n != c.threads {
		llama.SetNThreads(c.handle, n, n)
		c.threads = n
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
	return llama.Synchronize(c.handle) // so that the time of a step is its own
}

// Logits returns the logits of an entry of the last batch, in the engine's memory: they are valid
// until the next Decode and must not be changed. It returns nil when the entry requested none.
func (c *Context) Logits(entry int) []float32 {
	logits, err := llama.GetLogitsIth(c.handle, int32(entry), c.vocab)
	if err != nil {
		return nil
	}
	return logits
}

// Remove drops a sequence's positions from the given one on. It reports false, and changes nothing,
// when the cache cannot be cut there, for example with recurrent layers.
func (c *Context) Remove(seq, from int) bool {
	if from > 0 && from < c.Floor(seq) {
		return false
	}
	done, err := llama.MemorySeqRm(c.mem, llama.SeqId(seq), llama.Pos(from), -1)
	return err == nil && done
}

// Floor returns the lowest position above 0 at which a sequence can be cut. Layers with a sliding
// window have forgotten what is before it: the engine would allow the cut, but attend to fewer
// positions.
func (c *Context) Floor(seq int) int {
	last, err := llama.MemorySeqPosMax(c.mem, llama.SeqId(seq))
	if err != nil || last < 0 {
		return 0
	}
	if c.model.recurrent {
		return int(last) + 1
	}
	first, err := llama.MemorySeqPosMin(c.mem, llama.SeqId(seq))
	switch {
	case err != nil:
		return int(last) + 1
	case first <= 0:
		return 0
	}
	return int(first) + c.model.window
}

// Adapt sets the scales of the model's adapters, encoded by Scales, for the next steps.
func (c *Context) Adapt(scales string) error {
	list := c.model.adapters
	if scales == c.scales || len(list) == 0 {
		return nil
	}
	values := make([]float32, len(list))
	for i, text := range strings.Split(scales, ",") {
		v, err := strconv.ParseFloat(text, 32)
		if err != nil || i >= len(list) {
			return fmt.Errorf("invalid scales %q for %d adapters", scales, len(list))
		}
		values[i] = float32(v)
	}
	if code := llama.SetAdaptersLora(c.handle, list, values); code != 0 {
		return fmt.Errorf("setting the adapters returned %d%s", code, theLibrary.logs.explain())
	}
	c.scales = scales
	return nil
}

// Copy replaces a sequence by a copy of another one at the next Decode. A cache that is not unified
// can only copy whole sequences.
func (c *Context) Copy(from, to int) {
	_ = llama.MemorySeqCp(c.mem, llama.SeqId(from), llama.SeqId(to), -1, -1) // only fails without a context
}

// Save copies a sequence out of the context. It returns nil when that would exceed limit bytes, or
// fails.
func (c *Context) Save(seq int, limit int64) batch.State {
	size := llama.StateSeqGetSize(c.handle, llama.SeqId(seq))
	if size == 0 || size > uint64(max(0, limit)) {
		return nil
	}
	s, err := NewState(int(size))
	if err != nil {
		return nil
	}
	if n := llama.StateSeqGetData(c.handle, s.data, llama.SeqId(seq)); n != size {
		s.Free()
		return nil
	}
	return s
}

// Load replaces a sequence by one that Save copied, from this context or from one with the same
// model, size, types and engine: the engine does not validate the state. When Load reports false,
// the sequence is empty.
func (c *Context) Load(seq int, saved batch.State) bool {
	if s, ok := saved.(*State); ok && llama.StateSeqSetData(c.handle, s.data, llama.SeqId(seq)) == uint64(len(s.data)) {
		return true
	}
	_, _ = llama.MemorySeqRm(c.mem, llama.SeqId(seq), -1, -1) // only fails without a context
	return false
}

// State is a saved sequence. Its memory is outside the garbage collector, which would let the heap
// grow by as much again, and returns to the system at once.
type State struct{ data []byte }

var _ batch.State = (*State)(nil)

// NewState returns a state of size bytes, to be filled in through Data. The caller frees it.
func NewState(size int) (*State, error) {
	data, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for a saved sequence: %w", err)
	}
	return &State{data}, nil
}

// Bytes returns the size of the state.
func (s *State) Bytes() int64 { return int64(len(s.data)) }

// Data returns the bytes of the state, valid until Free.
func (s *State) Data() []byte { return s.data }

// Free releases the memory.
func (s *State) Free() {
	_ = syscall.Munmap(s.data) // only fails for unmapped memory
	s.data = nil
}
