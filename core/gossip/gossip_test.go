package gossip_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/gossipnet"
	"github.com/rbee-project/rbee/core/gossip"
)

const cluster = "0123456789abcdef"

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// rig runs one pool per node on an in-memory network.
type rig struct {
	t   *testing.T
	net *gossipnet.Network
}

type node struct {
	*gossip.Pool
	address   string
	stop      func()
	conflicts *conflicts
}

type conflicts struct {
	mu  sync.Mutex
	all []gossip.Conflict
}

func (c *conflicts) add(x gossip.Conflict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, x)
}

func (c *conflicts) list() []gossip.Conflict {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]gossip.Conflict(nil), c.all...)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	// Give probes and streams in flight time to finish after their pool has ended.
	t.Cleanup(func() { time.Sleep(time.Minute) })
	return &rig{t: t, net: gossipnet.New(7)}
}

func address(i int) string { return fmt.Sprintf("10.0.0.%d:7835", i) }

func id(i int) string { return fmt.Sprintf("%08x", i) }

// start runs node i, which knows node 1.
func (r *rig) start(i int, change ...func(*gossip.Options)) *node {
	r.t.Helper()
	n := &node{address: address(i), conflicts: &conflicts{}}
	o := gossip.Options{
		Self:       gossip.Member{ID: id(i), Name: fmt.Sprintf("node-%d", i), Queen: i <= 3, Hive: true, RPCAddress: fmt.Sprintf("10.0.0.%d:7834", i), Incarnation: 1},
		Keys:       gossip.Keys{key(1)},
		ClusterID:  cluster,
		RetryJoin:  []string{address(1)},
		OnConflict: n.conflicts.add,
	}
	for _, c := range change {
		c(&o)
	}
	if o.Transport == nil {
		o.Transport = r.net.Listen(n.address)
	}
	p, err := gossip.New(o)
	must.NoError(r.t, err)
	n.Pool = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			must.NoError(r.t, <-done)
		})
	}
	r.t.Cleanup(n.stop)
	return n
}

func (r *rig) cluster(n int, change ...func(*gossip.Options)) []*node {
	r.t.Helper()
	var nodes []*node
	for i := 1; i <= n; i++ {
		nodes = append(nodes, r.start(i, change...))
	}
	return nodes
}

// statuses returns a node's view, as "1:alive 2:failed …".
func statuses(n *node) string {
	var parts []string
	for _, m := range n.Members() {
		parts = append(parts, strings.TrimLeft(m.ID, "0")+":"+string(m.Status))
	}
	return strings.Join(parts, " ")
}

// within waits until all nodes have the wanted view of the pool, and returns how long it took.
func within(t *testing.T, d time.Duration, want string, nodes ...*node) time.Duration {
	t.Helper()
	began := time.Now()
	for _, n := range nodes {
		for {
			changed := n.Changed()
			if statuses(n) == want {
				break
			}
			left := d - time.Since(began)
			if left <= 0 {
				t.Fatalf("after %s node %s sees %q, not %q", d, n.address, statuses(n), want)
			}
			select {
			case <-changed:
			case <-time.After(left):
			}
		}
	}
	return time.Since(began)
}

func TestThreeNodesFindEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		m, ok := nodes[2].Member(id(1))
		must.True(t, ok)
		must.Eq(t, gossip.Member{
			ID: id(1), Name: "node-1", Queen: true, Hive: true, RPCAddress: "10.0.0.1:7834", GossipAddress: address(1), Incarnation: 1, Status: gossip.Alive,
		}, m)
		must.Eq(t, address(3), nodes[2].Address())
		_, ok = nodes[2].Member("ffffffff")
		must.False(t, ok)
	})
}

func TestLateStarterIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		b := r.start(2)
		time.Sleep(20 * time.Second) // node 1, which node 2 looks for, has not started yet
		a := r.start(1, func(o *gossip.Options) { o.RetryJoin = nil })
		within(t, 31*time.Second, "1:alive 2:alive", a, b)
	})
}

func TestUpdateReachesAllNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(4)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive 4:alive", nodes...)
		must.NoError(t, nodes[0].Update(func(m *gossip.Member) { m.HasState, m.RaftID, m.ID = true, id(1)+".0a0b0c0d", "changed" }))
		must.Eq(t, id(1), nodes[0].Self().ID)
		time.Sleep(3 * time.Second)
		for _, n := range nodes {
			m, ok := n.Member(id(1))
			must.True(t, ok)
			must.True(t, m.HasState)
			must.Eq(t, id(1)+".0a0b0c0d", m.RaftID)
		}
		err := nodes[0].Update(func(m *gossip.Member) { m.RPCAddress = strings.Repeat("a", 300); m.HTTPAddress = m.RPCAddress })
		must.Eq(t, core.TooLarge, core.KindOf(err))
		must.NotEq(t, "", core.HintOf(err))
		must.Eq(t, "10.0.0.1:7834", nodes[0].Self().RPCAddress)
	})
}

func TestUpdateBeforeRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := r.start(1)
		p, err := gossip.New(gossip.Options{
			Self: gossip.Member{ID: id(2), Queen: true, Incarnation: 1}, Keys: gossip.Keys{key(1)}, ClusterID: cluster, RetryJoin: []string{address(1)},
			Transport: r.net.Listen(address(2)),
		})
		must.NoError(t, err)
		must.NoError(t, p.Update(func(m *gossip.Member) { m.FSM = 7 }))
		must.Eq(t, core.Unavailable, core.KindOf(p.Ping(t.Context(), id(1))))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		within(t, 5*time.Second, "1:alive 2:alive", a)
		m, _ := a.Member(id(2))
		must.Eq(t, 7, m.FSM)
		cancel()
		must.NoError(t, <-done)
	})
}

func TestCrashAndLeaveDiffer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(5)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive 4:alive 5:alive", nodes...)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		must.NoError(t, nodes[3].Leave(ctx))
		took := within(t, 3*time.Second, "1:alive 2:alive 3:alive 4:left 5:alive", nodes[0], nodes[1], nodes[2], nodes[4])
		t.Logf("a leave is known after %s", took)
		nodes[3].stop()
		nodes[4].stop()
		took = within(t, 30*time.Second, "1:alive 2:alive 3:alive 4:left 5:failed", nodes[:3]...)
		t.Logf("a crash is known after %s", took)
		must.Greater(t, 5*time.Second, took)

		// Both restart; the one that left keeps its address.
		four := r.start(4, func(o *gossip.Options) { o.Self.Incarnation = 2 })
		five := r.start(5, func(o *gossip.Options) { o.Self.Incarnation = 2 })
		within(t, 10*time.Second, "1:alive 2:alive 3:alive 4:alive 5:alive", nodes[0], nodes[1], nodes[2], four, five)
		four.stop()
		within(t, 30*time.Second, "1:alive 2:alive 3:alive 4:failed 5:alive", nodes[0], nodes[1], nodes[2])
	})
}

func TestLeaveDespiteLosses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(6)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive 4:alive 5:alive 6:alive", nodes...)
		r.net.SetLoss(0.3)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		must.NoError(t, nodes[5].Leave(ctx))
		nodes[5].stop()
		within(t, 3*time.Minute, "1:alive 2:alive 3:alive 4:alive 5:alive 6:left", nodes[:5]...)
	})
}

func TestPartitionHeals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		// Nodes can find each other again only through the addresses they remember.
		nodes := r.cluster(5, func(o *gossip.Options) {
			if o.Self.ID == id(1) {
				o.RetryJoin = nil
			}
		})
		within(t, 5*time.Second, "1:alive 2:alive 3:alive 4:alive 5:alive", nodes...)
		time.Sleep(10 * time.Second)
		r.net.Partition([]string{address(1), address(2)}, []string{address(3), address(4), address(5)})
		within(t, 90*time.Second, "1:alive 2:alive 3:failed 4:failed 5:failed", nodes[:2]...)
		within(t, 90*time.Second, "1:failed 2:failed 3:alive 4:alive 5:alive", nodes[2:]...)
		time.Sleep(4 * time.Minute) // memberlist gossips to dead nodes for 30 s, then forgets them
		r.net.Heal()
		took := within(t, 40*time.Second, "1:alive 2:alive 3:alive 4:alive 5:alive", nodes...)
		t.Logf("healed after %s", took)
	})
}

func TestOneWayCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(4)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive 4:alive", nodes...)
		r.net.Cut(address(1), address(4)) // others still reach both
		for range 60 {
			time.Sleep(time.Second)
			must.Eq(t, "1:alive 2:alive 3:alive 4:alive", statuses(nodes[1]))
		}
	})
}

func TestRejoinNowAndAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := r.start(1, func(o *gossip.Options) { o.RetryJoin = nil })
		b := r.start(2, func(o *gossip.Options) { o.RetryJoin = nil })
		time.Sleep(5 * time.Minute)
		must.Eq(t, "1:alive", statuses(a))
		b.RejoinNow(address(1), "not an address")
		within(t, time.Second, "1:alive 2:alive", a, b)
		must.Positive(t, b.Stats().Rejoins)
	})
}

