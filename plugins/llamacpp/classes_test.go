package llamacpp

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Each class of models answers as the plain loop does, and reuses the prefix of a prompt that
// begins alike, from its cache or from a checkpoint.
func TestReuseByClass(t *testing.T) {
	for _, c := range []struct {
		class  string
		args   []string
		reused int  // of a prompt that shares 150 of its 160 tokens
		jumpy  bool // the choice of experts depends on the last digit of the logits
	}{
		{"biases", []string{"-arch", "qwen2"}, 150, false},
		{"norms of heads", []string{"-arch", "qwen3"}, 150, false},
		{"experts", []string{"-arch", "qwen3moe"}, 150, true},
		{"experts of Mixtral", []string{"-arch", "llama", "-experts", "4"}, 150, true},
		{"sliding window", []string{"-arch", "gemma3"}, 150, false},
		{"recurrent", []string{"-arch", "mamba"}, 0, false},
		{"hybrid with a state", []string{"-arch", "granitehybrid"}, 0, false},
		{"hybrid with convolutions", []string{"-arch", "lfm2"}, 0, false},
	} {
		t.Run(c.class, func(t *testing.T) {
			path := synthetic(t, c.args...)
			w := startWorkerOf(t, path, 2, 256, `{"prefix_store_mib":64}`)
			loop := llamatest.New(t, path)
			say := func(prompt []token) (cached int) {
				t.Helper()
				var out openai.CompletionResponse
				w.ask(t, "/v1/completions", map[string]any{"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 12}, &out)
				if !c.jumpy {
					must.NoError(t, loop.Check(t, prompt, 12, out.Choices[0].Text))
				}
				must.Eq(t, len(prompt), out.Usage.PromptTokens)
				if out.Usage.PromptTokensDetails == nil {
					return 0
				}
				return out.Usage.PromptTokensDetails.CachedTokens
			}
			text := func(n, seed int) []token {
				list := make([]token, n)
				for i := range list {
					list[i] = token(300 + (i*i*seed+i)%271)
				}
				return list
			}
			first := text(160, 3)
			must.Eq(t, 0, say(first))
			if w.served.model.native.Recurrent() {
				// The checkpoint lies four tokens before the end.
				must.Eq(t, 156, say(append(first[:157:157], text(30, 7)...)))
				must.Eq(t, 156, say(first))
				must.Eq(t, 0, say(append(first[:150:150], text(30, 11)...)))
				return
			}
			must.Eq(t, c.reused, say(append(first[:150:150], text(30, 7)...)))
			must.Eq(t, 159, say(first))
		})
	}
}
