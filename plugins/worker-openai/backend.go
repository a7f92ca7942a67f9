package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/child"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

// endTime is how long a server may take to exit after its requests have ended.
const endTime = 3 * time.Second

// backend implements the worker type.
type backend struct {
	log hclog.Logger

	mu       sync.Mutex // guards below
	settings settings
	running  *running // nil before Start
	ready    bool     // Start has succeeded
	stopped  bool
	failed   string // why a worker that was ready is unusable
}

var _ worker.Backend = (*backend)(nil)

func newBackend(log hclog.Logger) *backend { return &backend{log: log} }

// running is the server that a worker uses.
type running struct {
	server  *child.Child // nil: not started by this worker
	forward *forward.Forwarder
	gate    *worker.Gate
	facts   facts  // written by Start before the worker is ready
	dir     string // of the server's socket; empty: none
	end     context.CancelFunc
	watched sync.WaitGroup

	mu     sync.Mutex // guards below
	prompt int64      // tokens
	cached int64
}

func (b *backend) config() settings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.settings
}

// Info describes the worker type.
func (b *backend) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{
		Name: "openai", Kind: sdk.KindWorker, Version: version,
		Summary: "Runs a server that speaks OpenAI's API, such as llama-server or vLLM, or uses one that runs already.",
	}, nil
}

// Start starts the server, or connects to a running one, and returns when the server has answered.
func (b *backend) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	s := b.config()
	if err := b.checkStart(ctx, s, spec); err != nil {
		return nil, err
	}
	r, err := b.launch(s, spec)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.running = r
	stopped := b.stopped
	b.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if stopped {
		err = errStopped
	} else {
		r.facts, err = r.await(limited, s, spec, progress)
	}
	if err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = b.late(r, s, err)
		}
		r.close(0)
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped { // Stop has ended the server, or will
		return nil, errStopped
	}
	b.ready = true
	life, end := context.WithCancel(context.Background()) // lifetime of the worker
	r.end = end
	r.watched.Go(func() { b.watch(life, r, s) })
	return r.gate.Handler(r.facts.handler(r.forward)), nil
}

var errStopped = fmt.Errorf("the worker is stopped: %w", sdk.ErrState)

// late returns the error for a server that never answered.
func (b *backend) late(r *running, s settings, last error) error {
	text := fmt.Sprintf("the server does not answer within %s; at last: %v", s.timeout, last)
	if r.server != nil {
		text = strings.Join(append([]string{text}, r.server.LastWords()...), "\n  ")
	}
	return fmt.Errorf("%s: %w", text, sdk.ErrUnavailable)
}

func (b *backend) checkStart(ctx context.Context, s settings, spec worker.StartSpec) error {
	f := b.fingerprint(ctx)
	if f.Problem != "" {
		return fmt.Errorf("%s: %w", f.Problem, sdk.ErrUnsupported)
	}
	if !slices.ContainsFunc(f.Devices, func(d worker.Device) bool { return d.ID == spec.Device }) {
		return fmt.Errorf("there is no device %q: %w", spec.Device, sdk.ErrNotFound)
	}
	if spec.ModelPath == "" && !s.byName() {
		return fmt.Errorf("the server needs a model's files: %w", sdk.ErrInvalid)
	}
	if spec.ModelPath != "" {
		if _, err := os.Stat(spec.ModelPath); err != nil {
			return fmt.Errorf("the model's file: %w: %w", err, sdk.ErrNotFound)
		}
	}
	return nil
}

