package hive

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/store"
)

// storeVerify reads everything in the store and reports damage, which does not fail the job.
func (ms *models) storeVerify(ctx context.Context, _ core.Request, run *job.Run) (core.StoreVerifyResult, error) {
	result, err := ms.store.Verify(ctx, run.Progress)
	if err != nil {
		return core.StoreVerifyResult{}, err
	}
	for _, d := range result.Damaged {
		run.Log("%s %s is damaged: %s", d.Kind, d.Name, d.Reason)
	}
	if len(result.Damaged) > 0 {
		ms.beat.bump()
		ms.stock.storeChanged(ctx)
	}
	return result, nil
}

// storeGC removes unneeded files from the store.
func (ms *models) storeGC(_ context.Context, r core.Request, run *job.Run) (core.StoreGCResult, error) {
	result, err := ms.store.GC(ms.now(), store.InUse{Models: ms.roster.loadedDigests(), Folder: ms.claims.folderInUse}, r.DryRun)
	for _, i := range result.Removed {
		if !r.DryRun {
			run.Log("removed %s %s: %s", i.Kind, i.Name, i.Reason)
		}
	}
	return result, err
}
