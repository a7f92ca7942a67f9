package core

// Bounds of an Inventory. A hive whose store holds more reports none, and is asked instead.
const (
	MaxInventoryModels  = 2000
	MaxInventoryOffers  = 200
	MaxInventoryAliases = 64 // of one model
	MaxInventoryBytes   = 512 << 10
)

// Inventory is what a hive has in its store, and what it offers beyond that.
type Inventory struct {
	// Models are those of the store, by id, without their hives, loaders and files.
	Models []Model
	// Offers are the models of the builtin source that a request may have fetched by their bare
	// name. They mean nothing unless OffersKnown.
	Offers      []CatalogItem
	OffersKnown bool
}
