package llamacpp

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func TestDrainAndStop(t *testing.T) {
	loop := plainLoop(t)
	w := startWorker(t, 2, 512, "")
	started := make(chan struct{})
	result := make(chan streamed, 1)
	var once sync.Once
	go func() {
		result <- w.stream(t.Context(), t, question("Tell me a short story about a bee named Pip.", `,"stream":true`), func(openai.ChatChunk) { once.Do(func() { close(started) }) })
	}()
	<-started
	drained := make(chan error, 1)
	go func() { drained <- w.Drain(t.Context()) }()
	eventually(t, func() error {
		if st, _ := w.Status(t.Context()); st.State != worker.StateDraining {
			return errors.New(string(st.State))
		}
		return nil
	})
	status, _, h := w.refused(t, "/v1/chat/completions", question("x", ""))
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.Eq(t, "1", h.Get("Retry-After"))
	must.NoError(t, <-drained)
	s := <-result
	must.True(t, s.done)
	must.NoError(t, loop.Check(t, loadRecorded(t)[6].Tokens, 512-len(loadRecorded(t)[6].Tokens), s.text))

	must.NoError(t, w.Stop(t.Context(), time.Second))
	must.NoError(t, w.Stop(t.Context(), time.Second))
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateStopped, st.State)
	_, err = w.Start(t.Context(), worker.StartSpec{ModelPath: "x", Slots: 1}, nil)
	must.ErrorIs(t, err, sdk.ErrState)
}

// Stop without grace ends a stream in band, with an error event and no [DONE].
func TestStopEndsStreams(t *testing.T) {
	w := startWorker(t, 1, 1024, "")
	started := make(chan struct{})
	result := make(chan streamed, 1)
	var once sync.Once
	go func() {
		result <- w.stream(t.Context(), t, question("Tell me a story", endless), func(openai.ChatChunk) { once.Do(func() { close(started) }) })
	}()
	<-started
	must.NoError(t, w.Stop(t.Context(), 0))
	s := <-result
	must.False(t, s.done)
	must.NotNil(t, s.err)
	must.Eq(t, openai.TypeUnavailable, s.err.Type)
}

// When the engine fails, a running request gets an error and no [DONE], and the worker reports the
// failure.
func TestEngineFailure(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	e := w.served.engine
	req := newRequest()
	req.prompt, req.sampling, req.maxTokens = loadRecorded(t)[0].Tokens, w.served.model.defaults, 400
	req.prompt = append(slices.Clip(req.prompt), 1<<30) // the engine does not know this token, so decoding fails
	must.Nil(t, e.submit(req))
	<-req.out.ready
	events := req.out.take(nil)
	must.Len(t, 1, events)
	must.NotNil(t, events[0].err)
	must.StrContains(t, events[0].err.Message, "engine")
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateFailed, st.State)
	must.NotEq(t, "", st.Problem)
	status, _, _ := w.refused(t, "/v1/chat/completions", question("x", ""))
	must.Eq(t, http.StatusInternalServerError, status)
}

func TestStartFailures(t *testing.T) {
	dir := engineDir(t)
	bad := filepath.Join(t.TempDir(), "bad.gguf")
	must.NoError(t, os.WriteFile(bad, []byte("GGUF and then nothing that makes sense, but long enough to be read as a header"), 0o600))
	cut := filepath.Join(t.TempDir(), "cut.gguf")
	whole, err := os.ReadFile(tinyModel(t))
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(cut, whole[:len(whole)/2], 0o600))
	for name, c := range map[string]struct {
		spec    worker.StartSpec
		is      error
		message string
	}{
		"no model":     {worker.StartSpec{ModelPath: filepath.Join(t.TempDir(), "none.gguf"), Slots: 1, EngineDir: dir}, sdk.ErrNotFound, "none.gguf"},
		"bad model":    {worker.StartSpec{ModelPath: bad, Slots: 1, EngineDir: dir}, sdk.ErrInvalid, "cannot load"},
		"cut model":    {worker.StartSpec{ModelPath: cut, Slots: 1, EngineDir: dir}, sdk.ErrInvalid, "not within the file bounds"},
		"wrong device": {worker.StartSpec{ModelPath: tinyModel(t), Device: "cuda:0", Slots: 1, EngineDir: dir}, sdk.ErrInvalid, "cuda:0"},
		"no engine":    {worker.StartSpec{ModelPath: tinyModel(t), Slots: 1}, sdk.ErrInvalid, "engine"},
		"no slots":     {worker.StartSpec{ModelPath: tinyModel(t), EngineDir: dir}, sdk.ErrInvalid, "slot"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBackend(t, CPU)
			_, err := b.Start(t.Context(), c.spec, func(worker.Progress) error { return nil })
			must.ErrorIs(t, err, c.is)
			must.StrContains(t, err.Error(), c.message)
			t.Log(err, "→", sdk.HintOf(err))
			must.NoError(t, b.Stop(t.Context(), 0))
		})
	}
}

