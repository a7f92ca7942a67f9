package main

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// llamaServer returns the path of a real llama-server.
func llamaServer(t testing.TB) string {
	t.Helper()
	path := os.Getenv("RBEE_TEST_LLAMA_SERVER")
	if path == "" {
		t.Skip("RBEE_TEST_LLAMA_SERVER names no llama-server: `make test-llama-server` fetches one and sets it")
	}
	return path
}

func tinyModel(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	return path
}

func llamaConfig(t testing.TB, more fields) json.RawMessage {
	t.Helper()
	c := fields{"preset": "llama-server", "program": llamaServer(t), "start_timeout": "2m"}
	maps.Copy(c, more)
	return asJSON(t, c)
}

func llamaSpec(t testing.TB) worker.StartSpec {
	t.Helper()
	return worker.StartSpec{WorkerID: "w", Nonce: "n", ModelPath: tinyModel(t), ModelID: "tiny", Device: "cpu", Slots: 2, ContextTokens: 512, Threads: 1}
}

func startLlama(t testing.TB, config json.RawMessage) rig {
	t.Helper()
	b, l := configured(t, config)
	h, err := b.Start(t.Context(), llamaSpec(t), func(worker.Progress) error { return nil })
	must.NoError(t, err, must.Sprint(l.String()))
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	return rig{backend: b, log: l, web: web}
}

func TestLlamaServerConformance(t *testing.T) {
	t.Parallel()
	sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend { return newBackend((&log{}).logger()) }), sdktest.WorkerOptions{
		Config: llamaConfig(t, nil), ModelPath: tinyModel(t), Device: "cpu", ContextTokens: 512, Threads: 1, AnyLength: true, StartTimeout: 2 * time.Minute,
	})
}

func TestLlamaServer(t *testing.T) {
	t.Parallel()
	r := startLlama(t, llamaConfig(t, fields{"args": []string{"--embeddings", "--pooling", "mean"}}))
	st, err := r.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, 512, st.ContextTokens)
	must.Eq(t, "chat completions embeddings json_schema logprobs tokenize", strings.Join(st.Capabilities, " "))

	ask := func(more string) (int, string) {
		return r.post(t, "/v1/chat/completions", `{"model":"tiny","max_tokens":24,"temperature":0,"messages":[{"role":"user","content":"Hi"}]`+more+`}`)
	}
	status, body := ask("")
	must.Eq(t, 200, status)
	must.StrContains(t, body, `"model":"tiny"`)
	_, body = ask(`,"stream":true,"stream_options":{"include_usage":true}`)
	must.StrContains(t, body, "data: [DONE]")
	_, body = ask(`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"enum":["maybe"]}}}`)
	must.StrContains(t, body, `"\"maybe\""`)
	status, body = r.post(t, "/v1/embeddings", `{"model":"tiny","input":["a","b"]}`)
	must.Eq(t, 200, status, must.Sprint(body))
	must.Eq(t, 2, strings.Count(body, `"embedding":[`))
	status, body = ask(`,"max_tokens":-5,"grammar":"root ::= ("`)
	must.Eq(t, 400, status, must.Sprint(body))
	must.StrNotContains(t, body, tinyModel(t))
	status, body = r.post(t, "/v1/completions", `{"model":"tiny","prompt":"`+strings.Repeat("on and on ", 2000)+`","max_tokens":4}`)
	must.Eq(t, 400, status)
	must.StrContains(t, body, "exceed_context_size_error")
}

// The server's refusal of an image is passed on.
func TestLlamaServerImage(t *testing.T) {
	t.Parallel()
	r := startLlama(t, llamaConfig(t, fields{"capabilities": []string{"chat", "vision"}}))
	status, body := r.post(t, "/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`)
	must.Eq(t, 500, status)
	must.StrContains(t, body, "image input is not supported")
}

// The server reports tool support only for a template with tools.
func TestLlamaServerTools(t *testing.T) {
	t.Parallel()
	const request = `{"model":"tiny","max_tokens":8,"messages":[{"role":"user","content":"Look a word up."}],"tool_choice":"auto",
		"tools":[{"type":"function","function":{"name":"look_up","parameters":{"type":"object","properties":{"word":{"type":"string"}}}}}]}`
	template, err := filepath.Abs("testdata/tools.jinja")
	must.NoError(t, err)
	r := startLlama(t, llamaConfig(t, fields{"args": []string{"--chat-template-file", template}}))
	must.Eq(t, "chat completions json_schema logprobs tokenize tools", r.can(t))
	status, body := r.post(t, "/v1/chat/completions", request)
	must.Eq(t, 200, status, must.Sprint(body))
	status, _ = startLlama(t, llamaConfig(t, nil)).post(t, "/v1/chat/completions", request)
	must.Eq(t, 400, status)
}

func TestLlamaServerEnds(t *testing.T) {
	t.Parallel()
	long := func(r rig) io.ReadCloser {
		resp, err := r.web.Client().Post(r.web.URL+"/v1/completions", "application/json", strings.NewReader(`{"model":"tiny","prompt":"Once","max_tokens":400,"ignore_eos":true,"stream":true}`))
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		t.Cleanup(func() { _ = resp.Body.Close() })
		_, err = resp.Body.Read(make([]byte, 1))
		must.NoError(t, err)
		return resp.Body
	}
	t.Run("drain", func(t *testing.T) {
		t.Parallel()
		r := startLlama(t, llamaConfig(t, nil))
		answer := long(r)
		drained := make(chan error, 1)
		go func() { drained <- r.Drain(t.Context()) }()
		body, err := io.ReadAll(answer)
		must.NoError(t, err)
		must.StrContains(t, string(body), "[DONE]")
		must.NoError(t, <-drained)
		status, _ := r.post(t, "/v1/completions", `{"prompt":"x"}`)
		must.Eq(t, 503, status)
	})
	t.Run("stop while it generates", func(t *testing.T) {
		t.Parallel()
		r := startLlama(t, llamaConfig(t, nil))
		long(r)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		must.NoError(t, r.Stop(ctx, 0))
		<-r.current().server.Done()
	})
	t.Run("no model", func(t *testing.T) {
		t.Parallel()
		b, _ := configured(t, llamaConfig(t, nil))
		spec := llamaSpec(t)
		spec.ModelPath = filepath.Join(t.TempDir(), "x.gguf")
		must.NoError(t, os.WriteFile(spec.ModelPath, []byte("GGUF, not"), 0o600))
		_, err := b.Start(t.Context(), spec, func(worker.Progress) error { return nil })
		must.ErrorContains(t, err, "its last words:")
		t.Log(err)
	})
}

// Two running servers, used by their addresses.
func TestLlamaServerAdopted(t *testing.T) {
	t.Parallel()
	var urls []string
	for range 2 {
		one := startLlama(t, llamaConfig(t, nil))
		front := httptest.NewServer(one.current().forward)
		t.Cleanup(front.Close)
		urls = append(urls, front.URL)
	}
	r := start(t, asJSON(t, fields{"url": urls, "preset": "llama-server", "model": "tiny", "start_timeout": "1m"}), "remote")
	for range 4 {
		status, body := r.post(t, "/v1/chat/completions", strings.Replace(hello, "{", `{"max_tokens":4,`, 1))
		must.Eq(t, 200, status, must.Sprint(body))
	}
	must.StrContains(t, r.can(t), "chat")
}
