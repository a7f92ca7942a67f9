package agent

import (
	"io"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
)

// InspectSnapshot describes the contents of a registry snapshot, without a cluster. Errors:
// Integrity for a file that is damaged or not a snapshot, Unsupported for a snapshot of a newer
// rbee.
func InspectSnapshot(r io.Reader) (core.SnapshotInfo, error) { return registry.InspectSnapshot(r) }
