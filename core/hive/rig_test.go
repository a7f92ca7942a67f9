package hive

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/plugintest"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/core/wire"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// patience is how long a test waits for foreign processes on a busy machine.
	patience = 20 * time.Second
	// tinyModel is the model that the fake catalog offers, as a file beside this package.
	tinyModel = "../../plugins/catalog-builtin/rbee-tiny.gguf"
	// agentVariable makes the test binary an agent that runs a hive in the folder it names; see
	// TestAgentIsKilled.
	agentVariable = "RBEE_TEST_HIVE"
)

// pluginDir returns the folder of the fake plugins, which the first caller builds.
var pluginDir = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(agentVariable + "_PLUGINS"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "rbee-hive")
	if err != nil {
		return "", err
	}
	built = dir
	for name, pkg := range map[string]string{
		"rbee-worker-fake":  "../../plugins/sdk/sdktest/fakeworker",
		"rbee-catalog-fake": "../../plugins/sdk/sdktest/fakecatalog",
	} {
		if err := coretest.Build(filepath.Join(dir, name), pkg); err != nil {
			return "", err
		}
	}
	// The same plugin under another name needs an engine.
	return dir, os.Link(filepath.Join(dir, "rbee-worker-fake"), filepath.Join(dir, "rbee-worker-"+fake.Engined))
})

// built is the folder to remove at the end; empty: none.
var built string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == suiteArg {
		plugintest.Child()
	}
	if dir := os.Getenv(agentVariable); dir != "" {
		agentMain(dir)
		return
	}
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// queen is the queen's end of a line.
type queen struct {
	queenv1.UnimplementedRegistryServiceServer

	mu     sync.Mutex
	last   *queenv1.LinkRequest
	retire []string
	err    error
}

