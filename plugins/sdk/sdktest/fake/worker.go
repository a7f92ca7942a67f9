// Package fake provides a worker and a catalog source that need no engine and no network, for tests
// of code that uses plugins.
//
// The worker answers a prompt with the prompt's own words, one token each. Its config block makes
// it slow, or makes it fail, hang or crash.
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/api"
)

// Version is the version that the fakes report.
const Version = "1.2.3"

// Worker is the fake worker type. Create it with NewWorker.
type Worker struct {
	name string
	log  hclog.Logger

	mu       sync.Mutex // guards below
	config   workerConfig
	kept     []byte // state file that an earlier worker left
	spec     worker.StartSpec
	state    worker.State
	gate     *worker.Gate // nil before Start
	children []*exec.Cmd
}

var _ worker.Backend = (*Worker)(nil)

// workerConfig is the decoded config block.
type workerConfig struct {
	TokenDelay       string         `json:"token_delay"`
	LastToken        string         `json:"last_token"`
	LoadTime         string         `json:"load_time"`
	Tokens           int            `json:"tokens"`
	FailStart        string         `json:"fail_start"`
	FailAfterTokens  int            `json:"fail_after_tokens"`
	CrashAfterTokens int            `json:"crash_after_tokens"`
	Hang             []string       `json:"hang"`
	Problem          string         `json:"problem"`
	Child            bool           `json:"child"`
	KeepState        bool           `json:"keep_state"`
	Print            bool           `json:"print"`
	Secret           string         `json:"secret"`
	ByName           bool           `json:"by_name"`
	Models           []string       `json:"models"`
	Devices          []deviceConfig `json:"device"`

	tokenDelay, loadTime time.Duration
}

type deviceConfig struct {
	ID         string `json:"id"`
	TotalBytes int64  `json:"total_bytes"`
	FreeBytes  int64  `json:"free_bytes"`
}

// NewWorker returns a fake worker type with the given name.
func NewWorker(name string, log hclog.Logger) *Worker {
	return &Worker{name: name, log: log, state: worker.StateIdle}
}

// NameOf returns the plugin name in an executable's path: the part after rbee-<kind>-. A copy of a
// fake's executable is therefore a plugin of its own.
func NameOf(kind sdk.Kind, path string) string {
	return strings.TrimPrefix(filepath.Base(path), fmt.Sprintf("rbee-%s-", kind))
}

// Info describes the fake.
func (w *Worker) Info(context.Context) (sdk.Info, error) {
	info := sdk.Info{Name: w.name, Kind: sdk.KindWorker, Version: Version, Summary: "Answers with the words of the prompt, for tests.", Formats: []string{sdk.FormatGGUF}}
	if w.name == Engined {
		info.Engine, info.OtherEngines = engine("2"), []sdk.Engine{engine("1")}
	}
	return info, nil
}

// Engined is the plugin name for which the fake worker declares an engine: words v2, or v1.
const Engined = "engined"

func engine(n string) sdk.Engine {
	return sdk.Engine{Name: "words", Version: "v" + n, Ref: "fake:words@" + n, Prefix: "lib/", Links: map[string]string{"libwords.so": "libwords.v" + n + ".so"}}
}

