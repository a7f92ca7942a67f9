package sdktest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// WorkerClient is a worker as its host calls it. *worker.Client implements it.
type WorkerClient interface {
	sdk.Plugin
	Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error
	Start(ctx context.Context, spec worker.StartSpec, dataSocket string, progress func(worker.Progress) error) error
	Status(ctx context.Context) (worker.Status, error)
	Drain(ctx context.Context) error
	Stop(ctx context.Context, grace time.Duration) error
}

var _ WorkerClient = (*worker.Client)(nil)

// WorkerInstance is one running, unconfigured worker.
type WorkerInstance struct {
	Client     WorkerClient
	DataSocket string          // where Start must serve
	Exited     <-chan struct{} // closed when the process exits; nil if there is no process
	// BreakStderr and BreakStdout close the host's end of the process's standard error and output,
	// as the host's death would; nil if that is impossible. The same holds for the fields below.
	BreakStderr, BreakStdout func()
	// the beginning of the standard output after the handshake line
	Printed  func() string
	Untether func() // closes the process's standard input
}

// WorkerTarget is a worker type to test. Each call of Launch returns a new worker, which ends with
// the test.
type WorkerTarget struct {
	Launch func(t testing.TB) WorkerInstance
}

// WorkerInProcess tests an implementation in this process, over the wire protocol.
func WorkerInProcess(backend func() worker.Backend) WorkerTarget {
	return WorkerTarget{Launch: func(t testing.TB) WorkerInstance {
		dir := privateDir(t)
		var stop func(context.Context, time.Duration) error
		conn := inProcess(t, func(s *grpc.Server) { stop = worker.Register(s, backend(), logger(t)) })
		t.Cleanup(func() {
			if err := stop(context.Background(), 0); err != nil { // the test's context has ended
				t.Errorf("Stop at the end: %v", err)
			}
		})
		return WorkerInstance{Client: worker.NewClient(conn), DataSocket: filepath.Join(dir, "data.sock")}
	}}
}

// WorkerBinary tests an executable. env is appended to a small environment: NAME=value.
func WorkerBinary(path string, env ...string) WorkerTarget {
	return WorkerTarget{Launch: func(t testing.TB) WorkerInstance {
		p := start(t, sdk.KindWorker, path, env)
		return WorkerInstance{
			Client: worker.NewClient(p.conn), DataSocket: filepath.Join(p.dir, "data.sock"), Exited: p.done,
			BreakStderr: p.breakStderr, BreakStdout: p.breakStdout, Printed: p.printed, Untether: p.untether,
		}
	}}
}

// WorkerOptions describe what the worker under test needs.
type WorkerOptions struct {
	// passed to Configure, on top of the schema's defaults; nil: the defaults
	Config        json.RawMessage
	BadConfig     json.RawMessage // likewise; must be rejected with a path; nil: not tested
	EngineDir     string          // as in sdk.Config
	ModelPath     string          // empty: an empty file, which most worker types reject
	Device        string          // empty: the first one that Fingerprint reports without a problem
	Slots         int             // 0: 2
	ContextTokens int
	Threads       int
	StartTimeout  time.Duration // how long loading may take; 0: one minute
	Prompt        string        // prompt of the requests; empty: "Count to ten."
	// LongConfig makes answers long enough to be cancelled in the middle; nil: Config. LongTokens
	// is their max_tokens; 0: 512.
	LongConfig json.RawMessage
	LongTokens int
	LongPrompt string // empty: Prompt
	// AnyLength means that answers may end before they can be cut in the middle: tests that need
	// longer ones are then skipped.
	AnyLength bool
	// NoStart means that there is no engine or no model to start with: tests that need a running
	// worker are skipped.
	NoStart bool
}

// modelID is the suite's name for the model.
const modelID = "sdktest-model"

// Worker runs the suite.
func Worker(t *testing.T, target WorkerTarget, o WorkerOptions) {
	s := &workerSuite{target: target, o: o}
	s.defaults(t)
	fresh := func(t testing.TB) sdk.Plugin { return target.Launch(t).Client }
	c := plugin(t, sdk.KindWorker, fresh, s.o.Config, s.o.BadConfig)
	s.o.Config, s.o.LongConfig, s.missing = c.with(s.o.Config), c.with(s.o.LongConfig), c.missing(s.o.Config)
	t.Run("fingerprint", s.fingerprint)
	t.Run("refused starts", s.starts(s.refusedStarts))
	t.Run("life", s.starts(s.life))
	t.Run("capabilities", s.starts(s.capabilities))
	t.Run("answers", s.starts(s.answers))
	t.Run("more requests than slots", s.starts(s.crowd))
	t.Run("slots", s.starts(s.slotLimit))
	t.Run("cancelled request", s.starts(s.cancel))
	t.Run("cancelled while queued", s.starts(s.cancelQueued))
	t.Run("drain", s.starts(s.drain))
	t.Run("stop", s.starts(s.stop))
	t.Run("stop before start", s.stopIdle)
	t.Run("broken standard error", s.starts(s.brokenStderr))
	t.Run("standard output", s.starts(s.stdout))
	t.Run("tether", s.starts(s.tether))
}

