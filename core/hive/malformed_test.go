package hive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/badgguf"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// countingHost counts the worker processes that are started.
type countingHost struct {
	pluginHost
	started atomic.Int64
}

func (c *countingHost) LaunchWorker(ctx context.Context, l pluginhost.WorkerLaunch) (workerProcess, error) {
	c.started.Add(1)
	return c.pluginHost.LaunchWorker(ctx, l)
}

// For every malformed model file, no process is started, nothing is published, and the job reports
// the defect.
func TestMalformedModelNeverReachesAnEngine(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	must.NoError(t, r.hive.types.probed(t.Context()))
	count := &countingHost{pluginHost: r.hive.plugins}
	r.hive.types.plugins = count
	for i, c := range badgguf.Corpus() {
		name := fmt.Sprintf("bad%d", i)
		must.NoError(t, os.WriteFile(filepath.Join(r.dir, "catalog", name+".gguf"), c.File, 0o600))
		f := r.failure(core.Request{Operation: core.OpWorkerSpawn, Model: "fake:" + name + ".gguf", Type: "fake"})
		must.Eq(t, core.Integrity, f.Kind, must.Sprintf("%s: %s", c.Name, f.Message))
		must.StrContains(t, f.Message, c.Says, must.Sprint(c.Name))
		must.NotEq(t, "", f.Hint)
	}
	must.Eq(t, 0, count.started.Load())
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "blobs")))
	must.Len(t, 0, entries(t, filepath.Join(r.dir, "store", "models")))
	r.nothingLeft()
	r.spawn("fake") // the hive is unaffected
	must.Positive(t, count.started.Load())
}
