package hive

import (
	"context"

	"github.com/rbee-project/rbee/core/pluginhost"
)

// Reload applies new settings, worker types and catalog sources. Running workers and operations in
// flight are unaffected; worker types are probed anew. Errors: Unavailable when the hive ends.
func (h *Hive) Reload(d Defaults, workers, catalogs []pluginhost.Spec) error {
	h.settings.setDefaults(d)
	h.catalogs.replace(catalogs)
	h.stock.forgetOffers()
	h.types.replace(workers)
	return h.probeLater()
}

// discover registers the plugins added to the folder since the last scan, and reports whether there
// are worker types among them.
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
		h.stock.forgetOffers()
	}
	return h.types.add(workers)
}

func (h *Hive) probeLater() error {
	return h.life.task(func(ctx context.Context) {
		if err := h.types.probed(ctx); err != nil && ctx.Err() == nil {
			h.log.Warn("probe worker types", "error", err)
		}
	})
}
