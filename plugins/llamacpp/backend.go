package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

var _ worker.Backend = (*Backend)(nil)

// Backend is a worker.Backend on llama.cpp. Make it with New. It is safe for concurrent use.
type Backend struct {
	flavour Flavour
	version string
	log     hclog.Logger
	gate    gate

	mu        sync.Mutex // guards below
	config    config
	engineDir string // from Configure
	spec      worker.StartSpec
	state     worker.State
	problem   string
	loaded    chan struct{} // closed when Start has returned; nil before Start
	stopLoad  bool          // Stop was called while a model loads
	served    *served
}

// served is what a successful Start leaves: owned by the engine's goroutine until it is done, then
// by Stop.
type served struct {
	model   *model
	engine  *engine
	threads int
}

// Info says who the plugin is and which engine it needs here.
func (b *Backend) Info(context.Context) (sdk.Info, error) {
	info := sdk.Info{Name: string(b.flavour), Kind: sdk.KindWorker, Version: b.version, Summary: b.flavour.summary(), Formats: []string{sdk.FormatGGUF}}
	if engines := enginesFor(b.flavour, runtime.GOOS, runtime.GOARCH); len(engines) > 0 {
		info.Engine, info.OtherEngines = engines[0], engines[1:]
	}
	return info, nil
}

// Schema says what may stand in the config block.
func (b *Backend) Schema(context.Context) (sdk.Schema, error) { return schema(b.flavour), nil }

// Configure takes the config block.
func (b *Backend) Configure(_ context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	conf, diags, err := decodeConfig(b.flavour, c.JSON)
	if err != nil || diags.HasErrors() {
		return diags, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config, b.engineDir = conf, c.EngineDir
	return diags, nil
}

// Start loads the model and returns what answers its requests.
func (b *Backend) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	b.mu.Lock()
	if b.state != worker.StateIdle {
		b.mu.Unlock()
		return nil, fmt.Errorf("start: the worker is %s already: %w", b.state, sdk.ErrState)
	}
	if spec.Slots < 1 || spec.ContextTokens < 0 || spec.Threads < 0 || spec.ModelPath == "" {
		b.mu.Unlock()
		return nil, fmt.Errorf("start: a model path and at least one slot are needed, and no number may be negative: %w", sdk.ErrInvalid)
	}
	if spec.EngineDir == "" {
		spec.EngineDir = b.engineDir
	}
	conf := b.config
	b.state, b.spec, b.loaded = worker.StateLoading, spec, make(chan struct{})
	b.mu.Unlock()

	s, err := b.load(ctx, spec, conf, progress)

	b.mu.Lock()
	defer b.mu.Unlock()
	defer close(b.loaded)
	if err != nil {
		b.state, b.problem = worker.StateFailed, err.Error()
		return nil, err
	}
	b.served = s
	go s.engine.run() // ended and awaited by Stop
	if b.state == worker.StateLoading {
		b.state = worker.StateReady
	}
	srv := &server{engine: s.engine, model: s.model, modelID: spec.ModelID, started: time.Now().Unix(), gate: &b.gate, now: time.Now}
	return srv.handler(), nil
}

// load loads engine and model and makes the context.
func (b *Backend) load(ctx context.Context, spec worker.StartSpec, conf config, progress func(worker.Progress) error) (*served, error) {
	report := func(p worker.Progress) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("load model: %w", err)
		}
		if b.loadStopped() {
			return fmt.Errorf("load model: the worker is stopping: %w", sdk.ErrState)
		}
		if progress == nil {
			return nil
		}
		return progress(p)
	}
	if spec.EngineDir == "" {
		return nil, sdk.WithHint(fmt.Errorf("start: there is no engine folder: %w", sdk.ErrInvalid), "Download the worker binary, which brings the engine: rbee worker download %s.", b.flavour)
	}
	if err := report(worker.Progress{Phase: "loading the engine"}); err != nil {
		return nil, err
	}
	if err := theLibrary.load(spec.EngineDir, b.log); err != nil {
		return nil, err
	}
	device, err := b.device(spec.Device)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(spec.ModelPath); err != nil {
		return nil, sdk.WithHint(fmt.Errorf("load model: %w: %w", err, sdk.ErrNotFound), "Download the model again.")
	}
	handle, err := loadModel(spec.ModelPath, device, b.flavour, conf, report)
	if err != nil {
		return nil, err
	}
	if err := report(worker.Progress{Phase: "preparing the context"}); err != nil {
		freeModel(handle)
		return nil, err
	}
	s, err := b.prepare(handle, spec, conf)
	if err != nil {
		freeModel(handle)
		return nil, err
	}
	b.log.Info("model loaded", "model", spec.ModelID, "device", device.name, "engine", theLibrary.version, "slots", spec.Slots, "context", s.engine.limit, "threads", s.threads)
	return s, nil
}

