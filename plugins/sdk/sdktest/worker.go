package sdktest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// WorkerClient is a worker as its host calls it. *worker.Client is one.
type WorkerClient interface {
	sdk.Plugin
	Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error
	Start(ctx context.Context, spec worker.StartSpec, dataSocket string, progress func(worker.Progress) error) error
	Status(ctx context.Context) (worker.Status, error)
	Drain(ctx context.Context) error
	Stop(ctx context.Context, grace time.Duration) error
}

var _ WorkerClient = (*worker.Client)(nil)

// WorkerInstance is one running worker that nobody configured.
type WorkerInstance struct {
	Client     WorkerClient
	DataSocket string          // where Start shall serve
	Exited     <-chan struct{} // closed when the process is gone; nil where there is none
	// BreakStderr does to the process's standard error what the death of its host does; nil where it cannot be done.
	BreakStderr func()
}

// WorkerTarget is a worker type to test. Each call of Launch gives a new worker, which ends with the test.
type WorkerTarget struct {
	Launch func(t testing.TB) WorkerInstance
}

// WorkerInProcess tests an implementation in this process, through the wire.
func WorkerInProcess(backend func() worker.Backend) WorkerTarget {
	return WorkerTarget{Launch: func(t testing.TB) WorkerInstance {
		dir := privateDir(t)
		var stop func(context.Context, time.Duration) error
		conn := inProcess(t, func(s *grpc.Server) { stop = worker.Register(s, backend(), logger(t)) })
		t.Cleanup(func() {
			if err := stop(context.Background(), 0); err != nil { // the test's context is over
				t.Errorf("Stop at the end: %v", err)
			}
		})
		return WorkerInstance{Client: worker.NewClient(conn), DataSocket: filepath.Join(dir, "data.sock")}
	}}
}

// WorkerBinary tests an executable. env is added to a small environment: NAME=value.
func WorkerBinary(path string, env ...string) WorkerTarget {
	return WorkerTarget{Launch: func(t testing.TB) WorkerInstance {
		p := start(t, sdk.KindWorker, path, env)
		return WorkerInstance{
			Client: worker.NewClient(p.conn), DataSocket: filepath.Join(p.dir, "data.sock"), Exited: p.done, BreakStderr: p.breakStderr,
		}
	}}
}

// WorkerOptions say what the worker under test needs.
type WorkerOptions struct {
	Config        json.RawMessage // what Configure is given; nil: an empty object
	BadConfig     json.RawMessage // must be refused with a path; nil: not tested
	EngineDir     string          // as in sdk.Config
	ModelPath     string          // empty: an empty file, which most worker types refuse
	Device        string          // empty: the first one that Fingerprint reports without a problem
	Slots         int             // 0: 2
	ContextTokens int
	Threads       int
	StartTimeout  time.Duration // how long loading may take; 0: a minute
	Prompt        string        // of the requests; empty: "Count to ten."
	// LongConfig makes answers long enough to be cancelled in the middle; nil: Config. LongTokens is their max_tokens; 0: 512.
	LongConfig json.RawMessage
	LongTokens int
	LongPrompt string // empty: Prompt
}

// modelID is what the suite calls the model.
const modelID = "sdktest-model"

// Worker runs the suite.
func Worker(t *testing.T, target WorkerTarget, o WorkerOptions) {
	s := &workerSuite{target: target, o: o}
	s.defaults(t)
	plugin(t, sdk.KindWorker, func(t testing.TB) sdk.Plugin { return target.Launch(t).Client }, s.o.Config, s.o.BadConfig)
	t.Run("fingerprint", s.fingerprint)
	t.Run("refused starts", s.refusedStarts)
	t.Run("life", s.life)
	t.Run("answers", s.answers)
	t.Run("more requests than slots", s.crowd)
	t.Run("cancelled request", s.cancel)
	t.Run("drain", s.drain)
	t.Run("stop", s.stop)
	t.Run("stop before start", s.stopIdle)
	t.Run("broken standard error", s.brokenStderr)
}

type workerSuite struct {
	target WorkerTarget
	o      WorkerOptions
}

