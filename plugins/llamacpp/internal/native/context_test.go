package native

import (
	"os"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"
)

// engineDir returns the folder of the engine's libraries, or skips the test.
func engineDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("RBEE_TEST_ENGINE_DIR")
	if dir == "" {
		t.Skip("RBEE_TEST_ENGINE_DIR is not set: `make test` fetches the engine and sets it")
	}
	return dir
}

// tinyModel loads the project's own model.
func tinyModel(t testing.TB) *Model {
	t.Helper()
	must.NoError(t, Load(engineDir(t), hclog.NewNullLogger()))
	m, err := LoadModel("../../../catalog-builtin/rbee-tiny.gguf", ModelParams{Repack: true})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, m.Free()) })
	return m
}

// BenchmarkPlainLoop is llama.cpp without this package: what the others can at best reach.
func BenchmarkPlainLoop(b *testing.B) {
	const benchTokens = 256
	m := tinyModel(b)
	params := llama.ContextDefaultParams()
	params.NCtx, params.NThreads, params.NThreadsBatch, params.NOutputsMax = 1024, 1, 1, 1
	ctx, err := llama.InitFromModel(m.handle, params)
	must.NoError(b, err)
	defer func() { must.NoError(b, llama.Free(ctx)) }()
	mem, err := llama.GetMemory(ctx)
	must.NoError(b, err)
	sampler := llama.SamplerInitGreedy()
	defer llama.SamplerFree(sampler)
	prompt := llama.Tokenize(m.vocab, "<|im_start|>user\nTell me a story<|im_end|>\n<|im_start|>assistant\n", true, true)
	b.ReportAllocs()
	for b.Loop() {
		_, err := llama.MemorySeqRm(mem, 0, -1, -1)
		must.NoError(b, err)
		next := prompt
		for range benchTokens {
			code, err := llama.Decode(ctx, llama.BatchGetOne(next))
			must.NoError(b, err)
			must.Eq(b, int32(0), code)
			next = []llama.Token{llama.SamplerSample(sampler, ctx, -1)}
		}
	}
	b.ReportMetric(benchTokens*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
}
