package core

// UpgradeResult is the result of worker_upgrade.
type UpgradeResult struct {
	Type     string        `json:"type"`     // worker type
	Binary   string        `json:"binary"`   // id of the worker binary that its workers run now
	Replaced []Replacement `json:"replaced"` // workers of an earlier binary; ordered by the old ones' ids
}

// Replacement is a worker that another one took the place of.
type Replacement struct {
	Old   string `json:"old"` // Worker.ID
	New   string `json:"new"` // likewise
	Model string `json:"model"`
}
