package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// log collects a backend's log.
type log struct {
	mu  sync.Mutex // guards below
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: l, Level: hclog.Debug})
}

func asJSON(t testing.TB, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	must.NoError(t, err)
	return b
}

// played returns the configuration of a worker whose server is this executable.
func played(t testing.TB, q quirks, more fields) json.RawMessage {
	t.Helper()
	c := fields{"command": []string{os.Args[0], "--socket", "${socket}"}, "env": fields{quirksEnv: string(asJSON(t, q))}, "start_timeout": "1m"}
	maps.Copy(c, more)
	return asJSON(t, c)
}

// adopted returns the configuration of a worker that uses servers started by the test.
func adopted(t testing.TB, more fields, servers ...quirks) json.RawMessage {
	t.Helper()
	var urls []string
	for _, q := range servers {
		s := httptest.NewServer(&fakeServer{quirks: q})
		t.Cleanup(s.Close)
		urls = append(urls, s.URL)
	}
	c := fields{"url": urls, "start_timeout": "1m"}
	maps.Copy(c, more)
	return asJSON(t, c)
}

// rig is a backend started by a test.
type rig struct {
	*backend
	log *log
	web *httptest.Server
}

func configured(t testing.TB, config json.RawMessage) (*backend, *log) {
	t.Helper()
	l := &log{}
	b := newBackend(l.logger())
	diags, err := b.Configure(t.Context(), sdk.Config{JSON: config})
	must.NoError(t, err)
	must.Len(t, 0, diags)
	t.Cleanup(func() { must.NoError(t, b.Stop(context.Background(), 0)) }) // the test's context has ended
	return b, l
}

func startSpec(device string) worker.StartSpec {
	return worker.StartSpec{WorkerID: "w", Nonce: "n", ModelID: "mine", Device: device, Slots: 2, ContextTokens: 1024}
}

func start(t testing.TB, config json.RawMessage, device string) rig {
	t.Helper()
	b, l := configured(t, config)
	h, err := b.Start(t.Context(), startSpec(device), func(worker.Progress) error { return nil })
	must.NoError(t, err)
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	return rig{backend: b, log: l, web: web}
}

func (r rig) post(t testing.TB, path, body string) (int, string) {
	t.Helper()
	resp, err := r.web.Client().Post(r.web.URL+path, "application/json", strings.NewReader(body))
	must.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(got)
}

func (r rig) can(t testing.TB) string {
	t.Helper()
	st, err := r.Status(t.Context())
	must.NoError(t, err)
	return strings.Join(st.Capabilities, " ")
}

const hello = `{"model":"mine","messages":[{"role":"user","content":"one two three"}]}`

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, q := range map[string]quirks{
		"OpenAI's shapes": {},
		"vLLM's":          {Errors: "fastapi", Names: []string{"sdktest-model"}, MaxLen: 4096, Late: true, Loading: 1},
		"Ollama's":        {Errors: "ollama", Names: []string{"sdktest-model:latest"}, Comments: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			long := q
			long.Delay = "3ms"
			sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend { return newBackend((&log{}).logger()) }), sdktest.WorkerOptions{
				Config: played(t, q, nil), LongConfig: played(t, long, nil), BadConfig: json.RawMessage(`{"preset":"lama-server"}`), ContextTokens: 512,
			})
		})
	}
	t.Run("adopted", func(t *testing.T) {
		t.Parallel()
		sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend { return newBackend((&log{}).logger()) }), sdktest.WorkerOptions{
			Config: adopted(t, nil, quirks{}, quirks{}), LongConfig: adopted(t, nil, quirks{Delay: "3ms"}, quirks{Delay: "3ms"}),
			BadConfig: json.RawMessage(`{"url":["nowhere"]}`), ContextTokens: 512,
		})
	})
}

