package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

const (
	simDelay   = time.Millisecond
	simTimeout = 3 * time.Second
)

// simNet carries raft between nodes within a synctest bubble, and drops what it is told to.
type simNet struct {
	mu        sync.Mutex
	nodes     map[string]*simTransport
	cut       map[[2]string]bool // messages from the first to the second are dropped
	snapshots map[string]int     // number sent to an address
	// if not nil, answers to heartbeats wait for it after they have arrived
	hold *hold
}

type hold struct{ arrived, released chan struct{} }

func newSimNet() *simNet {
	return &simNet{nodes: map[string]*simTransport{}, cut: map[[2]string]bool{}, snapshots: map[string]int{}}
}

// split cuts the addresses into groups that cannot reach each other, in addition to existing cuts.
func (s *simNet) split(groups ...[]string) {
	for i, a := range groups {
		for j, b := range groups {
			if i != j {
				for _, from := range a {
					for _, to := range b {
						s.oneWay(from, to)
					}
				}
			}
		}
	}
}

func (s *simNet) oneWay(from, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[[2]string{from, to}] = true
}

func (s *simNet) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.cut)
}

// holdAnswers hides answers to heartbeats that have arrived from their recipients until release is
// called, as when a process is stopped. Each held answer is reported on arrived.
func (s *simNet) holdAnswers() (arrived <-chan struct{}, release func()) {
	h := &hold{arrived: make(chan struct{}), released: make(chan struct{})}
	s.setHold(h)
	return h.arrived, func() {
		s.setHold(nil)
		close(h.released)
	}
}

func (s *simNet) setHold(h *hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = h
}

// awaitSeen returns when an answer that has arrived may be seen.
func (s *simNet) awaitSeen() {
	s.mu.Lock()
	h := s.hold
	s.mu.Unlock()
	if h == nil {
		return
	}
	select {
	case h.arrived <- struct{}{}:
	case <-h.released:
	}
	<-h.released
}

func (s *simNet) sent(to string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots[to]
}

func (s *simNet) passes(from, to string) (*simTransport, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[to], !s.cut[[2]string{from, to}]
}

func (s *simNet) attach(addr string) *simTransport {
	t := &simTransport{net: s, addr: addr, in: make(chan raft.RPC), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[addr] = t
	return t
}

// probe returns a function that connects from one address to another.
func (s *simNet) probe(from string) func(context.Context, string) error {
	return func(ctx context.Context, to string) error {
		t, ok := s.passes(from, to)
		if !ok {
			<-ctx.Done()
			return ctx.Err()
		}
		time.Sleep(simDelay)
		if t == nil {
			return fmt.Errorf("connect: %w", syscall.ECONNREFUSED)
		}
		return nil
	}
}

type simTransport struct {
	net  *simNet
	addr string
	in   chan raft.RPC
	done chan struct{}
	once sync.Once
	mu   sync.Mutex
	beat func(raft.RPC)
}

func (t *simTransport) Consumer() <-chan raft.RPC                               { return t.in }
func (t *simTransport) LocalAddr() raft.ServerAddress                           { return raft.ServerAddress(t.addr) }
func (t *simTransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }
func (t *simTransport) DecodePeer(b []byte) raft.ServerAddress                  { return raft.ServerAddress(b) }

func (t *simTransport) SetHeartbeatHandler(h func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beat = h
}

func (t *simTransport) Close() error {
	t.once.Do(func() {
		close(t.done)
		t.net.mu.Lock()
		if t.net.nodes[t.addr] == t {
			delete(t.net.nodes, t.addr)
		}
		t.net.mu.Unlock()
	})
	return nil
}

func (t *simTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (t *simTransport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	heartbeat := req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0
	return ask(t, to, req, nil, heartbeat, resp)
}

func (t *simTransport) RequestVote(_ raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return ask(t, to, req, nil, false, resp)
}

func (t *simTransport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return ask(t, to, req, nil, false, resp)
}

func (t *simTransport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return ask(t, to, req, nil, false, resp)
}

func (t *simTransport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	all, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	t.net.mu.Lock()
	t.net.snapshots[string(to)]++
	t.net.mu.Unlock()
	return ask(t, to, req, bytes.NewReader(all), false, resp)
}

func ask[T any](t *simTransport, to raft.ServerAddress, command any, data io.Reader, heartbeat bool, resp *T) error {
	timeout := time.After(simTimeout)
	lost := func() error {
		select {
		case <-timeout:
			return errors.New("timed out")
		case <-t.done:
			return raft.ErrTransportShutdown
		}
	}
	peer, ok := t.net.passes(t.addr, string(to))
	if !ok {
		return lost()
	}
	time.Sleep(simDelay)
	if peer == nil {
		return fmt.Errorf("connect: %w", syscall.ECONNREFUSED)
	}
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, Reader: data, RespChan: answer}
	peer.mu.Lock()
	beat := peer.beat
	peer.mu.Unlock()
	if heartbeat && beat != nil {
		beat(rpc)
	} else {
		select {
		case peer.in <- rpc:
		case <-peer.done:
			return syscall.ECONNRESET
		case <-t.done:
			return raft.ErrTransportShutdown
		case <-timeout:
			return errors.New("timed out")
		}
	}
	select {
	case r := <-answer:
		if _, ok := t.net.passes(string(to), t.addr); !ok {
			return lost()
		}
		if heartbeat {
			t.net.awaitSeen()
		}
		if r.Error != nil {
			return r.Error
		}
		*resp = *r.Response.(*T)
		return nil
	case <-peer.done:
		return syscall.ECONNRESET
	case <-t.done:
		return raft.ErrTransportShutdown
	case <-timeout:
		return errors.New("timed out")
	}
}

// sim is a cluster within a synctest bubble, with memory instead of disks.
type sim struct {
	t     *testing.T
	net   *simNet
	mu    sync.Mutex // guards nodes against goroutines that do not add any
	nodes []*simNode
	ctx   context.Context
	loads []*load
}

type simNode struct {
	*node.Node // used by the test's own goroutine; others use at
	at         atomic.Pointer[node.Node]
	name       string // node id and address
	mem        *node.Memory
	trans      *simTransport
	opts       func(node.Options) node.Options // special options; may be nil
	ran        chan error
	up         bool
	lead       atomic.Bool // its lead is running
	duty       func(ctx context.Context, n *node.Node) error
}

// simulate runs a cluster of some size, and ends it.
func simulate(t *testing.T, size int, opts func(node.Options) node.Options, test func(t *testing.T, s *sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, size, opts)
		defer s.end()
		s.bootstrap()
		test(t, s)
	})
}

