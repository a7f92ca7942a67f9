package llamacpp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	engineEnv = "RBEE_TEST_ENGINE_DIR"
	patience  = 2 * time.Minute // generous: slow machines must not fail
)

// engineDir returns the folder of the engine's libraries, or skips the test.
func engineDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(engineEnv)
	if dir == "" {
		t.Skipf("%s is not set: `make test` fetches the engine and sets it", engineEnv)
	}
	return dir
}

// tinyModel returns the path of the project's own model.
func tinyModel(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	_, err = os.Stat(path)
	must.NoError(t, err)
	return path
}

// synthetic writes a small model with random weights; args are those of core/coretest/ggufgen.
func synthetic(t testing.TB, args ...string) string {
	t.Helper()
	engineDir(t) // skips before generating one for nothing
	path := filepath.Join(t.TempDir(), "model.gguf")
	args = append([]string{
		"run", "../../core/coretest/ggufgen", "-out", path, "-preset", "15m", "-layers", "6", "-embd", "64", "-heads", "2", "-kv-heads", "1",
		"-ffn", "128", "-vocab", "600", "-ctx", "256", "-window", "16", "-type", "f32",
	}, args...)
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
	return path
}

type testWorker struct {
	*Backend
	url    string
	client *http.Client
}

// startWorker serves the tiny model until the test ends.
func startWorker(t testing.TB, slots, contextTokens int, config string) *testWorker {
	t.Helper()
	return startWorkerOf(t, tinyModel(t), slots, contextTokens, config)
}

// newWorkerOf returns a backend and the spec that starts it on a model.
func newWorkerOf(t testing.TB, model string, slots, contextTokens int, config string) (*Backend, worker.StartSpec) {
	t.Helper()
	b := newTestBackend(t, CPU)
	b.config.Queue = 64
	if config != "" {
		must.NoError(t, json.Unmarshal([]byte(config), &b.config))
	}
	return b, worker.StartSpec{
		WorkerID: "w1", Nonce: "n1", ModelPath: model, ModelID: "rbee-tiny", Device: "cpu",
		Slots: slots, ContextTokens: contextTokens, Threads: 1, EngineDir: engineDir(t),
	}
}

// startWorkerOf serves a model until the test ends.
func startWorkerOf(t testing.TB, model string, slots, contextTokens int, config string) *testWorker {
	t.Helper()
	b, spec := newWorkerOf(t, model, slots, contextTokens, config)
	w, _ := serveWorker(t, b, spec)
	return w
}

// serveWorker starts a worker. end stops it, at the latest when the test ends.
func serveWorker(t testing.TB, b *Backend, spec worker.StartSpec) (w *testWorker, end func()) {
	t.Helper()
	h, err := b.Start(t.Context(), spec, func(worker.Progress) error { return nil })
	must.NoError(t, err)
	srv := httptest.NewServer(h)
	end = sync.OnceFunc(func() {
		srv.CloseClientConnections()
		srv.Close()
		must.NoError(t, b.Stop(context.WithoutCancel(t.Context()), 0))
	})
	t.Cleanup(end)
	return &testWorker{Backend: b, url: srv.URL, client: srv.Client()}, end
}

func newTestBackend(t testing.TB, f Flavour) *Backend {
	t.Helper()
	// Not to t.Output: the engine's log belongs to the process and outlives the test that loads it.
	b, ok := New(f, WithLogger(hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Error}))).(*Backend)
	must.True(t, ok)
	return b
}

func (w *testWorker) post(ctx context.Context, t testing.TB, path, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+path, strings.NewReader(body))
	must.NoError(t, err)
	resp, err := w.client.Do(req)
	must.NoError(t, err)
	return resp
}

// chat sends an unstreamed request that must succeed.
func (w *testWorker) chat(t testing.TB, body string) openai.ChatResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := w.post(ctx, t, "/v1/chat/completions", body)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	var out openai.ChatResponse
	must.NoError(t, json.Unmarshal(b, &out))
	must.Len(t, 1, out.Choices)
	return out
}

// refused sends a request that must fail.
func (w *testWorker) refused(t testing.TB, path, body string) (int, *openai.Error, http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := w.post(ctx, t, path, body)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.NotEq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	must.True(t, bytes.HasPrefix(b, []byte(`{"error":`)), must.Sprintf("%s", b))
	return resp.StatusCode, openai.DecodeError(resp.StatusCode, b), resp.Header
}

// streamed is the result of a stream.
type streamed struct {
	chunks []openai.ChatChunk
	text   string
	finish string
	usage  *openai.Usage
	err    *openai.Error
	done   bool
}

// stream sends a streamed chat request and reads it to its end.
func (w *testWorker) stream(ctx context.Context, t testing.TB, body string, each func(openai.ChatChunk)) streamed {
	t.Helper()
	resp := w.post(ctx, t, "/v1/chat/completions", body)
	defer func() { _ = resp.Body.Close() }()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	must.Eq(t, "text/event-stream", resp.Header.Get("Content-Type"))
	return readStream(t, resp.Body, each)
}

func readStream(t testing.TB, body io.Reader, each func(openai.ChatChunk)) streamed {
	t.Helper()
	var out streamed
	for r := openai.NewEventReader(body); ; {
		ev, err := r.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
			return out
		}
		must.NoError(t, err)
		if ev.IsDone() {
			out.done = true
			continue
		}
		if out.err = openai.ErrorIn(ev.Data); out.err != nil {
			continue
		}
		var c openai.ChatChunk
		must.NoError(t, json.Unmarshal(ev.Data, &c), must.Sprintf("%s", ev.Data))
		out.chunks = append(out.chunks, c)
		if c.Usage != nil {
			out.usage = c.Usage
		}
		for _, choice := range c.Choices {
			if choice.Delta.Content != nil {
				out.text += *choice.Delta.Content
			}
			if choice.FinishReason != nil {
				out.finish = *choice.FinishReason
			}
		}
		if each != nil {
			each(c)
		}
	}
}

// question returns the body of a greedy chat request with one question; more is added to the
// object.
func question(text, more string) string {
	q, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return `{"model":"rbee-tiny","temperature":0,"messages":[{"role":"user","content":` + string(q) + `}]` + more + `}`
}

// eventually calls f until it returns nil.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still: %v", err)
		}
		<-tick.C
	}
}
