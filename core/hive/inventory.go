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
	log      hclog.Logger
	store    shelf
	catalogs *catalogs
	beat     *beater
	byName   byName
	turn     chan struct{} // full while somebody reads the store: the later of two is the newer

	mu     sync.Mutex // guards below
	told   *queenv1.Inventory
	count  uint64 // of changes of told; 0: it was not read yet
	offers []core.CatalogItem
	known  bool // what the builtin source offers
}

// inventory returns what the queens are told of the store, and the count of its changes.
func (st *stock) inventory() (*queenv1.Inventory, uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.told, st.count
}

// takeInventory reads the store, and has the queens told if it is not as they know it. Errors: only
// ctx's.
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
	v := &queenv1.Inventory{Incomplete: true} // the queens ask
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

// watchInventory keeps the inventory until ctx ends.
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
// program.
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

// forgetOffers has the builtin source asked again: the sources are others than before.
func (st *stock) forgetOffers() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.known = false
}
