package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// op is one operation on a register: a write of a value that is unique in the whole history, or a
// read with its result. "" is the value of a register that was never written.
type op struct {
	client  int
	key     string
	write   bool
	value   string
	call    int64 // nanoseconds since the history began
	ret     int64
	unknown bool // the write may have happened, may happen yet, or never
}

// history is what clients did and saw. It omits failed reads, which prove nothing.
type history struct {
	began time.Time

	mu  sync.Mutex // guards ops
	ops []op
}

func newHistory() *history { return &history{began: time.Now()} }

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) add(o op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// known returns how many operations have a known outcome.
func (h *history) known() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, o := range h.ops {
		if !o.unknown {
			n++
		}
	}
	return n
}

// registers returns the model of one key.
func registers() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			o := input.(op)
			if o.write {
				return true, o.value
			}
			return state == o.value, state
		},
		DescribeOperation: func(input, _ any) string {
			o := input.(op)
			if o.write {
				return "write " + o.value
			}
			return fmt.Sprintf("read %q", o.value)
		},
	}
}

// verdict is the result of checking a history.
type verdict struct {
	keys       int
	violations []string // keys with an impossible history
	undecided  []string // keys whose check took too long
}

// check looks for an order of the operations on each key that a register could have had, each
// operation taking effect between its call and its return. Refuting a history without such an order
// and with many concurrent operations may take practically unlimited time: after patience only its
// telling operations count.
func (h *history) check(patience time.Duration) verdict {
	var v verdict
	for key, ops := range settle(h.ops) {
		v.keys++
		result, info := porcupine.CheckOperationsVerbose(registers(), operations(ops), patience)
		if result == porcupine.Unknown {
			result, info = porcupine.CheckOperationsVerbose(registers(), operations(telling(ops)), patience)
		}
		switch result {
		case porcupine.Ok:
		case porcupine.Unknown:
			v.undecided = append(v.undecided, key)
		default:
			v.violations = append(v.violations, fmt.Sprintf("%s: %s", key, explain(ops)))
			if dir := os.Getenv("RBEE_TEST_PICTURES"); dir != "" {
				_ = porcupine.VisualizePath(registers(), info, filepath.Join(dir, key+".html"))
			}
		}
	}
	slices.Sort(v.violations)
	return v
}

func operations(ops []op) []porcupine.Operation {
	list := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		list[i] = porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Return: o.ret}
	}
	return list
}

// telling omits redundant reads. A register has a value for one stretch of time, since each is
// written once; a read of it fits if it returned after the stretch began and was called before it
// ended. So of all reads of a value, the one that returned first and the one that was called last
// suffice.
func telling(ops []op) []op {
	first, last := map[string]int{}, map[string]int{}
	for i, o := range ops {
		if o.write {
			continue
		}
		if j, ok := first[o.value]; !ok || o.ret < ops[j].ret {
			first[o.value] = i
		}
		if j, ok := last[o.value]; !ok || o.call > ops[j].call {
			last[o.value] = i
		}
	}
	var list []op
	for i, o := range ops {
		if o.write || first[o.value] == i || last[o.value] == i {
			list = append(list, o)
		}
	}
	return list
}

// settle groups the operations by key and sets when each write of unknown outcome ended. One whose
// value was never read may have happened after everything else, or never: it is omitted. One whose
// value was read happened before the first of those reads returned. This is exactly as strict as
// leaving them open to the end, and far cheaper to check.
func settle(ops []op) map[string][]op {
	seen := map[string]int64{} // by key and value: when the first read of it returned
	for _, o := range ops {
		if id := o.key + "\x00" + o.value; !o.write {
			if first, ok := seen[id]; !ok || o.ret < first {
				seen[id] = o.ret
			}
		}
	}
	keys := map[string][]op{}
	for _, o := range ops {
		if o.write && o.unknown {
			first, ok := seen[o.key+"\x00"+o.value]
			if !ok {
				continue
			}
			o.ret = max(first, o.call) // a value read before it was written: let the read be refuted
		}
		keys[o.key] = append(keys[o.key], o)
	}
	return keys
}

