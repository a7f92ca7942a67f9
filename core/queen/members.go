package queen

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Membership is what a queen needs to be one of several nodes. Fields that may be nil say
// so; the others are required.
type Membership struct {
	Identity *pki.Identity
	Gossip   Gossip
	// Self is the connection to this process's own services. Methods that the leader answers are
	// passed on from there.
	Self grpc.ClientConnInterface
	// Conn gives the connection to another node. Its errors are classified; the connection is not
	// the queen's to close.
	Conn func(node, address string, role core.Role) (grpc.ClientConnInterface, error)
	// Probe gives a connection to whoever answers at an address with the certificate of this queen,
	// for announcements alone. It is not the queen's to close. nil: no announcements are exchanged.
	Probe func(node, address string) (grpc.ClientConnInterface, error)
	// CertificateTTL is the life of the certificates that this queen signs while it leads.
	CertificateTTL time.Duration
	// TokenGrace is how long this queen takes a token after it proved it last while it is out of
	// contact with a leader; nil: an hour.
	TokenGrace *time.Duration
	// NodesChanged is called when a node came, changed or was revoked. It must not block for long.
	NodesChanged func()
	// HiveDown is called when a hive is down that this queen does not hear of either: no answer
	// will come from there. nil: nobody wants to know.
	HiveDown func(hive string)
	// Deaf are the nodes that gossip reaches over TCP and not over UDP; nil: nobody looks.
	Deaf func() []gossip.Member
	// SeekGossip has gossip look for nodes at an address. nil: it finds them by itself.
	SeekGossip func(address string)
	// Seed is what this queen writes to the registry at the beginning; nil: nothing.
	Seed *Seed
}

// Seed is the beginning of a cluster, or of a queen whose certificate was made elsewhere.
type Seed struct {
	// Cluster is written together with Token, where the registry has none. Several queens of one
	// cluster may try.
	Cluster core.Cluster
	Token   core.Token // the first operator's; without an id another queen begins the cluster
	Node    core.Node  // this one
	// Planted is called when the registry has it.
	Planted func() error
}

// Gossip is the pool of nodes, as far as a queen uses it.
type Gossip interface {
	// Members are all nodes that gossip knows, dead ones and this one included.
	Members() []gossip.Member
	// Changed is closed at the next change of Members. It is taken before Members is asked.
	Changed() <-chan struct{}
	// SetKeys replaces the keys, the primary first.
	SetKeys(keys [][]byte) error
}

// errAlone is the answer of an agent that is in no cluster.
func errAlone() error {
	return core.Errorf(core.Unsupported, "this agent is in no cluster").Hint(
		"Stop it, make a cluster with `rbee cluster init`, and start it again; its models and its registry stay.")
}

