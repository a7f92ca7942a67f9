package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestNodeClients tests rbee with the client libraries that people use from Node. One agent serves
// all. `make conformance` installs the libraries; their cases are in testdata/clients.
func TestNodeClients(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("RBEE_TEST_CLIENTS")
	if dir == "" {
		t.Skip("RBEE_TEST_CLIENTS is not set: `make conformance` installs the libraries and sets it")
	}
	embeds := generate(t, "embeds.gguf", "-preset", "15m", "-layers", "2", "-embd", "64", "-heads", "2", "-kv-heads", "2", "-ffn", "128",
		"-vocab", "600", "-ctx", "256", "-type", "f32", "-arch", "bert", "-pooling", "mean")
	a := startAgent(t, agentOptions{config: oneMachine + fileCatalog(filepath.Dir(embeds)), store: ownStore(t)})
	a.must("pull", "file:"+embeds)
	a.spawn("--slots", "4")
	// These are the cases that every library must pass; exceptions state what a library lacks.
	needed := map[string]string{
		"openai":    "chat stream tools structured embeddings errors abort models completions responses",
		"anthropic": "chat stream tools structured errors abort models count", // this API has no embeddings
		"ollama":    "chat stream tools structured embeddings errors abort models pull",
		"langchain": "chat stream tools structured embeddings errors abort", // it lists no models
		"vercel":    "chat stream tools structured embeddings errors abort", // it lists no models
	}
	for client, cases := range needed {
		t.Run(client, func(t *testing.T) {
			cmd := exec.CommandContext(patient(t), "node", "run.mjs", client)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "RBEE_URL=http://"+a.addr, "RBEE_MODEL=rbee-tiny", "RBEE_EMBEDS=embeds", "NO_PROXY=*", "NODE_NO_WARNINGS=1", "LANGSMITH_TRACING=false")
			r := run(t, cmd)
			must.Eq(t, 0, r.code, must.Sprint(r.stdout, r.stderr))
			failed := map[string]string{}
			for line := range strings.Lines(r.stdout) {
				var c struct{ Case, Error string }
				if json.Unmarshal([]byte(line), &c) != nil || c.Case == "" {
					continue // the library's own output
				}
				failed[c.Case] = c.Error
			}
			for name := range strings.FieldsSeq(cases) {
				t.Run(name, func(t *testing.T) {
					problem, tried := failed[name]
					must.True(t, tried, must.Sprint(r.stdout, r.stderr))
					must.Eq(t, "", problem)
				})
			}
		})
	}
}
