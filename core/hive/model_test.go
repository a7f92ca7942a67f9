package hive

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// What model get reports for each device agrees with a spawn: the same context where it fits, the
// same number of missing bytes where it does not.
func TestModelFits(t *testing.T) {
	t.Parallel()
	device := func(id string, total, free int) string {
		return fmt.Sprintf("    device {\n      id          = %q\n      total_bytes = %d\n      free_bytes  = %d\n    }\n", id, total, free)
	}
	r := run(t, setup{workers: "worker \"fits\" {\n  plugin = \"rbee-worker-fake\"\n  config {\n" +
		device("big:0", 1<<40, 1<<39) + device("small:0", 1<<40, 39<<20) + device("full:0", 1<<40, 1000) + "  }\n}\n"})
	must.NoError(t, r.hive.types.probed(t.Context()))
	result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	m, err := operation.ModelGet.Ask(t.Context(), r, core.Request{Model: "tiny"})
	must.NoError(t, err)
	must.Eq(t, 6, m.Facts.Layers)
	must.Eq(t, 2, m.Facts.KVHeads)
	must.Eq(t, 2048, m.Facts.Vocabulary)
	must.Eq(t, 1, m.Facts.Parts)
	must.True(t, m.Facts.ChatTemplate)
	fits := map[string]core.ModelFit{}
	for _, f := range m.Fits {
		must.Eq(t, "h1", f.Hive)
		must.Eq(t, f.NeedBytes, f.WeightsBytes+f.CacheBytes+f.ComputeBytes+f.OverheadBytes)
		fits[f.Device] = f
	}
	must.MapLen(t, 3, fits)
	must.Eq(t, 1024, fits["big:0"].ContextTokens)
	must.Eq(t, 0, fits["big:0"].MissingBytes)
	must.Eq(t, 512, fits["small:0"].ContextTokens)
	must.Eq(t, 0, fits["small:0"].MissingBytes)
	must.Eq(t, 512, fits["full:0"].ContextTokens)
	must.Eq(t, fits["full:0"].NeedBytes-1000, fits["full:0"].MissingBytes)

	for id, f := range fits {
		req := core.Request{Operation: core.OpWorkerSpawn, Type: "fits", Device: id, Model: "tiny"}
		if f.MissingBytes > 0 {
			failed := r.failure(req)
			must.Eq(t, core.TooLarge, failed.Kind)
			must.StrContains(t, failed.Message, fmt.Sprintf("%d are missing", f.MissingBytes))
			continue
		}
		must.Eq(t, f.ContextTokens, result1[core.SpawnResult](r, req).Worker.ContextTokens)
	}
}
