package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// These are the faults of queens whose processes are killed, paused or lose their disks. `make
// faults` runs those that `make test` skips, and enforces the promised times; `make soak` runs the
// long forms.

// faultRun reports whether the times count: `make test` runs beside many other tests.
func faultRun() bool { return os.Getenv("RBEE_FAULTS") != "" }

// slowFault skips a test outside of `make faults` and `make soak`.
func slowFault(t testing.TB) {
	t.Helper()
	binDir(t)
	if !faultRun() {
		t.Skip("`make faults` runs it")
	}
}

// figure prints what a test measured.
func figure(format string, args ...any) { fmt.Printf("  "+format+"\n", args...) }

// promised fails the test if something took longer than promised, in a run in which times count.
func promised(t testing.TB, what string, took, limit time.Duration) {
	t.Helper()
	figure("%s: %d ms (promised: %d ms)", what, took.Milliseconds(), limit.Milliseconds())
	if faultRun() && took > limit {
		t.Errorf("%s took %s, promised are %s", what, took, limit)
	}
}

// quantile returns the quantile of the list at a share from 0 to 1. It sorts the list.
func quantile(list []time.Duration, share float64) time.Duration {
	slices.Sort(list)
	return list[min(len(list)-1, int(float64(len(list))*share))]
}

func sleep(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

// writer writes to one key through one queen, one write after the other, as part of the history.
type writer struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex // guards below
	acks     []time.Time
	failures []string
}

func (r *registry) writer(client int, q *node, key string) *writer {
	w := &writer{stop: make(chan struct{})}
	w.wg.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_, err := r.write(ctx, client, q, key)
			cancel()
			w.mu.Lock()
			if err == nil {
				w.acks = append(w.acks, time.Now())
			} else {
				w.failures = append(w.failures, err.Error())
			}
			w.mu.Unlock()
			if err != nil {
				sleep(5 * time.Millisecond)
			}
		}
	})
	return w
}

func (w *writer) end() {
	close(w.stop)
	w.wg.Wait()
}

// acked returns the first acknowledgement after a moment.
func (w *writer) acked(after time.Time) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.acks, func(at time.Time) bool { return at.After(after) })
	if i < 0 {
		return time.Time{}, false
	}
	return w.acks[i], true
}