// newSim starts nodes that have no cluster yet. The caller ends them.
func newSim(t *testing.T, size int, opts func(node.Options) node.Options) *sim {
	t.Helper()
	s := &sim{t: t, net: newSimNet(), ctx: t.Context()}
	for i := range size {
		s.add(fmt.Sprintf("queen-%d", i), opts)
	}
	return s
}

func (s *sim) end() {
	for _, l := range s.loads {
		l.stop()
	}
	for _, n := range s.nodes {
		s.kill(n)
	}
	time.Sleep(time.Minute) // let messages in flight arrive
}

// add adds a node that waits for a cluster.
func (s *sim) add(name string, opts func(node.Options) node.Options) *simNode {
	n := &simNode{name: name, mem: node.NewMemory(), opts: opts}
	s.start(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, n)
	return n
}

func (s *sim) start(n *simNode) {
	s.t.Helper()
	n.trans = s.net.attach(n.name)
	o := node.Options{
		ID: n.name, Logger: simLogger(s.t), Transport: n.trans, Bootstrap: node.Later, Probe: s.net.probe(n.name),
	}.WithMemory(n.mem)
	if n.opts != nil {
		o = n.opts(o)
	}
	var err error
	n.Node, err = node.Open(o)
	must.NoError(s.t, err)
	n.at.Store(n.Node)
	n.ran, n.up = make(chan error, 1), true
	opened, ran := n.Node, n.ran
	go func() {
		ran <- opened.Run(s.ctx, func(ctx context.Context) error {
			if !n.lead.CompareAndSwap(false, true) {
				s.t.Error("two leads at once on", n.name)
			}
			defer n.lead.Store(false)
			if n.duty != nil {
				return n.duty(ctx, opened)
			}
			<-ctx.Done()
			return nil
		})
	}()
}

// kill ends a node as SIGKILL does: its memory is kept, and the others see their connections break.
func (s *sim) kill(n *simNode) {
	s.t.Helper()
	if !n.up {
		return
	}
	n.up = false
	must.NoError(s.t, n.trans.Close())
	for _, other := range s.nodes {
		if other.up {
			other.Lost(n.name)
		}
	}
	must.NoError(s.t, n.Shutdown())
	must.NoError(s.t, <-n.ran)
}

func (s *sim) bootstrap() {
	s.t.Helper()
	voters := s.list()
	for _, n := range s.nodes {
		must.NoError(s.t, n.Bootstrap(voters))
	}
}

// list lists every node as a voter.
func (s *sim) list() []node.Voter {
	var voters []node.Voter
	for _, n := range s.nodes {
		voters = append(voters, node.Voter{ID: n.ID(), Address: n.name})
	}
	return voters
}

