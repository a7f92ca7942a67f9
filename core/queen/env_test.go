package queen

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/wire"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/node"
)

// cluster is a real queen on a real raft node, with hives that are fake except for their gRPC. It
// lives inside a synctest bubble.
type cluster struct {
	t      *testing.T
	q      *Queen
	node   *node.Node
	server *grpc.ClientConn // connection to the queen
	stop   func()           // ends the queen; may be called twice

	calls atomic.Int64 // to hives

	mu    sync.Mutex // guards below
	hives map[string]*fakeHive
	local string
}

// counting is a connection that counts its calls.
type counting struct {
	grpc.ClientConnInterface
	calls *atomic.Int64
}

func (c counting) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c.calls.Add(1)
	return c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

func (c counting) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.calls.Add(1)
	return c.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

func newCluster(t *testing.T, dir string, change ...func(*Options)) *cluster {
	t.Helper()
	c := &cluster{t: t, hives: map[string]*fakeHive{}}
	log := coretest.Logger(t)
	n, err := node.Open(node.Options{ID: "q1", Dir: dir, Logger: log})
	must.NoError(t, err)
	c.node = n
	opts := Options{
		Registry: registry.New(n), ID: "q1", Version: "1.2.3", Logger: log,
		HiveConn: func(hive string) (grpc.ClientConnInterface, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if hive == "q1" {
				return c.server, nil
			}
			if h, ok := c.hives[hive]; ok {
				return counting{h.conn, &c.calls}, nil
			}
			return nil, core.Errorf(core.Unavailable, "no way to hive %s", hive)
		},
		LocalHive: func() string {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.local
		},
		Rand: func(int) int { return 0 },
	}
	for _, f := range change {
		f(&opts)
	}
	c.q = New(opts)
	pipe := rpc.NewPipe()
	s := rpc.NewServer(log)
	c.q.Register(s)
	if opts.Jobs != nil {
		opts.Jobs.Register(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { must.NoError(t, c.q.Run(ctx)) })
	wg.Go(func() { must.NoError(t, rpc.Serve(ctx, s, pipe.Listener(), time.Second)) })
	c.server, err = rpc.Client(pipe)
	must.NoError(t, err)
	c.stop = sync.OnceFunc(func() {
		for _, h := range c.hives {
			h.hangUp()
		}
		must.NoError(t, c.server.Close())
		cancel()
		wg.Wait()
		must.NoError(t, n.Shutdown())
		for _, h := range c.hives {
			h.close()
		}
	})
	t.Cleanup(c.stop)
	c.eventually("the queen leads", c.q.Registry.Leads)
	return c
}

// eventually waits, in the bubble's time.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for range 20_000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Fatalf("not within 20 s: %s", what)
}

// fakeHive is a hive whose state the test sets.
type fakeHive struct {
	c    *cluster
	conn *grpc.ClientConn
	jobs *job.Manager
	ends []func()

	hivev1.UnimplementedHiveServiceServer
	jobv1.UnimplementedJobServiceServer

	mu        sync.Mutex // guards below
	hive      core.Hive
	workers   []core.Worker
	models    []core.Model
	items     []core.CatalogItem
	searching time.Duration // duration of a search
	processes []core.Process
	binaries  []core.WorkerBinary
	requests  []core.Request  // submitted requests, in order
	retire    []string        // as last sent by the queen
	mute      error           // error for every query
	refuse    error           // error for every job
	tell      func(*core.Job) // changes the reported state of a submitted job; nil: no change
	blob      *hivev1.FindBlobResponse
	asked     int  // queries for a blob
	tells     bool // it reports what its store has
	unloads   bool // it unloads unused workers
	told      *queenv1.Inventory
	// run does what a job does; nil: spawns a worker after a second.
	run func(ctx context.Context, r core.Request, run *job.Run) (any, error)

	beating chan struct{} // holds one; taken while reporting
	line    *fakeLine     // nil: none
	submits atomic.Int32
	ran     atomic.Int32
}