// await waits for an acknowledgement after a moment.
func (w *writer) await(t testing.TB, after time.Time) time.Time {
	t.Helper()
	var at time.Time
	coretest.Eventually(t, patience, func() error {
		var ok bool
		if at, ok = w.acked(after); ok {
			return nil
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		return fmt.Errorf("no write was acknowledged: %d failed, the last with: %v", len(w.failures), w.failures[max(0, len(w.failures)-1):])
	})
	return at
}

// gap returns the longest time without an acknowledged write that ended after a moment.
func (w *writer) gap(after time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var longest time.Duration
	for i := 1; i < len(w.acks); i++ {
		if w.acks[i].After(after) {
			longest = max(longest, w.acks[i].Sub(w.acks[i-1]))
		}
	}
	return longest
}

// mustWrite retries a write through a queen until it is acknowledged.
func (r *registry) mustWrite(q *node, key string) string {
	r.c.t.Helper()
	var value string
	coretest.Eventually(r.c.t, patience, func() (err error) {
		ctx, cancel := context.WithTimeout(r.c.t.Context(), 10*time.Second)
		defer cancel()
		value, err = r.write(ctx, 0, q, key)
		return err
	})
	return value
}

// mustBe reads a key through a queen until that works, and checks the value.
func (r *registry) mustBe(q *node, key, want string) {
	r.c.t.Helper()
	coretest.Eventually(r.c.t, patience, func() error {
		ctx, cancel := context.WithTimeout(r.c.t.Context(), 10*time.Second)
		defer cancel()
		got, err := r.read(ctx, 1, q, key)
		if err == nil && got != want {
			r.c.t.Fatalf("%s has %q through %s, acknowledged was %q", key, got, q.name, want)
		}
		return err
	})
}

// refused checks that a queen refuses a write and a linearizable read, and returns how long that
// took.
func (r *registry) refused(q *node, key string) time.Duration {
	r.c.t.Helper()
	ctx, cancel := context.WithTimeout(r.c.t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var writeErr, readErr error
	began := time.Now()
	wg.Go(func() { _, writeErr = r.write(ctx, 0, q, key) })
	wg.Go(func() { _, readErr = r.read(ctx, 1, q, key) })
	wg.Wait()
	took := time.Since(began)
	must.Eq(r.c.t, core.Unavailable, core.KindOf(writeErr), must.Sprint(writeErr))
	must.ErrorContains(r.c.t, readErr, "status 503")
	return took
}

// linear checks the history.
func (r *registry) linear() {
	r.c.t.Helper()
	v := r.history.check(2 * time.Minute)
	figure("%d operations, %d violations", r.history.known(), len(v.violations))
	must.SliceEmpty(r.c.t, v.undecided)
	must.SliceEmpty(r.c.t, v.violations)
}

// followers returns the running queens without the leader, which may be nil.
func (c *cluster) followers(leader *node) []*node {
	return slices.DeleteFunc(c.queens(), func(n *node) bool { return n == leader })
}

// calm waits until every queen serves.
func (c *cluster) calm(r *registry) {
	c.t.Helper()
	must.NoError(c.t, newNemesis(c, 0).calm(r))
}

// open waits until a node's RPC port accepts connections, and returns when it did.
func (n *node) open() time.Time {
	n.c.t.Helper()
	coretest.Eventually(n.c.t, patience, func() error {
		conn, err := n.c.dial(n.c.t.Context(), n.ip+":7834")
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return time.Now()
}

func TestFaultC01LeadersAreKilled(t *testing.T) {
	kills := envOr(t, "RBEE_FAULT_KILLS", 1)
	c := newCluster(t)
	c.start(3, 0)
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRegistry(c)
	load := &workload{r: r, clients: 4, keys: max(8, kills/2), hot: 4, seed: seed, patience: 3 * time.Second}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	load.run(&wg, stop)
	var gaps []time.Duration
	for i := range kills {
		leader := c.leader()
		followers := c.followers(leader)
		w := r.writer(1000+i, followers[rng.IntN(len(followers))], fmt.Sprintf("gap-%d", i))
		w.await(t, time.Now())
		sleep(500*time.Millisecond + time.Duration(rng.IntN(1000))*time.Millisecond)
		killed := time.Now()
		leader.kill()
		w.await(t, w.await(t, killed.Add(time.Second))) // a write may have been in flight
		w.end()
		gaps = append(gaps, w.gap(killed))
		leader.start()
		c.calm(r)
		sleep(time.Second)
	}
	close(stop)
	wg.Wait()
	load.finish()
	if text := load.wrong.Load(); text != nil {
		t.Error(*text)
	}
	fmt.Printf("C-01: %d leaders killed under load (seed %d)\n", kills, seed)
	figure("write gaps: %v", gaps)
	r.linear()
	promised(t, "write gap, p50", quantile(gaps, 0.5), 300*time.Millisecond)
	promised(t, "write gap, p99", quantile(gaps, 0.99), 800*time.Millisecond)
}

func TestFaultC02TwoOfThreeAreKilled(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.start(3, 0)
	r := newRegistry(c)
	fmt.Println("C-02: two of three queens killed")
	for round := range 3 {
		leader := c.leader()
		followers := c.followers(leader)
		left, other := followers[0], followers[1]
		if round == 2 { // the leader stays
			left, leader = leader, left
		}
		key := fmt.Sprintf("two-%d", round)
		value := r.mustWrite(left, key)
		r.mustBe(left, key, value) // its replica has it as well
		var wg sync.WaitGroup
		wg.Go(leader.kill)
		wg.Go(other.kill)
		wg.Wait()
		promised(t, "a write and a consistent read are refused after", r.refused(left, "refused"), 7*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		got, err := r.get(ctx, left, key, core.ConsistencyStale)
		cancel()
		must.NoError(t, err)
		must.Eq(t, value, got)

		w := r.writer(10+round, left, "back")
		other.start()
		up := other.open()
		promised(t, "a write is acknowledged, from the second queen's start to listen on", max(0, w.await(t, up).Sub(up)), time.Second)
		w.end()
		r.mustBe(left, key, value)
		r.mustBe(other, key, value)
		leader.start()
		c.calm(r)
		r.mustBe(leader, key, value)
	}
	r.linear()
}

func TestFaultC03AllAreKilled(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.start(3, 1)
	c.serve()
	r := newRegistry(c)
	queens := c.queens()
	var values []string
	key := func(i int) string { return fmt.Sprintf("all-%d", i) }
	for i := range 50 {
		values = append(values, r.mustWrite(queens[i%3], key(i)))
	}
	var wg sync.WaitGroup
	for _, q := range queens {
		wg.Go(q.kill)
	}
	wg.Wait()
	for _, q := range queens {
		q.start()
	}
	up := queens[0].open()
	up = max2(up, queens[1].open())
	r.mustBe(queens[0], key(0), values[0])
	back := time.Since(up)
	coretest.Eventually(t, patience, func() error { return newLoad(c).ask(t.Context(), queens[0], false, 2) })
	serves := time.Since(up)
	fmt.Println("C-03: all three queens killed at once")
	promised(t, "the registry answers, from the second queen's start to listen on", back, time.Second)
	promised(t, "inference is served again", serves, 2*time.Second)
	for i, v := range values {
		r.mustBe(queens[i%3], key(i), v)
	}
	c.await(func(s core.Status) error {
		for _, h := range s.Hives {
			if h.ID == c.nodes[3].id() && h.Status != core.HiveReady {
				return fmt.Errorf("hive %s is %s", h.Name, h.Status)
			}
		}
		return nil
	})
	r.linear()
}

func max2(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// resume pauses the leader until another queen leads and has written, resumes it, and checks its
// answers to reads that were waiting: each must be part of the history. It returns how many of them
// it answered, and how many with an old value.
func (r *registry) resume(key string, pause time.Duration, readers int) (answered, old int, gap time.Duration) {
	t := r.c.t
	t.Helper()
	leader := r.c.leader()
	other := r.c.followers(leader)[0]
	before := r.mustWrite(leader, key)
	var wg sync.WaitGroup
	read := func(each func(string, error)) {
		for i := range readers {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
				defer cancel()
				each(r.read(ctx, 100+i, leader, key))
			})
		}
	}
	read(func(string, error) {}) // so that all are connected
	wg.Wait()
	w := r.writer(1, other, key+"-gap")
	w.await(t, time.Now())
	paused := time.Now()
	must.NoError(t, leader.signal(syscall.SIGSTOP))
	defer func() { _ = leader.signal(syscall.SIGCONT) }()
	w.await(t, paused.Add(250*time.Millisecond))
	after := r.mustWrite(other, key)
	sleep(pause - time.Since(paused))
	var mu sync.Mutex
	read(func(value string, err error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
		case value == before:
			answered++
			old++
		default:
			answered++
			if value != after {
				t.Errorf("read %q, which is neither the old nor the new value", value)
			}
		}
	})
	sleep(50 * time.Millisecond) // so that they wait in the paused queen's sockets
	must.NoError(t, leader.signal(syscall.SIGCONT))
	wg.Wait()
	w.await(t, time.Now())
	w.end()
	return answered, old, w.gap(paused)
}

func TestFaultC04LeaderIsPaused(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.start(3, 0)
	r := newRegistry(c)
	leader := c.leader()
	answered, old, gap := r.resume("paused", 10*time.Second, 32)
	fmt.Println("C-04: the leader is paused for 10 s")
	figure("of 32 reads that waited for it: %d answered, %d with an old value", answered, old)
	promised(t, "write gap", gap, 800*time.Millisecond)
	must.Zero(t, old)
	c.calm(r)
	must.NotEq(t, leader, c.leader())
	r.linear()
}

// C-05: a leader that is paused during reads, for about its lease, never answers with an outdated
// value.
func TestFaultC05ReadsDuringPauses(t *testing.T) {
	rounds := envOr(t, "RBEE_FAULT_PAUSES", 1)
	c := newCluster(t)
	c.start(3, 0)
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 5))
	r := newRegistry(c)
	answered, old := 0, 0
	for i := range rounds {
		a, o, _ := r.resume(fmt.Sprintf("reads-%d", i), 300*time.Millisecond+time.Duration(rng.IntN(1200))*time.Millisecond, 64)
		answered, old = answered+a, old+o
	}
	fmt.Printf("C-05: the leader is paused in the midst of reads, %d times (seed %d)\n", rounds, seed)
	figure("%d reads answered by the paused leader, %d of them with an old value", answered, old)
	must.Zero(t, old)
	r.linear()
}

// This proves that the checker can fail: RBEE_STALE_READS_BIN names a build in which reads skip the
// leader check.
func TestStaleReadsAreFound(t *testing.T) {
	name := os.Getenv("RBEE_STALE_READS_BIN")
	if name == "" {
		t.Skip("`make linear` builds the program with the fault and runs it")
	}
	c := newCluster(t)
	c.bin = name
	c.start(3, 0)
	r := newRegistry(c)
	for round := 1; round <= 20; round++ {
		_, old, _ := r.resume(fmt.Sprintf("reads-%d", round), time.Second, 64)
		v := r.history.check(5 * time.Second)
		must.SliceEmpty(t, v.undecided)
		must.Eq(t, old > 0, len(v.violations) > 0)
		if old > 0 {
			fmt.Printf("without the leader check: %d stale reads in round %d, the checker says:\n", old, round)
			figure("%s", v.violations[0])
			return
		}
		c.calm(r)
	}
	t.Fatal("reads skip the leader check, and nobody noticed in 20 rounds")
}

func TestFaultC15QueenForgets(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.start(3, 0)
	r := newRegistry(c)
	leader := c.leader()
	followers := c.followers(leader)
	forgetful, behind := followers[0], followers[1]
	raftID := func(q *node) (id string) {
		c.await(func(s core.Status) error {
			for _, x := range s.Queens {
				if x.ID == q.id() {
					id = x.RaftID
				}
			}
			if id == "" {
				return fmt.Errorf("%s is not among %v", q.name, s.Queens)
			}
			return nil
		})
		return id
	}
	before := raftID(forgetful)
	behind.kill()
	value := r.mustWrite(leader, "kept") // two of three have it
	leader.kill()
	forgetful.kill()
	must.NoError(t, os.RemoveAll(filepath.Join(forgetful.dir, "raft")))
	// The queen that lost its disk and the one that never had the value must not form a majority
	// without it.
	forgetful.start()
	behind.start()
	forgetful.awaitAnswer()
	behind.awaitAnswer()
	fmt.Println("C-15: a queen's registry is removed")
	figure("the two without the newest write refuse after %s", r.refused(behind, "refused").Round(time.Millisecond))
	sleep(5 * time.Second)
	r.refused(forgetful, "refused")
	leader.start()
	r.mustBe(behind, "kept", value)
	back := time.Now()
	c.await(func(s core.Status) error {
		voters := 0
		for _, q := range s.Queens {
			if q.Voter {
				voters++
			}
			if q.RaftID == before {
				return fmt.Errorf("the old identity is still there: %v", s.Queens)
			}
		}
		if voters != 3 {
			return fmt.Errorf("%d voters: %v", voters, s.Queens)
		}
		return nil
	})
	figure("it votes again, under another identity, after %s", time.Since(back).Round(time.Millisecond))
	must.NotEq(t, before, raftID(forgetful))
	r.mustBe(forgetful, "kept", value)
	r.linear()
}

func TestFaultC34HiveIsKilled(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.start(1, 1)
	hive := c.nodes[1]
	for range 4 {
		c.serve()
	}
	type run struct {
		id, socket string
		pid        int
	}
	runs := func() map[run]bool {
		m := map[run]bool{}
		a := agent{t: t, dir: hive.dir}
		for _, h := range a.handles() {
			m[run{h.Attachment.Address, h.Attachment.DataSocket, h.Attachment.Process.PID}] = true
		}
		return m
	}
	before := runs()
	must.MapLen(t, 4, before)
	hive.kill()
	hive.start()
	began := hive.open()
	cl := c.client(c.nodes[0])
	coretest.Eventually(t, patience, func() error {
		h, err := cl.Hive(t.Context(), hive.id())
		if err != nil {
			return err
		}
		if h.Status != core.HiveReady {
			return fmt.Errorf("the hive is %s", h.Status)
		}
		workers, err := cl.Workers(t.Context())
		if err != nil {
			return err
		}
		ready := 0
		for _, w := range workers {
			if w.State == core.WorkerReady {
				ready++
			}
		}
		if ready != 4 || len(workers) != 4 {
			return fmt.Errorf("%d of %d workers are ready", ready, len(workers))
		}
		return newLoad(c).ask(t.Context(), c.nodes[0], false, 2)
	})
	took := time.Since(began)
	fmt.Println("C-34: a hive with 4 workers is killed")
	promised(t, "all are taken over, from its new start to listen on", took, 2*time.Second)
	must.Eq(t, before, runs())
	for w := range before {
		must.NoError(t, syscall.Kill(w.pid, 0))
	}
}
