package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

var (
	_ gateway.Cluster    = (*fakeQueen)(nil)
	_ gateway.Reader     = (*fakeQueen)(nil)
	_ gateway.Authorizer = (*fakeQueen)(nil)
	_ gateway.Admin      = (*fakeQueen)(nil)
)

// fakeState returns what a fakeQueen knows of its cluster.
func fakeState() fakecluster.State {
	return fakecluster.State{
		Status: core.Status{
			Version: "1.2.3", Node: "aaaaaaaa", StartedAt: fakeStart, Leader: "aaaaaaaa", Index: 42, Cluster: &core.Cluster{ID: "00112233", Name: "hill"}, Problems: []string{},
		},
		Hives: []core.Hive{{
			ID: "h1", Name: "desk", Version: "1.2.3", OS: "linux", Arch: "amd64", Incarnation: 3, Status: core.HiveReady,
			Devices: []core.Device{{ID: "cpu", Kind: "cpu", Name: "Some CPU", TotalBytes: 8 << 30, FreeBytes: 6 << 30}}, WorkerTypes: []string{"cpu", "cuda"},
			LastBeat: fakeStart.Add(88 * time.Second), RPCAddress: "10.0.0.1:7834", CreateIndex: 2, ModifyIndex: 5,
		}},
		Models: []core.Model{
			{
				ID: "rbee-tiny", Aliases: []string{"tiny"}, Ref: "builtin:rbee-tiny", Digest: "sha256:" + strings.Repeat("ab", 32), SizeBytes: 2983680, License: "apache-2.0",
				Architecture: "llama", Quantization: "Q8_0", Parameters: 2755008, ContextTokens: 1024, CreatedAt: fakeStart, Hives: []string{"h1"}, LoadedBy: []string{}, EstimateBytes: 9 << 20,
			},
			{ID: "slow", Aliases: []string{}, Ref: "file:/slow.gguf", SizeBytes: 7 << 30, Quantization: "Q4_K_M", Parameters: 7_241_732_096, Hives: []string{"h1"}, LoadedBy: []string{}},
			{ID: "broken", Aliases: []string{}, Ref: "file:/broken.gguf", Hives: []string{"h1"}, LoadedBy: []string{}, Damaged: "the file is shorter than its header says"},
		},
		Binaries: []core.WorkerBinary{
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
		},
		Items: []core.CatalogItem{{Ref: "builtin:rbee-tiny", Kind: "model", Name: "rbee-tiny", Summary: "a very small model", SizeBytes: 2983680, License: "apache-2.0"}},
		Health: core.HiveHealth{Problem: "connection refused", Queens: []core.HiveSight{
			{Queen: "bbbbbbbb", Gossip: "failed", Problem: "no line for 7s"},
			{Queen: "aaaaaaaa", Linked: true, Heard: true, Silence: core.Duration(120 * time.Millisecond), Gossip: "alive"},
		}},
		Refreshed: core.RefreshResult{
			Before: []core.Device{fakeCPU}, After: []core.Device{{ID: "cuda:0", Kind: "cuda", Name: "Some GPU", TotalBytes: 24 << 30}, fakeCPU},
			WorkerTypesBefore: []string{"cpu", "metal"}, WorkerTypesAfter: []string{"cpu", "cuda"},
		},
		Queens: []core.Queen{
			{ID: "aaaaaaaa", RaftID: "aaaaaaaa.11111111", Name: "ant", Address: "10.0.0.1:7834", HTTPAddress: "10.0.0.1:7833", Version: "1.2.3", Leader: true, Voter: true, Gossip: "alive"},
			{ID: "bbbbbbbb", RaftID: "bbbbbbbb.22222222", Name: "bat", Address: "10.0.0.2:7834", HTTPAddress: "10.0.0.2:7833", Version: "1.2.3", Voter: true, Gossip: "alive"},
			{ID: "cccccccc", RaftID: "cccccccc.33333333", Name: "cat", Address: "10.0.0.3:7834", Version: "1.2.3", Voter: true, Gossip: "failed"},
		},
		Nodes: []core.Node{
			{ID: "aaaaaaaa", Name: "ant", Roles: []core.Role{core.RoleQueen, core.RoleHive}, RPCAddress: "10.0.0.1:7834", CertificateExpiresAt: fakeStart.Add(48*time.Hour + 30*time.Minute), CreateIndex: 1, ModifyIndex: 1},
			{ID: "bbbbbbbb", Name: "bat", Roles: []core.Role{core.RoleQueen}, RPCAddress: "10.0.0.2:7834", CertificateExpiresAt: fakeStart.Add(-time.Hour), CreateIndex: 2, ModifyIndex: 2},
			{ID: "dddddddd", Name: "dog", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.4:7834", Revoked: true, CreateIndex: 3, ModifyIndex: 3},
		},
		Tokens: []core.Token{{ID: "aaaaaaaaaa", Name: "operator", Kind: core.TokenAPI, Scopes: core.Scopes(), CreatedAt: fakeStart, CreateIndex: 1, ModifyIndex: 1}},
		Keys:   []string{"1111111111111111", "2222222222222222"},
		Refuse: func(asked string) error {
			switch asked {
			case `transfer to "cat"`:
				return core.Errorf(core.Unavailable, "queen cat does not answer").Hint("Choose another one.")
			case "leave bbbbbbbb":
				return core.Errorf(core.Unavailable, "bat does not answer")
			}
			return nil
		},
		Snapshot: func(w io.Writer) error {
			_, err := io.WriteString(w, "no snapshot at all")
			return err
		},
	}
}

var fakeCPU = core.Device{ID: "cpu", Kind: "cpu", Name: "Some CPU", TotalBytes: 8 << 30, FreeBytes: 6 << 30} // constant

// details makes the cluster answer with what its lists omit.
func (q *fakeQueen) details() {
	model, binary := q.Answers[core.OpModelGet], q.Answers[core.OpWorkerBinaryGet]
	operation.Answer(q.Answers, operation.DeploymentList, func(context.Context, core.Request) ([]core.DeploymentStatus, error) {
		d, err := fakeDeployment("chat", false)
		return []core.DeploymentStatus{d}, err
	})
	operation.Answer(q.Answers, operation.DeploymentGet, func(_ context.Context, r core.Request) (core.DeploymentStatus, error) {
		return fakeDeployment(r.Deployment, false)
	})
	operation.Answer(q.Answers, operation.WorkerProcessList, func(context.Context, core.Request) ([]core.Process, error) { return q.processes(), nil })
	operation.Answer(q.Answers, operation.WorkerProcessGet, func(_ context.Context, r core.Request) (core.Process, error) {
		for _, p := range q.processes() {
			if p.PID == r.PID {
				p.CommandLine, p.Sockets, p.Log = []string{"rbee-worker-cpu", "serve"}, []string{"/run/data.sock"}, []string{"loaded", "esc\x1b[31mape"}
				return p, nil
			}
		}
		return core.Process{}, core.Errorf(core.NotFound, "process %d is no worker of this hive", r.PID).Hint("\"rbee worker process list\" shows them.")
	})
	operation.Answer(q.Answers, operation.ModelGet, func(ctx context.Context, r core.Request) (core.Model, error) {
		v, err := model(ctx, r)
		if core.KindOf(err) == core.NotFound {
			return core.Model{}, unknownModel(r.Model)
		}
		if err != nil {
			return core.Model{}, err
		}
		return wholeModel(v.(core.Model)), nil
	})
	operation.Answer(q.Answers, operation.WorkerBinaryGet, func(ctx context.Context, r core.Request) (core.WorkerBinary, error) {
		v, err := binary(ctx, r)
		b, _ := v.(core.WorkerBinary)
		if err == nil {
			b.Files = []core.File{{Path: "rbee-worker-" + b.Type, SizeBytes: b.SizeBytes, Digest: b.Digest}}
		}
		return b, err
	})
}

func (q *fakeQueen) processes() []core.Process {
	var out []core.Process
	for i, w := range q.State().Workers {
		out = append(out, core.Process{PID: 4242 + i, WorkerID: w.ID, Type: w.Type, Model: w.Model, Device: w.Device, State: w.State, MemoryBytes: 45 << 20, CPUPercent: 12.34, StartedAt: fakeStart})
	}
	return out
}

func wholeModel(m core.Model) core.Model {
	m.Files = []core.File{{Path: "rbee-tiny.gguf", SizeBytes: m.SizeBytes, Digest: m.Digest}}
	m.Facts = &core.ModelFacts{Name: "rbee tiny", Layers: 6, Embedding: 192, FeedForward: 512, Heads: 6, KVHeads: 2, Vocabulary: 2048, Tensors: 56, Parts: 1, ChatTemplate: true}
	m.Fits = []core.ModelFit{
		{Hive: "h1", Device: "cpu", Kind: "cpu", Slots: 4, ContextTokens: 1024, WeightsBytes: 2 << 20, CacheBytes: 6 << 20, ComputeBytes: 5 << 20, OverheadBytes: 25 << 20, NeedBytes: 38 << 20, FreeBytes: 6 << 30},
		{Hive: "h1", Device: "cuda:0", Kind: "cuda", Slots: 4, ContextTokens: 512, WeightsBytes: 2 << 20, CacheBytes: 3 << 20, ComputeBytes: 5 << 20, OverheadBytes: 25 << 20, NeedBytes: 35 << 20, FreeBytes: 34 << 20, MissingBytes: 1 << 20},
	}
	return m
}

// Status returns the cluster's status, with the jobs.
func (q *fakeQueen) Status(ctx context.Context) (core.Status, error) {
	s, err := q.Cluster.Status(ctx)
	s.Jobs = q.jobs.List()
	return s, err
}

// trouble makes the queen lose its leader.
func (q *fakeQueen) trouble(lost bool) {
	q.Change(func(s *fakecluster.State) {
		s.NotReady, s.NoLeader, s.Status.Leader, s.Status.Problems = nil, nil, "aaaaaaaa", []string{}
		if lost {
			s.NotReady, s.NoLeader = core.Errorf(core.Unavailable, "no leader"), core.Errorf(core.Unavailable, "there is no leader")
			s.Status.Leader, s.Status.Problems = "", []string{"no leader: nothing can be changed"}
		}
	})
}

// secure makes the queen serve a cluster: over TLS, and only to tokens. The identity is in the data
// folder of the script, and agent.json has the address.
func (q *fakeQueen) secure(ts *testscript.TestScript) {
	data := filepath.Join(ts.Getenv("XDG_DATA_HOME"), "rbee")
	id, hash, text := token.New()
	operator := core.Token{ID: id, Name: "operator", Kind: core.TokenAPI, Scopes: core.Scopes(), SecretHash: hash, CreatedAt: fakeStart}
	made, err := pki.Init(data, pki.InitOptions{Name: "hill", NodeID: "aaaaaaaa", NodeName: "ant", RPCAddress: "127.0.0.1:7834", Roles: []core.Role{core.RoleQueen, core.RoleHive}, Token: operator, Now: time.Now()})
	ts.Check(err)
	tokens := []core.Token{operator}
	reader, _, readText := token.New()
	p, err := token.Parse(readText)
	ts.Check(err)
	tokens = append(tokens, core.Token{ID: reader, Name: "reader", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeRead}, SecretHash: token.Hash(p.Secret), CreatedAt: fakeStart})
	asker, askHash, askText := token.New()
	tokens = append(tokens, core.Token{ID: asker, Name: "asker", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, SecretHash: askHash, CreatedAt: fakeStart})
	q.Change(func(s *fakecluster.State) { s.Tokens = tokens })
	s := httptest.NewUnstartedServer(gateway.New(gateway.Options{Inference: q.answers, Cluster: q, Jobs: q, Auth: q, Reader: q, Admin: q, Version: "1.2.3"}).Handler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*made.Identity.Certificate()}}
	s.StartTLS()
	ts.Defer(s.Close)
	record, err := json.Marshal(map[string]any{"pid": os.Getpid(), "http_address": s.Listener.Addr().String(), "scheme": "https"})
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(data, "agent.json"), record, 0o600))
	ts.Setenv("SECURE", s.Listener.Addr().String())
	ts.Setenv("OPERATOR", text)
	ts.Setenv("READER", readText)
	ts.Setenv("ASKER", askText)
	ts.Setenv("RBEE_ADDR", "")
}

// testApp returns an app with that console and environment.
func testApp(con console, env func(string) (string, bool)) *app {
	a := &app{}
	a.console, a.env = con, env
	return a
}
