package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// Models without generation work end to end: they are placed, report their capabilities, answer
// through the queen, and refuse what they cannot do.
func TestReadersThroughQueen(t *testing.T) {
	t.Parallel()
	shape := []string{"-preset", "15m", "-layers", "2", "-embd", "64", "-heads", "2", "-kv-heads", "2", "-ffn", "128", "-vocab", "600", "-ctx", "256", "-type", "f32", "-arch", "bert"}
	embeds := generate(t, "embeds.gguf", append(shape, "-pooling", "mean")...)
	ranks := generate(t, "ranks.gguf", append(shape, "-pooling", "rank", "-labels", "1")...)
	a := startAgent(t, agentOptions{config: oneMachine + fileCatalog(filepath.Dir(filepath.Dir(embeds))), store: ownStore(t)})
	for _, path := range []string{embeds, ranks} {
		a.must("pull", "file:"+path)
	}
	w := a.spawn("--model", "embeds", "--slots", "2")
	must.Eq(t, 256, w.Worker.ContextTokens)
	a.spawn("--model", "ranks", "--slots", "1")
	ask := func(path, body string) (status int, answer string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.addr+path, strings.NewReader(body))
		must.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/v1/embeddings", `{"model":"embeds","input":["a","the end"]}`, 200, `"index":1`},
		{"/v1/rerank", `{"model":"ranks","query":"a","documents":["b","the end"],"top_n":1}`, 200, `"relevance_score":`},
		{"/rerank", `{"model":"ranks","query":"a","texts":["b"]}`, 200, `"index":0`},
		{"/tokenize", `{"model":"embeds","content":"the end","with_pieces":true}`, 200, `"piece":`},
		{"/v1/rerank", `{"model":"embeds","query":"a","documents":["b"]}`, 400, "made for reranking"},
		{"/v1/embeddings", `{"model":"ranks","input":"a"}`, 400, "made for embeddings"},
		{"/v1/chat/completions", `{"model":"embeds","messages":[{"role":"user","content":"a"}]}`, 400, "/v1/embeddings"},
		{"/v1/messages/count_tokens", `{"model":"embeds","messages":[{"role":"user","content":"a"}]}`, 400, `{"type":"error"`},
	} {
		status, answer := ask(c.path, c.body)
		must.Eq(t, c.status, status, must.Sprint(c.path, answer))
		must.StrContains(t, answer, c.says, must.Sprint(c.path))
	}
	var shown core.Model
	must.NoError(t, json.Unmarshal([]byte(a.must("show", "ranks", "--format", "json")), &shown))
	must.Eq(t, core.CapabilitiesOf([]string{"rerank", "tokenize"}), shown.Capabilities)
	must.Eq(t, 0, shown.Fits[0].CacheBytes)
}