// starts wraps a test that needs an engine and a model.
func (s *workerSuite) starts(test func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		if s.o.NoStart {
			t.Skip("there is no engine or no model to start with")
		}
		test(t)
	}
}

type workerSuite struct {
	target  WorkerTarget
	o       WorkerOptions
	missing []string // required settings without a value
}

func (s *workerSuite) defaults(t *testing.T) {
	t.Helper()
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
	skipWithout(t, s.missing)
	w := s.target.Launch(t)
	diags, err := w.Client.Configure(t.Context(), sdk.Config{JSON: config, EngineDir: s.o.EngineDir})
	if err != nil || diags.HasErrors() {
		brokenNow(t, "configure-defaults", "Configure: %v %v", diags, err)
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
		Slots: s.o.Slots, ContextTokens: s.o.ContextTokens, Threads: s.o.Threads, EngineDir: s.o.EngineDir, DataOpening: dataOpening,
		ModelDigest: "sha256:" + strings.Repeat("0", 64), StateFile: stateFile(w), PrefixKey: []byte("sdktest"),
	}
}

// stateFile returns the path at which a worker may keep its state.
func stateFile(w WorkerInstance) string { return filepath.Join(filepath.Dir(w.DataSocket), "state") }

var errEnough = errors.New("enough")

func firstDevice(t testing.TB, c WorkerClient) string {
	t.Helper()
	var id, problem string
	reported := false
	err := c.Fingerprint(t.Context(), func(f worker.Fingerprint) error {
		reported, problem = true, f.Problem
		for _, d := range f.Devices {
			if d.Problem == "" && id == "" {
				id = d.ID
			}
		}
		return errEnough
	})
	if !reported {
		brokenNow(t, "fingerprint-first", "Fingerprint ended without a report: %v", err)
	}
	if id == "" {
		brokenNow(t, "fingerprint-devices", "Fingerprint reports no device that can be used: %s (%v)", problem, err)
	}
	return id
}

// started returns a worker that is ready.
func (s *workerSuite) started(t testing.TB, config json.RawMessage) (WorkerInstance, *http.Client) {
	t.Helper()
	w := s.configured(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), s.o.StartTimeout)
	defer cancel()
	if err := w.Client.Start(ctx, s.spec(t, w), w.DataSocket, nil); err != nil {
		brokenNow(t, "start", "Start: %v", err)
	}
	st, err := w.Client.Status(t.Context())
	if err != nil || st.Slots != s.o.Slots {
		brokenNow(t, "status", "started with %d slots, the status is %+v (%v)", s.o.Slots, st, err)
	}
	opening := ""
	if st.DataGuarded {
		opening = dataOpening
	}
	return w, dataClient(t, w.DataSocket, opening)
}

// dataOpening begins every connection to the data socket of a worker that checks it.
const dataOpening = "rbee sdktest-opening\n"

func dataClient(t testing.TB, socket, opening string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil && opening != "" {
			_, err = io.WriteString(c, opening)
		}
		return c, err
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
				broken(t, "fingerprint-devices", "device %+v: id (unique), kind and name must be set", d)
			}
			seen[d.ID] = true
			if d.TotalBytes < 0 || d.FreeBytes < 0 || (d.TotalBytes > 0 && d.FreeBytes > d.TotalBytes) {
				broken(t, "fingerprint-devices", "device %s has %d of %d bytes free", d.ID, d.FreeBytes, d.TotalBytes)
			}
		}
		if f.Problem == "" && len(f.Devices) == 0 {
			broken(t, "fingerprint-devices", "no device, and no problem that explains it")
		}
	case err := <-done:
		brokenNow(t, "fingerprint-first", "Fingerprint ended without a report: %v", err)
	case <-time.After(patience):
		brokenNow(t, "fingerprint-first", "no report within %s", patience)
	}
	cancel()
	select {
	case err := <-done:
		if err == nil {
			broken(t, "fingerprint-ends", "Fingerprint returns no error after its context ended")
		}
	case <-time.After(patience):
		brokenNow(t, "fingerprint-ends", "Fingerprint still runs %s after its context ended", patience)
	}
}

