package llamacpp_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/llamacpp"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// options returns the conformance suite's options for the worker type cpu.
func options(t *testing.T) sdktest.WorkerOptions {
	t.Helper()
	dir := os.Getenv("RBEE_TEST_ENGINE_DIR")
	if dir == "" {
		t.Skip("RBEE_TEST_ENGINE_DIR is not set: `make test` fetches the engine and sets it")
	}
	model, err := filepath.Abs("../catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	return sdktest.WorkerOptions{
		BadConfig: json.RawMessage(`{"kv_cache_type":"q1"}`), EngineDir: dir, ModelPath: model, Threads: 1,
		Prompt: "What is a queen?", LongPrompt: "Tell me a short story about a bee named Pip.",
	}
}

func TestConformance(t *testing.T) {
	sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend { return llamacpp.New(llamacpp.CPU) }), options(t))
}

func TestBinaryConformance(t *testing.T) {
	o := options(t)
	exe := filepath.Join(t.TempDir(), "rbee-worker-cpu")
	must.NoError(t, coretest.Build(exe, "../worker-cpu"))
	sdktest.Worker(t, sdktest.WorkerBinary(exe), o)
}