// explain describes an impossible read.
func explain(ops []op) string {
	writes := map[string]op{"": {ret: -1}}
	for _, o := range ops {
		if o.write {
			writes[o.value] = o
		}
	}
	ordered := slices.SortedFunc(slices.Values(ops), func(a, b op) int { return cmp.Compare(a.call, b.call) })
	for _, r := range ordered {
		if r.write {
			continue
		}
		w, ok := writes[r.value]
		if !ok {
			return fmt.Sprintf("client %d read %q, which nobody wrote", r.client, r.value)
		}
		for _, other := range ordered {
			if other.value == r.value || other.ret >= r.call {
				continue
			}
			// This happened entirely after w, and entirely before the read.
			if other.write && other.call > w.ret || !other.write && writes[other.value].call > w.ret {
				return fmt.Sprintf("client %d read %q at %s, after %q was there at %s", r.client, r.value,
					time.Duration(r.call).Round(time.Millisecond), other.value, time.Duration(other.ret).Round(time.Millisecond))
			}
		}
	}
	return "no order of its operations is possible"
}

// The checker finds what it is meant to find.
func TestChecker(t *testing.T) {
	t.Parallel()
	w := func(client int, value string, call, ret int64) op {
		return op{client: client, key: "k", write: true, value: value, call: call, ret: ret}
	}
	lost := func(client int, value string, call int64) op {
		return op{client: client, key: "k", write: true, value: value, call: call, ret: math.MaxInt64, unknown: true}
	}
	r := func(client int, value string, call, ret int64) op {
		return op{client: client, key: "k", value: value, call: call, ret: ret}
	}
	for _, c := range []struct {
		name string
		ops  []op
		ok   bool
	}{
		{"nothing", nil, true},
		{"what was written is read", []op{r(0, "", 0, 1), w(0, "a", 2, 3), r(1, "a", 4, 5)}, true},
		{"a read during a write sees either", []op{w(0, "a", 0, 1), w(0, "b", 2, 9), r(1, "a", 3, 4), r(1, "b", 5, 6), r(2, "b", 7, 8)}, true},
		{"a stale read", []op{w(0, "a", 0, 1), w(0, "b", 2, 3), r(1, "a", 4, 5)}, false},
		{"a stale read of nothing", []op{w(0, "a", 0, 1), r(1, "", 2, 3)}, false},
		{"a read that goes back behind another", []op{w(0, "a", 0, 1), w(0, "b", 2, 9), r(1, "b", 3, 4), r(2, "a", 5, 6)}, false},
		{"a lost write", []op{w(0, "a", 0, 1), w(0, "b", 2, 3), r(1, "b", 4, 5), r(1, "a", 6, 7)}, false},
		{"a lost write that nobody saw", []op{w(0, "a", 0, 1), w(0, "b", 2, 3), r(0, "a", 4, 5), r(1, "a", 6, 7)}, false},
		{"a value from nowhere", []op{w(0, "a", 0, 1), r(1, "x", 2, 3)}, false},
		{"a read before its write", []op{r(1, "a", 0, 1), w(0, "a", 2, 3)}, false},
		{"a write of unknown outcome that did not happen", []op{w(0, "a", 0, 1), lost(0, "b", 2), r(1, "a", 4, 5), r(1, "a", 6, 7)}, true},
		{"one that happened", []op{w(0, "a", 0, 1), lost(0, "b", 2), r(1, "b", 4, 5), r(2, "b", 6, 7)}, true},
		{"one that happened late", []op{w(0, "a", 0, 1), lost(0, "b", 2), r(1, "a", 4, 5), w(0, "c", 6, 7), r(1, "c", 8, 9), r(1, "b", 10, 11)}, true},
		{"one that happened and was undone", []op{w(0, "a", 0, 1), lost(0, "b", 2), r(1, "b", 4, 5), r(2, "a", 6, 7)}, false},
		{"one that happened twice", []op{lost(0, "b", 2), r(1, "b", 4, 5), w(0, "c", 6, 7), r(2, "b", 8, 9)}, false},
		{"one that was read before it was called", []op{r(1, "b", 0, 1), lost(0, "b", 2), r(1, "b", 4, 5)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := &history{ops: c.ops}
			v := h.check(10 * time.Second)
			must.SliceEmpty(t, v.undecided)
			must.Eq(t, c.ok, len(v.violations) == 0, must.Sprint(v.violations))
		})
	}
	t.Run("keys do not mix", func(t *testing.T) {
		t.Parallel()
		other := r(1, "", 2, 3)
		other.key = "other"
		v := (&history{ops: []op{w(0, "a", 0, 1), other}}).check(10 * time.Second)
		must.Eq(t, 2, v.keys)
		must.SliceEmpty(t, v.violations)
	})
	t.Run("many stale reads at once", func(t *testing.T) {
		t.Parallel()
		h := &history{ops: []op{w(0, "a", 0, 1), w(0, "b", 2, 3)}}
		for i := range 64 {
			h.ops = append(h.ops, r(i, []string{"a", "b"}[i%2], 4+int64(i), 1000-int64(i)))
		}
		v := h.check(time.Second)
		must.SliceEmpty(t, v.undecided)
		must.Len(t, 1, v.violations)
		must.StrContains(t, v.violations[0], `read "a"`)
	})
	t.Run("the telling reads tell as much as all", func(t *testing.T) {
		t.Parallel()
		rng := rand.New(rand.NewPCG(1, 2))
		outcomes := map[bool]int{}
		for range 3000 {
			var ops []op
			for i := range 3 + rng.IntN(3) {
				call := rng.Int64N(30)
				ops = append(ops, w(i, fmt.Sprint("v", i), call, call+1+rng.Int64N(12)))
			}
			for i := range 2 + rng.IntN(8) {
				call := rng.Int64N(30)
				ops = append(ops, r(i+10, ops[rng.IntN(3)].value, call, call+1+rng.Int64N(20)))
			}
			all := porcupine.CheckOperations(registers(), operations(ops))
			must.Eq(t, all, porcupine.CheckOperations(registers(), operations(telling(ops))), must.Sprintf("%+v", ops))
			outcomes[all]++
		}
		must.Greater(t, 300, outcomes[true])
		must.Greater(t, 300, outcomes[false])
	})
	t.Run("one bad read among many operations", func(t *testing.T) {
		t.Parallel()
		h := &history{}
		for i := range int64(3000) {
			h.ops = append(h.ops, w(int(i%8), fmt.Sprint("v", i), 10*i, 10*i+25), r(9, fmt.Sprint("v", i), 10*i+26, 10*i+27))
			h.ops[len(h.ops)-1].ret = 10*i + 40
		}
		// Every write overlaps its neighbours, every read may see its own or a newer one: possible.
		bad := h.ops[2000]
		h.ops = append(h.ops, r(10, bad.value, bad.ret+500, bad.ret+501))
		v := h.check(time.Minute)
		must.SliceEmpty(t, v.undecided)
		must.Eq(t, 1, len(v.violations))
		must.StrContains(t, v.violations[0], bad.value)
	})
}

