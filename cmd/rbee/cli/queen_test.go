package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// fakeQueen is a cluster that exists only in memory, behind the real gateway. Its worker answers
// with what it was asked.
type fakeQueen struct {
	jobs   *job.Manager
	worker *httptest.Server
	http   *httptest.Server

	answers *inference.Service

	mu        sync.Mutex // guards below
	down      bool       // nothing can be served
	silent    bool       // the hive is down
	workers   []core.Worker
	models    []core.Model
	asked     []openai.ChatRequest
	raw       []openai.CompletionRequest
	requests  []core.Request
	cancelled int // inference requests that the client gave up
	cluster   fakeCluster
}

var (
	_ inference.Router = (*fakeQueen)(nil)
	_ gateway.Cluster  = (*fakeQueen)(nil)
	_ gateway.Jobs     = (*fakeQueen)(nil)
)

// fakeStart is when everything in a fakeQueen began.
var fakeStart = time.Now().Add(-90 * time.Second)

func newFakeQueen(tb testing.TB) *fakeQueen {
	tb.Helper()
	q := &fakeQueen{jobs: job.New(job.Options{Owner: "h1"}), cluster: newFakeCluster()}
	q.models = []core.Model{
		{
			ID: "rbee-tiny", Aliases: []string{"tiny"}, Ref: "builtin:rbee-tiny", Digest: "sha256:" + strings.Repeat("ab", 32), SizeBytes: 2983680, License: "apache-2.0",
			Architecture: "llama", Quantization: "Q8_0", Parameters: 2755008, ContextTokens: 1024, CreatedAt: fakeStart, Hives: []string{"h1"}, LoadedBy: []string{}, EstimateBytes: 9 << 20,
		},
		{ID: "slow", Aliases: []string{}, Ref: "file:/slow.gguf", SizeBytes: 7 << 30, Quantization: "Q4_K_M", Parameters: 7_241_732_096, Hives: []string{"h1"}, LoadedBy: []string{}},
		{ID: "broken", Aliases: []string{}, Ref: "file:/broken.gguf", Hives: []string{"h1"}, LoadedBy: []string{}, Damaged: "the file is shorter than its header says"},
	}
	q.worker = httptest.NewServer(http.HandlerFunc(q.serveWorker))
	q.answers = inference.New(inference.Options{Router: q, Dial: func(ctx context.Context, _ core.Worker) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", q.worker.Listener.Addr().String())
	}})
	api := gateway.New(gateway.Options{Inference: q.answers, Cluster: q, Jobs: q, Reader: q, Admin: q, Version: "1.2.3"})
	q.http = httptest.NewServer(api.Handler())
	tb.Cleanup(func() {
		q.http.CloseClientConnections()
		q.http.Close()
		q.worker.CloseClientConnections()
		q.worker.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // a shutdown deadline
		defer cancel()
		_ = q.jobs.Close(ctx)
	})
	return q
}

func fakeWorker(id, model string) core.Worker {
	return core.Worker{
		ID: id, Hive: "h1", Type: "cpu", Version: "0.1.0-llama.cpp-v0.5.0", Model: model, ModelDigest: "sha256:" + strings.Repeat("ab", 32), Device: "cpu", Slots: 4,
		ContextTokens: 1024, State: core.WorkerReady, Nonce: "n", Capabilities: "chat tools", CreateIndex: 7, ModifyIndex: 9,
		Load: core.Load{At: fakeStart.Add(80 * time.Second), Active: 1, Queued: 2, TokensPerSecond: 123.4, TokensTotal: 99, KVUsedTokens: 17},
	}
}

func (q *fakeQueen) addWorker(w core.Worker) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.workers = append(q.workers, w)
}