func (q *queen) Link(s grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		q.mu.Lock()
		if err = q.err; err == nil {
			q.last = r
		}
		resp := &queenv1.LinkResponse{Seq: r.GetSeq(), Registered: true, Next: durationpb.New(time.Second), Retire: q.retire}
		q.mu.Unlock()
		if err != nil {
			return err
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// workers returns the workers of the last report.
func (q *queen) workers() []core.Worker {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []core.Worker
	for _, w := range q.last.GetWorkers() {
		out = append(out, wire.WorkerFromProto(w, q.last.GetHive().GetId(), time.Time{}))
	}
	return out
}

func (q *queen) hive() core.Hive {
	q.mu.Lock()
	defer q.mu.Unlock()
	return wire.HiveFromProto(q.last.GetHive())
}

func (q *queen) set(f func(*queen)) { q.mu.Lock(); defer q.mu.Unlock(); f(q) }

// rig is a hive with its services, a queen, and fake plugins.
type rig struct {
	t     *testing.T
	dir   string
	hive  *Hive
	queen *queen
	hives hivev1.HiveServiceClient
	jobs  jobv1.JobServiceClient
	stop  func() // ends Run and waits; may be called again
}

type setup struct {
	workers string                    // worker blocks of the configuration
	dir     string                    // of an earlier rig; empty: a new one
	alone   bool                      // no queen
	keep    bool                      // workers keep running when the hive ends
	blobs   queenv1.BlobServiceServer // nil: the queen knows no other hives
	change  func(*Options)
}

// shortDir returns a folder whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rh") //nolint:usetesting // t.TempDir holds the test's name and is too long for sockets
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// options returns what a hive in dir needs, without a queen.
func options(dir, workers string, log hclog.Logger) (Options, *store.Store, error) {
	plugins, err := pluginDir()
	if err != nil {
		return Options{}, nil, err
	}
	models := filepath.Join(dir, "catalog")
	if err := os.MkdirAll(models, 0o700); err != nil {
		return Options{}, nil, err
	}
	if err := copyFile(tinyModel, filepath.Join(models, "tiny.gguf")); err != nil {
		return Options{}, nil, err
	}
	file := filepath.Join(dir, "config.hcl")
	text := fmt.Sprintf("data_dir = %q\nplugin_dir = %q\nqueen {\n  enabled = true\n}\nhive {\n  enabled = true\n}\ncatalog \"fake\" {\n  config {\n    dir = %q\n  }\n}\n%s\n", dir, plugins, models, workers)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return Options{}, nil, err
	}
	c, diags := config.Load([]string{file}, func(string) (string, bool) { return "", false })
	if err := diags.Err(); err != nil {
		return Options{}, nil, err
	}
	host := pluginhost.New(pluginhost.Options{PluginDir: plugins, RunDir: filepath.Join(dir, "run"), Logger: log})
	var workerSpecs, catalogSpecs []pluginhost.Spec
	for _, p := range append(slices.Clone(c.Workers), c.Catalogs...) {
		spec, err := host.Spec(p)
		if err != nil {
			return Options{}, nil, err
		}
		if spec.Kind == sdk.KindWorker {
			workerSpecs = append(workerSpecs, spec)
		} else {
			catalogSpecs = append(catalogSpecs, spec)
		}
	}
	if len(workerSpecs) == 0 {
		spec, err := host.DefaultSpec(sdk.KindWorker, "fake")
		if err != nil {
			return Options{}, nil, err
		}
		workerSpecs = append(workerSpecs, spec)
	}
	s, err := store.Open(filepath.Join(dir, "store"), log)
	if err != nil {
		return Options{}, nil, err
	}
	return Options{
		ID: "h1", Name: "hive-one", Version: "1", DataDir: dir, Store: s, Plugins: host, WorkerSpecs: workerSpecs, CatalogSpecs: catalogSpecs, Logger: log,
	}, s, nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// run starts a hive. None of its processes are left when the test ends, whatever happens.
func run(t *testing.T, s setup) *rig {
	t.Helper()
	if s.dir == "" {
		s.dir = shortDir(t)
	}
	log := coretest.Logger(t)
	opts, shelf, err := options(s.dir, s.workers, log)
	must.NoError(t, err)
	opts.StopWorkersOnExit = !s.keep
	r := &rig{t: t, dir: s.dir, queen: &queen{}}
	var closers []func()
	if !s.alone {
		conn, end := serve(t, log, func(g *grpc.Server) {
			queenv1.RegisterRegistryServiceServer(g, r.queen)
			if s.blobs != nil {
				queenv1.RegisterBlobServiceServer(g, s.blobs)
			}
		})
		opts.Queens = OneQueen(conn)
		closers = append(closers, end)
	}
	if s.change != nil {
		s.change(&opts)
	}
	r.hive, err = New(opts)
	must.NoError(t, err)
	conn, end := serve(t, log, func(g *grpc.Server) { r.hive.Register(g); r.hive.jobs.Register(g) })
	closers = append(closers, end)
	r.hives, r.jobs = hivev1.NewHiveServiceClient(conn), jobv1.NewJobServiceClient(conn)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.hive.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			must.NoError(t, err)
		case <-time.After(patience):
			t.Error("the hive does not end")
		}
		for _, c := range slices.Backward(closers) {
			c()
		}
		must.NoError(t, shelf.Close())
	})
	t.Cleanup(func() {
		r.stop()
		for _, h := range handles(t, s.dir) {
			_, err := opts.Plugins.EndAttachment(context.Background(), h.Attachment)
			must.NoError(t, err)
		}
	})
	if !s.alone {
		select {
		case <-r.hive.Ready():
		case <-time.After(patience):
			t.Fatal("the hive does not get ready")
		}
	}
	return r
}

func serve(t *testing.T, log hclog.Logger, register func(*grpc.Server)) (*grpc.ClientConn, func()) {
	t.Helper()
	pipe := rpc.NewPipe()
	server := rpc.NewServer(log)
	register(server)
	conn, err := rpc.Client(pipe)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, server, pipe.Listener(), time.Second) }()
	return conn, func() {
		_ = conn.Close()
		cancel()
		must.NoError(t, <-ended)
	}
}

func handles(t *testing.T, dir string) []handle {
	t.Helper()
	l, err := openLayout(dir)
	must.NoError(t, err)
	list, err := l.readHandles(func(string, error) {})
	must.NoError(t, err)
	return list
}

// submit starts a job.
func (r *rig) submit(req core.Request) core.Job {
	r.t.Helper()
	b, err := json.Marshal(req)
	must.NoError(r.t, err)
	resp, err := r.jobs.Submit(r.t.Context(), &jobv1.SubmitRequest{Operation: string(req.Operation), RequestJson: b})
	must.NoError(r.t, err)
	return wire.JobFromProto(resp.GetJob())
}