// registry uses a cluster's registry as registers, one for each hive id: the version of the hive is
// the value.
type registry struct {
	c       *cluster
	history *history
	pool    *rpc.Pool
	http    *http.Client
	count   atomic.Int64 // number of values
}

// newRegistry accesses the cluster like one more queen, with its own certificate.
func newRegistry(c *cluster) *registry {
	c.t.Helper()
	key, err := pki.NewKey()
	must.NoError(c.t, err)
	n := pki.Node{Cluster: c.signer.Cluster(), ID: fmt.Sprintf("%08x", rand.Uint32()), Name: "test", Roles: []core.Role{core.RoleQueen}}
	request, err := pki.NewRequest(key, n.ID)
	must.NoError(c.t, err)
	cert, _, err := c.signer.Sign(request, n, nil, time.Hour, time.Now())
	must.NoError(c.t, err)
	id, err := pki.Create(c.t.TempDir(), pki.Material{Name: n.Name, RPCAddress: "127.0.0.1:1", CAPEM: c.ca, NodePEM: cert, Key: key})
	must.NoError(c.t, err)
	r := &registry{c: c, history: newHistory(), http: c.httpClient(), pool: rpc.NewPool(rpc.PoolOptions{Identity: id, Dial: c.dial})}
	c.t.Cleanup(func() {
		r.http.CloseIdleConnections()
		_ = r.pool.Close()
	})
	return r
}

