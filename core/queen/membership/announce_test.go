package membership

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// lan is an in-memory network of queens. A connection reaches the queen at the address, and fails
// unless that is the requested node, as its certificate would show.
type lan struct {
	t        *testing.T
	identity *pki.Identity // shared by all queens: for its seal key

	mu sync.Mutex // guards below
	at map[string]*lanQueen
}

// testQueen is the membership part of a queen, with liveness for its leadership.
type testQueen struct {
	*Members
	Registry *registry.Registry
	liveness *liveness.Monitor
}

func newTestQueen(r *registry.Registry, o Options) *testQueen {
	o.Registry = r
	q := &testQueen{Members: New(o), Registry: r}
	q.liveness = liveness.New(liveness.Options{Registry: r, ID: o.ID, Logger: o.Logger, MinFSM: q.MinFSM})
	r.Attach(q.liveness.Leads, o.Network.Self)
	return q
}

func (q *testQueen) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { q.Members.Run(ctx) })
	return q.Registry.Run(ctx, func(ctx context.Context) error {
		var wg sync.WaitGroup
		for _, duty := range append(q.Duties(), q.liveness.Lead) {
			wg.Go(func() { _ = duty(ctx) })
		}
		wg.Wait()
		return nil
	})
}

// leaderConn passes calls on to the leader of the registry.
type leaderConn struct {
	grpc.ClientConnInterface
	leader func() *registry.Registry
}

// Invoke supports only ReadIndex and Apply.
func (c leaderConn) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	s := c.leader().Service(hclog.NewNullLogger())
	var answer proto.Message
	var err error
	switch req := req.(type) {
	case *queenv1.ReadIndexRequest:
		answer, err = s.ReadIndex(ctx, req)
	case *queenv1.ApplyRequest:
		answer, err = s.Apply(ctx, req)
	default:
		return fmt.Errorf("%s is not passed on here", method)
	}
	if err != nil {
		return rpc.ToStatus(err)
	}
	proto.Merge(resp.(proto.Message), answer)
	return nil
}

func mustFail(t *testing.T, err error, kind core.Kind, parts ...string) {
	t.Helper()
	must.Error(t, err)
	must.Eq(t, kind, core.KindOf(err), must.Sprint(err))
	for _, p := range parts {
		must.StrContains(t, err.Error()+" | "+core.HintOf(err), p)
	}
}

// lanQueen is a queen of a lan: its registry is on disk, and the test sets its gossip.
type lanQueen struct {
	lan     *lan
	id      string
	dir     string
	address string
	cert    pki.Node
	gossip  *gossipstub.Pool
	old     atomic.Bool // it does not support Announce

	q     *testQueen
	node  *node.Node
	trans *raft.InmemTransport
	stop  func()
}

// newLAN starts queens that form a cluster whose registry lists them. sealed reports whether the
// registry holds the CA key.
func newLAN(t *testing.T, size int, sealed bool) (*lan, []*lanQueen) {
	t.Helper()
	now := time.Now()
	id, hash, _ := token.New()
	made, err := pki.Init(t.TempDir(), pki.InitOptions{
		Name: "desk", NodeID: "aaaaaaaa", NodeName: "a", RPCAddress: "10.0.0.1:7834", Roles: []core.Role{core.RoleQueen}, Now: now,
		Token: core.Token{ID: id, Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: now.UTC().Truncate(time.Second)},
	})
	must.NoError(t, err)
	seed, err := made.Identity.Seed()
	must.NoError(t, err)
	l := &lan{t: t, identity: made.Identity, at: map[string]*lanQueen{}}
	var queens []*lanQueen
	for i := range size {
		queens = append(queens, l.add(i))
	}
	l.knowEachOther(queens...)
	var voters []node.Voter
	for _, m := range queens {
		m.start(node.Later)
		voters = append(voters, node.Voter{ID: m.node.ID(), Address: m.address})
	}
	for _, m := range queens {
		must.NoError(t, m.node.Bootstrap(voters))
	}
	t.Cleanup(func() {
		for _, m := range queens {
			m.stop()
		}
		time.Sleep(time.Minute) // bubble time: whatever still waits for an answer times out
	})
	leader := l.leader(queens...)
	c := core.Cluster{ID: "0123456789abcdef", Name: "desk", CACertificates: seed.CAPEM, SealedGossipKeys: seed.SealedGossipKeys}
	if sealed {
		c.SealedCAKey = seed.SealedCAKey
	}
	must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.InitCluster(c, nil, nil)))
	for _, m := range queens {
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.PutNode(m.record(), "")))
	}
	return l, queens
}