func TestLoadProgressAndCancel(t *testing.T) {
	spec := worker.StartSpec{ModelPath: tinyModel(t), Slots: 1, Threads: 1, EngineDir: engineDir(t)}
	var phases []string
	var last worker.Progress
	b := newTestBackend(t, CPU)
	_, err := b.Start(t.Context(), spec, func(p worker.Progress) error {
		if p.Phase != last.Phase {
			phases = append(phases, p.Phase)
		} else {
			must.GreaterEq(t, last.Done, p.Done)
		}
		last = p
		return nil
	})
	must.NoError(t, err)
	must.Eq(t, []string{"loading the engine", "reading the model", "preparing the context"}, phases)
	st, err := b.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateReady, st.State)
	must.Eq(t, 1024, st.ContextTokens) // the trained context length
	must.Positive(t, st.MemoryBytes)
	must.NoError(t, b.Stop(t.Context(), 0))

	ctx, cancel := context.WithCancel(t.Context())
	b = newTestBackend(t, CPU)
	_, err = b.Start(ctx, spec, func(p worker.Progress) error {
		if p.Phase == "reading the model" {
			cancel()
		}
		return nil
	})
	must.ErrorIs(t, err, context.Canceled)
	st, err = b.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateFailed, st.State)
	must.NoError(t, b.Stop(t.Context(), 0))
}

func TestEngineOptions(t *testing.T) {
	for _, config := range []string{`{"kv_cache_type":"q8_0"}`, `{"kv_cache_type":"f32"}`, `{"repack":false}`, `{"batch_tokens":32,"prompt_chunk":16}`, `{"context_tokens":256}`} {
		t.Run(config, func(t *testing.T) {
			w := startWorker(t, 2, 0, config)
			must.Eq(t, queenAnswer, *w.chat(t, question("What is a queen?", "")).Choices[0].Message.Content)
		})
	}
}

// An engine for another kind of device is not silently substituted.
func TestNoSilentFallback(t *testing.T) {
	dir := engineDir(t)
	for _, f := range []Flavour{CUDA, Vulkan} {
		b := newTestBackend(t, f)
		_, err := b.Start(t.Context(), worker.StartSpec{ModelPath: tinyModel(t), Device: string(f) + ":0", Slots: 1, EngineDir: dir}, nil)
		must.ErrorIs(t, err, sdk.ErrUnsupported)
		must.StrContains(t, err.Error(), "The engine found no "+map[Flavour]string{CUDA: "CUDA", Vulkan: "Vulkan"}[f]+" device")
	}
}

func TestFingerprintWithEngine(t *testing.T) {
	b := newTestBackend(t, CPU)
	_, err := b.Configure(t.Context(), sdk.Config{EngineDir: engineDir(t)})
	must.NoError(t, err)
	f := firstFingerprint(t, b)
	must.Eq(t, "", f.Problem)
	must.Len(t, 1, f.Devices)
	must.Len(t, 1, f.Checks)
	must.True(t, f.Checks[0].Passed)
	must.StrContains(t, f.Checks[0].Detail, "context parameters 160 bytes")
}

func TestDrainGivesUp(t *testing.T) {
	w := startWorker(t, 1, 1024, "")
	started := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		w.stream(ctx, t, question("Tell me a story", endless), func(openai.ChatChunk) { once.Do(func() { close(started) }) })
	})
	<-started
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	must.ErrorIs(t, w.Drain(short), context.DeadlineExceeded)
	cancel()
	wg.Wait()
}
