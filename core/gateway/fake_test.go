package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/apischema"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeRouter leases the workers that serve a model, in order.
type fakeRouter struct {
	mu      sync.Mutex // guards below
	workers []core.Worker
	failed  []string
	active  map[string]int
	busy    map[string]time.Duration                                      // of workers that reported themselves busy
	slots   int                                                           // total; 0: no limit
	wait    func(ctx context.Context, progress func(core.Progress)) error // called before a lease; nil: no wait
}

func (f *fakeRouter) Route(ctx context.Context, q inference.Query) (inference.Lease, error) {
	f.mu.Lock()
	wait := f.wait
	f.mu.Unlock()
	if wait != nil && !q.Other && !q.Look {
		ctx, cancel := context.WithTimeout(ctx, q.Patience)
		defer cancel()
		progress := q.Progress
		if progress == nil {
			progress = func(core.Progress) {}
		}
		progress(core.Progress{})
		if err := wait(ctx, progress); err != nil {
			return inference.Lease{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var ranked []core.Candidate
	for _, w := range f.workers {
		if w.Model == q.Model && !slices.ContainsFunc(q.Tried, func(t core.Worker) bool { return t.ID == w.ID }) {
			ranked = append(ranked, core.Candidate{Worker: w, Reason: "test"})
		}
	}
	if q.Look && len(ranked) == 0 {
		return inference.Lease{}, &inference.NotLoaded{Model: q.Model}
	}
	if len(ranked) == 0 {
		return inference.Lease{}, core.Errorf(core.NotFound, "no model %q", q.Model).Hint("Near to it are: tiny.")
	}
	id := ranked[0].Worker.ID
	if f.active == nil {
		f.active, f.busy = map[string]int{}, map[string]time.Duration{}
	}
	if f.slots > 0 && f.runningLocked() >= f.slots {
		return inference.Lease{}, &inference.Busy{Model: q.Model}
	}
	f.active[id]++
	return inference.NewLease(ranked, nil, nil, func(o inference.Outcome) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.active[id]--
		if o.Busy > 0 {
			f.busy[id] = o.Busy
		}
		if o.Failed {
			f.failed = append(f.failed, id)
		}
	}), nil
}

func (f *fakeRouter) failures() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.failed...)
}

func (f *fakeRouter) running() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runningLocked()
}

func (f *fakeRouter) runningLocked() int {
	n := 0
	for _, a := range f.active {
		n += a
	}
	return n
}

// rig is a gateway on a loopback port with fakes behind it.
type rig struct {
	*Gateway
	inference *inference.Service
	t         testing.TB
	url       string
	addr      string
	router    *fakeRouter
	cluster   *fakecluster.Cluster
	jobs      *fakeJobs
	dir       string
	client    *http.Client
	stop      func() // ends Serve and waits for it

	mu      sync.Mutex // guards below
	sockets map[string]string
}

// rigOptions are those of the gateway and of the inference behind it.
type rigOptions struct {
	Options
	inf   inference.Options
	grace time.Duration // for Serve; 0: 1 second
}

func newRig(t testing.TB, change func(*rigOptions)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw") //nolint:usetesting // the path of t.TempDir is too long for a socket
	must.NoError(t, err)
	r := &rig{t: t, router: &fakeRouter{}, cluster: newCluster(), jobs: &fakeJobs{}, dir: dir, sockets: map[string]string{}}
	o := rigOptions{
		Options: Options{Metrics: NewMetrics(), Cluster: r.cluster, Jobs: r.jobs, Version: "1.2.3", LameDuck: 20 * time.Millisecond},
		inf:     inference.Options{Router: r.router, Dial: r.dialWorker},
	}
	if change != nil {
		change(&o)
	}
	o.inf.Meter, o.inf.Logger = o.Metrics, o.Logger
	r.inference = inference.New(o.inf)
	o.Inference = r.inference
	r.Gateway = New(o.Options)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	r.addr = l.Addr().String()
	r.url = "http://" + r.addr
	ctx, cancel := context.WithCancel(context.Background()) // not t.Context: that ends before cleanups run
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, l, cmp.Or(o.grace, time.Second)) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			must.NoError(t, <-served)
		})
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	r.client = &http.Client{Transport: validated(t, transport)}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		r.stop()
		r.inference.Close()
		_ = os.RemoveAll(dir)
		r.answers.Spare(math.MaxInt64) // stored conversations belong to no request
		eventually(t, "requests have given back what they took", r.empty)
	})
	return r
}

