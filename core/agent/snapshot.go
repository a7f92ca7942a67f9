package agent

import (
	"io"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
)

// InspectSnapshot says what a snapshot of the registry holds, without a cluster. Errors: Integrity
// for a file that is damaged or no snapshot, Unsupported for one of a newer rbee.
func InspectSnapshot(r io.Reader) (core.SnapshotInfo, error) { return registry.InspectSnapshot(r) }
