package core

// Bounds of an Inventory. A hive whose store exceeds them reports none, and is asked instead.
const (
	MaxInventoryModels  = 2000
	MaxInventoryOffers  = 200
	MaxInventoryAliases = 64 // per model
	MaxInventoryBytes   = 512 << 10
)

// Inventory is what a hive has in its store, and what it offers beyond that.
type Inventory struct {
	// Models lists the models of the store, by id, without their hives, loaders and files.
	Models []Model
	// Offers lists the models of the builtin source that a request may fetch by bare name. It is
	// valid only if OffersKnown.
	Offers      []CatalogItem
	OffersKnown bool
}