// Ways in which a server fails its worker.
func TestServerFaults(t *testing.T) {
	t.Parallel()
	t.Run("dies at once", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, played(t, quirks{DieWith: "no CUDA here"}, nil))
		_, err := b.Start(t.Context(), startSpec("cpu"), func(worker.Progress) error { return nil })
		must.ErrorIs(t, err, sdk.ErrUnavailable)
		must.ErrorContains(t, err, "exit code 7); its last words:\n  no CUDA here")
	})
	t.Run("loads for ever", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, played(t, quirks{Never: true}, fields{"start_timeout": "2s"}))
		_, err := b.Start(t.Context(), startSpec("cpu"), func(worker.Progress) error { return nil })
		must.ErrorContains(t, err, "the server does not answer within 2s; at last: Loading model")
		must.ErrorContains(t, err, "listening")
	})
	t.Run("start is given up", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, played(t, quirks{Never: true}, nil))
		ctx, cancel := context.WithCancel(t.Context())
		_, err := b.Start(ctx, startSpec("cpu"), func(worker.Progress) error {
			cancel()
			return nil
		})
		must.Error(t, err)
		<-b.current().server.Done()
	})
	t.Run("stopped while it loads", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, played(t, quirks{Never: true}, nil))
		done := make(chan error, 1)
		_, err := b.Start(t.Context(), startSpec("cpu"), func(worker.Progress) error {
			go func() { done <- b.Stop(t.Context(), 0) }()
			return nil
		})
		must.ErrorIs(t, err, sdk.ErrState)
		must.NoError(t, <-done)
	})
	t.Run("lies about its health", func(t *testing.T) {
		t.Parallel()
		r := start(t, played(t, quirks{Loading: 3}, fields{"health_path": "/health"}), "cpu")
		must.Eq(t, "chat", r.can(t))
	})
	t.Run("crashes in a stream", func(t *testing.T) {
		t.Parallel()
		r := start(t, played(t, quirks{Crash: true}, nil), "cpu")
		stream := strings.Replace(hello, "{", `{"stream":true,`, 1)
		status, body := r.post(t, "/v1/chat/completions", stream)
		must.Eq(t, 200, status)
		must.StrContains(t, body, "[DONE]")
		resp, err := r.web.Client().Post(r.web.URL+"/v1/chat/completions", "application/json", strings.NewReader(stream))
		must.NoError(t, err)
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		must.Error(t, err) // an incomplete answer
		coretest.Eventually(t, 20*time.Second, func() error {
			st, err := r.Status(t.Context())
			if err != nil || st.State != worker.StateFailed || !strings.Contains(st.Problem, "exit code 6") {
				return fmt.Errorf("%+v (%w)", st, err)
			}
			return nil
		})
	})
	t.Run("ignores SIGTERM", func(t *testing.T) {
		t.Parallel()
		r := start(t, played(t, quirks{Deaf: true}, nil), "cpu")
		must.NoError(t, r.Stop(t.Context(), 0))
		<-r.current().server.Done()
		must.StrNotContains(t, r.log.String(), "ending")
	})
	t.Run("floods its log", func(t *testing.T) {
		t.Parallel()
		r := start(t, played(t, quirks{Flood: true}, nil), "cpu")
		for range 20 {
			status, _ := r.post(t, "/v1/chat/completions", hello)
			must.Eq(t, 200, status)
		}
		must.NoError(t, r.Stop(t.Context(), 0))
		must.Less(t, 8<<20, len(r.log.String()))
	})
	t.Run("has another model", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, adopted(t, nil, quirks{Names: []string{"theirs", "others"}}))
		_, err := b.Start(t.Context(), startSpec("remote"), func(worker.Progress) error { return nil })
		must.ErrorIs(t, err, sdk.ErrNotFound)
		must.ErrorContains(t, err, `the server has no model "mine", it has: theirs, others`)
	})
	t.Run("refuses the key", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, adopted(t, fields{"health_path": "/health", "start_timeout": "1s"}, quirks{TokenAuth: "k"}))
		_, err := b.Start(t.Context(), startSpec("remote"), func(worker.Progress) error { return nil })
		must.Error(t, err)
	})
}

func TestAdoptedServer(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	must.NoError(t, os.WriteFile(key, []byte("sk-1\n"), 0o600))
	q := quirks{Names: []string{"theirs"}, TokenAuth: "sk-1", MaxLen: 777}
	r := start(t, adopted(t, fields{"api_key_file": key, "model": "theirs"}, q, q), "remote")
	st, err := r.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, 777, st.ContextTokens)
	for range 4 {
		status, body := r.post(t, "/v1/chat/completions", hello)
		must.Eq(t, 200, status, must.Sprint(body))
		must.StrContains(t, body, `"model":"theirs"`)
	}
	coretest.Eventually(t, 10*time.Second, func() error {
		st, err := r.Status(t.Context())
		if err != nil || st.TokensTotal != 12 {
			return fmt.Errorf("%+v (%w)", st, err)
		}
		return nil
	})
	status, _ := r.post(t, "/slots/0?action=save", "{}")
	must.Eq(t, 404, status)
}