func (s *workerSuite) defaults(t *testing.T) {
	t.Helper()
	if s.o.Config == nil {
		s.o.Config = json.RawMessage("{}")
	}
	if s.o.LongConfig == nil {
		s.o.LongConfig = s.o.Config
	}
	if s.o.Slots == 0 {
		s.o.Slots = 2
	}
	if s.o.StartTimeout == 0 {
		s.o.StartTimeout = time.Minute
	}
	if s.o.Prompt == "" {
		s.o.Prompt = "Count to ten."
	}
	if s.o.LongPrompt == "" {
		s.o.LongPrompt = s.o.Prompt
	}
	if s.o.LongTokens == 0 {
		s.o.LongTokens = 512
	}
	if s.o.ModelPath == "" {
		s.o.ModelPath = filepath.Join(t.TempDir(), "model.gguf")
		if err := os.WriteFile(s.o.ModelPath, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *workerSuite) configured(t testing.TB, config json.RawMessage) WorkerInstance {
	t.Helper()
	w := s.target.Launch(t)
	diags, err := w.Client.Configure(t.Context(), sdk.Config{JSON: config, EngineDir: s.o.EngineDir})
	if err != nil || diags.HasErrors() {
		t.Fatalf("Configure: %v %v", diags, err)
	}
	return w
}

func (s *workerSuite) spec(t testing.TB, w WorkerInstance) worker.StartSpec {
	t.Helper()
	device := s.o.Device
	if device == "" {
		device = firstDevice(t, w.Client)
	}
	return worker.StartSpec{
		WorkerID: "sdktest", Nonce: "nonce-1", ModelPath: s.o.ModelPath, ModelID: modelID, Device: device,
		Slots: s.o.Slots, ContextTokens: s.o.ContextTokens, Threads: s.o.Threads, EngineDir: s.o.EngineDir,
	}
}

var errEnough = errors.New("enough")

func firstDevice(t testing.TB, c WorkerClient) string {
	t.Helper()
	var id string
	err := c.Fingerprint(t.Context(), func(f worker.Fingerprint) error {
		for _, d := range f.Devices {
			if d.Problem == "" && id == "" {
				id = d.ID
			}
		}
		return errEnough
	})
	if id == "" {
		t.Fatalf("Fingerprint reports no device that can be used (%v)", err)
	}
	return id
}

// started is a worker that serves.
func (s *workerSuite) started(t testing.TB, config json.RawMessage) (WorkerInstance, *http.Client) {
	t.Helper()
	w := s.configured(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), s.o.StartTimeout)
	defer cancel()
	if err := w.Client.Start(ctx, s.spec(t, w), w.DataSocket, nil); err != nil {
		t.Fatalf("Start: %v", err)
	}
	return w, dataClient(t, w.DataSocket)
}

func dataClient(t testing.TB, socket string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (s *workerSuite) fingerprint(t *testing.T) {
	w := s.configured(t, s.o.Config)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := make(chan worker.Fingerprint, 1)
	done := make(chan error, 1)
	go func() {
		done <- w.Client.Fingerprint(ctx, func(f worker.Fingerprint) error {
			select {
			case first <- f:
			default:
			}
			return nil
		})
	}()
	select {
	case f := <-first:
		seen := map[string]bool{}
		for _, d := range f.Devices {
			if d.ID == "" || d.Kind == "" || d.Name == "" || seen[d.ID] {
				t.Errorf("device %+v: id (unique), kind and name must be there", d)
			}
			seen[d.ID] = true
			if d.TotalBytes < 0 || d.FreeBytes < 0 || (d.TotalBytes > 0 && d.FreeBytes > d.TotalBytes) {
				t.Errorf("device %s has %d of %d bytes free", d.ID, d.FreeBytes, d.TotalBytes)
			}
		}
		if f.Problem == "" && len(f.Devices) == 0 {
			t.Error("no device, and no problem that says why")
		}
	case err := <-done:
		t.Fatalf("Fingerprint ended without a report: %v", err)
	case <-time.After(patience):
		t.Fatalf("no report within %s", patience)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("Fingerprint goes on %s after its context ended", patience)
	}
}

func (s *workerSuite) refusedStarts(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*worker.StartSpec)
		is     error // nil: any
	}{
		"no slots":         {func(p *worker.StartSpec) { p.Slots = 0 }, sdk.ErrInvalid},
		"no nonce":         {func(p *worker.StartSpec) { p.Nonce = "" }, sdk.ErrInvalid},
		"negative context": {func(p *worker.StartSpec) { p.ContextTokens = -1 }, sdk.ErrInvalid},
		"unknown device":   {func(p *worker.StartSpec) { p.Device = "no-such-device:99" }, nil},
		"no model":         {func(p *worker.StartSpec) { p.ModelPath += ".none" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := s.configured(t, s.o.Config)
			spec := s.spec(t, w)
			tc.change(&spec)
			err := within(t, s.o.StartTimeout, "a start that must fail", func() error { return w.Client.Start(t.Context(), spec, w.DataSocket, nil) })
			if err == nil || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Fatalf("Start: %v, want an error (%v)", err, tc.is)
			}
			st, err := w.Client.Status(t.Context())
			if err != nil {
				t.Fatalf("Status after a failed start: %v", err)
			}
			if st.State == worker.StateReady {
				t.Error("the worker says that it is ready")
			}
			if tc.is == nil && (st.State != worker.StateFailed || st.Problem == "") {
				t.Errorf("the worker says that it is %s (%q), want failed with a problem", st.State, st.Problem)
			}
		})
	}
}