// simLogger is for debugging: raft logs much, and formatting it takes most of the time.
func simLogger(t *testing.T) hclog.Logger {
	if testing.Verbose() {
		return logger(t)
	}
	return hclog.NewNullLogger()
}

// leader waits for a leader among these nodes, or all if none are given, and returns the one with
// the newest term.
func (s *sim) leader(among ...*simNode) *simNode {
	s.t.Helper()
	if len(among) == 0 {
		among = s.nodes
	}
	for range 3000 {
		synctest.Wait()
		var best *simNode
		for _, n := range among {
			if n.up && n.lead.Load() && n.IsLeader() && (best == nil || n.Raft().CurrentTerm() > best.Raft().CurrentTerm()) {
				best = n
			}
		}
		if best != nil {
			return best
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal("no leader")
	return nil
}

func (s *sim) others(not ...*simNode) []*simNode {
	var rest []*simNode
	for _, n := range s.nodes {
		if !slices.Contains(not, n) {
			rest = append(rest, n)
		}
	}
	return rest
}

func names(nodes ...*simNode) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.name)
	}
	return out
}

// converged waits until the nodes that are up have the same state.
func (s *sim) converged(within time.Duration, nodes ...*simNode) {
	s.t.Helper()
	start := time.Now()
	for {
		synctest.Wait()
		same := true
		var first []byte
		for _, n := range nodes {
			if !n.up {
				continue
			}
			var b bytes.Buffer
			must.NoError(s.t, fsm.WriteSnapshot(&b, n.State().Snapshot()))
			if first == nil {
				first = b.Bytes()
			}
			same = same && bytes.Equal(first, b.Bytes())
		}
		if same {
			return
		}
		if time.Since(start) > within {
			for _, n := range nodes {
				s.t.Logf("%s: applied %d, last %d", n.name, n.AppliedIndex(), n.Raft().LastIndex())
			}
			s.t.Fatalf("not the same after %s", within)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// write1 makes one write on a node.
func write1(ctx context.Context, n *node.Node, id string, incarnation uint64) error {
	_, err := n.Apply(ctx, fsm.SyncHive(hive(id, incarnation), nil))
	return err
}

// load writes through the current leader until it is stopped, and records the acknowledged writes.
type load struct {
	s      *sim
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	acked map[string]uint64
	last  time.Time     // time of the newest acknowledged write
	gap   time.Duration // longest time between two acknowledged writes
	count int
}

func (s *sim) load(writers int) *load {
	ctx, cancel := context.WithCancel(s.ctx)
	l := &load{s: s, cancel: cancel, done: make(chan struct{}), acked: map[string]uint64{}, last: time.Now()}
	s.loads = append(s.loads, l)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { l.write(ctx, fmt.Sprintf("load-%d", w)) })
	}
	go func() {
		wg.Wait()
		close(l.done)
	}()
	return l
}

func (l *load) write(ctx context.Context, id string) {
	at := 0
	for i := uint64(1); ctx.Err() == nil; {
		l.s.mu.Lock()
		n := l.s.nodes[at%len(l.s.nodes)]
		l.s.mu.Unlock()
		try, cancel := context.WithTimeout(ctx, time.Second)
		err := write1(try, n.at.Load(), id, i)
		cancel()
		switch {
		case err == nil:
			l.mu.Lock()
			now := time.Now()
			l.gap, l.last = max(l.gap, now.Sub(l.last)), now
			l.acked[id] = i
			l.count++
			l.mu.Unlock()
			i++
			time.Sleep(20 * time.Millisecond)
		case core.KindOf(err) == core.Conflict:
			i++ // it was made although it was not acknowledged
		default:
			at++
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// stop ends the writing, and returns the number of writes and the longest gap between them.
func (l *load) stop() (int, time.Duration) {
	l.cancel()
	<-l.done
	return l.count, l.gap
}

// since resets the gap measurement.
func (l *load) since() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap = 0
}

// lost checks that a node has everything that was acknowledged.
func (l *load) lost(n *simNode) {
	l.s.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, want := range l.acked {
		h, ok := n.State().Hive(nil, id)
		if !ok || h.Incarnation < want {
			l.s.t.Fatalf("%s has %s at %d, and %d was acknowledged", n.name, id, h.Incarnation, want)
		}
	}
}

// terms returns the highest term.
func (s *sim) terms() uint64 {
	var highest uint64
	for _, n := range s.nodes {
		if n.up {
			highest = max(highest, n.Raft().CurrentTerm())
		}
	}
	return highest
}
