// Package membership manages the nodes of the cluster: which join, renew, leave and are revoked,
// which queens have proven that they are alive, and what follows for raft and gossip.
package membership

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Options are the dependencies of Members. Registry and ID are required.
type Options struct {
	Registry *registry.Registry
	ID       string       // of this queen's node
	Version  string       // program version
	Logger   hclog.Logger // nil: no log
	Network  *Network     // nil: this queen is alone
	Now      func() time.Time
	Rand     func(n int) int // returns a number in [0, n)
}

// Network is what a queen needs to be one of several nodes. Fields that may be nil are documented
// as such; the others are required.
type Network struct {
	Identity *pki.Identity
	Gossip   Gossip
	// Self is the connection to this process's own services, which forward the methods that the
	// leader answers.
	Self grpc.ClientConnInterface
	// Conn returns the connection to another node. Its errors are classified; the queen must not
	// close the connection.
	Conn func(node, address string, role core.Role) (grpc.ClientConnInterface, error)
	// Probe returns a connection, for announcements only, to the queen at an address that presents
	// a certificate of the node. The queen must not close it. nil: no announcements are exchanged.
	Probe func(node, address string) (grpc.ClientConnInterface, error)
	// Deaf returns the nodes that gossip reaches over TCP but not over UDP; nil: not checked.
	Deaf func() []gossip.Member
	// SeekGossip makes gossip look for nodes at an address. nil: gossip finds them itself.
	SeekGossip func(address string)
	// CertificateTTL is the lifetime of the certificates that this queen signs while it leads.
	CertificateTTL time.Duration
	// NodesChanged is called when a node was added, changed or revoked. It must not block for long.
	NodesChanged func()
	// Seed is what this queen first writes to the registry; nil: nothing.
	Seed *Seed
}

// Seed is the initial content of a cluster, or of a queen whose certificate was issued elsewhere.
type Seed struct {
	// Cluster is written together with Token if the registry has no cluster. Several queens of one
	// cluster may try.
	Cluster core.Cluster
	Token   core.Token // the first operator's; without an id, another queen creates the cluster
	Node    core.Node  // this node
	// Planted is called once the registry has the seed.
	Planted func() error
}

// Gossip is the part of the gossip pool that a queen uses.
type Gossip interface {
	// Members returns all nodes known to gossip, including dead ones and this one.
	Members() []gossip.Member
	// Changed returns a channel that is closed at the next change of Members. Take it before
	// calling Members.
	Changed() <-chan struct{}
	// SetKeys replaces the keys, the primary first.
	SetKeys(keys [][]byte) error
}

// Members is the set of nodes of the cluster, as one queen knows it. It is safe for concurrent use.
// On a queen that is alone, methods that need a cluster fail as Unsupported.
type Members struct {
	opts     Options
	net      *Network // nil: alone
	log      hclog.Logger
	registry *registry.Registry
	leaving  atomic.Bool                // this queen is leaving permanently
	later    chan func(context.Context) // work that Run does and waits for, besides its own

	mu        sync.Mutex           // guards what is known about other nodes besides the registry: below
	proofs    map[string]proof     // what queens announced, by node id
	announced chan struct{}        // closed and replaced when a proof changes
	departing map[string]time.Time // nodes that this queen is removing, and since when
}

// New returns the members of a registry. It starts nothing.
func New(o Options) *Members {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.IntN
	}
	return &Members{
		opts: o, net: o.Network, log: o.Logger, registry: o.Registry,
		later: make(chan func(context.Context)), proofs: map[string]proof{}, announced: make(chan struct{}),
	}
}

// Register adds the service for machines that join and renew their certificates to a gRPC server.
func (m *Members) Register(s grpc.ServiceRegistrar) {
	queenv1.RegisterJoinServiceServer(s, &joinService{m: m})
}

// Duties returns the leader's duties, each of which runs until its context ends or it fails; none
// for a queen that is alone.
func (m *Members) Duties() []func(context.Context) error {
	if m.net == nil {
		return nil
	}
	return []func(context.Context) error{m.keepQueens, m.admit, m.keepKeyring}
}

// Run does what every queen of a cluster does besides raft, until ctx ends: it plants the seed of a
// new cluster, exchanges announcements with the other queens, and passes the registry's keys to
// gossip. On a queen that is alone it returns at once.
func (m *Members) Run(ctx context.Context) {
	if m.net == nil {
		return
	}
	var wg sync.WaitGroup
	if m.net.Seed != nil {
		wg.Go(func() { m.plant(ctx, m.net.Seed) })
	}
	if m.net.Probe != nil {
		wg.Go(func() { m.announce(ctx) })
	}
	if m.net.SeekGossip != nil {
		wg.Go(func() { m.seekGossip(ctx) })
	}
	wg.Go(func() {
		for {
			select {
			case f := <-m.later:
				wg.Go(func() { f(ctx) })
			case <-ctx.Done():
				return
			}
		}
	})
	var version uint64
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		s := m.registry.View()
		s.Nodes(ws)
		m.net.NodesChanged()
		c, ok := s.Cluster(ws)
		if ok && c.GossipVersion != version {
			if err := m.setGossipKeys(c); err != nil {
				m.log.Error("failed to apply the gossip keys of the registry", "error", err)
			} else {
				version = c.GossipVersion
			}
		}
		_ = registry.Wait(ctx, ws)
	}
	wg.Wait()
}

// seedRetry is the pause between attempts to write the seed, while there is no leader.
const seedRetry = 200 * time.Millisecond

// plant writes the seed. It returns once that is done, or can never succeed.
func (m *Members) plant(ctx context.Context, s *Seed) {
	for ctx.Err() == nil {
		err := m.sow(ctx, s)
		if err == nil {
			m.log.Info("this queen is in the registry", "cluster", s.Cluster.ID)
			return
		}
		kind := core.KindOf(err)
		if kind != core.Unavailable && ctx.Err() == nil {
			m.log.Error("failed to write the cluster's seed to the registry", "error", err, "hint", core.HintOf(err))
		}
		if kind == core.Conflict || kind == core.Invalid {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(seedRetry):
		}
	}
}

func (m *Members) sow(ctx context.Context, s *Seed) error {
	if s.Token.ID == "" {
		if _, err := m.registry.Cluster(); err != nil {
			return err
		}
	} else if err := m.registry.Write(ctx, "init "+s.Cluster.ID, fsm.InitCluster(s.Cluster, &s.Token, &s.Node)); err != nil {
		return err
	}
	if err := m.registry.Write(ctx, "node "+s.Node.ID, fsm.PutNode(s.Node, "")); err != nil {
		return err
	}
	return s.Planted()
}
