package hive

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/wire"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// inventoryInterval is between two looks at the store for what changed without this hive's
	// doing, such as a model that is used in place.
	inventoryInterval = 30 * time.Second
	// inventoryPatience bounds how long an operation that changed the store waits for the queens to
	// know.
	inventoryPatience = time.Second
	// builtinSource is the catalog source whose models a request may have fetched by their bare
	// name.
	builtinSource = "builtin"
)

// stock is what the queens are told of the store.
type stock struct {
	turn chan struct{} // full while somebody reads the store: the later of two is the newer
	news chan struct{} // holds one: worker types may offer other models by name

	mu     sync.Mutex // guards below
	told   *queenv1.Inventory
	count  uint64 // of changes of told; 0: it was not read yet
	offers []core.CatalogItem
	known  bool // what the builtin source offers
}

// inventory returns what the queens are told of the store, and the count of its changes.
func (h *Hive) inventory() (*queenv1.Inventory, uint64) {
	h.stock.mu.Lock()
	defer h.stock.mu.Unlock()
	return h.stock.told, h.stock.count
}

// takeInventory reads the store, and has the queens told if it is not as they know it. Errors: only
// ctx's.
func (h *Hive) takeInventory(ctx context.Context) error {
	select {
	case h.stock.turn <- struct{}{}:
		defer func() { <-h.stock.turn }()
	case <-ctx.Done():
		return core.FromContext(ctx)
	}
	models, err := h.store.Models()
	if err != nil {
		h.log.Warn("cannot read the models of the store", "error", err)
	}
	models = h.withNamed(models)
	h.stock.mu.Lock()
	v := &queenv1.Inventory{Incomplete: true} // the queens ask
	if err == nil {
		v = bounded(core.Inventory{Models: models, Offers: h.stock.offers, OffersKnown: h.stock.known})
	}
	changed := h.stock.count == 0 || !proto.Equal(v, h.stock.told)
	if changed {
		h.stock.told = v
		h.stock.count++
	}
	h.stock.mu.Unlock()
	if changed {
		h.beat.bump()
	}
	return nil
}

// bounded is an inventory for a report, or one that says that it is too long.
func bounded(v core.Inventory) *queenv1.Inventory {
	whole := len(v.Models) <= core.MaxInventoryModels && len(v.Offers) <= core.MaxInventoryOffers
	for _, m := range v.Models {
		whole = whole && len(m.Aliases) <= core.MaxInventoryAliases
	}
	if whole {
		if p := wire.InventoryToProto(v); proto.Size(p) <= core.MaxInventoryBytes {
			return p
		}
	}
	return &queenv1.Inventory{Incomplete: true}
}

// storeChanged takes the inventory after an operation changed the store, and returns once the
// queens that hear of this hive know it, so that whoever started the operation finds what it did;
// or a little later without that.
func (h *Hive) storeChanged(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, inventoryPatience)
	defer cancel()
	if err := h.takeInventory(ctx); err != nil {
		return
	}
	if err := h.beat.spread(ctx); err != nil {
		h.log.Debug("the queens do not know yet what the store has", "error", err)
	}
}

// typesChanged has the queens told of what a look at a worker type found, and of the models that it
// offers by name.
func (h *Hive) typesChanged() {
	h.beat.bump()
	wake(h.stock.news)
}

// watchInventory keeps the inventory until ctx ends.
func (h *Hive) watchInventory(ctx context.Context) {
	tick := time.NewTicker(inventoryInterval)
	defer tick.Stop()
	for {
		h.lookUpOffers(ctx)
		if err := h.takeInventory(ctx); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-h.stock.news:
		case <-ctx.Done():
			return
		}
	}
}

// lookUpOffers asks the builtin source what it offers, unless that is known: it is part of the
// program.
func (h *Hive) lookUpOffers(ctx context.Context) {
	h.stock.mu.Lock()
	known := h.stock.known
	h.stock.mu.Unlock()
	if known {
		return
	}
	var items []core.CatalogItem
	if h.catalogs.has(builtinSource) {
		var err error
		if items, err = h.catalogs.search(ctx, catalog.Query{Kind: catalog.KindModel, Limit: core.MaxInventoryOffers}, builtinSource); err != nil {
			h.log.Debug("the builtin source does not say what it offers", "error", err)
			return
		}
	}
	h.stock.mu.Lock()
	defer h.stock.mu.Unlock()
	h.stock.offers, h.stock.known = items[:min(len(items), core.MaxInventoryOffers)], true
}

// forgetOffers has the builtin source asked again: the sources are others than before.
func (h *Hive) forgetOffers() {
	h.stock.mu.Lock()
	defer h.stock.mu.Unlock()
	h.stock.known = false
}