// Schema lists the settings.
func (w *Worker) Schema(context.Context) (sdk.Schema, error) {
	attr := func(name, typ, def, doc string) sdk.Attribute {
		return sdk.Attribute{Name: name, Type: typ, Default: json.RawMessage(def), Doc: doc}
	}
	return sdk.Schema{
		Attributes: []sdk.Attribute{
			attr("token_delay", "string", `"0s"`, "Time before every token."),
			attr("last_token", "string", `""`, "A file: the last token waits until it is there."),
			attr("load_time", "string", `"0s"`, "Time that loading takes, reported in ten steps."),
			attr("tokens", "number", "0", "Tokens of every answer. 0: as many as the prompt has words."),
			attr("fail_start", "string", `""`, "Fails Start with this message."),
			attr("fail_after_tokens", "number", "0", "Ends every answer after that many tokens with an error. 0: never."),
			attr("crash_after_tokens", "number", "0", "Ends the process after that many tokens of an answer. 0: never."),
			attr("hang", "list(string)", "[]", "Calls that never return: configure, fingerprint, start, status, drain, stop, or stream for answers that stop in the middle."),
			attr("problem", "string", `""`, "What Fingerprint reports as the worker type's problem."),
			attr("child", "bool", "false", "Start keeps a child process running."),
			attr("keep_state", "bool", "false", "Keeps in StartSpec.StateFile how often it was stopped: an x for each time."),
			attr("print", "bool", "false", "Prints a line to standard output and to standard error for every token."),
			attr("by_name", "bool", "false", "Serves models by name, without files."),
			attr("models", "list(string)", "[]", "Models that it offers by name."),
			{Name: "secret", Type: "string", Sensitive: true, Doc: "Not used."},
		},
		Blocks: []sdk.Block{{
			Name: "device", Repeated: true, Doc: "A device to report. Without any there is fake:0.",
			Schema: sdk.Schema{Attributes: []sdk.Attribute{
				{Name: "id", Type: "string", Required: true, Doc: "Unique among the devices."},
				{Name: "total_bytes", Type: "number", Default: json.RawMessage("8589934592"), Doc: "Memory."},
				{Name: "free_bytes", Type: "number", Default: json.RawMessage("8589934592"), Doc: "Free memory."},
			}},
		}},
	}, nil
}

// Configure applies the settings.
func (w *Worker) Configure(ctx context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var c workerConfig
	if err := json.Unmarshal(config.JSON, &c); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var diags sdk.Diagnostics
	for _, d := range []struct {
		name, text string
		into       *time.Duration
	}{{"token_delay", c.TokenDelay, &c.tokenDelay}, {"load_time", c.LoadTime, &c.loadTime}} {
		v, err := time.ParseDuration(d.text)
		if d.text == "" {
			v, err = 0, nil
		}
		if err != nil || v < 0 {
			diags = append(diags, sdk.Diagnostic{
				Summary: "No duration", Detail: fmt.Sprintf("%q is not a duration. Write a number and a unit, such as \"20ms\".", d.text), Path: []any{d.name},
			})
		}
		*d.into = v
	}
	for i, h := range c.Hang {
		if !slices.Contains([]string{"configure", "fingerprint", "start", "status", "drain", "stop", "stream"}, h) {
			diags = append(diags, sdk.Diagnostic{Summary: "No such call", Detail: fmt.Sprintf("%q is no call that can hang.", h), Path: []any{"hang", i}})
		}
	}
	for i, d := range c.Devices {
		if slices.ContainsFunc(c.Devices[:i], func(o deviceConfig) bool { return o.ID == d.ID }) {
			diags = append(diags, sdk.Diagnostic{Summary: "Device given twice", Detail: fmt.Sprintf("The device %q is there already.", d.ID), Path: []any{"device", i, "id"}})
		}
	}
	if c.Tokens > 1000 {
		diags = append(diags, sdk.Diagnostic{Severity: sdk.Warning, Summary: "Long answers", Detail: "Answers of more than 1000 tokens make tests slow.", Path: []any{"tokens"}})
	}
	if diags.HasErrors() {
		return diags, nil
	}
	w.mu.Lock()
	w.config = c
	w.mu.Unlock()
	return diags, w.hang(ctx, "configure")
}