func (s *workerSuite) life(t *testing.T) {
	w := s.configured(t, s.o.Config)
	st, err := w.Client.Status(t.Context())
	if err != nil || st.State != worker.StateIdle {
		t.Errorf("before Start the state is %q, want idle (%v)", st.State, err)
	}
	spec := s.spec(t, w)
	last := map[string]int64{}
	ctx, cancel := context.WithTimeout(t.Context(), s.o.StartTimeout)
	defer cancel()
	err = w.Client.Start(ctx, spec, w.DataSocket, func(p worker.Progress) error {
		if p.Done < last[p.Phase] || (p.Total > 0 && p.Done > p.Total) {
			t.Errorf("progress of %q goes from %d to %d of %d", p.Phase, last[p.Phase], p.Done, p.Total)
		}
		last[p.Phase] = p.Done
		if st, err := w.Client.Status(ctx); err != nil || st.State != worker.StateLoading && st.State != worker.StateReady {
			t.Errorf("while it loads the state is %q (%v)", st.State, err)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	st, err = w.Client.Status(t.Context())
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	if st.State != worker.StateReady || st.WorkerID != spec.WorkerID || st.Nonce != spec.Nonce || st.ModelID != spec.ModelID || st.Slots != spec.Slots || st.ContextTokens <= 0 {
		t.Errorf("after Start the status is %+v", st)
	}
	if info, err := os.Lstat(w.DataSocket); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others can use the data socket: %v %v", info, err)
	}
	if err := w.Client.Start(t.Context(), spec, w.DataSocket+"2", nil); !errors.Is(err, sdk.ErrState) {
		t.Errorf("a second Start: %v, want ErrState", err)
	}
}

func (s *workerSuite) body(stream bool, prompt string, maxTokens int) string {
	b, err := json.Marshal(map[string]any{
		"model": modelID, "stream": stream, "max_tokens": maxTokens, "temperature": 0,
		"messages":       []any{map[string]any{"role": "user", "content": prompt}},
		"stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		panic(err) // strings, numbers and booleans always marshal
	}
	if !stream {
		return strings.Replace(string(b), `"stream_options":{"include_usage":true},`, "", 1)
	}
	return string(b)
}

func post(ctx context.Context, c *http.Client, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.Do(req)
}

func (s *workerSuite) answers(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	whole, err := s.ask(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("stream", func(t *testing.T) {
		resp, err := post(t.Context(), c, "/v1/chat/completions", s.body(true, s.o.Prompt, 16))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/event-stream") {
			t.Fatalf("status %s, content type %q", resp.Status, ct)
		}
		text, usage := readStream(t, resp.Body)
		if text != whole {
			t.Errorf("streamed at temperature 0 the answer is %q, and %q otherwise", text, whole)
		}
		if usage == nil || usage.PromptTokens <= 0 || usage.CompletionTokens <= 0 || usage.TotalTokens != usage.PromptTokens+usage.CompletionTokens {
			t.Errorf("usage is %+v", usage)
		}
	})
	t.Run("errors", func(t *testing.T) {
		for _, tc := range []struct {
			path, body string
			status     int
		}{
			{"/v1/chat/completions", `{"messages":`, http.StatusBadRequest},
			{"/v1/chat/completions", `{"model":"` + modelID + `","messages":[]}`, http.StatusBadRequest},
			{"/v1/no/such/route", `{}`, http.StatusNotFound},
		} {
			resp, err := post(t.Context(), c, tc.path, tc.body)
			if err != nil {
				t.Fatal(err)
			}
			var envelope struct {
				Error *openai.Error `json:"error"`
			}
			err = json.NewDecoder(resp.Body).Decode(&envelope)
			_ = resp.Body.Close()
			if resp.StatusCode != tc.status || err != nil || envelope.Error == nil || envelope.Error.Message == "" {
				t.Errorf("POST %s with %s: status %d (want %d), envelope %+v (%v)", tc.path, tc.body, resp.StatusCode, tc.status, envelope.Error, err)
			}
		}
	})
	eventually(t, time.Second, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && (st.Active != 0 || st.TokensTotal <= 0) {
			err = fmt.Errorf("after the answers the status is %+v", st)
		}
		return err
	})
}

// ask gets a whole answer of a few tokens.
func (s *workerSuite) ask(ctx context.Context, c *http.Client) (string, error) {
	resp, err := post(ctx, c, "/v1/chat/completions", s.body(false, s.o.Prompt, 16))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("chat: %s: %s", resp.Status, body)
	}
	var r openai.ChatResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return "", fmt.Errorf("chat: %w: %s", err, body)
	}
	if r.Object != openai.ObjectChat || len(r.Choices) != 1 || r.Choices[0].Message.Content == nil || r.Choices[0].FinishReason == "" || r.Usage == nil ||
		r.Usage.CompletionTokens <= 0 || r.Usage.CompletionTokens > 16 {
		return "", fmt.Errorf("chat: incomplete answer: %s", body)
	}
	return *r.Choices[0].Message.Content, nil
}