func TestCapabilityTrials(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		q    quirks
		more fields
		want string
	}{
		"chat only":       {quirks{}, nil, "chat"},
		"embeddings only": {quirks{Embeds: true}, nil, "embeddings"},
		// A server that ignores unknown fields answers 200: only the contents of the answer count.
		"ignores": {quirks{Ignores: true}, nil, "chat tools vision"},
		"by word": {quirks{}, fields{"capabilities": []string{"vision", "chat"}}, "chat vision"},
		"no list": {quirks{NoList: true}, fields{"health_path": "/health"}, "chat"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, tc.want, start(t, adopted(t, tc.more, tc.q), "remote").can(t))
		})
	}
}

// A worker refuses what the server lacks the capability for, and passes on everything else,
// including the server's refusals.
func TestImagePart(t *testing.T) {
	t.Parallel()
	const image = `{"model":"mine","messages":[{"role":"user","content":[{"type":"text","text":"what is it"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`
	status, body := start(t, adopted(t, nil, quirks{}), "remote").post(t, "/v1/chat/completions", image)
	must.Eq(t, 400, status)
	must.StrContains(t, body, "parts of type image_url are not supported by this worker")
	status, body = start(t, adopted(t, fields{"capabilities": []string{"chat", "vision"}}, quirks{}), "remote").post(t, "/v1/chat/completions", image)
	must.Eq(t, 400, status)
	must.StrContains(t, body, "not here: ")
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	spec := worker.StartSpec{ModelPath: "/m.gguf", ModelID: "m", Device: "cpu", Slots: 4, ContextTokens: 100, Threads: 2}
	for name, tc := range map[string]struct {
		s    settings
		spec worker.StartSpec
		want string
	}{
		"llama-server": {
			settings{Preset: "llama-server", Args: []string{"--embeddings"}},
			spec,
			"llama-server --offline --host /s --model /m.gguf --alias m --parallel 4 --ctx-size 400 --threads 2 --n-gpu-layers 0 --embeddings",
		},
		"on a card, nothing asked": {
			settings{Preset: "llama-server", Program: "/opt/x"},
			worker.StartSpec{ModelPath: "/m.gguf", ModelID: "m", Device: "cuda:0", Slots: 1, Threads: 3},
			"/opt/x --offline --host /s --model /m.gguf --alias m --parallel 1 --threads 3",
		},
		"vllm": {
			settings{Preset: "vllm"},
			worker.StartSpec{ModelID: "Qwen/Qwen3-8B", Device: "cuda:1", Slots: 8},
			"vllm serve Qwen/Qwen3-8B --host 127.0.0.1 --port 7 --served-model-name Qwen/Qwen3-8B --max-num-seqs 8",
		},
		"own": {
			settings{Command: []string{"srv", "-p=${port}", "${device}", "--ctx=${context}", "x"}},
			worker.StartSpec{ModelID: "m", Device: "cuda:1", Slots: 8},
			"srv -p=7 cuda:1 x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.s.preset = presets()[tc.s.Preset]
			must.Eq(t, tc.want, strings.Join(valuesOf(tc.spec, tc.spec.ModelID, 7, "/s").expand(tc.s.template()), " "))
		})
	}
}

func TestServerSees(t *testing.T) {
	t.Setenv("RBEE_PLUGIN", sdk.Cookie)
	model := filepath.Join(t.TempDir(), "m.gguf")
	must.NoError(t, os.WriteFile(model, nil, 0o600))
	b, l := configured(t, played(t, quirks{Args: true}, fields{"devices": []string{"cuda:3"}, "args": []string{"--model", "${model.path}", "--name", "${model.id}"}}))
	spec := startSpec("cuda:3")
	spec.ModelPath = model
	_, err := b.Start(t.Context(), spec, func(worker.Progress) error { return nil })
	must.NoError(t, err)
	must.StrContains(t, l.String(), "--model "+model+" --name mine")
	must.StrContains(t, l.String(), "device 3\n")
	must.StrContains(t, l.String(), "secret \n")
	info, err := os.Stat(b.current().dir)
	must.NoError(t, err)
	must.Eq(t, 0o700, info.Mode().Perm())
}