func (w *Worker) hang(ctx context.Context, call string) error {
	if !slices.Contains(w.knobs().Hang, call) {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (w *Worker) knobs() workerConfig {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.config
}

// Fingerprint reports the configured devices, at once and every 30 s.
func (w *Worker) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	if err := w.hang(ctx, "fingerprint"); err != nil {
		return err
	}
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		if err := emit(w.fingerprint()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (w *Worker) fingerprint() worker.Fingerprint {
	c := w.knobs()
	f := worker.Fingerprint{Problem: c.Problem, ByName: c.ByName, Models: c.Models, Checks: []worker.Check{{Name: "words", Passed: c.Problem == "", Detail: "the words of a prompt can be told apart"}}}
	for _, d := range c.Devices {
		kind := "fake"
		if d.ID == "cpu" { // main memory, which hosts measure better
			kind = d.ID
		}
		f.Devices = append(f.Devices, worker.Device{ID: d.ID, Kind: kind, Name: "Fake device " + d.ID, TotalBytes: d.TotalBytes, FreeBytes: d.FreeBytes})
	}
	if len(f.Devices) == 0 {
		f.Devices = []worker.Device{{ID: "fake:0", Kind: "fake", Name: "Fake device", TotalBytes: 8 << 30, FreeBytes: 8 << 30}}
	}
	return f
}

// Start pretends to load the model, which must be a file.
func (w *Worker) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	c := w.knobs()
	w.set(worker.StateLoading)
	err := w.load(ctx, c, spec, progress)
	if err != nil {
		w.set(worker.StateFailed)
		return nil, err
	}
	kept, _ := os.ReadFile(spec.StateFile) // an error means that nothing was kept
	_ = os.Remove(spec.StateFile)
	o := w.served(spec)
	w.mu.Lock()
	w.kept = kept
	w.spec, w.state, w.gate = spec, worker.StateReady, o.Gate
	w.mu.Unlock()
	w.log.Info("model loaded", "model", spec.ModelID, "device", spec.Device)
	return api.New(o), nil
}

func (w *Worker) load(ctx context.Context, c workerConfig, spec worker.StartSpec, progress func(worker.Progress) error) error {
	size := int64(1)
	if !c.ByName {
		info, err := os.Stat(spec.ModelPath)
		if err != nil {
			return fmt.Errorf("model file: %w: %w", err, sdk.ErrNotFound)
		}
		size = info.Size()
	}
	if devices := w.fingerprint().Devices; !slices.ContainsFunc(devices, func(d worker.Device) bool { return d.ID == spec.Device }) {
		return sdk.WithHint(fmt.Errorf("device %q: %w", spec.Device, sdk.ErrNotFound), "The first device is %q.", devices[0].ID)
	}
	const steps = 10
	for i := range steps {
		if err := progress(worker.Progress{Phase: "reading the model", Done: size * int64(i+1) / steps, Total: size, Unit: "bytes"}); err != nil {
			return err
		}
		if err := sleep(ctx, c.loadTime/steps); err != nil {
			return err
		}
		if i == steps/2 {
			if err := w.hang(ctx, "start"); err != nil {
				return err
			}
			if c.FailStart != "" {
				return errors.New(c.FailStart)
			}
		}
	}
	if c.Child {
		child := exec.Command("sleep", "600")
		if err := child.Start(); err != nil {
			return fmt.Errorf("child: %w", err)
		}
		w.mu.Lock()
		w.children = append(w.children, child)
		w.mu.Unlock()
	}
	return nil
}

func (w *Worker) set(s worker.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = s
}

// Status reports the state and the load.
func (w *Worker) Status(ctx context.Context) (worker.Status, error) {
	if err := w.hang(ctx, "status"); err != nil {
		return worker.Status{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	can := api.Options{Model: w}
	st := worker.Status{
		WorkerID: w.spec.WorkerID, Nonce: w.spec.Nonce, ModelID: w.spec.ModelID, State: w.state, ContextTokens: w.contextLocked(), Capabilities: can.Capabilities(),
	}
	w.gate.Fill(&st)
	if w.state == worker.StateStopped {
		st.State = w.state
	}
	return st, nil
}

func (w *Worker) contextLocked() int {
	if w.spec.ContextTokens > 0 {
		return w.spec.ContextTokens
	}
	return 4096
}

// Drain refuses new requests and waits for the running ones.
func (w *Worker) Drain(ctx context.Context) error {
	if err := w.hang(ctx, "drain"); err != nil {
		return err
	}
	return w.current().Drain(ctx)
}

func (w *Worker) current() *worker.Gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gate
}

// Stop drains for the grace, then cuts the remaining requests.
func (w *Worker) Stop(ctx context.Context, grace time.Duration) error {
	if err := w.hang(ctx, "stop"); err != nil {
		return err
	}
	err := w.current().Stop(ctx, grace)
	w.mu.Lock()
	children := w.children
	w.children = nil
	w.state = worker.StateStopped
	w.mu.Unlock()
	for _, c := range children {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	if file := w.stateFile(); file != "" {
		return errors.Join(err, os.WriteFile(file, append(w.kept, 'x'), 0o600))
	}
	return err
}

// stateFile returns the path of the state file; empty: nothing may be kept.
func (w *Worker) stateFile() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.config.KeepState {
		return ""
	}
	return w.spec.StateFile
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