func TestPing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		a := nodes[0]
		must.NoError(t, a.Ping(t.Context(), id(1))) // pings itself
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { must.NoError(t, a.Ping(t.Context(), id(2+i%2))) })
		}
		wg.Wait()
		must.Eq(t, core.NotFound, core.KindOf(a.Ping(t.Context(), "ffffffff")))

		r.net.Partition([]string{address(1)}, []string{address(2)})
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := a.Ping(ctx, id(2))
		cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		must.Eq(t, 50*time.Millisecond, time.Since(began))
		must.Eq(t, core.Unavailable, core.KindOf(a.Ping(t.Context(), id(2))))
		must.LessEq(t, time.Second, time.Since(began))
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		must.Eq(t, core.Cancelled, core.KindOf(a.Ping(ctx, id(2))))

		a.stop()
		must.Eq(t, core.Unavailable, core.KindOf(a.Ping(t.Context(), id(3))))
		must.NoError(t, a.Leave(t.Context())) // already left
	})
}

func TestSecondNodeWithSameID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		// A copy of node 2's disk, on another machine, started later.
		twin := r.start(2, func(o *gossip.Options) {
			o.Transport = r.net.Listen(address(9))
			o.Self.Incarnation, o.Self.RPCAddress = 2, "10.0.0.9:7834"
		})
		for range 120 {
			time.Sleep(time.Second)
			for _, n := range []*node{nodes[0], nodes[2]} {
				m, _ := n.Member(id(2))
				must.Eq(t, gossip.Alive, m.Status)
				must.Eq(t, address(2), m.GossipAddress)
				must.Eq(t, "10.0.0.2:7834", m.RPCAddress)
			}
		}
		must.NoError(t, nodes[0].Ping(t.Context(), id(2)))
		must.Positive(t, nodes[0].Stats().Conflicts)
		c := nodes[0].conflicts.list()[0]
		must.Eq(t, gossip.Conflict{ID: id(2), Known: address(2), Refused: address(9)}, c)
		late := twin.conflicts.list()
		must.SliceNotEmpty(t, late)
		must.Eq(t, gossip.Conflict{ID: id(2), Known: address(2), Refused: address(9), Self: true, SelfLate: true}, late[0])
		for _, c := range nodes[1].conflicts.list() {
			must.False(t, c.SelfLate)
		}
		// At most one alarm in ten seconds.
		must.LessEq(t, 14, len(nodes[0].conflicts.list()))
	})
}

func TestRestartAtAnotherAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		nodes[2].stop()
		moved := r.start(3, func(o *gossip.Options) { o.Transport = r.net.Listen(address(9)); o.Self.Incarnation = 2 })
		began := time.Now()
		for _, n := range nodes[:2] {
			for {
				if m, _ := n.Member(id(3)); m.GossipAddress == address(9) && m.Status == gossip.Alive {
					must.Eq(t, 2, m.Incarnation)
					break
				}
				must.Less(t, 25*time.Second, time.Since(began))
				time.Sleep(100 * time.Millisecond)
			}
			must.Eq(t, 0, n.Stats().Conflicts)
			must.SliceEmpty(t, n.conflicts.list())
		}
		t.Logf("known at the new address after %s", time.Since(began))
		must.SliceEmpty(t, moved.conflicts.list())

		// The old run cannot reappear, not even at its old address.
		old := r.start(3)
		for range 60 {
			time.Sleep(time.Second)
			for _, n := range nodes[:2] {
				m, _ := n.Member(id(3))
				must.Eq(t, 2, m.Incarnation)
				must.Eq(t, address(9), m.GossipAddress)
			}
		}
		old.stop()
		moved.stop()
		within(t, 60*time.Second, "1:alive 2:alive 3:failed", nodes[:2]...)
		r.start(3)
		time.Sleep(time.Minute)
		for _, n := range nodes[:2] {
			must.Eq(t, "1:alive 2:alive 3:failed", statuses(n))
			must.Positive(t, n.Stats().Refused)
		}
	})
}

func TestForeignNodesIgnored(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*gossip.Options){
		"another cluster": func(o *gossip.Options) { o.ClusterID = "fedcba9876543210" },
		"another key":     func(o *gossip.Options) { o.Keys = gossip.Keys{key(9)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				nodes := r.cluster(2)
				within(t, 5*time.Second, "1:alive 2:alive", nodes...)
				foreign := r.start(5, change)
				for range 40 {
					time.Sleep(time.Second)
					must.Eq(t, "1:alive 2:alive", statuses(nodes[0]))
					must.Eq(t, "5:alive", statuses(foreign))
				}
			})
		})
	}
}

func TestPeersAreRememberedAcrossRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		dir := filepath.Join(t.TempDir(), "gossip")
		a := r.start(1)
		b := r.start(2, func(o *gossip.Options) { o.Dir = dir; o.Self.Incarnation = 0 })
		within(t, 5*time.Second, "1:alive 2:alive", a, b)
		first := b.Self().Incarnation
		time.Sleep(10 * time.Second)
		b.stop()
		path := filepath.Join(dir, "peers.json")
		st, err := os.Stat(path)
		must.NoError(t, err)
		must.Eq(t, os.FileMode(0o600), st.Mode().Perm())
		raw, err := os.ReadFile(path)
		must.NoError(t, err)
		must.StrContains(t, string(raw), address(1))
		must.StrNotContains(t, string(raw), address(2))

		b = r.start(2, func(o *gossip.Options) { o.Dir, o.RetryJoin, o.Self.Incarnation = dir, nil, 0 })
		within(t, 10*time.Second, "1:alive 2:alive", a, b)
		must.Greater(t, first, b.Self().Incarnation)

		// The pool does not look for a node that left, and a leaving node does not look for others.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		must.NoError(t, b.Leave(ctx))
		b.stop()
		raw, err = os.ReadFile(path)
		must.NoError(t, err)
		must.StrNotContains(t, string(raw), address(1))

		// An unreadable file is dropped.
		must.NoError(t, os.WriteFile(path, []byte("}garbage"), 0o600))
		b = r.start(2, func(o *gossip.Options) { o.Dir = dir; o.Self.Incarnation = 0 })
		within(t, 10*time.Second, "1:alive 2:alive", a, b)
		must.Greater(t, first, b.Self().Incarnation)
	})
}

func TestForgetAndReap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		nodes[0].Forget(id(3)) // it is alive
		must.Eq(t, "1:alive 2:alive 3:alive", statuses(nodes[0]))
		nodes[2].stop()
		within(t, time.Minute, "1:alive 2:alive 3:failed", nodes[0], nodes[1])
		nodes[0].Forget(id(3))
		must.Eq(t, "1:alive 2:alive", statuses(nodes[0]))
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := gossip.Options{Self: gossip.Member{ID: id(1), Queen: true}, Bind: "127.0.0.1:0", Keys: gossip.Keys{key(1)}, ClusterID: cluster}
	for name, c := range map[string]struct {
		change func(*gossip.Options)
		kind   core.Kind
	}{
		"no key":         {func(o *gossip.Options) { o.Keys = nil }, core.Invalid},
		"short key":      {func(o *gossip.Options) { o.Keys = gossip.Keys{key(1)[:31]} }, core.Invalid},
		"no cluster":     {func(o *gossip.Options) { o.ClusterID = "" }, core.Invalid},
		"long cluster":   {func(o *gossip.Options) { o.ClusterID = strings.Repeat("x", 256) }, core.Invalid},
		"no id":          {func(o *gossip.Options) { o.Self.ID = "" }, core.Invalid},
		"no role":        {func(o *gossip.Options) { o.Self.Queen = false }, core.Invalid},
		"long name":      {func(o *gossip.Options) { o.Self.Name = strings.Repeat("n", 65) }, core.Invalid},
		"long addresses": {func(o *gossip.Options) { o.Self.RPCAddress = strings.Repeat("n", 500) }, core.TooLarge},
		"bad bind":       {func(o *gossip.Options) { o.Bind = "nowhere" }, core.Invalid},
		"bad bind host":  {func(o *gossip.Options) { o.Bind = "no-ip:1" }, core.Invalid},
		"bad bind port":  {func(o *gossip.Options) { o.Bind = "127.0.0.1:99999" }, core.Invalid},
		"bad retry_join": {func(o *gossip.Options) { o.RetryJoin = []string{"a b"} }, core.Invalid},
		"bad port":       {func(o *gossip.Options) { o.RetryJoin = []string{"host:0"} }, core.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := good
			c.change(&o)
			_, err := gossip.New(o)
			must.Eq(t, c.kind, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
		})
	}
}

func TestKeysHideThemselves(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789ABCDEF0123456789ABCDEF")
	o := gossip.Options{Self: gossip.Member{ID: id(1), Queen: true, Incarnation: 1}, Keys: gossip.Keys{secret}, ClusterID: cluster, Transport: gossipnet.New(1).Listen(address(1))}
	p, err := gossip.New(o)
	must.NoError(t, err)
	var log bytes.Buffer
	hclog.New(&hclog.LoggerOptions{Output: &log, JSONFormat: true}).Warn("x", "keys", p.Keys(), "options", o)
	hclog.New(&hclog.LoggerOptions{Output: &log}).Warn("x", "options", o)
	j, _ := json.Marshal(struct{ K gossip.Keys }{p.Keys()})
	log.Write(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&log, verb+verb+verb, p.Keys(), o, &o)
	}
	for _, leak := range []string{string(secret), "MDEyMzQ1Njc4", fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), "48 49 50", "[48"} {
		must.StrNotContains(t, log.String(), leak)
	}
	must.NoError(t, p.Close())
}
