package hive

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// Defaults are the settings of a hive that may change while it runs. The fields are those of
// Options.
type Defaults struct {
	Slots, ContextTokens, Threads int
	MemoryLimit                   int64
	StopGrace                     time.Duration
	Engines                       []string
}

func (h *Hive) setDefaults(d Defaults) {
	d.Slots, d.StopGrace = cmp.Or(d.Slots, defaultSlots), cmp.Or(d.StopGrace, defaultStopGrace)
	h.defaults.Store(&d)
}

// Reload takes other settings, worker types and catalog sources. Workers that run stay as they are,
// and so does what is under way; worker types are probed anew. Errors: Unavailable when the hive
// ends.
func (h *Hive) Reload(d Defaults, workers, catalogs []pluginhost.Spec) error {
	h.setDefaults(d)
	h.catalogs.replace(catalogs)
	h.forgetOffers()
	h.mu.Lock()
	types := newTypes(workers)
	for _, t := range types {
		if i := slices.IndexFunc(h.types, func(o *workerType) bool { return o.name() == t.name() }); i >= 0 {
			_, seen, _ := h.types[i].known()
			t.noteDevices(seen) // until it is probed
		}
	}
	for _, o := range h.types {
		if o.built && !slices.ContainsFunc(types, func(t *workerType) bool { return t.name() == o.name() }) {
			types = append(types, o)
		}
	}
	h.types = types
	h.mu.Unlock()
	return h.probeLater()
}

// discover takes in the plugins that came into the folder since the last look, and reports whether
// there are worker types among them.
func (h *Hive) discover() bool {
	if h.opts.Discover == nil {
		return false
	}
	workers, catalogs, err := h.opts.Discover()
	if err != nil {
		h.log.Warn("failed to look for new plugins", "error", err)
		return false
	}
	if h.catalogs.add(catalogs) {
		h.forgetOffers()
	}
	found := false
	h.mu.Lock()
	for _, s := range workers {
		if !slices.ContainsFunc(h.types, func(o *workerType) bool { return o.name() == s.Name }) {
			h.types = append(slices.Clone(h.types), newType(s))
			found = true
		}
	}
	h.mu.Unlock()
	return found
}

// typeNamed is workerType that looks for new plugins before it gives up.
func (h *Hive) typeNamed(name string) (*workerType, error) {
	t, err := h.workerType(name)
	if core.KindOf(err) == core.NotFound && h.discover() {
		return h.workerType(name)
	}
	return t, err
}

func (h *Hive) probeLater() error {
	return h.task(func(ctx context.Context) {
		if err := h.probed(ctx); err != nil && ctx.Err() == nil {
			h.log.Warn("probe worker types", "error", err)
		}
	})
}
