package hive

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/wire"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// inventoryInterval is the time between scans of the store for changes that this hive did not
	// make, such as to a model that is used in place.
	inventoryInterval = 30 * time.Second
	// inventoryPatience bounds how long an operation that changed the store waits for the queens to
	// know.
	inventoryPatience = time.Second
	// builtinSource is the catalog source whose models a request may have fetched by their bare
	// name.
	builtinSource = "builtin"
)

// stock is the inventory of the store as reported to the queens.
type stock struct {
	log      hclog.Logger
	store    shelf
	catalogs *catalogs
	beat     *beater
	byName   byName
	turn     chan struct{} // full while somebody reads the store, so that reads do not overlap

	mu     sync.Mutex // guards below
	told   *queenv1.Inventory
	count  uint64 // change count of told; 0: not read yet
	offers []core.CatalogItem
	known  bool // the builtin source's offers are known
}

// inventory returns the inventory that is reported to the queens, and its change count.
func (st *stock) inventory() (*queenv1.Inventory, uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.told, st.count
}

// takeInventory reads the store, and reports to the queens if it differs from what they know.
// Errors: only ctx's.
func (st *stock) takeInventory(ctx context.Context) error {
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return core.FromContext(ctx)
	}
	models, err := st.store.Models()
	if err != nil {
		st.log.Warn("cannot read the models of the store", "error", err)
	}
	models = st.byName.withNamed(models)
	st.mu.Lock()
	v := &queenv1.Inventory{Incomplete: true} // the queens ask this hive instead
	if err == nil {
		v = bounded(core.Inventory{Models: models, Offers: st.offers, OffersKnown: st.known})
	}
	changed := st.count == 0 || !proto.Equal(v, st.told)
	if changed {
		st.told = v
		st.count++
	}
	st.mu.Unlock()
	if changed {
		st.beat.bump()
	}
	return nil
}

// bounded returns an inventory for a report, or one marked incomplete if it is too long.
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

// storeChanged takes the inventory after an operation changed the store. It returns once every
// connected queen knows it, so that the caller of the operation finds its result, or after
// inventoryPatience.
func (st *stock) storeChanged(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, inventoryPatience)
	defer cancel()
	if err := st.takeInventory(ctx); err != nil {
		return
	}
	if err := st.beat.spread(ctx); err != nil {
		st.log.Debug("the queens do not know yet what the store has", "error", err)
	}
}

// watchInventory keeps the inventory up to date until ctx ends.
func (st *stock) watchInventory(ctx context.Context) {
	tick := time.NewTicker(inventoryInterval)
	defer tick.Stop()
	for {
		st.lookUpOffers(ctx)
		if err := st.takeInventory(ctx); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-st.byName.types.nameNews:
		case <-ctx.Done():
			return
		}
	}
}

// lookUpOffers asks the builtin source what it offers, unless that is known: it is part of the
// program and does not change.
func (st *stock) lookUpOffers(ctx context.Context) {
	st.mu.Lock()
	known := st.known
	st.mu.Unlock()
	if known {
		return
	}
	var items []core.CatalogItem
	if st.catalogs.has(builtinSource) {
		var err error
		if items, err = st.catalogs.search(ctx, catalog.Query{Kind: catalog.KindModel, Limit: core.MaxInventoryOffers}, builtinSource); err != nil {
			st.log.Debug("the builtin source does not say what it offers", "error", err)
			return
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.offers, st.known = items[:min(len(items), core.MaxInventoryOffers)], true
}

// forgetOffers makes the next look-up ask the builtin source again, as the sources have changed.
func (st *stock) forgetOffers() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.known = false
}