// schemas are compiled once for all tests.
var schemas = sync.OnceValues(apischema.New)

// validated checks the gateway's answers against the schemas of its APIs. Answers of workers in
// OpenAI's own API pass through, and tests invent them.
func validated(t testing.TB, base http.RoundTripper) http.RoundTripper {
	t.Helper()
	if _, measured := t.(*testing.B); measured {
		return base
	}
	s, err := schemas()
	must.NoError(t, err)
	return &apischema.Transport{Base: base, Schemas: s, Report: func(err error) { t.Error(err) }, Skip: func(schema string) bool {
		return strings.HasPrefix(schema, "openai/") && !strings.HasPrefix(schema, "openai/model")
	}}
}

// empty reports whether no request holds any resource.
func (r *rig) empty() bool {
	r.bodies.mu.Lock()
	held := r.bodies.used != 0 || len(r.bodies.keys) > 0
	r.bodies.mu.Unlock()
	r.streams.mu.Lock()
	defer r.streams.mu.Unlock()
	return !held && len(r.streams.running) == 0 && r.streams.active.Load() == 0 && r.router.running() == 0
}

func (r *rig) dialWorker(ctx context.Context, w core.Worker) (net.Conn, error) {
	r.mu.Lock()
	path := r.sockets[w.ID]
	r.mu.Unlock()
	if path == "" {
		return nil, errors.New("no such worker")
	}
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// listen adds a worker of model "tiny" with a data socket and returns its listener.
func (r *rig) listen(id string) net.Listener {
	r.t.Helper()
	path := filepath.Join(r.dir, id)
	l, err := net.Listen("unix", path)
	must.NoError(r.t, err)
	r.t.Cleanup(func() { l.Close() })
	r.add(core.Worker{ID: id, Hive: "h1", Model: "tiny", State: core.WorkerReady, Nonce: "n"}, path)
	return l
}

func (r *rig) add(w core.Worker, path string) {
	r.mu.Lock()
	r.sockets[w.ID] = path
	r.mu.Unlock()
	r.router.mu.Lock()
	defer r.router.mu.Unlock()
	w.Nonce = w.ID
	r.router.workers = append(r.router.workers, w)
}

// serve adds a worker that answers with h.
func (r *rig) serve(id string, h http.HandlerFunc) *http.Server {
	r.t.Helper()
	l := r.listen(id)
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	r.t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return srv
}

// raw adds a worker that answers each connection with f after it has read a whole request, then
// closes it.
func (r *rig) raw(id string, f func(c net.Conn)) {
	r.t.Helper()
	l := r.listen(id)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if err := readRequest(c); err == nil {
					f(c)
				}
			})
		}
	})
	r.t.Cleanup(func() {
		l.Close()
		r.inference.Close()
		wg.Wait()
	})
}

// readRequest reads one request whose length is stated.
func readRequest(c net.Conn) error {
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if head, body, ok := bytes.Cut(got, []byte("\r\n\r\n")); ok {
			length := 0
			for line := range strings.Lines(string(head)) {
				_, _ = fmt.Sscanf(line, "Content-Length: %d", &length)
			}
			if len(body) >= length {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// post sends a body and returns status, headers and the received part of the answer, with the error
// that ended it.
func (r *rig) post(path, body string) (*http.Response, string, error) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, r.url+path, strings.NewReader(body))
	must.NoError(r.t, err)
	return r.do(req)
}

func (r *rig) get(path string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, r.url+path, nil)
	must.NoError(r.t, err)
	resp, body, err := r.do(req)
	must.NoError(r.t, err)
	return resp, body
}

func (r *rig) do(req *http.Request) (*http.Response, string, error) {
	r.t.Helper()
	resp, err := r.client.Do(req)
	must.NoError(r.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// errorIn returns the error of an envelope; the test fails if there is none.
func errorIn(t testing.TB, body string) openai.Error {
	t.Helper()
	var env struct {
		Error *openai.Error `json:"error"`
	}
	must.NoError(t, json.Unmarshal([]byte(body), &env), must.Sprintf("body: %s", body))
	must.NotNil(t, env.Error)
	must.NotEq(t, "", env.Error.Message)
	must.NotEq(t, "", env.Error.Type)
	return *env.Error
}

func code(e openai.Error) string {
	if e.Code == nil {
		return ""
	}
	return *e.Code
}

const (
	askTiny   = `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`
	streamAsk = `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}`
	roleEvent = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}` + "\n\n"
	doneEvent = "data: [DONE]\n\n"
)

func tokenEvent(i int) string {
	return fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{"content":"t%d"},"finish_reason":null}]}`+"\n\n", i)
}

