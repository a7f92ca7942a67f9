package hive

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// twoTypes has one executable under two names: a type that serves models by name, and one that
// needs their files.
const twoTypes = `
worker "fake" {}
worker "far" {
  plugin = "rbee-worker-fake"
  config {
    by_name = true
    models  = ["qwen", "tiny", "two words", "qwen"]
  }
}`

func (r *rig) modelMap() map[string]core.Model {
	r.t.Helper()
	list, err := operation.ModelList.Ask(r.t.Context(), r, core.Request{})
	must.NoError(r.t, err)
	out := map[string]core.Model{}
	for _, m := range list {
		out[m.ID] = m
	}
	return out
}

func TestModelByName(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: twoTypes})
	must.NoError(t, r.hive.types.probed(t.Context()))
	must.MapContainsKeys(t, r.modelMap(), []string{"qwen", "tiny"})
	must.MapLen(t, 2, r.modelMap())

	// A name known only to the type is enough, and nothing is fetched for it.
	got := result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Model: "qwen", Slots: 2})
	must.Eq(t, "far", got.Worker.Type)
	must.Eq(t, "qwen", got.Worker.Model)
	must.Eq(t, "", got.Worker.ModelDigest)
	text, err := r.askFor(t.Context(), got.Worker.ID, "qwen", "one two")
	must.NoError(t, err)
	must.Eq(t, "one two", text)
	// Another name can be started by naming the type.
	other := result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: "far", Model: "org/other:8b"})
	must.Eq(t, []string{other.Worker.ID}, r.modelMap()["org/other:8b"].LoadedBy)
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "models")))
	shown, err := operation.ModelGet.Ask(t.Context(), r, core.Request{Model: "qwen"})
	must.NoError(t, err)
	must.Eq(t, []string{got.Worker.ID}, shown.LoadedBy)
	must.Eq(t, core.Invalid, r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "far", Model: "two words"}).Kind)

	// The other type still fetches a model of that name, and a stored model takes precedence.
	stored := result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny", ContextTokens: 64})
	must.NotEq(t, "", stored.Worker.ModelDigest)
	again := result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", ContextTokens: 64})
	must.Eq(t, "fake", again.Worker.Type)
}

func TestOfferedNames(t *testing.T) {
	t.Parallel()
	long := make([]byte, sdkworker.MaxModelBytes+1)
	for i := range long {
		long[i] = 'x'
	}
	f := sdkworker.Fingerprint{ByName: true, Models: []string{"a", "", "a", "b c", "\xff", string(long), "d\n", "hf/x:8b"}}
	must.Eq(t, []string{"a", "hf/x:8b"}, offered(f))
	f.Problem = "it is broken"
	must.Nil(t, offered(f))
	must.Nil(t, offered(sdkworker.Fingerprint{Models: []string{"a"}}))
	many := sdkworker.Fingerprint{ByName: true}
	for i := range 2 * sdkworker.MaxModels {
		many.Models = append(many.Models, string(rune('a'+i)))
	}
	must.LessEq(t, sdkworker.MaxModels, len(offered(many)))
}

// The devices of a type by name do not count as room for model files.
func TestDevicesByNameAreNoRoom(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `worker "far" {
  plugin = "rbee-worker-fake"
  config {
    by_name = true
  }
}`})
	must.NoError(t, r.hive.types.probed(t.Context()))
	devices, types := r.hive.types.devices(0)
	must.Len(t, 0, devices)
	must.Eq(t, []string{"far"}, types)
}
