package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// installedLlamaServer returns the path of a real llama-server.
func installedLlamaServer(t testing.TB) string {
	t.Helper()
	path := os.Getenv("RBEE_TEST_LLAMA_SERVER")
	if path == "" {
		t.Skip("RBEE_TEST_LLAMA_SERVER names no llama-server: `make test-llama-server` fetches one and sets it")
	}
	return path
}

// llamaBlock returns a worker block that makes the plugin run a llama-server.
func llamaBlock(t testing.TB, name string) string {
	t.Helper()
	template, err := filepath.Abs("../../../plugins/worker-openai/testdata/tools.jinja")
	must.NoError(t, err)
	return fmt.Sprintf(`worker %q {
  plugin = "rbee-worker-openai"
  config {
    preset        = "llama-server"
    program       = %q
    args          = ["--embeddings", "--pooling", "mean", "--chat-template-file", %q]
    capabilities  = ["chat", "completions", "embeddings", "json_schema", "logprobs", "tools", "vision"]
    devices       = ["cpu"]
    start_timeout = "2m"
  }
}
`, name, installedLlamaServer(t), template)
}

// long is a stream whose first event has arrived.
type long struct {
	resp   *http.Response
	events *openai.EventReader
}

func startLong(t *testing.T, a *agent, model string) long {
	t.Helper()
	resp, err := http.Post("http://"+a.addr+"/v1/completions", "application/json",
		strings.NewReader(fmt.Sprintf(`{"model":%q,"prompt":"Once","max_tokens":450,"ignore_eos":true,"stream":true}`, model)))
	must.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	must.Eq(t, 200, resp.StatusCode)
	l := long{resp, openai.NewEventReader(resp.Body)}
	_, err = l.events.Next()
	must.NoError(t, err)
	return l
}

// end reads the rest and returns how it ended: with [DONE], or the reason why not.
func (l long) end() error {
	for {
		e, err := l.events.Next()
		switch {
		case err != nil:
			return err
		case e.IsDone():
			return nil
		}
		if err := openai.ErrorIn(e.Data); err != nil {
			return err
		}
	}
}

// promptTokens returns the prompt's token count from an answer.
func promptTokens(t *testing.T, body string) int {
	t.Helper()
	var r openai.ChatResponse
	must.NoError(t, json.Unmarshal([]byte(body), &r), must.Sprint(body))
	must.NotNil(t, r.Usage)
	return r.Usage.PromptTokens
}

