package queen

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/node"
)

// scaleVariable enables TestScale, which takes minutes and the whole machine. Its value is the
// number of hives, or 1 for ten thousand.
const scaleVariable = "RBEE_SCALE"

// scaleQueens runs three queens with their registries on disk, raft in memory between them, and
// gRPC over loopback TCP without TLS.
type scaleQueens struct {
	t         *testing.T
	dir       string
	addresses []string // for gRPC

	mu      sync.Mutex // guards below
	queens  []*Queen
	stopAll func()
}

func (s *scaleQueens) start() {
	t := s.t
	t.Helper()
	var ids []string
	var transports []*raft.InmemTransport
	for i := range 3 {
		id := fmt.Sprintf("q%d", i)
		_, trans := raft.NewInmemTransport(raft.ServerAddress("addr-" + id))
		ids = append(ids, id)
		transports = append(transports, trans)
	}
	for _, a := range transports {
		for _, b := range transports {
			a.Connect(b.LocalAddr(), b)
		}
	}
	var stops []func()
	queens := make([]*Queen, 3)
	var opening sync.WaitGroup
	nodes := make([]*node.Node, 3)
	for i := range 3 { // concurrently, as three machines would
		opening.Go(func() {
			n, err := node.Open(node.Options{ID: ids[i], Dir: filepath.Join(s.dir, ids[i]), Transport: transports[i], Bootstrap: node.Later})
			must.NoError(t, err)
			nodes[i] = n
		})
	}
	opening.Wait()
	formCluster(t, nodes, transports)
	for i, n := range nodes {
		q := New(Options{Registry: registry.New(n), ID: ids[i], Pinger: fakePinger(func(context.Context, string) error { return nil })})
		queens[i] = q
		address := "127.0.0.1:0"
		if len(s.addresses) > i {
			address = s.addresses[i]
		}
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", address)
		must.NoError(t, err)
		if len(s.addresses) <= i {
			s.addresses = append(s.addresses, l.Addr().String())
		}
		server := rpc.NewServer(hclog.NewNullLogger(), grpc.Creds(insecure.NewCredentials()))
		q.Register(server)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		// The profile distinguishes queens by this label, which goroutines inherit.
		pprof.Do(ctx, pprof.Labels("queen", ids[i]), func(ctx context.Context) {
			wg.Go(func() { must.NoError(t, q.Run(ctx)) })
			wg.Go(func() { _ = server.Serve(l) })
		})
		stops = append(stops, func() { server.Stop(); cancel(); wg.Wait(); must.NoError(t, n.Shutdown()) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queens = queens
	s.stopAll = sync.OnceFunc(func() {
		var wg sync.WaitGroup
		for _, stop := range stops {
			wg.Go(stop)
		}
		wg.Wait()
	})
}

func (s *scaleQueens) leader() *Queen {
	for _, q := range s.queens {
		if q.Registry.Leads() {
			return q
		}
	}
	return nil
}

// mustLeader waits for a leader: on a busy machine the leadership may just have changed.
func (s *scaleQueens) mustLeader() *Queen {
	var leader *Queen
	within(s.t, 30*time.Second, "a leader", func() bool {
		leader = s.leader()
		return leader != nil
	})
	return leader
}

// scaleHives are hives with a link to each of three queens, a hundred of them per connection.
type scaleHives struct {
	conns   [][]*grpc.ClientConn // by queen
	spacing atomic.Int64         // between reports of one hive about a changed load; 0: it does not change
	reports [3]atomic.Int64
	answers [3]atomic.Int64
	known   []atomic.Bool // registered at least once
	starts  uint64        // number of earlier starts of the agents
	wg      sync.WaitGroup
}

const hivesPerConn = 100

func (h *scaleHives) request(i int) *queenv1.LinkRequest {
	s := simhive.New(fmt.Sprintf("h%05d", i), 0)
	for j := range 4 {
		s.Workers = append(s.Workers, core.Worker{
			ID: fmt.Sprintf("w-%05d-%d", i, j), Type: "cpu", Version: "0.1.0-llama.cpp-0.5.0", Model: scaleModel((i*4 + j) % len(h.known)),
			ModelDigest: "sha256:" + strings.Repeat("0", 64), Device: "cpu", Slots: 4, ContextTokens: 4096, State: core.WorkerReady,
			Nonce: fmt.Sprintf("%032d-%d", i, j),
		})
	}
	s.Hive.Incarnation += h.starts
	return &queenv1.LinkRequest{Hive: wire.HiveToProto(s.Hive), Workers: wire.All(s.Workers, wire.WorkerToProto)}
}

func scaleModel(n int) string { return fmt.Sprintf("library/model-%d-instruct-q4_k_m", n) }

// start runs all hives until the returned function is called.
func (h *scaleHives) start(t *testing.T, addresses []string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	for _, address := range addresses {
		var conns []*grpc.ClientConn
		for range (len(h.known) + hivesPerConn - 1) / hivesPerConn {
			c, err := grpc.NewClient("passthrough:///"+address, append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			must.NoError(t, err)
			conns = append(conns, c)
		}
		h.conns = append(h.conns, conns)
	}
	for i := range h.known {
		for queen := range 3 {
			h.wg.Go(func() { h.run(ctx, i, queen) })
		}
	}
	return sync.OnceFunc(func() {
		cancel()
		for _, conns := range h.conns {
			for _, c := range conns {
				_ = c.Close()
			}
		}
		h.wg.Wait()
	})
}

// run keeps the link of one hive to one queen, as core/hive does.
func (h *scaleHives) run(ctx context.Context, i, queen int) {
	req := h.request(i)
	client := queenv1.NewRegistryServiceClient(h.conns[queen][i/hivesPerConn])
	for failures := 0; ctx.Err() == nil; failures++ {
		if h.talk(ctx, client, i, queen, req) {
			failures = 0
		}
		pause := time.Duration(float64(min(25*time.Millisecond<<min(failures, 6), time.Second)) * (0.75 + rand.Float64()/2))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (h *scaleHives) talk(ctx context.Context, client queenv1.RegistryServiceClient, i, queen int, req *queenv1.LinkRequest) (answered bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Waiting for the connection costs nothing: thirty thousand links that retry by themselves
	// would take the queens' processor.
	stream, err := client.Link(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false
	}
	nexts := make(chan time.Duration, 1) // one per report
	h.wg.Go(func() {
		defer cancel()
		for seq := uint64(0); ; {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			h.answers[queen].Add(1)
			if resp.GetRegistered() {
				h.known[i].Store(true)
			}
			if resp.GetSeq() > seq {
				seq = resp.GetSeq()
				nexts <- resp.GetNext().AsDuration()
			}
		}
	})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for req.Seq = 1; ; req.Seq++ {
		for _, w := range req.GetWorkers() {
			w.Load.Active, w.Load.TokensTotal = int32(req.GetSeq()%5), int64(req.GetSeq()) //nolint:gosec // small
		}
		if stream.Send(req) != nil {
			return answered
		}
		h.reports[queen].Add(1)
		var next time.Duration
		select {
		case next = <-nexts:
			answered = true
		case <-ctx.Done():
			return answered
		}
		if load := time.Duration(h.spacing.Load()); load > 0 {
			next = min(next, load)
		}
		part := 0.9 + 0.1*rand.Float64()
		if req.GetSeq() == 1 {
			part = 0.05 + 0.95*rand.Float64()
		}
		timer.Reset(time.Duration(float64(next) * part))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return answered
		}
	}
}

// cpuByQueen reads a CPU profile and returns the time of the goroutines labelled with each queen,
// and the total.
func cpuByQueen(profile []byte) (by map[string]time.Duration, all time.Duration, err error) {
	z, err := gzip.NewReader(bytes.NewReader(profile))
	if err != nil {
		return nil, 0, err
	}
	data, err := io.ReadAll(z)
	if err != nil {
		return nil, 0, err
	}
	var texts []string
	var samples [][]byte
	fields(data, func(num protowire.Number, b []byte, _ uint64) {
		switch num {
		case 2:
			samples = append(samples, b)
		case 6:
			texts = append(texts, string(b))
		}
	})
	by = map[string]time.Duration{}
	for _, sample := range samples {
		var values []uint64
		queen := ""
		fields(sample, func(num protowire.Number, b []byte, v uint64) {
			switch num {
			case 2: // count, nanoseconds
				values = append(values, v)
			case 3:
				var key, text uint64
				fields(b, func(num protowire.Number, _ []byte, v uint64) {
					switch num {
					case 1:
						key = v
					case 2:
						text = v
					}
				})
				if texts[key] == "queen" {
					queen = texts[text]
				}
			}
		})
		if len(values) != 2 {
			return nil, 0, errors.New("the profile has other values than expected")
		}
		took := time.Duration(values[1]) //nolint:gosec // small
		by[queen] += took
		all += took
	}
	return by, all, nil
}

func fields(data []byte, yield func(num protowire.Number, b []byte, v uint64)) {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return
		}
		data = data[n:]
		var b []byte
		var v uint64
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(data)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(data)
		default:
			n = protowire.ConsumeFieldValue(num, typ, data)
		}
		if n < 0 {
			return
		}
		data = data[n:]
		yield(num, b, v)
	}
}

// measure returns the CPU time of each queen and of the process over a period.
func measure(t *testing.T, d time.Duration) (by map[string]time.Duration, process time.Duration) {
	t.Helper()
	var profile bytes.Buffer
	before := cpuTime(t)
	must.NoError(t, pprof.StartCPUProfile(&profile))
	time.Sleep(d)
	pprof.StopCPUProfile()
	process = cpuTime(t) - before
	by, _, err := cpuByQueen(profile.Bytes())
	must.NoError(t, err)
	return by, process
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func resident(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	must.NoError(t, err)
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	must.NoError(t, err)
	return pages * int64(os.Getpagesize())
}

// within waits in real time.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func p99(n int, f func(i int)) (median, p99 time.Duration) {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		f(i)
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n/2], took[n*99/100]
}

// TestScale prints what ten thousand hives cost three queens:
//
//	RBEE_SCALE=1 go test ./core/queen -run TestScale -v -timeout 20m
func TestScale(t *testing.T) { //nolint:paralleltest // it measures
	size, err := strconv.Atoi(os.Getenv(scaleVariable))
	if err != nil {
		t.Skipf("%s is not set", scaleVariable)
	}
	if size == 1 {
		size = 10_000
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	row := func(what, value string) { _, _ = fmt.Fprintf(w, "%s\t%s\n", what, value) }
	row("hives, workers, queens", fmt.Sprintf("%d, %d, 3", size, 4*size))

	// The memory of one queen, without that of gRPC.
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	func() {
		n, err := node.Open(node.Options{ID: "alone"})
		must.NoError(t, err)
		defer func() { must.NoError(t, n.Shutdown()) }()
		q := New(Options{Registry: registry.New(n), ID: "alone"})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { must.NoError(t, q.Run(ctx)) })
		defer wg.Wait()
		defer cancel()
		within(t, 10*time.Second, "one queen leads", q.Registry.Leads)
		var links []*liveness.Link
		plain := &scaleHives{known: make([]atomic.Bool, size)}
		for i := range size {
			r, err := liveness.ReportOf(plain.request(i), time.Now())
			must.NoError(t, err)
			l, err := q.liveness.Open(ctx, r.Hive)
			must.NoError(t, err)
			must.NoError(t, l.Take(1, r, false))
			links = append(links, l)
		}
		within(t, time.Minute, "all are registered", func() bool {
			ready := 0
			q.Registry.View().EachHive(nil, func(*core.Hive) bool { ready++; return true })
			return ready == size
		})
		for i := range size { // the second report shares the registry's memory
			r, err := liveness.ReportOf(plain.request(i), time.Now())
			must.NoError(t, err)
			must.NoError(t, links[i].Take(2, r, false))
		}
		must.NoError(t, n.Snapshot(ctx)) // the log is on disk in production
		runtime.GC()
		runtime.ReadMemStats(&after)
		row("memory of one queen for it: registry, reports, log in memory", fmt.Sprintf("%d MiB", (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>20)) //nolint:gosec // small

		snapshot := func(i int) string { return scaleModel(rand.IntN(size)) }
		found := 0
		median, top := p99(200_000, func(i int) {
			q.Registry.View().EachRoute(nil, snapshot(i), func(*core.Worker, *core.Hive) bool { found++; return true })
		})
		must.Eq(t, 4*200_000, found)
		row("registry: workers of a model and their hives, of 4 each", fmt.Sprintf("p50 %s, p99 %s", median, top))
		median, top = p99(100_000, func(i int) { must.Len(t, 4, q.ready(snapshot(i))) })
		row("whole choice of a worker, loads and suspicion included", fmt.Sprintf("p50 %s, p99 %s", median, top))
	}()

	s := &scaleQueens{t: t, dir: t.TempDir()}
	s.start()
	defer func() { s.stopAll() }()
	within(t, 10*time.Second, "a leader", func() bool { return s.leader() != nil })
	h := &scaleHives{known: make([]atomic.Bool, size)}
	began := time.Now()
	stopHives := h.start(t, s.addresses)
	defer func() { stopHives() }()
	registered := func() bool {
		for i := range h.known {
			if !h.known[i].Load() {
				return false
			}
		}
		return true
	}
	within(t, 2*time.Minute, "all hives are registered", registered)
	row("all hives at once: until each has heard that it is registered", time.Since(began).Round(time.Millisecond).String())
	links := func() int {
		least := size
		for _, q := range s.queens {
			linked := 0
			for i := range size {
				if q.liveness.Hive(fmt.Sprintf("h%05d", i)).Linked {
					linked++
				}
			}
			least = min(least, linked)
		}
		return least
	}
	within(t, 2*time.Minute, "all links stand", func() bool { return links() == size })
	time.Sleep(10 * time.Second) // hives that were given an early, short interval have reported again by now

	load := func(name string, d time.Duration) {
		index := s.mustLeader().Registry.AppliedIndex()
		var at [3]int64
		for i := range at {
			at[i] = h.reports[i].Load()
		}
		by, process := measure(t, d)
		leader := s.mustLeader().opts.ID
		var each []string
		for i := range 3 {
			id := fmt.Sprintf("q%d", i)
			name := id
			if id == leader {
				name += " (leader)"
			}
			each = append(each, fmt.Sprintf("%s %.1f %%", name, 100*by[id].Seconds()/d.Seconds()))
		}
		row(name+": reports to each queen", fmt.Sprintf("%.0f/s", float64(h.reports[0].Load()-at[0])/d.Seconds()))
		row(name+": CPU of a core", strings.Join(each, ", "))
		row(name+": CPU of a core, all queens and all hives together", fmt.Sprintf("%.1f %%", 100*process.Seconds()/d.Seconds()))
		row(name+": entries written to raft", strconv.FormatUint(s.mustLeader().Registry.AppliedIndex()-index, 10))
	}
	load("steady", 30*time.Second)
	h.spacing.Store(int64(5 * time.Second))
	// A sleeping hive learns of it when it wakes: replace its link.
	for _, q := range s.queens {
		for i := range size { // a newer link ends the older one
			l, err := q.liveness.Open(t.Context(), core.Hive{ID: fmt.Sprintf("h%05d", i), Incarnation: 1})
			must.NoError(t, err)
			l.Close()
		}
	}
	time.Sleep(10 * time.Second)
	within(t, 2*time.Minute, "all links stand", func() bool { return links() == size })
	load("load of every hive changes all the time", 30*time.Second)
	h.spacing.Store(0)
	runtime.GC()
	row("resident memory of the process: 3 queens, all hives, gRPC both ends", fmt.Sprintf("%d MiB", resident(t)>>20))

	// Power loss everywhere: the agents of all hives restart as well.
	stopHives()
	s.stopAll()
	runtime.GC()
	h = &scaleHives{known: make([]atomic.Bool, size), starts: 1}
	began = time.Now()
	s.start()
	row("all queens restarted: until their registries are read", time.Since(began).Round(time.Millisecond).String())
	for _, q := range s.queens {
		must.Len(t, 4, q.ready(scaleModel(7)))
	}
	row("until each routes again", time.Since(began).Round(time.Millisecond).String())
	stopHives = h.start(t, s.addresses)
	within(t, 30*time.Second, "a leader", func() bool { return s.leader() != nil })
	row("all hives started as well: until there is a leader", time.Since(began).Round(time.Millisecond).String())
	within(t, 2*time.Minute, "all links stand", func() bool { return links() == size })
	row("until every hive has its lines again", time.Since(began).Round(time.Millisecond).String())
	within(t, 2*time.Minute, "all hives are registered", registered)
	row("until every hive has heard that it is registered", time.Since(began).Round(time.Millisecond).String())
	// If all of this has less processor time than one queen needs, a few hives take longer than
	// liveness.LinkGrace to find the new leader.
	within(t, time.Minute, "no hive is down", func() bool {
		down := 0
		s.mustLeader().Registry.View().EachHive(nil, func(x *core.Hive) bool {
			if x.Status == core.HiveDown {
				down++
			}
			return true
		})
		return down == 0
	})
	row("until none is down", time.Since(began).Round(time.Millisecond).String())
	must.NoError(t, w.Flush())
	t.Log("\n" + table.String())
}
