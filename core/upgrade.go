package core

// UpgradeResult is the result of worker_upgrade.
type UpgradeResult struct {
	Type     string        `json:"type"`     // worker type
	Binary   string        `json:"binary"`   // id of the worker binary that its workers now run
	Replaced []Replacement `json:"replaced"` // workers of earlier binaries, ordered by the old ones' ids
}

// Replacement is a worker and its successor.
type Replacement struct {
	Old   string `json:"old"` // Worker.ID
	New   string `json:"new"` // Worker.ID of its successor
	Model string `json:"model"`
}