func (c *cluster) newHive(id string) *fakeHive {
	c.t.Helper()
	h := &fakeHive{c: c, beating: make(chan struct{}, 1), jobs: job.New(job.Options{Owner: id}), hive: core.Hive{
		ID: id, Name: "name-" + id, Version: "1", OS: "linux", Arch: "amd64", Incarnation: 1, WorkerTypes: []string{"cpu"},
		Devices: []core.Device{{ID: "cpu", Kind: "cpu", TotalBytes: 1 << 30, FreeBytes: 1 << 29}},
	}}
	pipe := rpc.NewPipe()
	s := rpc.NewServer(coretest.Logger(c.t))
	hivev1.RegisterHiveServiceServer(s, h)
	jobv1.RegisterJobServiceServer(s, h)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(pipe.Listener()) })
	conn, err := rpc.Client(pipe)
	must.NoError(c.t, err)
	h.conn = conn
	h.ends = []func(){func() { _ = conn.Close() }, s.Stop, func() { _ = pipe.Close() }, wg.Wait, func() { _ = h.jobs.Close(context.Background()) }}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hives[id] = h
	if c.local == "" {
		c.local = id
	}
	return h
}

func (h *fakeHive) close() {
	h.hangUp()
	for _, f := range h.ends {
		f()
	}
}

// change changes the hive's state.
func (h *fakeHive) change(f func(h *fakeHive)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
}

// fakeLine is a hive's end of its link.
type fakeLine struct {
	stream grpc.BidiStreamingClient[queenv1.LinkRequest, queenv1.LinkResponse]
	cancel context.CancelFunc
	ended  chan struct{} // closed when err is set

	incarnation uint64

	mu     sync.Mutex // guards below
	seq    uint64
	answer *queenv1.LinkResponse
	news   chan struct{} // closed and replaced with every answer
	err    error
}

func openLine(server grpc.ClientConnInterface) (*fakeLine, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := queenv1.NewRegistryServiceClient(server).Link(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	l := &fakeLine{stream: stream, cancel: cancel, ended: make(chan struct{}), news: make(chan struct{})}
	go func() {
		for {
			resp, err := stream.Recv()
			l.mu.Lock()
			close(l.news)
			l.news = make(chan struct{})
			if err != nil {
				l.err = err
				l.mu.Unlock()
				close(l.ended)
				return
			}
			l.answer = resp
			l.mu.Unlock()
		}
	}()
	return l, nil
}

// send sends a report and returns its number.
func (l *fakeLine) send(req *queenv1.LinkRequest) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	req.Seq = l.seq
	_ = l.stream.Send(req) // Recv returns the cause
	return req.GetSeq()
}

// await waits for an answer to the report, one that confirms registration unless that takes more
// than 100 ms.
func (l *fakeLine) await(ctx context.Context, seq uint64) (*queenv1.LinkResponse, error) {
	limit := time.After(100 * time.Millisecond)
	for {
		l.mu.Lock()
		answer, news, err := l.answer, l.news, l.err
		l.mu.Unlock()
		switch {
		case answer.GetSeq() >= seq && answer.GetRegistered():
			return answer, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit:
			if answer.GetSeq() >= seq {
				return answer, nil
			}
		}
	}
}

func (l *fakeLine) close() {
	l.cancel()
	<-l.ended
}

// beat reports the current state, and waits until the registry has it or, if the queen does not
// lead, until the queen has accepted it.
func (h *fakeHive) beat(ctx context.Context) (*queenv1.LinkResponse, error) {
	h.beating <- struct{}{}
	defer func() { <-h.beating }()
	h.mu.Lock()
	incarnation := h.hive.Incarnation
	h.mu.Unlock()
	if h.line != nil && (isClosed(h.line.ended) || h.line.incarnation != incarnation) { // the queen ended the link, or the agent restarted
		h.line.close()
		h.line = nil
	}
	if h.line == nil {
		l, err := openLine(h.c.server)
		if err != nil {
			return nil, err
		}
		h.change(func(h *fakeHive) { h.told = nil })
		h.line, l.incarnation = l, incarnation
	}
	h.mu.Lock()
	req := h.reportLocked()
	h.mu.Unlock()
	resp, err := h.line.await(ctx, h.line.send(req))
	if err != nil {
		h.line.close()
		h.line = nil
		return nil, err
	}
	h.change(func(h *fakeHive) { h.retire = resp.GetRetire() })
	return resp, nil
}

