package hive

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// models fetches models into the store, shows and deletes them.
type models struct {
	hiveID   string
	log      hclog.Logger
	now      func() time.Time
	store    shelf
	catalogs *catalogs
	beat     *beater
	settings *settings
	roster   *roster
	claims   *claims
	rooms    *rooms
	types    *typeSet
	byName   byName
	stock    *stock
	states   *states
	blobs    *blobs
}

// detailed adds to a model the data of its header and what a worker with it would take of each
// device. A damaged model gets neither.
func (ms *models) detailed(ctx context.Context, m core.Model) (core.Model, error) {
	if m.Damaged != "" || isByName(m) {
		return m, nil
	}
	header, err := ms.store.Header(m.ID)
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
	devices, _ := ms.types.devices(free)
	for _, d := range devices {
		d.FreeBytes = ms.rooms.room(d).FreeBytes
		f := fitOn(d, m, header, ms.settings.defaults.Load().Slots, ms.settings.wantedContext(0, m))
		f.Hive = ms.hiveID
		m.Fits = append(m.Fits, f)
	}
	return m, nil
}

// fitOn returns what a worker would take of the device, with the context that a spawn would choose,
// or with the least if even that does not fit.
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

// mostFit returns the context that chooseFit tries first.
func mostFit(want, trained int) int {
	switch {
	case want > 0:
		return want
	case trained > 0:
		return min(defaultContextTokens, trained)
	}
	return defaultContextTokens
}

// leastFit returns the context below which chooseFit gives up.
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

func (ms *models) modelList(context.Context, core.Request) ([]core.Model, error) {
	list, err := ms.store.Models()
	if err != nil {
		return nil, err
	}
	list = ms.byName.withNamed(list)
	for i, m := range list {
		m.Files = nil
		list[i] = ms.roster.withLoaders(m)
	}
	return list, nil
}

func (ms *models) modelGet(ctx context.Context, r core.Request) (core.Model, error) {
	m, err := ms.model(r.Model)
	if err == nil {
		m, err = ms.detailed(ctx, m)
	}
	return ms.roster.withLoaders(m), err
}

// model finds a model. It also returns a damaged one, which is shown instead of refused.
func (ms *models) model(name string) (core.Model, error) {
	m, _, err := ms.store.Model(name)
	if core.KindOf(err) == core.NotFound {
		if i := slices.IndexFunc(ms.byName.namedModels(), func(m core.Model) bool { return m.ID == name }); i >= 0 {
			return ms.byName.namedModels()[i], nil
		}
	}
	if core.KindOf(err) != core.Integrity {
		return m, err
	}
	list, listErr := ms.store.Models()
	if listErr != nil {
		return core.Model{}, listErr
	}
	for _, m := range list {
		if m.ID == name || slices.Contains(m.Aliases, name) {
			return m, nil
		}
	}
	return core.Model{}, err
}