func TestConfigureRefuses(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	must.NoError(t, os.WriteFile(empty, nil, 0o600))
	for name, tc := range map[string]struct {
		config fields
		path   any
	}{
		"preset":        {fields{"preset": "x"}, "preset"},
		"time":          {fields{"start_timeout": "0s"}, "start_timeout"},
		"both":          {fields{"command": []string{"a"}, "url": []string{"http://a"}}, "url"},
		"name":          {fields{"command": []string{"a", "${model}"}}, "command"},
		"args":          {fields{"args": []string{"${x}"}}, "args"},
		"variable":      {fields{"env": fields{"RBEE_PLUGIN": "x"}}, "env"},
		"address":       {fields{"url": []string{"http://u:p@host"}}, "url"},
		"no file":       {fields{"url": []string{"http://a"}, "api_key_file": "/no/such"}, "api_key_file"},
		"empty file":    {fields{"url": []string{"http://a"}, "api_key_file": empty}, "api_key_file"},
		"no PEM":        {fields{"url": []string{"http://a"}, "ca_file": empty}, "ca_file"},
		"key alone":     {fields{"api_key_file": empty}, "url"},
		"health":        {fields{"health_path": "x"}, "health_path"},
		"format":        {fields{"command": []string{"a"}, "formats": []string{"GGUF!"}}, "formats"},
		"remote format": {fields{"url": []string{"http://a"}, "formats": []string{"gguf"}}, "formats"},
		"capability":    {fields{"capabilities": []string{"Chat"}}, "capabilities"},
		"two programs":  {fields{"command": []string{"a"}, "program": "b"}, "program"},
		"many replicas": {fields{"url": strings.Split(strings.Repeat("http://a ", 40), " ")}, "url"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.config["start_timeout"] == nil {
				tc.config["start_timeout"] = "10m"
			}
			diags, err := newBackend(hclog.NewNullLogger()).Configure(t.Context(), sdk.Config{JSON: asJSON(t, tc.config)})
			must.NoError(t, err)
			must.True(t, diags.HasErrors())
			must.Eq(t, tc.path, diags[0].Path[0])
		})
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	b, _ := configured(t, json.RawMessage(`{"start_timeout":"1m"}`))
	must.StrContains(t, b.fingerprint(t.Context()).Problem, "No server is named.")
	b, _ = configured(t, json.RawMessage(`{"start_timeout":"1m","command":["no-such-server"]}`))
	must.StrContains(t, b.fingerprint(t.Context()).Problem, "cannot be started")
	b, _ = configured(t, json.RawMessage(`{"start_timeout":"1m","preset":"llama-server","formats":["gguf"]}`))
	must.Eq(t, []string{"gguf"}, b.fingerprint(t.Context()).Formats)
	b, _ = configured(t, adopted(t, nil, quirks{}))
	must.Eq(t, "remote", b.fingerprint(t.Context()).Devices[0].ID)
}

func TestParseCards(t *testing.T) {
	t.Parallel()
	got := parseCards([]byte("0, NVIDIA RTX 4090, 24564, 24000\n1, NVIDIA GB10, [N/A], [N/A]\nx, y, 1, 1\nFailed to initialize NVML\n"))
	must.Eq(t, []worker.Device(nil), got) // rows of different lengths: the output is not trusted
	got = parseCards([]byte("0, NVIDIA RTX 4090, 24564, 24000\n1, NVIDIA GB10, [N/A], [N/A]\nx, y, 1, 1\n"))
	must.Eq(t, []worker.Device{
		{ID: "cuda:0", Kind: "cuda", Name: "NVIDIA RTX 4090", TotalBytes: 24564 * mebi, FreeBytes: 24000 * mebi},
		{ID: "cuda:1", Kind: "cuda", Name: "NVIDIA GB10"},
	}, got)
}

// A server that closes its connections after streams loses no request.
func TestClosingServer(t *testing.T) {
	t.Parallel()
	r := start(t, played(t, quirks{Closes: true}, nil), "cpu")
	stream := strings.Replace(hello, "{", `{"stream":true,`, 1)
	for range 30 {
		resp, err := r.web.Client().Post(r.web.URL+"/v1/chat/completions", "application/json", strings.NewReader(stream))
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		reader := openai.NewEventReader(resp.Body)
		for {
			e, err := reader.Next()
			must.NoError(t, err)
			if e.IsDone() {
				break
			}
		}
		_ = resp.Body.Close()
	}
}

func TestUnreachableServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: &fakeServer{}}}
	s.Start()
	r := start(t, asJSON(t, fields{"url": []string{s.URL}, "start_timeout": "1m"}), "remote")
	s.Close()
	status, body := r.post(t, "/v1/chat/completions", hello)
	must.Eq(t, 503, status)
	must.StrNotContains(t, body, l.Addr().String())
	st, err := r.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateReady, st.State) // it may come back
}