func (h *fakeHive) reportLocked() *queenv1.LinkRequest {
	r := &queenv1.LinkRequest{Unloads: h.unloads, Hive: wire.HiveToProto(h.hive), Workers: wire.All(h.workers, wire.WorkerToProto)}
	if now := wire.InventoryToProto(core.Inventory{Models: h.models, Offers: h.items, OffersKnown: true}); h.tells && !proto.Equal(now, h.told) {
		r.Inventory, h.told = now, now
	}
	return r
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// hangUp breaks the link.
func (h *fakeHive) hangUp() {
	h.beating <- struct{}{}
	defer func() { <-h.beating }()
	if h.line != nil {
		h.line.close()
		h.line = nil
	}
}

func (h *fakeHive) mustBeat() *queenv1.LinkResponse {
	h.c.t.Helper()
	resp, err := h.beat(h.c.t.Context())
	must.NoError(h.c.t, err)
	return resp
}

// keepBeating beats at the queen's interval until the returned function is called.
func (h *fakeHive) keepBeating() (stop func()) {
	h.c.t.Helper()
	h.mustBeat()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(liveness.ReportInterval):
			}
			_, _ = h.beat(ctx)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	h.ends = append([]func(){stop}, h.ends...)
	h.c.t.Cleanup(stop)
	return stop
}

func (h *fakeHive) addWorker(id, model string, state core.WorkerState) core.Worker {
	w := core.Worker{
		ID: id, Hive: h.hive.ID, Type: "cpu", Version: "1", Model: model, ModelDigest: "sha256:00", Device: "cpu", Slots: 4, ContextTokens: 512,
		State: state, Nonce: "nonce-of-" + id,
	}
	h.change(func(h *fakeHive) { h.workers = append(h.workers, w) })
	return w
}

func (h *fakeHive) removeWorker(id string) {
	h.change(func(h *fakeHive) {
		h.workers = slices.DeleteFunc(h.workers, func(w core.Worker) bool { return w.ID == id })
	})
}

func (h *fakeHive) addModel(id string, aliases ...string) {
	h.change(func(h *fakeHive) {
		h.models = append(h.models, core.Model{ID: id, Aliases: aliases, Ref: "file:/models/" + id + ".gguf", Digest: "sha256:" + id, SizeBytes: 1000, EstimateBytes: 2000})
	})
}

// submitted returns the requests so far.
func (h *fakeHive) submitted() []core.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

// spawn is the default worker_spawn.
func (h *fakeHive) spawn(ctx context.Context, r core.Request, run *job.Run) (any, error) {
	id := fmt.Sprintf("w%d", h.ran.Load())
	model := r.Model
	h.change(func(h *fakeHive) {
		for _, i := range h.items {
			if i.Ref == model {
				model = i.Name
			}
		}
	})
	h.addWorker(id, model, core.WorkerLoading)
	if _, err := h.beat(ctx); err != nil {
		return nil, err
	}
	run.Progress(core.Progress{Phase: "load " + model, Done: 1, Total: 2})
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		h.removeWorker(id)
		return nil, ctx.Err()
	}
	var w core.Worker
	h.change(func(h *fakeHive) {
		i := slices.IndexFunc(h.workers, func(w core.Worker) bool { return w.ID == id })
		h.workers[i].State = core.WorkerReady
		w = h.workers[i]
	})
	_, err := h.beat(ctx)
	return core.SpawnResult{Worker: w, PID: 42}, err
}

func (h *fakeHive) FindBlob(context.Context, *hivev1.FindBlobRequest) (*hivev1.FindBlobResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	if h.blob == nil {
		return &hivev1.FindBlobResponse{}, h.mute
	}
	return h.blob, h.mute
}

func (h *fakeHive) Submit(_ context.Context, req *jobv1.SubmitRequest) (*jobv1.SubmitResponse, error) {
	var r core.Request
	if err := json.Unmarshal(req.GetRequestJson(), &r); err != nil || string(r.Operation) != req.GetOperation() {
		return nil, core.Errorf(core.Invalid, "bad request %s: %v", req.GetRequestJson(), err)
	}
	h.submits.Add(1)
	h.mu.Lock()
	h.requests = append(h.requests, r)
	run, mute, tell := h.run, cmp.Or(h.mute, h.refuse), h.tell
	h.mu.Unlock()
	if mute != nil {
		return nil, mute
	}
	j := h.jobs.Start(r.Operation, r.RequestID, func(ctx context.Context, jr *job.Run) (any, error) {
		h.ran.Add(1)
		if run != nil {
			return run(ctx, r, jr)
		}
		return h.spawn(ctx, r, jr)
	})
	if tell != nil {
		tell(&j)
	}
	return &jobv1.SubmitResponse{Job: wire.JobToProto(j)}, nil
}