func (l *lan) add(i int) *lanQueen {
	id := fmt.Sprintf("%08x", 0xa0+i)
	hash := sha256.Sum256([]byte(id))
	return &lanQueen{
		lan: l, id: id, dir: l.t.TempDir(), address: fmt.Sprintf("10.0.0.%d:7834", i+1), gossip: &gossipstub.Pool{},
		cert: pki.Node{ID: id, Name: "name-" + id, Roles: []core.Role{core.RoleQueen}, KeyHash: hash[:], NotAfter: time.Now().Add(time.Hour)},
		stop: func() {},
	}
}

func (m *lanQueen) record() core.Node {
	return core.Node{ID: m.id, Name: m.cert.Name, Roles: m.cert.Roles, RPCAddress: m.address, KeyHash: m.cert.KeyHash}
}

// member returns what the queen honestly gossips.
func (m *lanQueen) member() gossip.Member {
	g := gossip.Member{ID: m.id, Name: m.cert.Name, Queen: true, RPCAddress: m.address, FSM: fsm.Version, Status: gossip.Alive}
	if m.node != nil {
		g.RaftID = m.node.ID()
	}
	return g
}

func (l *lan) knowEachOther(queens ...*lanQueen) {
	for _, m := range queens {
		var all []gossip.Member
		for _, other := range queens {
			all = append(all, other.member())
		}
		m.gossip.Set(all...)
	}
}

func (m *lanQueen) start(bootstrap node.Bootstrap) {
	t := m.lan.t
	t.Helper()
	_, m.trans = raft.NewInmemTransport(raft.ServerAddress(m.address))
	var q atomic.Pointer[testQueen]
	n, err := node.Open(node.Options{
		ID: m.id, Dir: m.dir, Logger: coretest.Logger(t), Transport: m.trans, Bootstrap: bootstrap, ElectionTimeout: 250 * time.Millisecond,
		MinFSM: func() uint32 {
			if q := q.Load(); q != nil {
				return q.MinFSM()
			}
			return 0
		},
		AddressOf: func(id string) string {
			if q := q.Load(); q != nil {
				return q.AddressOf(id)
			}
			return ""
		},
	})
	must.NoError(t, err)
	m.node = n
	m.q = newTestQueen(registry.New(n), Options{ID: m.id, Logger: coretest.Logger(t), Network: &Network{
		Identity: m.lan.identity, Gossip: m.gossip, NodesChanged: func() {}, Probe: m.probe,
		Self: leaderConn{leader: func() *registry.Registry { return m.lan.leader(m.lan.all()...).q.Registry }},
	}})
	q.Store(m.q)
	m.lan.mu.Lock()
	for _, other := range m.lan.at {
		other.trans.Connect(m.trans.LocalAddr(), m.trans)
		m.trans.Connect(other.trans.LocalAddr(), other.trans)
	}
	m.lan.at[m.address] = m
	m.lan.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if err := m.q.Run(ctx); ctx.Err() == nil {
			must.NoError(t, err)
		}
	}()
	m.stop = sync.OnceFunc(func() {
		m.lan.mu.Lock()
		delete(m.lan.at, m.address)
		for _, other := range m.lan.at {
			other.trans.Disconnect(m.trans.LocalAddr())
		}
		m.lan.mu.Unlock()
		m.trans.DisconnectAll()
		cancel()
		<-ran
		must.NoError(t, n.Shutdown())
	})
}