// follow waits for the end of a job and returns it with all its events.
func (r *rig) follow(id string) (core.Job, []core.Event) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	stream, err := r.jobs.Events(ctx, &jobv1.EventsRequest{Id: id})
	must.NoError(r.t, err)
	var events []core.Event
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(r.t, err)
		events = append(events, wire.EventFromProto(e.GetEvent()))
	}
	resp, err := r.jobs.Get(ctx, &jobv1.GetRequest{Id: id})
	must.NoError(r.t, err)
	return wire.JobFromProto(resp.GetJob()), events
}

func (r *rig) do(req core.Request) core.Job {
	r.t.Helper()
	j, _ := r.follow(r.submit(req).ID)
	return j
}

// result1 runs an operation that must succeed.
func result1[T any](r *rig, req core.Request) T {
	r.t.Helper()
	j := r.do(req)
	if j.State != core.JobSucceeded {
		r.t.Fatalf("%s is %s: %+v", req.Operation, j.State, j.Error)
	}
	var v T
	must.NoError(r.t, json.Unmarshal(j.Result, &v))
	return v
}

// failure runs an operation that must fail.
func (r *rig) failure(req core.Request) core.Failure {
	r.t.Helper()
	j := r.do(req)
	must.Eq(r.t, core.JobFailed, j.State, must.Sprintf("%s", j.Result))
	return *j.Error
}

func (r *rig) spawn(typ string) core.SpawnResult {
	r.t.Helper()
	return result1[core.SpawnResult](r, core.Request{Operation: core.OpWorkerSpawn, Type: typ, Model: "tiny", Slots: 2, ContextTokens: 64})
}

func (r *rig) processes() []core.Process {
	r.t.Helper()
	out, err := operation.WorkerProcessList.Ask(r.t.Context(), r, core.Request{})
	must.NoError(r.t, err)
	return out
}

// Answer asks the hive by RPC, as a queen does.
func (r *rig) Answer(ctx context.Context, req core.Request) (any, error) {
	s, err := operation.Find(req.Operation)
	must.NoError(r.t, err)
	req.Hive = core.LocalHive
	text, err := json.Marshal(req)
	must.NoError(r.t, err)
	resp, err := r.hives.Ask(ctx, &hivev1.AskRequest{Operation: string(req.Operation), RequestJson: text})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	return s.Receive(resp.GetResultJson())
}

// nothingLeft checks that the hive has no worker, and that workers left neither files nor
// processes.
func (r *rig) nothingLeft() {
	r.t.Helper()
	must.Len(r.t, 0, r.processes())
	must.Len(r.t, 0, entries(r.t, filepath.Join(r.dir, "hive", "workers")))
	coretest.Eventually(r.t, patience, func() error { // probes and catalogs briefly have folders
		for _, name := range entries(r.t, filepath.Join(r.dir, "run")) {
			if validID(name) {
				return fmt.Errorf("%s is left", name)
			}
		}
		return nil
	})
	must.Len(r.t, 0, marked(r.t, filepath.Join(r.dir, "run")+"/"), must.Sprint("processes are left"))
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must.NoError(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// marked lists the pids of worker processes, and of what they started, whose socket folder belongs
// to a worker below prefix.
func marked(t *testing.T, prefix string) []string {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	must.NoError(t, err)
	var out []string
	for _, p := range procs {
		env, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if rest, ok := strings.CutPrefix(string(v), socketDirVariable+"="+prefix); ok && validID(strings.TrimSuffix(rest, "/p")) {
				out = append(out, p)
			}
		}
	}
	return out
}

// told waits until the last report satisfies check.
func (r *rig) told(within time.Duration, check func([]core.Worker) error) {
	r.t.Helper()
	coretest.Eventually(r.t, within, func() error { return check(r.queen.workers()) })
}

func count(n int) func([]core.Worker) error {
	return func(list []core.Worker) error {
		if len(list) != n {
			return fmt.Errorf("%d workers are told of, want %d", len(list), n)
		}
		return nil
	}
}

// ask sends a prompt to a worker's data socket.
func (r *rig) ask(ctx context.Context, worker, prompt string) (string, error) {
	return r.askFor(ctx, worker, "tiny", prompt)
}

func (r *rig) askFor(ctx context.Context, worker, model, prompt string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return r.hive.DialWorker(ctx, worker)
	}}}
	body := fmt.Sprintf(`{"model":%q,"prompt":%q}`, model, prompt)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker/v1/completions", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var v struct {
		Choices []struct {
			Text string `json:"text"`
		} `json:"choices"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK || len(v.Choices) == 0 {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return v.Choices[0].Text, nil
}