func (s *workerSuite) refusedStarts(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*worker.StartSpec)
		is     error // nil: any error
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
			err := within(t, "start-refuses", s.o.StartTimeout, "a start that must fail", func() error { return w.Client.Start(t.Context(), spec, w.DataSocket, nil) })
			if err == nil || (tc.is != nil && !errors.Is(err, tc.is)) {
				brokenNow(t, "start-refuses", "Start: %v, want an error (%v)", err, tc.is)
			}
			st, err := w.Client.Status(t.Context())
			if err != nil {
				brokenNow(t, "status", "Status after a failed start: %v", err)
			}
			if st.State == worker.StateReady {
				broken(t, "start-failed", "the worker reports that it is ready")
			}
			if tc.is == nil && (st.State != worker.StateFailed || st.Problem == "") {
				broken(t, "start-failed", "the worker reports %s (%q), want failed with a problem", st.State, st.Problem)
			}
		})
	}
}

func (s *workerSuite) life(t *testing.T) {
	w := s.configured(t, s.o.Config)
	st, err := w.Client.Status(t.Context())
	if err != nil || st.State != worker.StateIdle {
		broken(t, "status", "before Start the state is %q, want idle (%v)", st.State, err)
	}
	spec := s.spec(t, w)
	last := map[string]int64{}
	ctx, cancel := context.WithTimeout(t.Context(), s.o.StartTimeout)
	defer cancel()
	err = w.Client.Start(ctx, spec, w.DataSocket, func(p worker.Progress) error {
		if p.Done < last[p.Phase] || (p.Total > 0 && p.Done > p.Total) {
			broken(t, "start-progress", "progress of %q goes from %d to %d of %d", p.Phase, last[p.Phase], p.Done, p.Total)
		}
		last[p.Phase] = p.Done
		if st, err := w.Client.Status(ctx); err != nil || st.State != worker.StateLoading && st.State != worker.StateReady {
			broken(t, "status", "while it loads the state is %q (%v)", st.State, err)
		}
		return nil
	})
	if err != nil {
		brokenNow(t, "start", "Start: %v", err)
	}
	st, err = w.Client.Status(t.Context())
	if err != nil {
		brokenNow(t, "status", "Status: %v", err)
	}
	if st.State != worker.StateReady || st.WorkerID != spec.WorkerID || st.Nonce != spec.Nonce || st.ModelID != spec.ModelID || st.Slots != spec.Slots || st.ContextTokens <= 0 {
		broken(t, "status", "after Start the status is %+v", st)
	}
	if info, err := os.Lstat(w.DataSocket); err != nil || info.Mode().Perm()&0o077 != 0 {
		broken(t, "data-socket", "others can use the data socket: %v %v", info, err)
	}
	if st.DataGuarded {
		s.guarded(t, w)
	}
	if err := w.Client.Start(t.Context(), spec, w.DataSocket+"2", nil); !errors.Is(err, sdk.ErrState) {
		broken(t, "start-once", "a second Start: %v, want ErrState", err)
	}
}

// guarded checks that a worker that reports DataGuarded serves only connections with the right
// opening.
func (*workerSuite) guarded(t *testing.T, w WorkerInstance) {
	t.Helper()
	for name, opening := range map[string]string{"none": "", "another": strings.Repeat("x", len(dataOpening)), "a part": dataOpening[:len(dataOpening)/2]} {
		c := dataClient(t, w.DataSocket, opening)
		c.Timeout = patience
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://worker/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := c.Do(req); err == nil {
			_ = resp.Body.Close()
			broken(t, "data-guard", "a connection with %s of the opening is answered with %s", name, resp.Status)
		}
	}
}

func (s *workerSuite) stop(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	answer := s.long(t.Context(), t, c)
	if err := within(t, "stop", patience, "Stop without grace", func() error { return w.Client.Stop(t.Context(), 0) }); err != nil {
		broken(t, "stop", "Stop: %v", err)
	}
	if rest, err := io.ReadAll(answer); err == nil && bytes.Contains(rest, []byte("[DONE]")) && !s.o.AnyLength {
		broken(t, "stop", "the request that was cut ends as if it were whole")
	}
	if err := within(t, "stop", patience, "a second Stop", func() error { return w.Client.Stop(t.Context(), 0) }); err != nil && !errors.Is(err, sdk.ErrUnavailable) {
		broken(t, "stop", "a second Stop: %v", err)
	}
	s.exited(t, w)
	if _, err := os.Lstat(w.DataSocket); err == nil {
		broken(t, "data-socket", "the data socket still exists")
	}
	if _, err := os.Lstat(stateFile(w)); err == nil {
		broken(t, "state-file", "it saved something to StateFile although its configuration does not allow it")
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
		broken(t, "stop", "the process still runs %s after Stop", patience)
	}
}

func (s *workerSuite) stopIdle(t *testing.T) {
	w := s.configured(t, s.o.Config)
	if err := within(t, "stop", patience, "Stop", func() error { return w.Client.Stop(t.Context(), time.Second) }); err != nil {
		broken(t, "stop", "Stop: %v", err)
	}
	s.exited(t, w)
}