// streamOf returns a worker that sends these blocks, each flushed, and ends properly.
func streamOf(blocks ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, b := range blocks {
			_, _ = io.WriteString(w, b)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// eventually waits until other goroutines make ok true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 5 s: %s", what)
		case <-tick.C:
		}
	}
}

// newCluster returns a cluster with one object of each kind. Any model, worker and catalog item
// requested by name exists.
func newCluster() *fakecluster.Cluster {
	c := fakecluster.New(fakecluster.State{
		Status: core.Status{Version: "1.2.3"}, Hives: []core.Hive{{ID: "h1", Name: "desk"}}, Workers: []core.Worker{{ID: "w1"}},
		Processes: []core.Process{{PID: 12}}, Binaries: []core.WorkerBinary{{ID: "cpu@1"}},
		Health:    core.HiveHealth{Reachable: true, Queens: []core.HiveSight{{Queen: "q1"}}},
		Refreshed: core.RefreshResult{After: []core.Device{{ID: "cpu"}}},
		Queens:    []core.Queen{{ID: "q1", Leader: true}}, Nodes: []core.Node{{ID: "n1", KeyHash: []byte("hidden")}},
		Tokens: []core.Token{{ID: "t1", SecretHash: []byte("hidden")}}, Keys: []string{"k1", "k2"},
	})
	operation.Answer(c.Answers, operation.ModelGet, func(_ context.Context, r core.Request) (core.Model, error) {
		if r.Hive == "" {
			return c.Model(r.Model)
		}
		return core.Model{ID: r.Model}, nil
	})
	operation.Answer(c.Answers, operation.ActiveWorkerGet, func(_ context.Context, r core.Request) (core.Worker, error) {
		return core.Worker{ID: r.Worker, Nonce: r.Worker}, nil
	})
	operation.Answer(c.Answers, operation.CatalogSearch, func(_ context.Context, r core.Request) ([]core.CatalogItem, error) {
		return []core.CatalogItem{{Ref: "builtin:" + r.Text, Kind: r.Kind, SizeBytes: int64(r.Limit)}}, nil
	})
	return c
}

// fakeJobs has one job, "j1-h1", whose events a test adds.
type fakeJobs struct {
	mu        sync.Mutex // guards below
	submitted []core.Request
	cancelled []string
	events    []core.Event
	more      chan struct{} // closed and replaced on each event
	fail      error         // returned by Events after the existing ones
}

func (f *fakeJobs) Submit(_ context.Context, r core.Request, _ bool) (core.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submitted = append(f.submitted, r)
	return core.Job{ID: "j1-h1", Operation: r.Operation, Hive: "h1", State: core.JobRunning}, nil
}

func (f *fakeJobs) Job(_ context.Context, id string) (core.Job, error) {
	if id != "j1-h1" {
		return core.Job{}, core.Errorf(core.NotFound, "no job %q", id)
	}
	return core.Job{ID: id, State: core.JobRunning}, nil
}

func (f *fakeJobs) Jobs(context.Context) ([]core.Job, error) { return nil, nil }

func (f *fakeJobs) Cancel(_ context.Context, id string) (core.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancelled = append(f.cancelled, id)
	return core.Job{ID: id, State: core.JobRunning}, nil
}

func (f *fakeJobs) add(events ...core.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		e.Seq = int64(len(f.events)) + 1
		f.events = append(f.events, e)
	}
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

func (f *fakeJobs) Events(ctx context.Context, _ string, after int64, emit func(core.Event) error) error {
	for {
		f.mu.Lock()
		events, fail := f.events, f.fail
		if f.more == nil {
			f.more = make(chan struct{})
		}
		more := f.more
		f.mu.Unlock()
		for _, e := range events {
			if e.Seq <= after {
				continue
			}
			if err := emit(e); err != nil {
				return err
			}
			if after = e.Seq; e.Kind == core.EventEnd {
				return nil
			}
		}
		if fail != nil {
			return fail
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func itoa(n int) string { return fmt.Sprint(n) }

// syncBuffer is a bytes.Buffer for several writers.
type syncBuffer struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