// launch starts the server unless the settings name a running one.
func (b *backend) launch(s settings, spec worker.StartSpec) (*running, error) {
	r := &running{end: func() {}, gate: worker.NewGate(spec.Slots)}
	name := s.Model
	if name == "" {
		name = spec.ModelID
	}
	o := forward.Options{Targets: s.targets, Hide: map[string]string{}, Count: r.count}
	if spec.ModelPath != "" {
		o.Hide[spec.ModelPath] = spec.ModelID
	}
	if s.adopts() {
		for _, t := range s.targets {
			o.Hide[t.URL.Host] = "the server"
		}
		o.Reuse = s.Preset != "llama-server" // llama-server closes its connections after streams
		if name != spec.ModelID {
			o.Model = name
		}
		r.forward = forward.New(o)
		return r, nil
	}
	port, err := child.FreePort()
	if err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s"); err != nil {
		return nil, fmt.Errorf("folder of the server's socket: %w", err)
	}
	socket := filepath.Join(r.dir, "s.sock") // some servers recognise a socket by its suffix
	template := s.template()
	v := valuesOf(spec, name, port, socket)
	target := forward.Target{URL: s.localURL(port)}
	if usesSocket(template) {
		target.Socket = socket
	}
	// A server with its own model names gets the name that it knows.
	if s.Preset == "ollama" && name != spec.ModelID || s.Preset == "" && s.Model != "" {
		o.Model = name
	}
	o.Targets = []forward.Target{target}
	o.Hide[r.dir] = "the server"
	o.Hide[target.URL.Host] = "the server"
	log := b.log.Named("server")
	r.server, err = child.Start(child.Command{
		Args: v.expand(template), Env: s.environ(v, spec.Device), Log: func(line string) { log.Info(line) },
	})
	if err != nil {
		_ = os.RemoveAll(r.dir)
		return nil, err
	}
	r.forward = forward.New(o)
	b.log.Info("server started", "program", template[0], "pid", r.server.PID())
	return r, nil
}

// environ returns the server's environment: the variables passed on by the host, the device, the
// preset's variables, and those of the settings.
func (s *settings) environ(v values, device string) []string {
	env := append(append(child.Environ(), deviceEnv(device)...), v.expand(s.preset.env)...)
	for name, value := range s.Env {
		env = append(env, name+"="+value)
	}
	return env
}

func (r *running) count(u forward.Usage) {
	if u.Generated > 0 {
		r.gate.AddTokens(u.Generated)
	}
	if u.Prompt > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.prompt += int64(u.Prompt)
		r.cached += int64(u.Cached)
	}
}

// close ends the server.
func (r *running) close(grace time.Duration) {
	r.end()
	r.watched.Wait()
	r.forward.Close()
	if r.server == nil {
		return
	}
	// A shutdown deadline: no caller's context applies.
	r.server.End(context.Background(), grace)
	_ = os.RemoveAll(r.dir)
}

// Status reports the state and the load.
func (b *backend) Status(context.Context) (worker.Status, error) {
	b.mu.Lock()
	r, ready, failed := b.running, b.ready, b.failed
	b.mu.Unlock()
	st := worker.Status{State: worker.StateLoading}
	if !ready {
		return st, nil
	}
	st.State, st.ContextTokens, st.Capabilities = worker.StateReady, r.facts.contextTokens, r.facts.capabilities
	r.gate.Fill(&st)
	r.mu.Lock()
	st.PromptTokensTotal, st.CachedTokensTotal = max(r.prompt-r.cached, 0), r.cached
	r.mu.Unlock()
	if failed != "" {
		st.State, st.Problem = worker.StateFailed, failed
	}
	return st, nil
}

// Drain refuses new requests and waits for the running ones.
func (b *backend) Drain(ctx context.Context) error {
	if r := b.current(); r != nil {
		return r.gate.Drain(ctx)
	}
	return nil
}

// Stop ends the requests, then the server.
func (b *backend) Stop(ctx context.Context, grace time.Duration) error {
	b.mu.Lock()
	b.stopped = true
	b.mu.Unlock()
	r := b.current()
	if r == nil {
		return nil
	}
	err := r.gate.Stop(ctx, grace)
	r.close(endTime)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil // requests still running have ended with the server
	}
	return err
}

func (b *backend) current() *running {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running
}
