package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
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
	cores   int // cores of the machine, for CPU workers

	mu        sync.Mutex // guards below
	config    config
	engineDir string // from Configure
	spec      worker.StartSpec
	state     worker.State
	problem   string
	loaded    chan struct{} // closed when Start has returned; nil before Start
	stopLoad  bool          // Stop was called during the load
	served    *served
}

// served is the result of a successful Start. The engine's goroutine owns it until it ends, then
// Stop does.
type served struct {
	model   *model
	engine  *engine   // nil for a model that cannot generate
	embeds  *embedder // nil for a model without embeddings and scores
	limit   int       // maximum tokens of a slot or of a text to embed
	threads int       // initial number of threads
	draft   *draft    // nil without a draft model
	hashes  bool      // report block hashes
	adapters
}

// capabilities returns what requests may use, sorted.
func (s *served) capabilities() []worker.Capability {
	list := s.model.capabilities()
	switch {
	case s.embeds == nil:
	case s.embeds.ranks():
		list = append(list, worker.CapabilityRerank)
	default:
		list = append(list, worker.CapabilityEmbeddings)
	}
	slices.Sort(list)
	return list
}

// Share implements worker.Sharer: unless a number of threads is configured, the worker uses its new
// share of the cores from its next step.
func (b *Backend) Share(cpuWorkers int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.served == nil || b.flavour != CPU {
		return
	}
	b.served.setThreads(b.config.threads(b.spec.Threads, cpuWorkers, b.cores))
}

func (s *served) setThreads(n int) {
	if s.engine != nil {
		s.engine.ctx.SetThreads(n)
	}
	if s.draft != nil {
		s.draft.ctx.SetThreads(n)
	}
	if s.embeds != nil {
		s.embeds.threads.Store(int32(n))
	}
}

// Info describes the plugin and the engine that it needs on this system.
func (b *Backend) Info(context.Context) (sdk.Info, error) {
	info := sdk.Info{Name: string(b.flavour), Kind: sdk.KindWorker, Version: b.version, Summary: b.flavour.summary(), Formats: []string{sdk.FormatGGUF}}
	if engines := enginesFor(b.flavour, runtime.GOOS, runtime.GOARCH); len(engines) > 0 {
		info.Engine, info.OtherEngines = engines[0], engines[1:]
	}
	return info, nil
}

// Schema describes the config block.
func (b *Backend) Schema(context.Context) (sdk.Schema, error) { return schema(b.flavour), nil }

// Configure stores the config block.
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

// Start loads the model and returns the handler that serves its requests.
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
	if s.engine != nil {
		go s.engine.Run() // stopped and awaited by Stop
	}
	if b.state == worker.StateLoading {
		b.state = worker.StateReady
	}
	srv := &server{
		engine: s.engine, adapters: s.adapters, model: s.model, embedder: s.embeds, modelID: spec.ModelID, started: time.Now().Unix(), gate: &b.gate, now: time.Now,
		grammars: constraint.NewCompiler(), toolbox: newToolbox(), spelling: make(chan struct{}, spellers),
	}
	return srv.handler(), nil
}

// load loads the engine and the model and creates the context.
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
	if err := native.Load(spec.EngineDir, b.log); err != nil {
		return nil, err
	}
	devices, err := b.devices(spec.Device, conf)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(spec.ModelPath); err != nil {
		return nil, sdk.WithHint(fmt.Errorf("load model: %w: %w", err, sdk.ErrNotFound), "Download the model again.")
	}
	loaded, err := b.loadModel(spec.ModelPath, devices, conf, report)
	if err != nil {
		return nil, err
	}
	if err := report(worker.Progress{Phase: "preparing the context"}); err != nil {
		return nil, errors.Join(err, loaded.Free())
	}
	list, err := parseAdapters(conf.LoRA)
	if err == nil && len(list) > 0 && loaded.Reads() {
		err = errors.New("models that cannot generate take no lora adapters")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load model: %w: %w", err, sdk.ErrInvalid), loaded.Free())
	}
	if err := list.load(loaded); err != nil {
		return nil, errors.Join(err, loaded.Free())
	}
	var small *native.Model
	if conf.Draft != "" && !loaded.Reads() {
		if small, err = b.loadModel(conf.Draft, devices[:1], conf, report); err != nil {
			return nil, errors.Join(fmt.Errorf("draft: %w", err), loaded.Free())
		}
	}
	s, err := b.prepare(loaded, small, list, spec, conf)
	if err != nil {
		return nil, errors.Join(err, loaded.Free())
	}
	s.adapters = list
	b.log.Info("model loaded", "model", spec.ModelID, "device", names(devices), "engine", native.Version(), "slots", spec.Slots, "context", s.limit, "threads", s.threads)
	return s, nil
}

