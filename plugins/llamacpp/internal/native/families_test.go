package native

import (
	"math"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// syntheticModel loads a small model of an architecture with random weights.
func syntheticModel(t *testing.T, arch string) *Model {
	t.Helper()
	must.NoError(t, Load(engineDir(t), hclog.NewNullLogger()))
	path := filepath.Join(t.TempDir(), arch+".gguf")
	out, err := exec.CommandContext(t.Context(), "go", "run", "../../../../core/coretest/ggufgen", "-arch", arch, "-window", "16", "-type", "f32", "-out", path,
		"-preset", "15m", "-layers", "6", "-embd", "128", "-heads", "4", "-kv-heads", "2", "-ffn", "256", "-vocab", "600", "-experts-used", "2").CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
	m, err := LoadModel(path, ModelParams{Repack: true})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, m.Free()) })
	return m
}

// farthest returns the largest difference between two lists of logits.
func farthest(a, b []float32) float64 {
	most := 0.0
	for i := range a {
		most = max(most, math.Abs(float64(a[i]-b[i])))
	}
	return most
}

// near bounds the difference of logits computed from the same tokens in different ways. Those of
// other tokens differ by more than far.
const (
	near = 0.02
	far  = 0.5
)

// Whatever the cache of an architecture, a sequence that was cut, copied or loaded continues as a
// fresh one does, or the cut is refused.
func TestSequencesByArchitecture(t *testing.T) {
	anywhere, nowhere := map[int]bool{149: true, 100: true, 20: true}, map[int]bool{149: false, 100: false, 20: false}
	for arch, cuts := range map[string]map[int]bool{ // whether 150 tokens can be cut to a length
		"llama":         anywhere,
		"qwen2":         anywhere, // biases
		"qwen3":         anywhere,
		"qwen3moe":      anywhere, // experts
		"gemma3":        anywhere, // a sliding window
		"mamba":         nowhere,  // recurrent
		"granitehybrid": nowhere,  // some layers recurrent
		"lfm2":          nowhere,  // some layers with a short convolution
	} {
		t.Run(arch, func(t *testing.T) {
			m := syntheticModel(t, arch)
			c, err := m.NewContext(ContextParams{Sequences: 4, Tokens: 512, BatchTokens: 256, Threads: 1, KVType: "f32", OutputTokens: 4})
			must.NoError(t, err)
			defer func() { must.NoError(t, c.Free()) }()
			text, other := make([]Token, 160), make([]Token, 150)
			for i := range text {
				text[i] = Token(300 + i*i%271)
			}
			for i := range other {
				other[i] = Token(310 + i*i*3%199)
			}
			fresh := func(seq int, parts ...[]Token) (logits []float32) {
				must.True(t, c.Remove(seq, 0))
				at := 0
				for _, p := range parts {
					logits = feed(t, c, seq, at, p...)
					at += len(p)
				}
				return logits
			}
			want := fresh(0, text[:150], text[150:])
			if arch != "qwen3moe" { // other batches round differently, which may change the choice of experts
				must.Less(t, near, farthest(want, fresh(1, text[:70], text[70:130], text[130:])))
			}
			must.Greater(t, far, farthest(want, fresh(1, other, text[150:]))) // earlier tokens matter
			for n, can := range cuts {
				want := fresh(0, text[:n], text[n:])
				fresh(1, text[:n], other[n:])
				must.Eq(t, can, c.Remove(1, n), must.Sprintf("at %d", n))
				must.Eq(t, can, n >= c.Floor(1), must.Sprintf("at %d", n))
				if can {
					must.Less(t, near, farthest(want, feed(t, c, 1, n, text[n:]...)), must.Sprintf("at %d", n))
				}
			}
			must.GreaterEq(t, c.Floor(1), 160) // nothing can be cut at the end of a sequence

			fresh(0, text[:150])
			c.Copy(0, 2)
			must.Greater(t, near, farthest(want, feed(t, c, 0, 150, other[:10]...))) // without affecting the copy
			must.Less(t, near, farthest(want, feed(t, c, 2, 150, text[150:]...)))

			fresh(0, text[:150])
			s := c.Save(0, 1<<30)
			must.NotNil(t, s)
			defer s.Free()
			fresh(0, other)
			fresh(3, other[:50])
			must.True(t, c.Load(3, s))
			must.Less(t, near, farthest(want, feed(t, c, 3, 150, text[150:]...)))
		})
	}
}