func freeModel(handle llama.Model) { _ = llama.ModelFree(handle) } // fails for no model only

// device finds the engine's device for a Device.ID. There is no falling back to another kind.
func (b *Backend) device(id string) (engineDevice, error) {
	list := theLibrary.deviceList(b.flavour)
	if len(list) == 0 {
		err := fmt.Errorf("start: %s: %w", b.noDevice(), sdk.ErrUnsupported)
		return engineDevice{}, err
	}
	if b.flavour == CPU {
		if id != "" && id != "cpu" {
			return engineDevice{}, fmt.Errorf("start: this worker type has the device cpu, not %q: %w", id, sdk.ErrInvalid)
		}
		return list[0], nil
	}
	if id == "" {
		return list[0], nil
	}
	for i, d := range list {
		if id == fmt.Sprintf("%s:%d", b.flavour, i) {
			return d, nil
		}
	}
	return engineDevice{}, fmt.Errorf("start: there is no device %q; the engine sees %s:0 to %s:%d: %w", id, b.flavour, b.flavour, len(list)-1, sdk.ErrNotFound)
}

// loadModel reads the model's file. report's error ends it.
func loadModel(path string, device engineDevice, f Flavour, conf config, report func(worker.Progress) error) (llama.Model, error) {
	params := llama.ModelDefaultParams()
	devices := []llama.GGMLBackendDevice{device.handle, 0}
	if f == CPU {
		params.NGpuLayers = 0
		devices[0] = 0 // no graphics device: the processor is always there
		if !conf.Repack {
			params.UseExtraBufts = 0
		}
	} else {
		params.NGpuLayers = int32(conf.GPULayers)
		if conf.GPULayers < 0 {
			params.NGpuLayers = 9999
		}
		params.SplitMode = llama.SplitModeNone
	}
	if err := params.SetDevices(devices); err != nil {
		return 0, fmt.Errorf("load model: %w", err)
	}
	var stopped error
	percent := -1
	params.SetProgressCallback(func(progress float32, _ uintptr) uint8 {
		if stopped != nil {
			return 0
		}
		if p := int(progress * 100); p > percent {
			percent = p
			if stopped = report(worker.Progress{Phase: "reading the model", Done: int64(p), Total: 100, Unit: "percent"}); stopped != nil {
				return 0
			}
		}
		return 1
	})
	theLibrary.logs.forget()
	handle, err := llama.ModelLoadFromFile(path, params)
	runtime.KeepAlive(devices)
	switch {
	case stopped != nil:
		if handle != 0 {
			freeModel(handle)
		}
		return 0, stopped
	case err != nil:
		err = fmt.Errorf("load model: the engine cannot load %s%s: %w", path, theLibrary.logs.explain(), sdk.ErrInvalid)
		return 0, sdk.WithHint(err, "If the file is damaged, delete the model and download it again; if it does not fit in memory, take a smaller one.")
	}
	if llama.ModelHasEncoder(handle) || !llama.ModelHasDecoder(handle) {
		freeModel(handle)
		return 0, fmt.Errorf("load model: %s has no plain decoder, which is the only kind this worker serves: %w", path, sdk.ErrUnsupported)
	}
	return handle, nil
}