// put writes a value through a queen.
func (r *registry) put(ctx context.Context, q *node, key, value string) error {
	conn, err := r.pool.Conn("", q.ip+":7834", core.RoleQueen)
	if err != nil {
		return err
	}
	// The incarnation is always the same, so the last write wins, as in a register.
	command, err := proto.Marshal(fsm.SyncHive(core.Hive{ID: key, Name: key, Version: value, Incarnation: 1}, nil))
	if err != nil {
		return err
	}
	_, err = queenv1.NewClusterServiceClient(conn).Apply(ctx, &queenv1.ApplyRequest{Command: command})
	return err
}

// get reads a register through a queen, with ?consistency=.
func (r *registry) get(ctx context.Context, q *node, key string, consistency core.Consistency) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.url()+"/v1/hives/"+key+"?consistency="+string(consistency), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+r.c.token)
	resp, err := r.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode == http.StatusNotFound && resp.Header.Get("X-Rbee-Index") != "":
		return "", nil
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("status %d: %.300s", resp.StatusCode, body)
	}
	var h struct {
		ID      string `json:"id"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return "", err
	}
	if h.ID != key {
		return "", fmt.Errorf("asked for %s, answered with %s", key, h.ID)
	}
	return h.Version, nil
}

// write is put as part of the history. After any error, the write may have happened.
func (r *registry) write(ctx context.Context, client int, q *node, key string) (value string, err error) {
	o := op{client: client, key: key, write: true, value: fmt.Sprintf("%d.%d", client, r.count.Add(1)), call: r.history.now()}
	err = r.put(ctx, q, key, o.value)
	if o.ret = r.history.now(); err != nil {
		o.ret, o.unknown = math.MaxInt64, true
	}
	r.history.add(o)
	switch core.KindOf(err) {
	case core.Invalid, core.Forbidden, core.Unauthenticated, core.Conflict, core.Unsupported:
		return o.value, fmt.Errorf("%w: %w", errWrong, err)
	}
	return o.value, err
}

// errWrong marks an answer that no fault explains.
var errWrong = fmt.Errorf("this must not be")

// read is a linearizable get as part of the history.
func (r *registry) read(ctx context.Context, client int, q *node, key string) (string, error) {
	o := op{client: client, key: key, call: r.history.now()}
	var err error
	if o.value, err = r.get(ctx, q, key, core.ConsistencyLinearizable); err != nil {
		return "", err
	}
	o.ret = r.history.now()
	r.history.add(o)
	return o.value, nil
}

// workload is a set of clients that read and write at all queens.
type workload struct {
	r        *registry
	clients  int
	keys     int
	hot      int // keys in use at a time
	seed     uint64
	patience time.Duration // for one operation

	failed atomic.Int64 // operations
	wrong  atomic.Pointer[string]
}

func (w *workload) key(i int) string { return fmt.Sprintf("reg-%03d", i%w.keys) }

// run makes the clients work until stop.
func (w *workload) run(wg *sync.WaitGroup, stop <-chan struct{}) {
	var queens []*node
	for _, n := range w.r.c.nodes {
		if n.queen {
			queens = append(queens, n)
		}
	}
	var done atomic.Int64
	perTurn := int64(500) // operations after which the keys in use move on by one
	for client := range w.clients {
		rng := rand.New(rand.NewPCG(w.seed, uint64(client)))
		wg.Go(func() {
			avoid := make([]time.Time, len(queens)) // until when to avoid each queen that did not answer
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := rng.IntN(len(queens))
				if now := time.Now(); now.Before(avoid[i]) {
					if j := rng.IntN(len(queens)); now.After(avoid[j]) {
						i = j
					}
				}
				key := w.key(int(done.Load()/perTurn) + rng.IntN(w.hot))
				ctx, cancel := context.WithTimeout(context.Background(), w.patience)
				var err error
				if rng.IntN(100) < 28 {
					_, err = w.r.write(ctx, client, queens[i], key)
				} else {
					_, err = w.r.read(ctx, client, queens[i], key)
				}
				cancel()
				if err == nil {
					done.Add(1)
					continue
				}
				w.failed.Add(1)
				if strings.Contains(err.Error(), errWrong.Error()) {
					text := err.Error()
					w.wrong.CompareAndSwap(nil, &text)
				}
				avoid[i] = time.Now().Add(time.Duration(100+rng.IntN(400)) * time.Millisecond)
				pause := time.NewTimer(time.Duration(rng.IntN(20)) * time.Millisecond)
				<-pause.C
			}
		})
	}
}

// finish reads every key through every queen, so that no lost write goes unnoticed.
func (w *workload) finish() {
	w.r.c.t.Helper()
	for i := range w.keys {
		for j, q := range w.r.c.queens() {
			ctx, cancel := context.WithTimeout(w.r.c.t.Context(), patience)
			_, err := w.r.read(ctx, w.clients+j, q, w.key(i))
			cancel()
			must.NoError(w.r.c.t, err)
		}
	}
}

// seedOf returns the seed of a test's random choices: RBEE_SEED, or a new one.
func seedOf(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(envOr(t, "RBEE_SEED", int(time.Now().UnixNano()%1_000_000_000))) //nolint:gosec // not negative
	t.Logf("seed %d", seed)
	return seed
}

// The registry is linearizable while queens are killed, paused and disconnected. `make linear` runs
// it with 200,000 operations and all faults.
func TestLinear(t *testing.T) {
	operations := envOr(t, "RBEE_LINEAR_OPS", 0)
	short := operations == 0
	if short {
		operations = 5000
	}
	c := newLinearCluster(t, !short)
	c.start(3, 0)
	seed := seedOf(t)
	r := newRegistry(c)
	w := &workload{r: r, clients: 16, keys: 32, hot: 4, seed: seed, patience: 1500 * time.Millisecond}
	if short {
		w.keys = 8
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	w.run(&wg, stop)
	n := newNemesis(c, seed)
	began := time.Now()
	var faults []fault
	if short {
		faults = []fault{n.killLeader, n.pauseLeader}
	}
	err := n.run(r, faults, func() bool { return r.history.known() >= operations })
	took := time.Since(began)
	close(stop)
	wg.Wait()
	must.NoError(t, err)
	w.finish()
	if text := w.wrong.Load(); text != nil {
		t.Error(*text)
	}

	checking := time.Now()
	v := r.history.check(5 * time.Minute)
	writes, unknown := 0, 0
	for _, o := range r.history.ops {
		switch {
		case o.unknown:
			unknown++
		case o.write:
			writes++
		}
	}
	known := len(r.history.ops) - unknown
	fmt.Printf("linearizability: %d operations (%d writes) on %d registers, %d violations\n", known, writes, v.keys, len(v.violations))
	fmt.Printf("  %d writes of unknown outcome, %d operations failed\n", unknown, w.failed.Load())
	fmt.Printf("  %s, seed %d\n", n, seed)
	fmt.Printf("  %.0f s of load, %.0f s of checking\n", took.Seconds(), time.Since(checking).Seconds())
	must.SliceEmpty(t, v.undecided)
	must.SliceEmpty(t, v.violations)
	must.GreaterEq(t, operations, known)
	must.GreaterEq(t, known/5, writes)
}

// newLinearCluster returns a cluster for faults: with network cables where possible and wanted.
func newLinearCluster(t testing.TB, cables bool) *cluster {
	t.Helper()
	if cables && os.Geteuid() == 0 {
		return newLANCluster(t)
	}
	return newCluster(t)
}
