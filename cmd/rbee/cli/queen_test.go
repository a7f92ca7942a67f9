package cli

import (
	"cmp"
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
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// fakeQueen is a cluster that exists only in memory, behind the real gateway. Its worker echoes its
// requests.
type fakeQueen struct {
	*fakecluster.Cluster
	jobs   *job.Manager
	worker *httptest.Server
	http   *httptest.Server

	answers *inference.Service

	mu        sync.Mutex // guards below
	asked     []openai.ChatRequest
	raw       []openai.CompletionRequest
	requests  []core.Request
	cancelled int // inference requests that the client cancelled
}

var (
	_ inference.Router = (*fakeQueen)(nil)
	_ gateway.Jobs     = (*fakeQueen)(nil)
)

// fakeStart is when everything in a fakeQueen began.
var fakeStart = time.Now().Add(-90 * time.Second)

func newFakeQueen(tb testing.TB) *fakeQueen {
	tb.Helper()
	q := &fakeQueen{jobs: job.New(job.Options{Owner: "h1"}), Cluster: fakecluster.New(fakeState())}
	q.details()
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
	q.Change(func(s *fakecluster.State) { s.Workers = append(s.Workers, w) })
}

// serveWorker speaks OpenAI's API and does what the last message asks for.
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
	for _, w := range q.State().Workers {
		if w.Model == r.Model && !r.Other {
			return inference.NewLease([]core.Candidate{{Worker: w, Reason: "the only one"}}, nil, nil, func(inference.Outcome) {}), nil
		}
	}
	return inference.Lease{}, unknownModel(r.Model)
}

func unknownModel(model string) error {
	return core.Errorf(core.NotFound, "no model %q", model).Hint("Did you mean rbee-tiny?")
}

// Submit runs the operations like a hive, only faster.
func (q *fakeQueen) Submit(_ context.Context, r core.Request, _ bool) (core.Job, error) {
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
			m, err := operation.ModelGet.Ask(ctx, q, core.Request{Model: strings.TrimPrefix(r.Model, "builtin:")})
			m.ID = cmp.Or(r.Name, m.ID)
			return m, err
		case core.OpAliasSet, core.OpAliasRemove:
			return q.changeAlias(r)
		case core.OpDeploymentPlan, core.OpDeploymentApply:
			return fakePlan(r)
		case core.OpDeploymentStop, core.OpDeploymentRevert:
			return fakeDeployment(r.Deployment, r.Operation == core.OpDeploymentStop)
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
			return operation.WorkerBinaryGet.Ask(ctx, q, core.Request{Hive: core.LocalHive, Binary: r.Type})
		case core.OpWorkerBuild:
			if r.Type == "" {
				return nil, core.Errorf(core.Forbidden, "hive desk builds nothing").Hint("Set hive { build { enabled = true } }.")
			}
			run.Log("building %s", r.Source)
			return core.WorkerBinary{ID: r.Type + "@1.0", Type: r.Type, Version: "1.0", Source: "build:" + r.Source, Devices: []core.Device{}, InUseBy: []string{}}, nil
		case core.OpWorkerUpgrade:
			if r.Type == "broken" {
				return nil, core.Errorf(core.Internal, "upgrade worker type broken: it does not start").Hint("The workers of before go on.")
			}
			return core.UpgradeResult{Type: r.Type, Binary: r.Type + "@2.0", Replaced: []core.Replacement{{Old: "w1", New: "w2", Model: "rbee-tiny"}}}, nil
		case core.OpSettingSet:
			return q.SetSetting(r)
		case core.OpWorkerBinaryDelete:
			b, err := operation.WorkerBinaryGet.Ask(ctx, q, core.Request{Hive: core.LocalHive, Binary: r.Binary})
			if err == nil && len(b.InUseBy) > 0 {
				err = core.Errorf(core.InUse, "%s is in use by worker w1", b.ID)
			}
			return b, err
		}
		if s, err := operation.Find(r.Operation); err == nil && s.Runs == operation.RunsOverSSH {
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

func (q *fakeQueen) changeAlias(r core.Request) (any, error) {
	was := core.Alias{Name: r.Name, Model: r.Model}
	rest := slices.DeleteFunc(q.State().Aliases, func(a core.Alias) bool {
		if a.Name == r.Name && r.Model == "" {
			was = a
		}
		return a.Name == r.Name
	})
	if r.Operation == core.OpAliasSet {
		m, err := q.Model(r.Model)
		if err != nil {
			return nil, err
		}
		was.Model = m.ID
		rest = append(rest, was)
	} else if was.Model == "" {
		return nil, core.Errorf(core.NotFound, "there is no alias %q", r.Name).Hint("See all with `rbee alias list`.")
	}
	q.Change(func(s *fakecluster.State) { s.Aliases = rest })
	return was, nil
}

func (q *fakeQueen) deleteModel(r core.Request) (any, error) {
	state := q.State()
	i := slices.IndexFunc(state.Models, func(m core.Model) bool { return m.ID == r.Model })
	if i < 0 {
		return nil, unknownModel(r.Model)
	}
	m := state.Models[i]
	for _, w := range state.Workers {
		if w.Model == m.ID {
			return nil, core.Errorf(core.InUse, "delete model: %s is loaded by %s", m.ID, w.ID).Hint("Retire them first: `rbee worker retire %s`.", w.ID)
		}
	}
	if !r.DryRun {
		q.Change(func(s *fakecluster.State) { s.Models = slices.Delete(state.Models, i, i+1) })
	}
	return core.ModelDeleteResult{Model: m.ID, FreedBytes: m.SizeBytes, Files: []core.File{{Path: m.ID + ".gguf", SizeBytes: m.SizeBytes}}, DryRun: r.DryRun}, nil
}

func (q *fakeQueen) end(r core.Request) (any, error) {
	workers := q.State().Workers
	for i, w := range workers {
		if w.ID == r.Worker || r.PID == 4242+i {
			q.Change(func(s *fakecluster.State) { s.Workers = slices.Delete(workers, i, i+1) })
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
