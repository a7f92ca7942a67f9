package hive

import (
	"context"
	"path/filepath"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/store"
)

// storeVerify reads everything in the store and says what is damaged, which is no failure of the
// job.
func (h *Hive) storeVerify(ctx context.Context, _ core.Request, run *job.Run) (core.StoreVerifyResult, error) {
	result, err := h.store.Verify(ctx, run.Progress)
	if err != nil {
		return core.StoreVerifyResult{}, err
	}
	for _, d := range result.Damaged {
		run.Log("%s %s is damaged: %s", d.Kind, d.Name, d.Reason)
	}
	if len(result.Damaged) > 0 {
		h.beat.bump()
		h.storeChanged(ctx)
	}
	return result, nil
}

// storeGC removes from the store what nobody needs.
func (h *Hive) storeGC(_ context.Context, r core.Request, run *job.Run) (core.StoreGCResult, error) {
	result, err := h.store.GC(h.now(), store.InUse{Models: h.loadedDigests(), Folder: h.folderInUse}, r.DryRun)
	for _, i := range result.Removed {
		if !r.DryRun {
			run.Log("removed %s %s: %s", i.Kind, i.Name, i.Reason)
		}
	}
	return result, err
}

// loadedDigests are the digests of the models that workers of this hive have loaded.
func (h *Hive) loadedDigests() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, w := range h.workers {
		out = append(out, w.handle.ModelDigest)
	}
	return out
}

// folderInUse says whether a worker runs from that folder of a worker binary, or is about to.
func (h *Hive) folderInUse(folder string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.workers {
		if filepath.Dir(w.handle.Attachment.Executable) == folder {
			return true
		}
	}
	return h.launches[folder] > 0
}
