package hive

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/gguf"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// What a worker loads beside its model counts towards its device memory. An unreadable file counts
// nothing: the worker refuses it with the reason.
func TestBeside(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	adapter := filepath.Join(t.TempDir(), "a.gguf")
	must.NoError(t, os.WriteFile(adapter, make([]byte, 1000), 0o600))
	file, err := os.Open(tinyModel)
	must.NoError(t, err)
	info, err := file.Stat()
	must.NoError(t, err)
	header, err := gguf.Read(file, info.Size())
	must.NoError(t, err)
	must.NoError(t, file.Close())

	b := r.hive.spawner.besideOf(sdkworker.Fingerprint{BesideBytes: 7, Beside: []sdkworker.ModelFile{
		{Path: adapter, Role: sdkworker.RoleAdapter},
		{Path: tinyModel, Role: sdkworker.RoleDraft},
		{Path: adapter, Role: sdkworker.RoleDraft},
		{Path: filepath.Dir(adapter), Role: sdkworker.RoleAdapter},
		{Path: adapter + ".gone", Role: sdkworker.RoleAdapter},
		{Path: adapter, Role: "projector"},
	}})
	must.Eq(t, 5+7+1000+header.EstimateDraft(2, 512).Total(), b.add(5, 2, 512))
	must.Zero(t, b.add(0, 2, 512), must.Sprint("unknown stays unknown"))
	must.Eq(t, math.MaxInt64, b.add(math.MaxInt64-1, 2, 512))
}
