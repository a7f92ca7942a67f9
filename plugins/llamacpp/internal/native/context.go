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

// ContextParams say how large a context is and how it computes.
type ContextParams struct {
	Sequences    int // each has Tokens positions
	Tokens       int
	BatchTokens  int // tokens of a step, at most
	Threads      int
	KVType       string // "f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1" or "q4_0"
	Flash        string // flash attention: "on", "off", or else where the device has it
	OutputTokens int    // tokens of a step whose logits are wanted, at most
}

// Context is a model's cache and computation: the decoder of a batch.Scheduler. It is not safe for
// concurrent use, but for SetThreads.
type Context struct {
	model  *Model
	handle llama.Context
	mem    llama.Memory
	batch  llama.Batch
	seqs   [][]llama.SeqId // by sequence, as a batch wants them
	vocab  int
	scales string // of the model's adapters, as Adapt was told last

	wanted  atomic.Int32 // threads
	threads int32        // as the engine was told last
}

var _ batch.Decoder = (*Context)(nil)

// NewContext makes a context. The caller frees it, before the model.
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
	c.wanted.Store(int32(p.Threads))
	c.threads = int32(p.Threads)
	for i := range p.Sequences {
		c.seqs = append(c.seqs, []llama.SeqId{llama.SeqId(i)})
	}
	return c, nil
}

// kvTypes are the engine's numbers of the types of a cache.
func kvTypes() map[string]llama.GGMLType {
	return map[string]llama.GGMLType{
		"f16": llama.GGMLTypeF16, "bf16": llama.GGMLTypeBF16, "f32": llama.GGMLTypeF32, "q8_0": llama.GGMLTypeQ8_0,
		"q5_1": llama.GGMLTypeQ5_1, "q5_0": llama.GGMLTypeQ5_0, "q4_1": llama.GGMLTypeQ4_1, "q4_0": llama.GGMLTypeQ4_0,
	}
}

// Free frees the context.
func (c *Context) Free() error { return errors.Join(llama.BatchFree(c.batch), llama.Free(c.handle)) }

// SetThreads changes the number of threads from the next Decode on. It may be called at any time.
func (c *Context) SetThreads(n int) { c.wanted.Store(int32(n)) }

// Threads returns the number of threads of the last Decode.
func (c *Context) Threads() int { return int(llama.NThreads(c.handle)) }

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
	if from > 0 && from < c.Floor(seq) {
		return false
	}
	done, err := llama.MemorySeqRm(c.mem, llama.SeqId(seq), llama.Pos(from), -1)
	return err == nil && done
}

// Floor returns the least position above 0 from which on a sequence can be cut. Layers with a
// sliding window have forgotten what is before it: the engine would cut them and attend to less.
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

// Adapt sets the scales of the model's adapters, spelled by Scales, for the next steps.
func (c *Context) Adapt(scales string) error {
	list := c.model.adapters
	if scales == c.scales || len(list) == 0 {
		return nil
	}
	values := make([]float32, len(list))
	for i, text := range strings.Split(scales, ",") {
		v, err := strconv.ParseFloat(text, 32)
		if err != nil || i >= len(list) {
			return fmt.Errorf("%q are no scales of %d adapters", scales, len(list))
		}
		values[i] = float32(v)
	}
	if code := llama.SetAdaptersLora(c.handle, list, values); code != 0 {
		return fmt.Errorf("setting the adapters returned %d%s", code, theLibrary.logs.explain())
	}
	c.scales = scales
	return nil
}

// Copy replaces a sequence by a copy of another one, with the next Decode. A cache that is not
// shared can copy whole sequences only.
func (c *Context) Copy(from, to int) {
	_ = llama.MemorySeqCp(c.mem, llama.SeqId(from), llama.SeqId(to), -1, -1) // fails without a context only
}

// Save copies a sequence out of the context. It returns nil where that takes more than limit bytes
// or fails.
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

// Load replaces a sequence by what Save copied, of this context or of one with the same model, size
// and types by the same engine: the engine takes for granted what it is given. Where it reports
// false the sequence is empty.
func (c *Context) Load(seq int, saved batch.State) bool {
	if s, ok := saved.(*State); ok && llama.StateSeqSetData(c.handle, s.data, llama.SeqId(seq)) == uint64(len(s.data)) {
		return true
	}
	_, _ = llama.MemorySeqRm(c.mem, llama.SeqId(seq), -1, -1) // fails without a context only
	return false
}

// State is a saved sequence. Its memory is not the garbage collector's, which would let the process
// take as much again, and goes back to the system at once.
type State struct{ data []byte }

var _ batch.State = (*State)(nil)

// NewState returns a state of so many bytes, to be filled in by way of Data. The caller frees it.
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

// Free gives the memory back.
func (s *State) Free() {
	_ = syscall.Munmap(s.data) // fails for what is not mapped only
	s.data = nil
}