func readStream(t *testing.T, r io.Reader) (string, *openai.Usage) {
	t.Helper()
	var text strings.Builder
	var usage *openai.Usage
	var id, finish string
	events := openai.NewEventReader(r)
	for {
		e, err := events.Next()
		if err != nil {
			t.Fatalf("the stream ends without [DONE]: %v", err)
		}
		if e.Data == nil {
			continue
		}
		if e.IsDone() {
			break
		}
		var c openai.ChatChunk
		if err := json.Unmarshal(e.Data, &c); err != nil || c.Object != openai.ObjectChatChunk {
			t.Fatalf("chunk %s: %v", e.Data, err)
		}
		if id == "" {
			id = c.ID
		}
		if c.ID != id || id == "" {
			t.Errorf("the id changes from %q to %q", id, c.ID)
		}
		for _, x := range c.Choices {
			if x.Delta.Content != nil {
				text.WriteString(*x.Delta.Content)
			}
			if x.FinishReason != nil {
				finish = *x.FinishReason
			}
		}
		if c.Usage != nil {
			usage = c.Usage
		}
	}
	if finish == "" {
		t.Error("no chunk has a finish_reason")
	}
	return text.String(), usage
}

func (s *workerSuite) crowd(t *testing.T) {
	_, c := s.started(t, s.o.Config)
	alone, err := s.ask(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range s.o.Slots + 2 {
		wg.Go(func() {
			if got, err := s.ask(t.Context(), c); err != nil || got != alone {
				t.Errorf("in a crowd the answer is %q (%v), alone it was %q", got, err, alone)
			}
		})
	}
	wg.Wait()
}

// long starts an answer and returns when its first text is there.
func (s *workerSuite) long(ctx context.Context, t *testing.T, c *http.Client) *http.Response {
	t.Helper()
	resp, err := post(ctx, c, "/v1/chat/completions", s.body(true, s.o.LongPrompt, s.o.LongTokens))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	buf := make([]byte, 1)
	if _, err := resp.Body.Read(buf); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("no first byte: %s %v", resp.Status, err)
	}
	return resp
}

