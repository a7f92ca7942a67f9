package native

import (
	"os"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
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

// feed evaluates tokens at the end of a sequence and returns a copy of the logits after them.
func feed(t testing.TB, c *Context, seq, from int, tokens ...Token) []float32 {
	t.Helper()
	var entries []batch.Entry
	for i, token := range tokens {
		entries = append(entries, batch.Entry{Token: token, Pos: from + i, Seq: seq, Logits: i == len(tokens)-1})
	}
	must.NoError(t, c.Decode(entries))
	logits := c.Logits(len(tokens) - 1)
	must.Len(t, c.vocab, logits)
	return slices.Clone(logits)
}

// A sequence continues in a copy, after a cut and from a saved state as it does where it was read.
func TestSequencesMove(t *testing.T) {
	m := tinyModel(t)
	for _, kind := range []string{"f16", "q8_0"} {
		t.Run(kind, func(t *testing.T) {
			c, err := m.NewContext(ContextParams{Sequences: 3, Tokens: 256, BatchTokens: 128, Threads: 1, KVType: kind, OutputTokens: 3})
			must.NoError(t, err)
			defer func() { must.NoError(t, c.Free()) }()
			text := m.Tokenize("<|im_start|>user\nWhat is a queen? And what is a hive?<|im_end|>\n<|im_start|>assistant\n", true, true)
			n := len(text) - 5
			feed(t, c, 0, 0, text[:n]...)
			want := feed(t, c, 0, n, text[n:]...)

			c.Copy(0, 1)
			must.True(t, c.Remove(1, n))
			must.Eq(t, want, feed(t, c, 1, n, text[n:]...))

			must.Eq(t, 0, c.Floor(0))
			must.True(t, c.Remove(0, n))
			must.Eq(t, want, feed(t, c, 0, n, text[n:]...))

			must.True(t, c.Remove(0, n))
			must.Nil(t, c.Save(0, 100))
			s := c.Save(0, 1<<30)
			must.NotNil(t, s)
			t.Logf("%d bytes for %d tokens", s.Bytes(), n)
			must.True(t, c.Remove(0, 0))
			feed(t, c, 2, 0, text[:20]...) // to be replaced
			must.True(t, c.Load(2, s))
			s.Free()
			must.Eq(t, want, feed(t, c, 2, n, text[n:]...))
			must.False(t, c.Load(2, &State{data: make([]byte, 100)}))
			must.Eq(t, 0, c.Floor(2))
			feed(t, c, 2, 0, text...) // it is empty
		})
	}
}

// BenchmarkPlainLoop measures llama.cpp without this package: the upper bound for the others.
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

// BenchmarkMoves measures copying, saving and loading a sequence of 1000 tokens, and for comparison
// evaluating 100. RBEE_BENCH_MODEL is the path of a model.
func BenchmarkMoves(b *testing.B) {
	path := os.Getenv("RBEE_BENCH_MODEL")
	if path == "" {
		b.Skip("RBEE_BENCH_MODEL is not set")
	}
	must.NoError(b, Load(engineDir(b), hclog.NewNullLogger()))
	m, err := LoadModel(path, ModelParams{Repack: true})
	must.NoError(b, err)
	defer func() { must.NoError(b, m.Free()) }()
	c, err := m.NewContext(ContextParams{Sequences: 4, Tokens: 4096, BatchTokens: 512, Threads: 1, KVType: "f16", OutputTokens: 4})
	must.NoError(b, err)
	defer func() { must.NoError(b, c.Free()) }()
	text := make([]Token, 1000)
	for i := range text {
		text[i] = Token(300 + i%100)
	}
	feed(b, c, 0, 0, text[:500]...)
	feed(b, c, 0, 500, text[500:]...)
	b.Run("token", func(b *testing.B) {
		for b.Loop() {
			feed(b, c, 0, 1000, 7)
			must.True(b, c.Remove(0, 1000))
		}
	})
	b.Run("evaluate", func(b *testing.B) {
		for b.Loop() {
			feed(b, c, 0, 1000, text[:100]...)
			must.True(b, c.Remove(0, 1000))
		}
	})
	b.Run("copy and token", func(b *testing.B) {
		for b.Loop() {
			c.Copy(0, 1)
			feed(b, c, 1, 1000, 7)
		}
	})
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			s := c.Save(0, 1<<40)
			b.ReportMetric(float64(s.Bytes())/1000, "B/token")
			s.Free()
		}
	})
	s := c.Save(0, 1<<40)
	defer s.Free()
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			must.True(b, c.Load(2, s))
		}
	})
}