func (l *lan) all() []*lanQueen {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.at))
}

func (l *lan) leader(queens ...*lanQueen) *lanQueen {
	l.t.Helper()
	for range 60_000 {
		for _, m := range queens {
			if m.q != nil && m.q.Registry.Leads() {
				return m
			}
		}
		time.Sleep(time.Millisecond)
	}
	l.t.Fatal("no leader")
	return nil
}

func (l *lan) until(what string, done func() bool) {
	l.t.Helper()
	for range 60_000 {
		if done() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	l.t.Fatalf("not within a minute: %s", what)
}

// probe connects to the queen at the address.
func (m *lanQueen) probe(id, address string) (grpc.ClientConnInterface, error) {
	if m.old.Load() {
		return nil, core.Errorf(core.Unavailable, "connect: it asks nobody")
	}
	m.lan.mu.Lock()
	defer m.lan.mu.Unlock()
	there, ok := m.lan.at[address]
	if !ok || there.id != id {
		return nil, core.Errorf(core.Unavailable, "connect: node %s is not at %s", id, address)
	}
	return announcing{from: m.cert, to: there}, nil
}

// announcing is a connection on which both ends have shown their certificates.
type announcing struct {
	grpc.ClientConnInterface
	from pki.Node
	to   *lanQueen
}

// Invoke supports only Announce.
func (c announcing) Invoke(_ context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	if c.to.old.Load() || method != queenv1.ClusterService_Announce_FullMethodName {
		return rpc.ToStatus(core.Errorf(core.Unsupported, "unknown method %s", method))
	}
	if err := c.to.q.believe(c.from, proto.CloneOf(req.(*queenv1.AnnounceRequest).GetSelf())); err != nil {
		return rpc.ToStatus(err)
	}
	proto.Merge(resp.(proto.Message), &queenv1.AnnounceResponse{Self: c.to.q.announcement()})
	return nil
}

func (m *lanQueen) raftServers() string {
	var out []string
	for _, s := range m.node.Servers() {
		out = append(out, fmt.Sprintf("%s at %s, voter %t", s.RaftID, s.Address, s.Voter))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func (m *lanQueen) write(ctx context.Context) error {
	id, hash, _ := token.New()
	return m.q.Registry.Write(ctx, "", fsm.PutToken(core.Token{ID: id, Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: time.Now().UTC().Truncate(time.Second)}))
}

// The holder of the gossip key can forge any gossip about any node. Neither forged versions, raft
// ids and addresses nor forged deaths and departures of real queens change what raft does.
func TestForgedGossip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		leader := l.leader(queens...)
		time.Sleep(20 * time.Second)
		before := leader.raftServers()

		var forged []gossip.Member
		for i := range 300 {
			id := fmt.Sprintf("f%07x", i)
			forged = append(forged, gossip.Member{
				ID: id, Name: "forged", Queen: true, FSM: 1, RaftID: id + ".00000001", RPCAddress: "10.6.6.6:7834", Status: gossip.Alive,
			})
		}
		for i, m := range queens { // with the raft id of a real one, under its own id and under the real one's
			g := m.member()
			g.FSM, g.RPCAddress, g.Version, g.Incarnation = 1, "10.6.6.6:7834", "0.0.1", 1<<63
			forged = append(forged, g)
			g.ID = fmt.Sprintf("e%07x", i)
			forged = append(forged, g)
			g = m.member()
			g.RaftID, g.RPCAddress = m.id+".66666666", "10.6.6.6:7834"
			forged = append(forged, g)
		}
		for _, m := range queens {
			all := append(slices.Clone(forged), m.member())
			slices.Reverse(all) // its own entry comes first, as no other node can change it
			m.gossip.Set(all...)
		}
		for range 30 {
			time.Sleep(time.Second)
			must.NoError(t, leader.write(t.Context()))
			must.Eq(t, before, leader.raftServers())
		}
		must.Eq(t, uint32(fsm.Version), leader.q.MinFSM())
		list, err := leader.q.Queens(t.Context())
		must.NoError(t, err)
		must.Len(t, 3, list)
		announced, _ := leader.q.Announced()
		must.Len(t, 3, announced)
		for _, s := range list {
			must.StrNotContains(t, s.Address, "10.6.6.6")
		}

		// Gossip claims that every queen has left.
		for _, m := range queens {
			all := []gossip.Member{m.member()}
			for _, other := range queens {
				g := other.member()
				if g.Status = gossip.Left; other != m {
					all = append(all, g)
				}
			}
			m.gossip.Set(all...)
		}
		time.Sleep(2 * time.Minute)
		must.Eq(t, before, leader.raftServers())
		must.NoError(t, leader.write(t.Context()))

		// The leader dies: the others know each other's addresses.
		leader.stop()
		next := l.leader(l.all()...)
		must.NotEq(t, leader.id, next.id)
		must.NoError(t, next.write(t.Context()))
	})
}