// A real llama-server runs under a real agent: all its features are available, its refusals are
// passed on, and its workers are killed, drained and replaced.
func TestLlamaServerWorker(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	for _, name := range []string{"rbee-worker-openai", "rbee-catalog-builtin"} {
		data, err := os.ReadFile(filepath.Join(binDir(t), "plugins", name))
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(plugins, name), data, 0o755))
	}
	a := startAgent(t, agentOptions{store: shortDir(t), config: oneMachine + llamaBlock(t, "llama"), args: []string{"-plugin-dir", plugins}})
	first := a.spawn("--type", "llama", "--slots", "2", "--context", "512", "--threads", "1")
	must.Eq(t, "llama", first.Worker.Type)
	chat := func(more map[string]any) (int, string) {
		t.Helper()
		body := map[string]any{"model": "rbee-tiny", "max_tokens": 24, "temperature": 0, "messages": []any{map[string]any{"role": "user", "content": "Hi"}}}
		maps.Copy(body, more)
		status, _, text := postJSON(t, a, "/v1/chat/completions", body)
		return status, text
	}

	status, body := chat(nil)
	must.Eq(t, 200, status, must.Sprint(body))
	must.StrContains(t, body, `"model":"rbee-tiny"`)
	must.StrContains(t, body, `"timings"`) // llama-server's own fields are passed on unchanged
	must.NoError(t, startLong(t, a, "rbee-tiny").end())
	status, body = chat(map[string]any{"response_format": map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "x", "schema": map[string]any{"enum": []string{"maybe"}}}}})
	must.Eq(t, 200, status, must.Sprint(body))
	must.StrContains(t, body, `"\"maybe\""`)
	tool := []any{map[string]any{"type": "function", "function": map[string]any{
		"name": "look_up", "parameters": map[string]any{"type": "object", "properties": map[string]any{"word": map[string]string{"type": "string"}}, "required": []string{"word"}},
	}}}
	_, without := chat(nil)
	status, body = chat(map[string]any{"tools": tool, "tool_choice": "auto"})
	must.Eq(t, 200, status, must.Sprint(body))
	must.Greater(t, promptTokens(t, without)+20, promptTokens(t, body)) // its template has rendered the tool
	status, _, body = postJSON(t, a, "/v1/embeddings", map[string]any{"model": "rbee-tiny", "input": []string{"a", "b"}})
	must.Eq(t, 200, status, must.Sprint(body))
	must.Eq(t, 2, strings.Count(body, `"embedding":[`))
	image := []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "image_url", "image_url": map[string]string{"url": "data:image/png;base64,AAAA"}}}}}
	status, body = chat(map[string]any{"messages": image})
	must.NotEq(t, 200, status)
	must.StrContains(t, body, "image input is not supported")
	status, body = chat(map[string]any{"grammar": "root ::= ("})
	must.Eq(t, 400, status, must.Sprint(body))

	t.Log("a second replica takes over what a killed one leaves")
	second := a.spawn("--type", "llama", "--slots", "2", "--context", "512", "--threads", "1")
	must.NotEq(t, first.Worker.ID, second.Worker.ID)
	children := jsonOf[core.Process](a, "worker", "process", "get", fmt.Sprint(first.PID), "--hive", "localhost").Children
	must.NotEq(t, 0, len(children))
	must.NoError(t, syscall.Kill(children[0], syscall.SIGKILL))
	coretest.Eventually(t, patience, func() error {
		workers := jsonOf[[]core.Worker](a, "worker", "list")
		if len(workers) != 1 || workers[0].ID != second.Worker.ID {
			return fmt.Errorf("workers: %+v", workers)
		}
		return nil
	})
	for range 4 {
		status, body = chat(nil)
		must.Eq(t, 200, status, must.Sprint(body))
	}
	must.StrContains(t, a.log.String(), "the server llama-server ended by itself (signal killed)")

	t.Log("an upgrade replaces it while a stream goes on")
	exe := filepath.Join(plugins, "rbee-worker-openai")
	data, err := os.ReadFile(exe)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(exe+".new", append(data, 0), 0o755)) // other code, by its digest
	must.NoError(t, os.Rename(exe+".new", exe))
	stream := startLong(t, a, "rbee-tiny")
	upgraded := make(chan result, 1)
	go func() { upgraded <- a.rbee("worker", "upgrade", "llama", "--format", "json") }()
	must.NoError(t, stream.end())
	r := <-upgraded
	must.Eq(t, 0, r.code, must.Sprint(r.stdout, r.stderr))
	var up core.UpgradeResult
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &up))
	must.Len(t, 1, up.Replaced)
	must.Eq(t, second.Worker.ID, up.Replaced[0].Old)
	status, body = chat(nil)
	must.Eq(t, 200, status, must.Sprint(body))
	third := up.Replaced[0].New

	t.Log("a retired worker brings its stream to the end, and its server ends with it")
	processes := jsonOf[[]core.Process](a, "worker", "process", "list", "--hive", "localhost")
	must.Len(t, 1, processes)
	server := jsonOf[core.Process](a, "worker", "process", "get", fmt.Sprint(processes[0].PID), "--hive", "localhost").Children
	stream = startLong(t, a, "rbee-tiny")
	retired := make(chan result, 1)
	go func() { retired <- a.rbee("worker", "retire", third, "--yes") }()
	must.NoError(t, stream.end())
	r = <-retired
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	for _, pid := range server {
		must.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	}
}

// Servers that run already are used by their addresses: two replicas, of which one disappears.
func TestLlamaServerByURL(t *testing.T) {
	t.Parallel()
	owner := startAgent(t, agentOptions{store: shortDir(t), config: oneMachine + llamaBlock(t, "llama")})
	var fronts []*httptest.Server
	var urls []string
	for range 2 {
		w := owner.spawn("--type", "llama", "--slots", "2", "--context", "512", "--threads", "1")
		front := httptest.NewServer(serverOf(t, owner, w))
		t.Cleanup(front.Close)
		fronts, urls = append(fronts, front), append(urls, front.URL)
	}
	list, err := json.Marshal(urls)
	must.NoError(t, err)
	a := startAgent(t, agentOptions{store: shortDir(t), config: oneMachine + fmt.Sprintf("worker \"theirs\" {\n  plugin = \"rbee-worker-openai\"\n  config {\n    preset = \"llama-server\"\n    url = %s\n  }\n}\n", list)})
	ask := func() {
		t.Helper()
		status, _, body := postJSON(t, a, "/v1/chat/completions", map[string]any{
			"model": "rbee-tiny", "max_tokens": 4, "messages": []map[string]string{{"role": "user", "content": "hello"}},
		})
		must.Eq(t, 200, status, must.Sprint(body))
	}
	// The first request that names a model of the servers' lists starts it.
	ask()
	workers := jsonOf[[]core.Worker](a, "worker", "list")
	must.Len(t, 1, workers)
	must.Eq(t, "theirs", workers[0].Type)
	must.True(t, slices.Contains(workers[0].Capabilities.List(), "chat"))
	fronts[0].CloseClientConnections()
	fronts[0].Close()
	for range 4 {
		ask()
	}
}

// serverOf returns a worker's server, found by the socket in its command line.
func serverOf(t *testing.T, a *agent, w core.SpawnResult) http.Handler {
	t.Helper()
	p := jsonOf[core.Process](a, "worker", "process", "get", fmt.Sprint(w.PID), "--hive", "localhost")
	for _, pid := range p.Children {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		must.NoError(t, err)
		args := strings.Split(string(text), "\x00")
		i := slices.Index(args, "--host")
		must.GreaterEq(t, 0, i)
		socket := args[i+1]
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "server"})
		proxy.FlushInterval = -1
		proxy.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}
		return proxy
	}
	t.Fatal(errors.New("the worker has no server"))
	return nil
}
