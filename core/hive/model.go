package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// detailed is a model with what its header says and what a worker with it would take of each
// device. A damaged model has neither.
func (h *Hive) detailed(ctx context.Context, m core.Model) (core.Model, error) {
	if m.Damaged != "" || isByName(m) {
		return m, nil
	}
	header, err := h.store.Header(m.ID)
	if err != nil {
		return core.Model{}, err
	}
	m.Facts = &core.ModelFacts{
		Name: header.Name, Layers: header.Layers, Embedding: header.Embedding, FeedForward: header.FeedForward, Heads: header.Heads, KVHeads: header.KVHeads,
		Vocabulary: header.Vocab, Tensors: header.Tensors, Parts: max(header.Splits, 1), ChatTemplate: header.ChatTemplate != "",
	}
	var free int64
	if mem, err := hostinfo.ReadMemory(ctx); err == nil {
		free = mem.AvailableBytes
	}
	devices, _ := h.devices(free)
	for _, d := range devices {
		h.mu.Lock()
		d.FreeBytes = h.roomLocked(d).FreeBytes
		h.mu.Unlock()
		f := fitOn(d, m, header, h.defaults.Load().Slots, h.wantedContext(0, m))
		f.Hive = h.opts.ID
		m.Fits = append(m.Fits, f)
	}
	return m, nil
}

// fitOn is what a worker would take of the device: with the context that a spawn would choose, or
// where even the least does not fit, with that.
func fitOn(d core.Device, m core.Model, header *gguf.File, slots, want int) core.ModelFit {
	room := memory{Device: d.ID, FreeBytes: d.FreeBytes, Known: d.TotalBytes > 0}
	estimate := func(contextTokens int) int64 { return header.EstimateBytes(slots, contextTokens) }
	size, err := chooseFit(room, m.ID, slots, want, m.ContextTokens, estimate)
	if err != nil {
		size.ContextTokens = leastFit(want, m.ContextTokens)
	}
	e := header.Estimate(slots, size.ContextTokens)
	f := core.ModelFit{
		Device: d.ID, Kind: d.Kind, Slots: slots, ContextTokens: size.ContextTokens, WeightsBytes: e.Weights, CacheBytes: e.Cache, ComputeBytes: e.Compute,
		OverheadBytes: e.Overhead, NeedBytes: e.Total(), FreeBytes: d.FreeBytes, Problem: d.Problem,
	}
	if room.Known {
		f.MissingBytes = max(f.NeedBytes-f.FreeBytes, 0)
	}
	return f
}

// mostFit is the context with which chooseFit begins.
func mostFit(want, trained int) int {
	switch {
	case want > 0:
		return want
	case trained > 0:
		return min(defaultContextTokens, trained)
	}
	return defaultContextTokens
}

// leastFit is the context at which chooseFit gives up.
func leastFit(want, trained int) int {
	if want > 0 {
		return want
	}
	ctx := mostFit(want, trained)
	for ctx/2 >= leastContextTokens {
		ctx /= 2
	}
	return ctx
}

// wantedContext is how many positions per slot a spawn that asks for so many gets; 0: as many as
// fit.
func (h *Hive) wantedContext(asked int, m core.Model) int {
	if asked > 0 || h.defaults.Load().ContextTokens == 0 {
		return asked
	}
	if m.ContextTokens > 0 {
		return min(h.defaults.Load().ContextTokens, m.ContextTokens)
	}
	return h.defaults.Load().ContextTokens
}