// prepare makes the context and the engine around it.
func (b *Backend) prepare(handle llama.Model, spec worker.StartSpec, conf config) (*served, error) {
	m := describe(handle)
	limit := spec.ContextTokens
	if limit == 0 {
		limit = conf.ContextTokens
	}
	if m.trained > 0 {
		limit = min(limit, m.trained)
	}
	threads := conf.threads(spec.Threads)
	batch := max(conf.BatchTokens, spec.Slots) // every slot has a place in every step
	params := llama.ContextDefaultParams()
	params.NCtx = uint32(limit * spec.Slots)
	params.NSeqMax = uint32(spec.Slots)
	params.NBatch, params.NUbatch = uint32(batch), uint32(batch)
	params.NThreads, params.NThreadsBatch = int32(threads), int32(threads)
	params.TypeK, params.TypeV = conf.kvType(), conf.kvType()
	params.NOutputsMax = uint32(spec.Slots) // one row of logits per slot and step
	params.KVUnified = 0                    // a shared cache makes every slot look through everybody's positions
	params.NoPerf = 1
	theLibrary.logs.forget()
	ctx, err := llama.InitFromModel(handle, params)
	if err != nil {
		err = fmt.Errorf("load model: a context of %d slots with %d tokens each cannot be made%s: %w", spec.Slots, limit, theLibrary.logs.explain(), sdk.ErrTooLarge)
		return nil, sdk.WithHint(err, "Start the worker with fewer slots or a smaller context.")
	}
	mem, err := llama.GetMemory(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load model: %w", err), llama.Free(ctx))
	}
	e := &engine{
		log: b.log, model: m, ctx: ctx, mem: mem, batch: llama.BatchInit(int32(batch), 0, 1),
		limit: min(limit, int(llama.NCtxSeq(ctx))), batchTokens: batch, promptChunk: min(conf.PromptChunk, batch), maxQueue: conf.Queue,
		pinned: b.flavour != CPU, wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	for i := range spec.Slots {
		e.slots = append(e.slots, &slot{seq: []llama.SeqId{llama.SeqId(i)}, next: llama.TokenNull, row: -1})
	}
	return &served{model: m, engine: e, threads: threads}, nil
}

func (b *Backend) loadStopped() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stopLoad
}

// Status reports state and load.
func (b *Backend) Status(ctx context.Context) (worker.Status, error) {
	b.mu.Lock()
	st := worker.Status{WorkerID: b.spec.WorkerID, Nonce: b.spec.Nonce, ModelID: b.spec.ModelID, State: b.state, Problem: b.problem, Slots: b.spec.Slots}
	s := b.served
	b.mu.Unlock()
	if s == nil {
		return st, nil
	}
	st.ContextTokens = s.engine.limit
	var failure string
	st.Active, st.Queued, failure = s.engine.load()
	if failure != "" && st.State != worker.StateStopped {
		st.State, st.Problem = worker.StateFailed, failure
	}
	st.TokensPerSecond = s.engine.rate.perSecond(time.Now())
	st.TokensTotal = s.engine.rate.total.Load()
	st.KVUsedTokens = int(s.engine.kvUsed.Load())
	if b.flavour == CPU { // the processor's memory is the process's
		if p, err := process.NewProcessWithContext(ctx, int32(os.Getpid())); err == nil {
			if info, err := p.MemoryInfoWithContext(ctx); err == nil {
				st.MemoryBytes = int64(info.RSS)
			}
		}
	}
	return st, nil
}

// Drain refuses new requests and returns when the last one is answered.
func (b *Backend) Drain(ctx context.Context) error {
	b.gate.close()
	b.mu.Lock()
	if b.state == worker.StateReady || b.state == worker.StateLoading {
		b.state = worker.StateDraining
	}
	b.mu.Unlock()
	if err := b.gate.wait(ctx); err != nil {
		return fmt.Errorf("drain: requests are still running: %w", err)
	}
	return nil
}

// settleTime is how long the handlers of ended requests may take to tell their clients.
const settleTime = 2 * time.Second

// Stop lets running requests end within grace, ends the others and frees the model.
func (b *Backend) Stop(ctx context.Context, grace time.Duration) error {
	b.gate.close()
	b.mu.Lock()
	if b.state == worker.StateStopped {
		b.mu.Unlock()
		return nil
	}
	if b.state == worker.StateReady {
		b.state = worker.StateDraining
	}
	b.stopLoad = true
	loaded := b.loaded
	b.mu.Unlock()
	if loaded != nil {
		select { // the load ends at its next report of progress
		case <-loaded:
		case <-ctx.Done():
			return fmt.Errorf("stop: the model is still loading: %w", ctx.Err())
		}
	}
	if grace > 0 {
		graceCtx, cancel := context.WithTimeout(ctx, grace)
		_ = b.gate.wait(graceCtx) // those that are left are ended below
		cancel()
	}
	b.mu.Lock()
	s := b.served
	b.served = nil
	b.state = worker.StateStopped
	b.mu.Unlock()
	if s == nil {
		return nil
	}
	s.engine.stop()
	select {
	case <-s.engine.done: // after the step that is running
	case <-ctx.Done():
		return fmt.Errorf("stop: the engine is still busy: %w", ctx.Err())
	}
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := b.gate.wait(settle); err != nil {
		// A handler that still waits for its client may be inside the model. The process ends soon
		// and frees all.
		b.log.Warn("model not freed: a client does not take its answer")
		return nil
	}
	return errors.Join(llama.BatchFree(s.engine.batch), llama.Free(s.engine.ctx), llama.ModelFree(s.model.handle))
}