// A queen that runs an older version blocks commands that it cannot apply, but no revocation.
func TestMinFSM(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		leader := l.leader(queens...)
		follower := queens[0]
		if follower == leader {
			follower = queens[1]
		}
		l.until("all are proven", func() bool { return len(leader.q.proven()) == 2 })
		must.Eq(t, uint32(fsm.Version), leader.q.MinFSM())
		must.NoError(t, leader.q.believe(follower.cert, &queenv1.Announcement{RaftId: follower.node.ID(), RpcAddress: follower.address, Fsm: 1}))
		must.Eq(t, 1, leader.q.MinFSM())
		mustFail(t, leader.write(t.Context()), core.Unavailable, "state machine version")
		sealed, err := l.identity.SealGossipKeys(pki.Secrets{pki.NewGossipKey()})
		must.NoError(t, err)
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.SetKeyring(sealed, 1)))
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.DeleteToken("t")))
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.RevokeNode(follower.id)))
		must.NoError(t, leader.write(t.Context())) // a revoked queen does not count

		// A version before announcements counts with its state machine version.
		l, queens = newLAN(t, 2, true)
		leader = l.leader(queens...)
		for _, m := range queens {
			m.old.Store(m != leader)
		}
		time.Sleep(15 * time.Second)
		must.Eq(t, legacyFSM, leader.q.MinFSM())
		must.StrContains(t, leader.raftServers(), "voter true; ")
	})
}

// Commands omit capabilities while an older queen runs; a report with capabilities still gets into
// the registry, and is not written again and again.
func TestCapabilitiesWaitForUpgrade(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		leader := l.leader(queens...)
		follower := queens[0]
		if follower == leader {
			follower = queens[1]
		}
		l.until("all are proven", func() bool { return len(leader.q.proven()) == 2 })
		link, err := leader.q.liveness.Open(t.Context(), core.Hive{ID: "h"})
		must.NoError(t, err)
		seq := uint64(0)
		tell := func() core.Worker {
			r, err := liveness.ReportOf(&queenv1.LinkRequest{
				Hive:    &queenv1.Hive{Id: "h", Os: "linux", Arch: "amd64"},
				Workers: []*queenv1.Worker{{Id: "w", Type: "cpu", State: "ready", Nonce: "n", Capabilities: []string{"chat", "tools"}}},
			}, time.Now())
			must.NoError(t, err)
			seq++
			must.NoError(t, link.Take(seq, r, false))
			l.until("the report is registered", func() bool {
				resp, err := link.Answer()
				must.NoError(t, err)
				return resp.GetRegistered()
			})
			w, ok := leader.q.Registry.View().Worker(nil, "h", "w")
			must.True(t, ok)
			return w
		}
		must.NoError(t, leader.q.believe(follower.cert, &queenv1.Announcement{RaftId: follower.node.ID(), RpcAddress: follower.address, Fsm: 2}))
		must.Eq(t, 2, leader.q.MinFSM())
		must.Eq(t, "", tell().Capabilities)
		l.until("the follower is upgraded", func() bool { return leader.q.MinFSM() == fsm.Version })
		must.Eq(t, "chat tools", tell().Capabilities)
	})
}

