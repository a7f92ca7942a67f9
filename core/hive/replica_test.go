package hive

import (
	"fmt"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
)

// A hive with less memory does not silently start a replica with a smaller context than the others.
func TestReplicaContext(t *testing.T) {
	t.Parallel()
	f, err := os.Open(tinyModel)
	must.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	must.NoError(t, err)
	header, err := gguf.Read(f, info.Size())
	must.NoError(t, err)
	whole, half := header.ContextTokens, header.ContextTokens/2
	must.GreaterEq(t, leastContextTokens, half)
	room := (header.EstimateBytes(1, whole) + header.EstimateBytes(1, half)) / 2
	workers := fmt.Sprintf(`
worker "tight" {
  plugin = "rbee-worker-fake"
  config {
    device {
      id          = "fake:0"
      total_bytes = %d
      free_bytes  = %d
    }
  }
}`, room, room)
	r := run(t, setup{workers: workers})
	spawn := core.Request{Operation: core.OpWorkerSpawn, Type: "tight", Model: "tiny", Slots: 1}
	alone := result1[core.SpawnResult](r, spawn)
	must.Eq(t, half, alone.Worker.ContextTokens)

	spawn.ReplicaContext = whole
	failed := r.failure(spawn)
	must.Eq(t, core.TooLarge, failed.Kind)
	must.StrContains(t, failed.Hint, fmt.Sprintf("other workers have %d tokens", whole))
	must.StrContains(t, failed.Hint, "--context")

	spawn.ReplicaContext = 128
	must.Eq(t, 128, result1[core.SpawnResult](r, spawn).Worker.ContextTokens)
	spawn.ContextTokens = 256 // explicitly requested
	must.Eq(t, 256, result1[core.SpawnResult](r, spawn).Worker.ContextTokens)
	spawn.ContextTokens = 0
	r.hive.settings.setDefaults(Defaults{Slots: 1, ContextTokens: 64}) // or set by this hive's configuration
	must.Eq(t, 64, result1[core.SpawnResult](r, spawn).Worker.ContextTokens)
}