// duties are the leader's, until ctx ends or one of them fails.
func (q *Queen) duties(ctx context.Context) error {
	m := q.opts.Membership
	if m == nil {
		return q.liveness.Lead(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, duty := range []func(context.Context) error{q.liveness.Lead, q.expireTokens, q.keepQueens, q.admit, q.keepKeyring} {
		wg.Go(func() {
			if err := duty(ctx); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); core.KindOf(err) != core.Cancelled {
		return err
	}
	return nil
}

// watchCluster does what every queen does beside raft: it plants the seed of a new cluster, and
// gives gossip the keys of the registry.
func (q *Queen) watchCluster(ctx context.Context) {
	m := q.opts.Membership
	var wg sync.WaitGroup
	if m.Seed != nil {
		wg.Go(func() { q.plant(ctx, m.Seed) })
	}
	if m.Probe != nil {
		wg.Go(func() { q.announce(ctx) })
	}
	if m.SeekGossip != nil {
		wg.Go(func() { q.seekGossip(ctx) })
	}
	wg.Go(func() {
		for {
			select {
			case f := <-q.later:
				wg.Go(func() { f(ctx) })
			case <-ctx.Done():
				return
			}
		}
	})
	var version uint64
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		s := q.registry.View()
		s.Nodes(ws)
		m.NodesChanged()
		c, ok := s.Cluster(ws)
		if ok && c.GossipVersion != version {
			if err := q.setGossipKeys(c); err != nil {
				q.log.Error("cannot take over the gossip keys of the registry", "error", err)
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

// plant writes the seed. It ends when that is done, or can never be.
func (q *Queen) plant(ctx context.Context, s *Seed) {
	for ctx.Err() == nil {
		err := q.sow(ctx, s)
		if err == nil {
			q.log.Info("this queen is in the registry", "cluster", s.Cluster.ID)
			return
		}
		kind := core.KindOf(err)
		if kind != core.Unavailable && ctx.Err() == nil {
			q.log.Error("cannot write the beginning of the cluster to the registry", "error", err, "hint", core.HintOf(err))
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

func (q *Queen) sow(ctx context.Context, s *Seed) error {
	if s.Token.ID == "" {
		if _, err := clusterOf(q.registry.View()); err != nil {
			return err
		}
	} else if err := q.registry.Write(ctx, "init "+s.Cluster.ID, fsm.InitCluster(s.Cluster, &s.Token, &s.Node)); err != nil {
		return err
	}
	if err := q.registry.Write(ctx, "node "+s.Node.ID, fsm.PutNode(s.Node, "")); err != nil {
		return err
	}
	return s.Planted()
}

// clusterOf is the registry's cluster. Errors: Unsupported for an agent alone; Unavailable before
// the registry has it.
func clusterOf(s *state.Snapshot) (core.Cluster, error) {
	c, ok := s.Cluster(nil)
	if !ok {
		return c, core.Errorf(core.Unavailable, "the registry of this cluster is not there yet").Hint("Try again in a moment; if it stays so, look at the log of the first queen.")
	}
	return c, nil
}

// gossipKeys opens the registry's gossip keys, the primary first.
func (q *Queen) gossipKeys(c core.Cluster) (pki.Secrets, error) {
	if len(c.SealedGossipKeys) == 0 {
		return nil, nil
	}
	return q.opts.Membership.Identity.OpenGossipKeys(c.SealedGossipKeys)
}

func (q *Queen) setGossipKeys(c core.Cluster) error {
	keys, err := q.gossipKeys(c)
	if err != nil || len(keys) == 0 {
		return err
	}
	return q.opts.Membership.Gossip.SetKeys(keys)
}

// nodeNamed finds a node by id, name or unique prefix of the id. A name is the one a node joined
// with, or the one that its hive reports, as after its machine was renamed. Errors: NotFound;
// Conflict where several match, with their ids.
func nodeNamed(s *state.Snapshot, name string) (core.Node, error) {
	if n, ok := s.Node(nil, name); ok && name != "" {
		return n, nil
	}
	var found []core.Node
	var names, ids []string
	for _, n := range s.Nodes(nil) {
		h, _ := s.Hive(nil, n.ID)
		if name != "" && !n.Revoked && (strings.EqualFold(n.Name, name) || strings.EqualFold(h.Name, name)) {
			found, ids = append(found, n), append(ids, n.ID)
		}
	}
	switch len(found) {
	case 0:
	case 1:
		return found[0], nil
	default:
		return core.Node{}, core.Errorf(core.Conflict, "%d nodes have the name %q: %s", len(found), name, strings.Join(ids, ", ")).Hint(
			"Name the node by its id; `rbee status` shows which of them are up.")
	}
	if n, ok := s.NodeNamed(nil, name); ok && name != "" {
		return n, nil // a revoked one
	}
	for _, n := range s.Nodes(nil) {
		names = append(names, n.ID, n.Name)
		if name != "" && strings.HasPrefix(n.ID, name) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return core.Node{}, core.Errorf(core.NotFound, "there is no node %q", name).Hint("%sSee all with `rbee tls list`.", nearest(name, names))
	}
	return core.Node{}, core.Errorf(core.Conflict, "%d nodes have an id that begins with %q", len(found), name).Hint("Write more of the id.")
}

// Nodes lists the nodes of the cluster, revoked ones included.
func (q *Queen) Nodes(context.Context) ([]core.Node, error) {
	if q.opts.Membership == nil {
		return nil, errAlone()
	}
	return q.registry.View().Nodes(nil), nil
}

// Cluster is what the registry says of the cluster. Errors: Unsupported, Unavailable.
func (q *Queen) Cluster(context.Context) (core.Cluster, error) {
	if q.opts.Membership == nil {
		return core.Cluster{}, errAlone()
	}
	return clusterOf(q.registry.View())
}

// Queens lists the queens that raft knows, and those of the registry that answer and raft does not
// know (yet).
func (q *Queen) Queens(context.Context) ([]core.Queen, error) {
	servers, err := q.registry.Queens()
	m := q.opts.Membership
	if err != nil || m == nil {
		return servers, err
	}
	status := map[string]string{}
	for _, g := range m.Gossip.Members() {
		status[g.ID] = string(g.Status)
	}
	registry := q.registry.View()
	own, proofs := q.ownMember(), q.proven()
	known := map[string]bool{}
	for i := range servers {
		s := &servers[i]
		known[s.ID] = true
		s.Gossip = cmp.Or(status[s.ID], "unknown")
		if n, ok := registry.Node(nil, s.ID); ok {
			s.Name = n.Name
		}
		if s.ID == q.opts.ID {
			s.HTTPAddress, s.Version, s.Name = own.HTTPAddress, q.opts.Version, cmp.Or(s.Name, own.Name)
		}
		for _, p := range proofs {
			if p.node.ID == s.ID {
				s.HTTPAddress, s.Version = p.said.GetHttpAddress(), p.said.GetVersion()
				s.Name = cmp.Or(s.Name, p.node.Name)
			}
		}
	}
	for _, p := range proofs {
		if n, ok := trusted(registry, p.node.ID); ok && !known[n.ID] && p.alive() {
			servers = append(servers, core.Queen{
				ID: n.ID, RaftID: p.said.GetRaftId(), Name: n.Name, Address: p.said.GetRpcAddress(), HTTPAddress: p.said.GetHttpAddress(),
				Version: p.said.GetVersion(), Gossip: cmp.Or(status[n.ID], "unknown"),
			})
		}
	}
	slices.SortFunc(servers, func(a, b core.Queen) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return servers, nil
}

// queenNamed finds a queen by node id, name or raft id.
func (q *Queen) queenNamed(ctx context.Context, name string) (core.Queen, error) {
	queens, err := q.Queens(ctx)
	if err != nil {
		return core.Queen{}, err
	}
	var names []string
	for _, s := range queens {
		if name != "" && (s.ID == name || s.RaftID == name || s.Name == name) {
			return s, nil
		}
		names = append(names, s.ID, s.Name)
	}
	return core.Queen{}, core.Errorf(core.NotFound, "there is no queen %q", name).Hint("%sSee all with `rbee queen list`.", nearest(name, names))
}

// FSMVersion is the state machine version of this build.
const FSMVersion uint32 = fsm.Version

// Leader is the queen that leads, as far as this one knows now; it does not wait. local: it is this
// one, and it has taken over. Errors: Unavailable.
func (q *Queen) Leader(context.Context) (nodeID, address string, local bool, err error) {
	if q.registry.Leads() {
		return q.opts.ID, "", true, nil
	}
	queens, err := q.registry.Queens()
	if err != nil {
		return "", "", false, err
	}
	for _, s := range queens {
		if s.Leader && s.ID != q.opts.ID {
			return s.ID, s.Address, false, nil
		}
	}
	return "", "", false, q.registry.NotLeader()
}

// keepQueens has raft's configuration follow the queens that are there: new ones are added and
// promoted, dead ones removed as long as a majority stays.
func (q *Queen) keepQueens(ctx context.Context) error {
	return q.registry.Autopilot(ctx, raftMembers{q})
}

// sameKey says whether a certificate request has the key that the node is known by.
func sameKey(n core.Node, keyHash []byte) bool {
	return len(n.KeyHash) > 0 && bytes.Equal(n.KeyHash, keyHash)
}