// An announcement counts only for its sender.
func TestBelieve(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 2, true)
		leader := l.leader(queens...)
		other := queens[0]
		if other == leader {
			other = queens[1]
		}
		for name, a := range map[string]*queenv1.Announcement{
			"another's raft id": {RaftId: leader.node.ID(), RpcAddress: other.address},
			"a long raft id":    {RaftId: strings.Repeat("x", 200), RpcAddress: other.address},
			"no address":        {RaftId: other.node.ID()},
			"a long address":    {RaftId: other.node.ID(), RpcAddress: strings.Repeat("x", 300) + ":1"},
			"nothing":           nil,
		} {
			must.Error(t, leader.q.believe(other.cert, a), must.Sprint(name))
		}
		// A certificate is not enough if the registry lists all owners of one.
		stranger := pki.Node{ID: "deadbeef", Name: "stranger", Roles: []core.Role{core.RoleQueen}, KeyHash: other.cert.KeyHash}
		before := leader.raftServers()
		must.NoError(t, leader.q.believe(stranger, &queenv1.Announcement{RaftId: "deadbeef.00000001", RpcAddress: "10.0.0.66:7834", Fsm: 1}))
		time.Sleep(5 * time.Second)
		must.Eq(t, before, leader.raftServers())
		must.Eq(t, uint32(fsm.Version), leader.q.MinFSM())
		must.Eq(t, "", leader.q.AddressOf("deadbeef.00000001"))
	})
}

// All queens get other addresses at once: they find each other by gossip hints that certificates
// confirm, and raft follows. One forged hint for each does not prevent it.
func TestAllAddressesChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		must.NoError(t, l.leader(queens...).write(t.Context()))
		for _, m := range queens {
			m.stop()
		}
		for i, m := range queens {
			m.address = fmt.Sprintf("10.1.0.%d:7834", i+1)
		}
		l.knowEachOther(queens...)
		for _, m := range queens {
			all := m.gossip.Members()
			for _, other := range queens {
				g := other.member()
				g.RPCAddress = "10.6.6.6:7834"
				all = append(all, g)
			}
			m.gossip.Set(all...)
		}
		for _, m := range queens {
			m.start(node.Never)
		}
		leader := l.leader(queens...)
		must.NoError(t, leader.write(t.Context()))
		l.until("raft has the new addresses", func() bool { return strings.Count(leader.raftServers(), " at 10.1.0.") == 3 })
	})
}

// A queen that leaves announces it, and is removed from raft. In a cluster whose certificates are
// issued elsewhere, a queen that holds one is admitted.
func TestQueensComeAndGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, false)
		leader := l.leader(queens...)
		fourth := l.add(3)
		fourth.gossip.Set(fourth.member(), leader.member())
		fourth.start(node.Never)
		t.Cleanup(fourth.stop)
		l.until("it has a vote", func() bool {
			return strings.Contains(leader.raftServers(), fourth.node.ID()+" at "+fourth.address+", voter true")
		})
		n, ok := leader.q.Registry.View().Node(nil, fourth.id)
		must.True(t, ok)
		must.Eq(t, fourth.cert.KeyHash, n.KeyHash)

		fourth.q.Leave()
		l.until("the others know that it leaves", func() bool { return !leader.q.answers(fourth.id) })
		fourth.stop()
		l.until("it is out", func() bool { return !strings.Contains(leader.raftServers(), fourth.node.ID()) })
		time.Sleep(20 * time.Second)
		must.StrNotContains(t, leader.raftServers(), fourth.node.ID())
	})
}