// serveWorker speaks OpenAI and does what the last message says.
func (q *fakeQueen) serveWorker(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.URL.Path == "/v1/completions" {
		var c openai.CompletionRequest
		_ = json.Unmarshal(body, &c)
		q.mu.Lock()
		q.raw = append(q.raw, c)
		q.mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s\n\ndata: [DONE]\n\n", `{"id":"c","object":"text_completion","choices":[{"text":" there was a bee.","index":0,"finish_reason":"stop"}]}`)
		return
	}
	var c openai.ChatRequest
	_ = json.Unmarshal(body, &c)
	q.mu.Lock()
	q.asked = append(q.asked, c)
	q.mu.Unlock()
	prompt := c.Messages[len(c.Messages)-1].Content.Text
	answer := fmt.Sprintf("%d: %s", len(c.Messages), prompt)
	if !c.Stream {
		if prompt == "die" {
			panic(http.ErrAbortHandler)
		}
		content := answer
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(openai.ChatResponse{
			ID: "chatcmpl-1", Object: openai.ObjectChat, Model: c.Model,
			Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: &content}, FinishReason: openai.FinishStop}},
			Usage:   &openai.Usage{PromptTokens: 3, CompletionTokens: 4, TotalTokens: 7},
		})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	chunks := openai.NewChatChunks("chatcmpl-1", 1, c.Model)
	send := func(text string) {
		fmt.Fprintf(w, "data: %s\n\n", chunks.Text(text))
		_ = http.NewResponseController(w).Flush()
	}
	switch prompt {
	case "say error":
		send("half an ")
		fmt.Fprint(w, `data: {"error":{"message":"the device is on fire","type":"server_error","param":null,"code":null}}`+"\n\n")
		return
	case "die":
		send("half an ")
		panic(http.ErrAbortHandler)
	case "forever":
		for i := 0; ; i++ {
			send("on ")
			select {
			case <-r.Context().Done():
				q.mu.Lock()
				q.cancelled++
				q.mu.Unlock()
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	for word := range strings.SplitAfterSeq(answer, " ") {
		send(word)
	}
	fmt.Fprintf(w, "data: %s\n\ndata: [DONE]\n\n", `{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)
}

func (q *fakeQueen) Route(_ context.Context, r inference.Query) (inference.Lease, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.workers {
		if w.Model == r.Model && !r.Other {
			return inference.NewLease([]core.Candidate{{Worker: w, Reason: "the only one"}}, nil, nil, func(inference.Outcome) {}), nil
		}
	}
	return inference.Lease{}, unknownModel(r.Model)
}

func unknownModel(model string) error {
	return core.Errorf(core.NotFound, "no model %q", model).Hint("Did you mean rbee-tiny?")
}

func (q *fakeQueen) Ready(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return core.Errorf(core.Unavailable, "no leader")
	}
	return nil
}

func (q *fakeQueen) Status(ctx context.Context) (core.Status, error) {
	hives, _ := q.Hives(ctx)
	workers, _ := q.Workers(ctx)
	models, _ := q.Models(ctx)
	s := core.Status{
		Version: "1.2.3", Node: "aaaaaaaa", StartedAt: fakeStart, Leader: "aaaaaaaa", Index: 42, Cluster: &core.Cluster{ID: "00112233", Name: "hill"},
		Hives: hives, Workers: workers, Models: models, Jobs: q.jobs.List(), Problems: []string{},
	}
	s.Queens, _ = q.Queens(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		s.Leader, s.Problems = "", []string{"no leader: nothing can be changed"}
	}
	return s, nil
}

func (q *fakeQueen) Hives(context.Context) ([]core.Hive, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	status := core.HiveReady
	if q.silent {
		status = core.HiveDown
	}
	return []core.Hive{{
		ID: "h1", Name: "desk", Version: "1.2.3", OS: "linux", Arch: "amd64", Incarnation: 3, Status: status,
		Devices: []core.Device{{ID: "cpu", Kind: "cpu", Name: "Some CPU", TotalBytes: 8 << 30, FreeBytes: 6 << 30}}, WorkerTypes: []string{"cpu", "cuda"},
		LastBeat: fakeStart.Add(88 * time.Second), RPCAddress: "10.0.0.1:7834", Draining: q.cluster.draining, CreateIndex: 2, ModifyIndex: 5,
	}}, nil
}

func (q *fakeQueen) Hive(ctx context.Context, hive string) (core.Hive, error) {
	hives, _ := q.Hives(ctx)
	if hive == core.LocalHive || hive == "h1" || hive == "desk" {
		return hives[0], nil
	}
	return core.Hive{}, core.Errorf(core.NotFound, "no hive %q", hive).Hint("Did you mean desk?")
}

func (q *fakeQueen) Workers(context.Context) ([]core.Worker, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.workers), nil
}

func (q *fakeQueen) Worker(_ context.Context, id string) (core.Worker, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.workers {
		if strings.HasPrefix(w.ID, id) {
			return w, nil
		}
	}
	return core.Worker{}, core.Errorf(core.NotFound, "no worker %q", id)
}

func (q *fakeQueen) Models(context.Context) ([]core.Model, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.models), nil
}

func (q *fakeQueen) HiveModels(ctx context.Context, hive string) ([]core.Model, error) {
	if _, err := q.Hive(ctx, hive); err != nil {
		return nil, err
	}
	return q.Models(ctx)
}

func (q *fakeQueen) HiveModel(ctx context.Context, hive, id string) (core.Model, error) {
	models, err := q.HiveModels(ctx, hive)
	if err != nil {
		return core.Model{}, err
	}
	for _, m := range models {
		if m.ID == id || slices.Contains(m.Aliases, id) {
			m.Files = []core.File{{Path: "rbee-tiny.gguf", SizeBytes: m.SizeBytes, Digest: m.Digest}}
			m.Facts = &core.ModelFacts{Name: "rbee tiny", Layers: 6, Embedding: 192, FeedForward: 512, Heads: 6, KVHeads: 2, Vocabulary: 2048, Tensors: 56, Parts: 1, ChatTemplate: true}
			m.Fits = []core.ModelFit{
				{Hive: "h1", Device: "cpu", Kind: "cpu", Slots: 4, ContextTokens: 1024, WeightsBytes: 2 << 20, CacheBytes: 6 << 20, ComputeBytes: 5 << 20, OverheadBytes: 25 << 20, NeedBytes: 38 << 20, FreeBytes: 6 << 30},
				{Hive: "h1", Device: "cuda:0", Kind: "cuda", Slots: 4, ContextTokens: 512, WeightsBytes: 2 << 20, CacheBytes: 3 << 20, ComputeBytes: 5 << 20, OverheadBytes: 25 << 20, NeedBytes: 35 << 20, FreeBytes: 34 << 20, MissingBytes: 1 << 20},
			}
			return m, nil
		}
	}
	return core.Model{}, unknownModel(id)
}

func (q *fakeQueen) Processes(ctx context.Context, hive string) ([]core.Process, error) {
	if _, err := q.Hive(ctx, hive); err != nil {
		return nil, err
	}
	out := []core.Process{}
	workers, _ := q.Workers(ctx)
	for i, w := range workers {
		out = append(out, core.Process{PID: 4242 + i, WorkerID: w.ID, Type: w.Type, Model: w.Model, Device: w.Device, State: w.State, MemoryBytes: 45 << 20, CPUPercent: 12.34, StartedAt: fakeStart})
	}
	return out, nil
}

func (q *fakeQueen) Process(ctx context.Context, hive string, pid int) (core.Process, error) {
	processes, err := q.Processes(ctx, hive)
	if err != nil {
		return core.Process{}, err
	}
	for _, p := range processes {
		if p.PID == pid {
			p.CommandLine, p.Sockets, p.Log = []string{"rbee-worker-cpu", "serve"}, []string{"/run/data.sock"}, []string{"loaded", "esc\x1b[31mape"}
			return p, nil
		}
	}
	return core.Process{}, core.Errorf(core.NotFound, "process %d is no worker of this hive", pid).Hint("\"rbee worker process list\" shows them.")
}

func (q *fakeQueen) Binaries(ctx context.Context, hive string) ([]core.WorkerBinary, error) {
	if _, err := q.Hive(ctx, hive); err != nil {
		return nil, err
	}
	return []core.WorkerBinary{
		{
			ID: "cuda@0.1.0", Type: "cuda", Version: "0.1.0", Source: "local", Digest: "sha256:" + strings.Repeat("cd", 32), SizeBytes: 1 << 20, Path: "/store/workers/cuda/0.1.0", Devices: []core.Device{}, InUseBy: []string{},
			Problem: "no CUDA device",
		},
		{
			ID: "cpu@0.1.0", Type: "cpu", Version: "0.1.0", EngineName: "llama.cpp", EngineVersion: "v0.5.0", Source: "npm:x@1", Digest: "sha256:" + strings.Repeat("ef", 32), SizeBytes: 30 << 20,
			Path: "/store/workers/cpu/0.1.0", Devices: []core.Device{{ID: "cpu", Kind: "cpu", Name: "Some CPU"}}, InUseBy: []string{"w1"},
			ProbedAt: fakeStart, Checks: []core.Check{{Name: "abi", Passed: true, Detail: "160 bytes"}}, Warnings: []string{"it is hot in here"},
			Schema: json.RawMessage(`{"attributes":[{"name":"threads","type":"number","required":false,"default":0,"sensitive":false,"doc":"Threads."}],"blocks":[{"name":"device","schema":{}}]}`),
		},
	}, nil
}

func (q *fakeQueen) Binary(ctx context.Context, hive, id string) (core.WorkerBinary, error) {
	binaries, err := q.Binaries(ctx, hive)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	for _, b := range binaries {
		if b.ID == id || b.Type == id {
			b.Files = []core.File{{Path: "rbee-worker-" + b.Type, SizeBytes: b.SizeBytes, Digest: b.Digest}}
			return b, nil
		}
	}
	return core.WorkerBinary{}, core.Errorf(core.NotFound, "no worker binary %q", id)
}

func (q *fakeQueen) Catalog(_ context.Context, _, text, _ string, _ int) ([]core.CatalogItem, error) {
	if text != "" && !strings.Contains("rbee-tiny", text) {
		return []core.CatalogItem{}, nil
	}
	return []core.CatalogItem{{Ref: "builtin:rbee-tiny", Kind: "model", Name: "rbee-tiny", Summary: "a very small model", SizeBytes: 2983680, License: "apache-2.0"}}, nil
}

// Submit does the operations as a hive would, only faster.
func (q *fakeQueen) Submit(_ context.Context, r core.Request) (core.Job, error) {
	q.mu.Lock()
	q.requests = append(q.requests, r)
	q.mu.Unlock()
	if r.Operation == core.OpWorkerSpawn && r.Type == "metal" {
		return core.Job{}, core.Errorf(core.NotFound, "no worker type %q on hive desk", r.Type).Hint("It has cpu, cuda.")
	}
	return q.jobs.Start(r.Operation, r.RequestID, func(ctx context.Context, run *job.Run) (any, error) {
		switch r.Operation {
		case core.OpWorkerSpawn:
			return q.spawn(ctx, run, r)
		case core.OpActiveWorkerRetire, core.OpWorkerProcessDelete:
			return q.end(r)
		case core.OpModelDownload:
			run.Progress(core.Progress{Phase: "download rbee-tiny.gguf", Done: 2983680, Total: 2983680, Unit: "bytes"})
			return q.HiveModel(ctx, core.LocalHive, strings.TrimPrefix(r.Model, "builtin:"))
		case core.OpModelDelete:
			return q.deleteModel(r)
		case core.OpStoreVerify:
			return core.StoreVerifyResult{Models: 2, Binaries: 1, CheckedBytes: 5 << 20, Damaged: []core.StoreItem{
				{Kind: core.StoreModel, Name: "broken", SizeBytes: 1 << 20, Reason: "broken.gguf: its content does not match its digest"},
			}}, nil
		case core.OpStoreGC:
			return core.StoreGCResult{FreedBytes: 3 << 20, DryRun: r.DryRun, Removed: []core.StoreItem{
				{Kind: core.StorePartial, Name: "sha256-abc", SizeBytes: 3 << 20, Reason: "its transfer was given up"},
			}}, nil
		case core.OpWorkerDownload:
			return q.Binary(ctx, core.LocalHive, r.Type)
		case core.OpWorkerBuild:
			if r.Type == "" {
				return nil, core.Errorf(core.Forbidden, "hive desk builds nothing").Hint("Set hive { build { enabled = true } }.")
			}
			run.Log("building %s", r.Source)
			return core.WorkerBinary{ID: r.Type + "@1.0", Type: r.Type, Version: "1.0", Source: "build:" + r.Source, Devices: []core.Device{}, InUseBy: []string{}}, nil
		case core.OpWorkerBinaryDelete:
			b, err := q.Binary(ctx, core.LocalHive, r.Binary)
			if err == nil && len(b.InUseBy) > 0 {
				err = core.Errorf(core.InUse, "%s is in use by worker w1", b.ID)
			}
			return b, err
		}
		if s, err := core.FindOperation(r.Operation); err == nil && s.Runs == core.RunsOverSSH {
			return fakeOverSSH(r)
		}
		return nil, core.Errorf(core.Unsupported, "no operation %q", r.Operation)
	}), nil
}

func (q *fakeQueen) spawn(ctx context.Context, run *job.Run, r core.Request) (any, error) {
	switch r.Model {
	case "slow":
		run.Log("this takes for ever")
		<-ctx.Done()
		return nil, ctx.Err()
	case "huge":
		return nil, core.Errorf(core.TooLarge, "huge needs 70 GiB more than cpu has").Hint("Take a smaller model.")
	case "tiny", "rbee-tiny":
	default:
		return nil, unknownModel(r.Model)
	}
	const total = 23 << 20
	for done := int64(0); done <= total; done += total / 200 {
		run.Progress(core.Progress{Phase: "download llama.cpp", Done: done, Total: total, Unit: "bytes"})
	}
	run.Progress(core.Progress{Phase: "download llama.cpp", Done: total, Total: total, Unit: "bytes"})
	run.Log("engine llama.cpp v0.5.0 installed")
	run.Progress(core.Progress{Phase: "load rbee-tiny", Done: 100, Total: 100, Unit: "percent"})
	w := fakeWorker("w1", "rbee-tiny")
	q.addWorker(w)
	return core.SpawnResult{Worker: w, PID: 4242}, nil
}

func (q *fakeQueen) deleteModel(r core.Request) (any, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, m := range q.models {
		if m.ID != r.Model {
			continue
		}
		for _, w := range q.workers {
			if w.Model == m.ID {
				return nil, core.Errorf(core.InUse, "delete model: %s is loaded by %s", m.ID, w.ID).Hint("Retire them first: `rbee worker retire %s`.", w.ID)
			}
		}
		if !r.DryRun {
			q.models = slices.Delete(q.models, i, i+1)
		}
		return core.ModelDeleteResult{Model: m.ID, FreedBytes: m.SizeBytes, Files: []core.File{{Path: m.ID + ".gguf", SizeBytes: m.SizeBytes}}, DryRun: r.DryRun}, nil
	}
	return nil, unknownModel(r.Model)
}

func (q *fakeQueen) end(r core.Request) (any, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, w := range q.workers {
		if w.ID == r.Worker || r.PID == 4242+i {
			q.workers = slices.Delete(q.workers, i, i+1)
			return core.ExitResult{WorkerID: w.ID, PID: 4242 + i, Exit: "exit code 0"}, nil
		}
	}
	return nil, core.Errorf(core.NotFound, "process %d is no worker of this hive", r.PID)
}

func (q *fakeQueen) Job(_ context.Context, id string) (core.Job, error) { return q.jobs.Get(id) }
func (q *fakeQueen) Jobs(context.Context) ([]core.Job, error)           { return q.jobs.List(), nil }

func (q *fakeQueen) Cancel(_ context.Context, id string) (core.Job, error) { return q.jobs.Cancel(id) }

func (q *fakeQueen) Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error {
	return q.jobs.Events(ctx, id, after, emit)
}

func oneLine(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
