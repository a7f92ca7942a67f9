// Package simple builds a complete worker type from Go functions.
package simple

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/api"
)

// Worker is a worker type. Either Generate or Load is set.
type Worker struct {
	// Info needs Name, Version and Summary. Kind is filled in.
	Info sdk.Info
	// Generate answers a prompt: it calls emit with the text of one token after the other. The
	// prompt is a completion's, or the transcript of a conversation: see api.Transcript. An error
	// of emit means that no more text is wanted, and Generate returns with any error. Several calls
	// run at once, one for each slot.
	Generate func(ctx context.Context, prompt string, emit func(token string) error) error
	// Load loads a model. It replaces Generate for a type that can do more. Its errors are those of
	// worker.Backend's Start.
	Load func(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (Loaded, error)
	// Device is what the workers run on; the zero value: a device named after the type. The device
	// belongs to this type alone, unless its Kind is another type's name.
	Device worker.Device
	// Problem returns a sentence that says why the type cannot work on this machine; nil: it can.
	Problem func(ctx context.Context) string
	// Models lists the models that the type serves without a file; nil: it needs a file.
	Models []string
	// Schema describes the type's config block. Configure receives it as JSON, decoded and with
	// defaults filled in; nil accepts any configuration.
	Schema    sdk.Schema
	Configure func(ctx context.Context, config sdk.Config) (sdk.Diagnostics, error)
}

// Loaded is a loaded model.
type Loaded struct {
	Model         api.Model     // nil: it generates no text
	Embedder      api.Embedder  // nil: it has no embeddings
	Tokenizer     api.Tokenizer // nil: words are counted as tokens
	ContextTokens int           // positions per slot; 0: as many as Start asks for, or 8192
	Close         func()        // frees the model once no request runs; nil: nothing to free
}

// Serve runs w as the plugin of this process and returns when the process should end: see
// worker.Serve.
func Serve(w Worker) { worker.Serve(w.Backend(sdk.Log(w.Info.Name))) }

// Backend returns the worker type as a worker.Backend, for Serve and for tests. log receives the
// errors that clients do not see.
func (w Worker) Backend(log *slog.Logger) worker.Backend {
	w.Info.Kind = sdk.KindWorker
	if w.Device.ID == "" {
		w.Device = worker.Device{ID: w.Info.Name, Kind: w.Info.Name, Name: w.Info.Summary}
	}
	return &backend{Worker: w, log: log, state: worker.StateIdle}
}

// defaultContext is the context size of a model that does not state one.
const defaultContext = 8192

// backend is one process of the worker type.
type backend struct {
	Worker
	log *slog.Logger

	mu     sync.Mutex // guards below
	state  worker.State
	gate   *worker.Gate // nil until the model is loaded, like the fields below
	loaded Loaded
	can    []worker.Capability
}

func (b *backend) Info(context.Context) (sdk.Info, error) { return b.Worker.Info, nil }

func (b *backend) Schema(context.Context) (sdk.Schema, error) { return b.Worker.Schema, nil }

func (b *backend) Configure(ctx context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	if b.Worker.Configure == nil {
		return nil, nil
	}
	return b.Worker.Configure(ctx, config)
}

// reportEvery is the time between two Fingerprint reports; at most 30 s are allowed.
const reportEvery = 20 * time.Second

func (b *backend) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	return worker.Look(ctx, reportEvery, func(ctx context.Context) worker.Fingerprint {
		f := worker.Fingerprint{Devices: []worker.Device{b.Device}, ByName: b.Models != nil, Models: b.Models}
		if b.Problem != nil {
			f.Problem = b.Problem(ctx)
		}
		return f
	}, emit)
}

func (b *backend) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	b.set(worker.StateLoading)
	handler, err := b.start(ctx, spec, progress)
	if err != nil {
		b.set(worker.StateFailed)
	}
	return handler, err
}

func (b *backend) start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	if spec.Device != b.Device.ID {
		return nil, sdk.WithHint(fmt.Errorf("there is no device %q: %w", spec.Device, sdk.ErrNotFound), "The device is %q.", b.Device.ID)
	}
	if b.Models == nil {
		if _, err := os.Stat(spec.ModelPath); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the model's file: %w: %w", err, sdk.ErrNotFound)
		} else if err != nil {
			return nil, fmt.Errorf("the model's file: %w", err)
		}
	}
	loaded := Loaded{Model: generator(b.Generate)}
	if b.Load != nil {
		var err error
		if loaded, err = b.Load(ctx, spec, progress); err != nil {
			return nil, err
		}
	}
	loaded.ContextTokens = cmp.Or(loaded.ContextTokens, spec.ContextTokens, defaultContext)
	o := api.Options{
		ModelID: spec.ModelID, Gate: worker.NewGate(spec.Slots), Model: loaded.Model, Embedder: loaded.Embedder, Tokenizer: loaded.Tokenizer, Log: b.log,
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == worker.StateStopped {
		return nil, fmt.Errorf("the worker is stopped: %w", sdk.ErrState)
	}
	b.state, b.gate, b.loaded, b.can = worker.StateReady, o.Gate, loaded, o.Capabilities()
	return api.New(o), nil
}

// set sets the state, unless the worker is stopped.
func (b *backend) set(s worker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != worker.StateStopped {
		b.state = s
	}
}

func (b *backend) Status(context.Context) (worker.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := worker.Status{State: b.state, ContextTokens: b.loaded.ContextTokens, Capabilities: b.can}
	if b.state == worker.StateReady {
		b.gate.Fill(&st)
	}
	return st, nil
}

func (b *backend) Drain(ctx context.Context) error { return b.current().Drain(ctx) }

func (b *backend) current() *worker.Gate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gate
}

func (b *backend) Stop(ctx context.Context, grace time.Duration) error {
	err := b.current().Stop(ctx, grace)
	b.mu.Lock()
	b.state = worker.StateStopped
	end := b.loaded.Close
	b.loaded.Close = nil
	b.mu.Unlock()
	if end != nil && err == nil { // otherwise requests still use it
		end()
	}
	return err
}

// generator is an api.Model that calls a function of a prompt.
type generator func(ctx context.Context, prompt string, emit func(token string) error) error

func (g generator) Generate(ctx context.Context, r api.Request, emit func(string) error) error {
	switch {
	case len(r.Sampling.LogitBias) > 0:
		return openai.NotSupported("logit_bias", "logit_bias is not supported by this worker; leave it out")
	case r.Sampling.LoRA != nil && len(*r.Sampling.LoRA) > 0:
		return openai.NotSupported("lora", "lora is not supported by this worker; leave it out")
	}
	return g(ctx, r.Prompt, emit)
}