// device returns the engine's device for a Device.ID. It never falls back to another kind of
// device.
func (b *Backend) device(id string) (native.Device, error) {
	list := ofFlavour(native.Devices(), b.flavour)
	if len(list) == 0 {
		err := fmt.Errorf("start: %s: %w", b.noDevice(), sdk.ErrUnsupported)
		return native.Device{}, err
	}
	if b.flavour == CPU {
		if id != "" && id != "cpu" {
			return native.Device{}, fmt.Errorf("start: this worker type has the device cpu, not %q: %w", id, sdk.ErrInvalid)
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
	return native.Device{}, fmt.Errorf("start: there is no device %q; the engine sees %s:0 to %s:%d: %w", id, b.flavour, b.flavour, len(list)-1, sdk.ErrNotFound)
}

// devices returns the devices that share a model: those of the configuration, else the one that the
// worker is started on.
func (b *Backend) devices(id string, conf config) ([]native.Device, error) {
	ids := conf.Devices
	if len(ids) == 0 || b.flavour == CPU {
		ids = []string{id}
	}
	var out []native.Device
	for _, id := range ids {
		d, err := b.device(id)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func names(devices []native.Device) string {
	var out []string
	for _, d := range devices {
		out = append(out, d.Name)
	}
	return strings.Join(out, ", ")
}

// loadModel loads the model file. An error from report aborts the load.
func (b *Backend) loadModel(path string, devices []native.Device, conf config, report func(worker.Progress) error) (*native.Model, error) {
	if b.flavour == CPU {
		devices = nil
	}
	params := native.ModelParams{Placement: conf.placement(devices), Repack: conf.Repack, Progress: func(percent int) error {
		return report(worker.Progress{Phase: "reading the model", Done: int64(percent), Total: 100, Unit: "percent"})
	}}
	loaded, err := native.LoadModel(path, params)
	if err != nil {
		return nil, err
	}
	if err := loaded.Check(); err != nil {
		return nil, errors.Join(err, loaded.Free())
	}
	return loaded, nil
}

// prepare creates the context and the engine on it. When it fails, it frees small, the draft model,
// which may be nil.
func (b *Backend) prepare(loaded, small *native.Model, list adapters, spec worker.StartSpec, conf config) (*served, error) {
	m := describe(loaded)
	limit := spec.ContextTokens
	if limit == 0 {
		limit = conf.ContextTokens
	}
	if m.trained > 0 {
		limit = min(limit, m.trained)
	}
	threads := conf.threads(spec.Threads, spec.CPUWorkers, b.cores)
	if loaded.Reads() {
		return prepareReader(m, conf, limit, threads)
	}
	step := max(conf.BatchTokens, spec.Slots) // every slot needs a place in every step
	drafts := 0
	if (conf.Speculation || small != nil) && !loaded.Recurrent() { // rejected draft tokens are cut from the cache
		drafts = min(maxDraft, step-spec.Slots)
	}
	var d *draft
	if small != nil {
		var err error
		if d, err = openDraft(small, m, spec.Slots, limit, threads); err != nil {
			return nil, err
		}
	}
	ctx, err := loaded.NewContext(native.ContextParams{
		Sequences: spec.Slots, Tokens: limit, BatchTokens: step, Threads: threads, KVType: conf.KVCacheType, Flash: conf.FlashAttention,
		OutputTokens: spec.Slots + drafts, // rows of logits in a step
	})
	if err != nil {
		err = fmt.Errorf("load model: cannot create a context of %d slots with %d tokens each: %w: %w", spec.Slots, limit, err, sdk.ErrTooLarge)
		return nil, errors.Join(sdk.WithHint(err, "Start the worker with fewer slots or a smaller context."), d.free())
	}
	limit = min(limit, ctx.SequenceTokens())
	if err := warmUp(ctx, m); err != nil {
		return nil, errors.Join(fmt.Errorf("load model: the engine cannot run it: %w: %w", err, sdk.ErrInvalid), ctx.Free(), d.free())
	}
	restored, parting := b.keeping(spec, conf, m, limit, list)
	e := &engine{model: m, ctx: ctx, limit: limit, parallel: spec.Slots, Scheduler: batch.New(ctx, batch.Config{
		Slots: spec.Slots, SlotTokens: limit, StepTokens: step, PromptChunk: min(conf.PromptChunk, step), PromptPause: time.Duration(conf.PromptPause) * time.Millisecond,
		Queue: conf.Queue, SavedBytes: conf.storeBytes(), Checkpoints: loaded.Recurrent(),
		DraftTokens: drafts, LookUp: conf.Speculation, Drafter: d.drafter(spec.Slots, b.log),
		Hash: blockHash(spec.PrefixKey), Restored: restored, Parting: parting,
		PinThread: b.flavour != CPU, Vocab: batch.Vocab{Pieces: m.pieces, Ends: m.ends}, Log: b.log,
	})}
	return &served{model: m, engine: e, embeds: newEmbedder(loaded, conf, min(limit, maxEmbedTokens), threads), limit: limit, threads: threads, draft: d, hashes: len(spec.PrefixKey) > 0}, nil
}

// keeping returns the conversations that an earlier worker saved, and a function that saves those
// of this one.
func (b *Backend) keeping(spec worker.StartSpec, conf config, m *model, limit int, list adapters) ([]batch.Sequence, func(iter.Seq[batch.Sequence])) {
	fingerprint, ok := keepFingerprint(spec.ModelDigest, b.flavour, conf, m, limit, list)
	if spec.StateFile == "" || !conf.KeepState || !ok {
		if err := removeKept(spec.StateFile); err != nil {
			b.log.Warn("failed to remove kept states", "error", err)
		}
		return nil, nil
	}
	k := keeper{path: spec.StateFile, fingerprint: fingerprint, limit: int64(conf.KeepStateMiB) << 20, slotTokens: limit, vocab: len(m.pieces)}
	restored, err := k.take()
	if err != nil {
		b.log.Warn("kept states unusable, removed", "error", err)
	} else if len(restored) > 0 {
		b.log.Info("kept states read", "conversations", len(restored))
	}
	return restored, func(kept iter.Seq[batch.Sequence]) {
		n, err := k.write(kept)
		if err != nil {
			b.log.Warn("failed to keep states", "error", err)
			return
		}
		b.log.Info("states kept", "conversations", n)
	}
}

// maxDraft bounds the draft tokens of a step. Each needs a row of logits: 600 KB with the largest
// vocabularies.
const maxDraft = 32

// warmUp evaluates one token. A model file that crashes the engine then does so before the first
// request, which also does not wait for the weights to be read.
func warmUp(ctx *native.Context, m *model) error {
	if err := ctx.Decode([]batch.Entry{{Token: max(0, m.bos), Logits: true}}); err != nil {
		return err
	}
	if !ctx.Remove(0, 0) {
		return errors.New("the cache cannot be cleared")
	}
	return nil
}

// prepareReader prepares a model that cannot generate for embeddings or scores.
func prepareReader(m *model, conf config, limit, threads int) (*served, error) {
	e := newEmbedder(m.native, conf, limit, threads)
	if e == nil {
		err := fmt.Errorf("load model: its file does not say how to pool the vectors of a text's tokens: %w", sdk.ErrUnsupported)
		return nil, sdk.WithHint(err, "Set pooling in the worker type's configuration to what the model's publisher says: mean, cls or last.")
	}
	if err := e.open(); err != nil {
		err = fmt.Errorf("load model: cannot read texts of %d tokens: %w: %w", limit, err, sdk.ErrTooLarge)
		return nil, errors.Join(sdk.WithHint(err, "Start the worker with a smaller context."), e.free())
	}
	return &served{model: m, embeds: e, limit: limit, threads: threads}, nil
}

func (b *Backend) loadStopped() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stopLoad
}

// Status reports the state and the load.
func (b *Backend) Status(ctx context.Context) (worker.Status, error) {
	b.mu.Lock()
	st := worker.Status{WorkerID: b.spec.WorkerID, Nonce: b.spec.Nonce, ModelID: b.spec.ModelID, State: b.state, Problem: b.problem, Slots: b.spec.Slots}
	s := b.served
	b.mu.Unlock()
	if s == nil {
		return st, nil
	}
	st.ContextTokens, st.Capabilities = s.limit, s.capabilities()
	s.report(&st)
	if b.flavour == CPU { // CPU memory is process memory
		if p, err := process.NewProcessWithContext(ctx, int32(os.Getpid())); err == nil {
			if info, err := p.MemoryInfoWithContext(ctx); err == nil {
				st.MemoryBytes = int64(info.RSS)
			}
		}
	}
	return st, nil
}

// report adds the load of the requests.
func (s *served) report(st *worker.Status) {
	if s.engine == nil {
		n := s.embeds.load()
		st.Active = min(n, st.Slots)
		st.Queued = n - st.Active
		return
	}
	load := s.engine.Stats()
	st.Active, st.Queued = load.Active, load.Queued
	if load.Failure != "" && st.State != worker.StateStopped {
		st.State, st.Problem = worker.StateFailed, load.Failure
	}
	st.TokensPerSecond, st.TokensTotal, st.KVUsedTokens = load.TokensPerSecond, load.TokensTotal, load.CacheTokens
	st.PromptTokensTotal, st.CachedTokensTotal = load.PromptEvaluated, load.PromptReused
	st.DraftTokensTotal, st.AcceptedTokensTotal = load.Drafted, load.Accepted
	if s.hashes {
		st.PrefixBlocks, st.PrefixBlockTokens = s.engine.Blocks(), batch.BlockTokens
	}
}

// Drain refuses new requests and returns when the last running one has been answered.
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

// settleTime bounds how long the handlers of ended requests may take to answer their clients.
const settleTime = 2 * time.Second

// Stop waits up to grace for running requests, ends the remaining ones and frees the model.
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
		select { // the load aborts at its next progress report
		case <-loaded:
		case <-ctx.Done():
			return fmt.Errorf("stop: the model is still loading: %w", ctx.Err())
		}
	}
	if grace > 0 {
		graceCtx, cancel := context.WithTimeout(ctx, grace)
		_ = b.gate.wait(graceCtx) // remaining requests are ended below
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
	s.embeds.stop()
	if err := b.stopEngine(ctx, s.engine); err != nil {
		return err
	}
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := b.gate.wait(settle); err != nil {
		// A handler still blocked on its client may be using the model, so it is not freed. The
		// process exits soon and releases everything.
		b.log.Warn("model not freed: a client is not reading its answer")
		return nil
	}
	var freed error
	if s.engine != nil {
		freed = s.engine.ctx.Free()
	}
	return errors.Join(freed, s.embeds.free(), s.draft.free(), s.model.native.Free())
}

// stopEngine stops the engine's goroutine; e may be nil.
func (b *Backend) stopEngine(ctx context.Context, e *engine) error {
	if e == nil {
		return nil
	}
	e.Stop()
	select {
	case <-e.Done(): // once the current step has finished
	case <-ctx.Done():
		return fmt.Errorf("stop: the engine is still busy: %w", ctx.Err())
	}
	load := e.Stats()
	b.log.Info("engine stopped", "tokens", load.TokensTotal, "prompt_tokens_evaluated", load.PromptEvaluated, "prompt_tokens_reused", load.PromptReused, "draft_tokens", load.Drafted, "accepted_tokens", load.Accepted)
	return nil
}