func active(ctx context.Context, w WorkerInstance, want int) error {
	st, err := w.Client.Status(ctx)
	if err != nil {
		return err
	}
	if st.Active != want {
		return fmt.Errorf("%d requests are active, want %d", st.Active, want)
	}
	return nil
}

func (s *workerSuite) cancel(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.long(ctx, t, c)
	if err := active(t.Context(), w, 1); err != nil {
		t.Fatalf("in the middle of an answer: %v (set LongConfig, LongPrompt or LongTokens so that answers take a second or more)", err)
	}
	cancel()
	eventually(t, time.Second, func() error { return active(t.Context(), w, 0) })
	if _, err := post(t.Context(), c, "/v1/chat/completions", s.body(false, s.o.Prompt, 1)); err != nil {
		t.Errorf("the request after a cancelled one: %v", err)
	}
}

func (s *workerSuite) drain(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	resp := s.long(t.Context(), t, c)
	drained := make(chan error, 1)
	go func() { drained <- w.Client.Drain(t.Context()) }()
	eventually(t, patience, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && st.State != worker.StateDraining {
			err = fmt.Errorf("the state is %s, want draining", st.State)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	refused, err := post(ctx, c, "/v1/chat/completions", s.body(false, s.o.Prompt, 1))
	if err != nil {
		t.Fatalf("a new request while it drains: %v, want 503 at once", err)
	}
	_ = refused.Body.Close()
	if refused.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new request while it drains: %s, want 503", refused.Status)
	}
	select {
	case err := <-drained:
		t.Fatalf("Drain returned (%v) while a request ran", err)
	default:
	}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(rest, []byte("[DONE]")) {
		t.Errorf("the running request was cut: %v", err)
	}
	if err := within(t, patience, "Drain after the last request", func() error { return <-drained }); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func (s *workerSuite) stop(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	resp := s.long(t.Context(), t, c)
	if err := within(t, patience, "Stop without grace", func() error { return w.Client.Stop(t.Context(), 0) }); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if rest, err := io.ReadAll(resp.Body); err == nil && bytes.Contains(rest, []byte("[DONE]")) {
		t.Error("the request that was cut ends as if it were whole")
	}
	if err := within(t, patience, "a second Stop", func() error { return w.Client.Stop(t.Context(), 0) }); err != nil && !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a second Stop: %v", err)
	}
	s.exited(t, w)
	if _, err := os.Lstat(w.DataSocket); err == nil {
		t.Error("the data socket is still there")
	}
}

func (s *workerSuite) exited(t *testing.T, w WorkerInstance) {
	t.Helper()
	if w.Exited == nil {
		return
	}
	select {
	case <-w.Exited:
	case <-time.After(patience):
		t.Errorf("the process is still there %s after Stop", patience)
	}
}

func (s *workerSuite) stopIdle(t *testing.T) {
	w := s.configured(t, s.o.Config)
	if err := within(t, patience, "Stop", func() error { return w.Client.Stop(t.Context(), time.Second) }); err != nil {
		t.Errorf("Stop: %v", err)
	}
	s.exited(t, w)
}

func (s *workerSuite) brokenStderr(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	if w.BreakStderr == nil {
		t.Skip("there is no standard error to break")
	}
	w.BreakStderr()
	for range 5 {
		if _, err := s.ask(t.Context(), c); err != nil {
			t.Fatalf("a worker whose host is gone must go on: %v", err)
		}
	}
	if _, err := w.Client.Status(t.Context()); err != nil {
		t.Fatalf("Status: %v", err)
	}
}