func (h *fakeHive) Get(_ context.Context, req *jobv1.GetRequest) (*jobv1.GetResponse, error) {
	j, err := h.jobs.Get(req.GetId())
	return &jobv1.GetResponse{Job: wire.JobToProto(j)}, cmp.Or(h.muted(), err)
}

func (h *fakeHive) List(_ context.Context, req *jobv1.ListRequest) (*jobv1.ListResponse, error) {
	if id := req.GetRequestId(); id != "" {
		j, ok := h.jobs.ByRequest(id)
		if !ok {
			return &jobv1.ListResponse{}, h.muted()
		}
		return &jobv1.ListResponse{Jobs: []*jobv1.Job{wire.JobToProto(j)}}, h.muted()
	}
	return &jobv1.ListResponse{Jobs: wire.All(h.jobs.List(), wire.JobToProto)}, h.muted()
}

func (h *fakeHive) Cancel(_ context.Context, req *jobv1.CancelRequest) (*jobv1.CancelResponse, error) {
	j, err := h.jobs.Cancel(req.GetId())
	return &jobv1.CancelResponse{Job: wire.JobToProto(j)}, cmp.Or(h.muted(), err)
}

func (h *fakeHive) Events(req *jobv1.EventsRequest, s grpc.ServerStreamingServer[jobv1.EventsResponse]) error {
	return h.jobs.Events(s.Context(), req.GetId(), req.GetAfterSeq(), func(e core.Event) error {
		return s.Send(&jobv1.EventsResponse{Event: wire.EventToProto(e)})
	})
}

func (h *fakeHive) muted() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mute
}

// Ask answers what the fake supports, like an older hive.
func (h *fakeHive) Ask(ctx context.Context, req *hivev1.AskRequest) (*hivev1.AskResponse, error) {
	reads := operation.Answers{}
	operation.Answer(reads, operation.ModelList, func(context.Context, core.Request) ([]core.Model, error) { return h.models, nil })
	operation.Answer(reads, operation.ModelGet, h.modelGet)
	operation.Answer(reads, operation.CatalogSearch, h.search)
	operation.Answer(reads, operation.WorkerProcessList, func(context.Context, core.Request) ([]core.Process, error) { return h.processes, nil })
	operation.Answer(reads, operation.WorkerBinaryList, func(context.Context, core.Request) ([]core.WorkerBinary, error) { return h.binaries, nil })
	answer, ok := reads[core.Operation(req.GetOperation())]
	if !ok {
		return nil, operation.Unsupported("h", "0.0", core.Operation(req.GetOperation()))
	}
	r, err := operation.Decode(req.GetRequestJson())
	if err := cmp.Or(err, operation.Check(r)); err != nil {
		return nil, err
	}
	if h.searching > 0 && r.Operation == core.OpCatalogSearch {
		time.Sleep(h.searching)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v, err := answer(ctx, r)
	if err != nil {
		return nil, err
	}
	text, err := operation.Encode(v)
	return &hivev1.AskResponse{ResultJson: text}, cmp.Or(h.mute, err)
}

func (h *fakeHive) modelGet(_ context.Context, r core.Request) (core.Model, error) {
	for _, m := range h.models {
		if m.ID == r.Model {
			return m, nil
		}
	}
	return core.Model{}, core.Errorf(core.NotFound, "no model %q here", r.Model).Hint("Try another.")
}

func (h *fakeHive) search(_ context.Context, r core.Request) ([]core.CatalogItem, error) {
	var found []core.CatalogItem
	for _, i := range h.items {
		if r.Text == "" || i.Name == r.Text {
			found = append(found, i)
		}
	}
	return found, nil
}

// The method sets that core/gateway requires. That package may not be imported here; core/agent has
// the same assertions.
var (
	_ interface {
		Answer(ctx context.Context, r core.Request) (any, error)
		Ready(ctx context.Context) error
		Status(ctx context.Context) (core.Status, error)
		Workers(ctx context.Context) ([]core.Worker, error)
		Models(ctx context.Context) ([]core.Model, error)
	} = (*Queen)(nil)
)
