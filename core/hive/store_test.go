package hive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestStoreJobs(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	w := r.spawn("fake")
	well := result1[core.StoreVerifyResult](r, core.Request{Operation: core.OpStoreVerify})
	must.Eq(t, core.StoreVerifyResult{Models: 1, Binaries: 1, CheckedBytes: well.CheckedBytes, Damaged: []core.StoreItem{}}, well)
	must.Greater(t, 0, well.CheckedBytes)

	// The files that a worker has loaded and runs from stay, although a newer binary has replaced
	// its own and its model's record was removed.
	result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake", Force: true})
	must.NoError(t, os.Remove(filepath.Join(r.dir, "store", "models", "tiny.json")))
	gone := result1[core.StoreGCResult](r, core.Request{Operation: core.OpStoreGC, DryRun: true})
	must.Eq(t, core.StoreGCResult{Removed: []core.StoreItem{}, DryRun: true}, gone)
	result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})

	dry := result1[core.StoreGCResult](r, core.Request{Operation: core.OpStoreGC, DryRun: true})
	var kinds []string
	for _, i := range dry.Removed {
		kinds = append(kinds, string(i.Kind))
	}
	must.Eq(t, []string{"file", "worker binary"}, kinds)
	must.Len(t, 1, entries(t, filepath.Join(r.dir, "store", "blobs")))
	gone = result1[core.StoreGCResult](r, core.Request{Operation: core.OpStoreGC})
	must.Eq(t, core.StoreGCResult{Removed: dry.Removed, FreedBytes: dry.FreedBytes}, gone)
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "blobs")))

	// Damage is a result, not a failure.
	m := result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	blob := filepath.Join(r.dir, "store", "blobs", strings.Replace(m.Digest, ":", "-", 1))
	b, err := os.ReadFile(blob)
	must.NoError(t, err)
	b[len(b)-1] ^= 1
	must.NoError(t, os.WriteFile(blob, b, 0o600))
	bad := result1[core.StoreVerifyResult](r, core.Request{Operation: core.OpStoreVerify})
	must.SliceLen(t, 1, bad.Damaged)
	must.Eq(t, core.StoreModel, bad.Damaged[0].Kind)
	must.Eq(t, "tiny", bad.Damaged[0].Name)
	must.Eq(t, m.Digest, result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "fake:tiny.gguf"}).Digest)
	must.SliceEmpty(t, result1[core.StoreVerifyResult](r, core.Request{Operation: core.OpStoreVerify}).Damaged)
}
