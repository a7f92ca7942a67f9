package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/node"
)

// queensFile is the list of queens, in the data folder.
const queensFile = pki.Folder + "/queens.json"

// network connects an agent in a cluster to the other nodes, in both directions.
type network struct {
	log      hclog.Logger
	identity *pki.Identity
	mux      *rpc.Mux
	stream   *rpc.RaftStream
	pool     *rpc.Pool
	probes   *rpc.Pool // to any possible queen address, for announcements
	gossip   *gossip.Pool
	queens   *queenList
	refusals chan string      // capacity one: address of a node that refuses our certificate
	refused  func(rpc.Reason) // counts refusals; nil before the gateway exists
	moves    chan struct{}    // capacity one: the certificate is not for this machine's address

	mu       sync.Mutex      // guards below
	registry *node.Node      // of a queen; nil: a hive without a queen follows the queens
	revoked  map[string]bool // as queens last reported
	standing core.Standing   // of this node
}

// identityOf returns this machine's identity in its cluster; nil: it is not in a cluster.
func identityOf(ctx context.Context, cfg *config.Config) (*pki.Identity, error) {
	if cfg.Dev {
		return nil, nil //nolint:nilnil // alone
	}
	if cfg.TLS.Given() {
		host, err := cfg.AdvertiseHost(ctx)
		if err != nil {
			return nil, err
		}
		return pki.LoadFiles(pki.Files{
			CA: cfg.TLS.CAFile, Certificate: cfg.TLS.CertFile, Key: cfg.TLS.KeyFile, Name: nodeName(cfg),
			RPCAddress: net.JoinHostPort(host, strconv.Itoa(cfg.Bind.RPCPort)),
		})
	}
	id, err := pki.Load(cfg.DataDir)
	if core.KindOf(err) == core.NotFound {
		return nil, nil //nolint:nilnil // alone
	}
	return id, err
}

// newNetwork opens the RPC and the gossip port. The caller closes it.
func newNetwork(ctx context.Context, cfg *config.Config, id *pki.Identity, o Options, log hclog.Logger) (n *network, err error) {
	if err := noTwin(ctx, id); err != nil {
		return nil, err
	}
	n = &network{log: log.Named("net"), identity: id, revoked: map[string]bool{}, moves: make(chan struct{}, 1), refusals: make(chan string, 1), standing: core.Standing{Cluster: id.Cluster()}}
	address := cfg.ListenAddress(true)
	l, err := listen(ctx, address, cfg.Bind.RPCPort, "rpc_port")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	room := placesFor(openFiles())
	n.mux = rpc.NewMux(l, rpc.MuxOptions{
		Identity: id, Revoked: n.isRevoked, Refused: n.refuse, Logger: n.log, MaxHandshakes: room.handshakes, MaxGuests: room.guests, MaxStreams: room.streams,
	})
	n.pool = rpc.NewPool(rpc.PoolOptions{Identity: id, Revoked: n.isRevoked, Broken: n.broken, Declined: n.declined, Barred: n.barred, Logger: n.log})
	n.probes = rpc.NewPool(rpc.PoolOptions{Identity: id, Revoked: n.isRevoked, Declined: n.declined, Barred: n.barred, Logger: n.log})
	n.stream = rpc.NewRaftStream(rpc.RaftOptions{Mux: n.mux, Identity: id, Revoked: n.isRevoked, Broken: n.broken, Declined: n.declined, Barred: n.barred})

	keys, err := gossipKeys(cfg, id)
	if err != nil {
		return nil, err
	}
	self := id.Node()
	n.queens, err = openQueenList(filepath.Join(cfg.DataDir, queensFile), self.ID, n.pool, n.log)
	if err != nil {
		return nil, err
	}
	host, err := followAddress(ctx, cfg, id, n.queens.List(), n.log)
	if err != nil {
		return nil, err
	}
	n.queens.setSelf(id.RPCAddress())
	member := gossip.Member{
		ID: self.ID, Name: self.Name, Queen: self.Has(core.RoleQueen) && cfg.Queen.Enabled, Hive: self.Has(core.RoleHive) && cfg.Hive.Enabled,
		RPCAddress: id.RPCAddress(), Version: o.Version,
	}
	if member.Queen {
		member.HTTPAddress, member.FSM = net.JoinHostPort(host, strconv.Itoa(cfg.Bind.HTTPPort)), membership.FSMVersion
		if cfg.Queen.BootstrapExpect > 1 && cfg.TLS.Given() {
			member.BootstrapExpect = uint32(cfg.Queen.BootstrapExpect) //nolint:gosec // at most 9
		}
	}
	n.gossip, err = gossip.New(gossip.Options{
		Self: member, Bind: net.JoinHostPort(address, strconv.Itoa(cfg.Bind.GossipPort)), Advertise: host, Keys: keys, ClusterID: id.Cluster(),
		RetryJoin: append(slices.Clone(cfg.Gossip.RetryJoin), n.queens.gossipHosts(cfg.Bind.GossipPort)...),
		Dir:       filepath.Join(cfg.DataDir, "gossip"), Logger: log.Named("gossip"),
	})
	if err != nil {
		return nil, err
	}
	n.queens.gossip, n.queens.onView = n.gossip, n.takeView
	return n, nil
}

// gossipKeys returns the keys to start with: the stored ones, or those of the configured key file.
func gossipKeys(cfg *config.Config, id *pki.Identity) (gossip.Keys, error) {
	if cfg.Gossip.KeyFile != "" {
		return readKeyFile(cfg.Gossip.KeyFile)
	}
	keys, err := id.GossipKeys()
	if core.KindOf(err) == core.NotFound && cfg.TLS.Given() {
		return nil, core.Errorf(core.Invalid, "there is no gossip key").Hint("Set gossip { key_file = … }: a file with the same 32 random bytes, in base64, on all nodes: head -c 32 /dev/urandom | base64.")
	}
	return gossip.Keys(keys), err
}

// readKeyFile reads a gossip key in base64. Errors: Invalid.
func readKeyFile(path string) (gossip.Keys, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "read the gossip key"), "Check gossip { key_file = … }.")
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != 32 {
		return nil, core.Errorf(core.Invalid, "read the gossip key: %s does not hold 32 bytes in base64", path).Hint("Make one: head -c 32 /dev/urandom | base64.")
	}
	return gossip.Keys{key}, nil
}

// broken is called when a connection breaks: a broken connection to the leader is the first sign of
// its death.
func (n *network) broken(nodeID, _ string) {
	n.mu.Lock()
	registry := n.registry
	n.mu.Unlock()
	if registry != nil {
		registry.Lost(nodeID)
	}
}

func (n *network) refuse(r rpc.Reason) {
	n.mu.Lock()
	count := n.refused
	n.mu.Unlock()
	if count != nil {
		count(r)
	}
}

func (n *network) isRevoked(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.registry != nil {
		return n.registry.State().Snapshot().Revoked(nil, id)
	}
	return n.revoked[id]
}

// serve switches the network to the queen's registry as its source of truth.
func (n *network) serve(registry *node.Node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.registry = registry
	return n.gossip.Update(func(m *gossip.Member) { m.RaftID, m.HasState = registry.ID(), registry.HasState() })
}

// countRefusals registers the counter for refused connections.
func (n *network) countRefusals(count func(rpc.Reason)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused = count
}

// close closes what newNetwork opened and Run does not close.
func (n *network) close() error { return errors.Join(n.pool.Close(), n.probes.Close()) }

// takeView adopts a queen's view of the cluster on a node without a registry of its own.
func (n *network) takeView(v *queenv1.ClusterView) {
	n.mu.Lock()
	if n.registry != nil {
		n.mu.Unlock()
		return
	}
	n.revoked = map[string]bool{}
	for _, id := range v.GetRevoked() {
		n.revoked[id] = true
	}
	n.mu.Unlock()
	var queens []string
	for _, q := range v.GetQueens() {
		queens = append(queens, q.GetId())
	}
	n.gossip.Expect(queens)
	for _, q := range v.GetQueens() { // their gossip ports may differ from this node's
		if m, ok := n.gossip.Member(q.GetId()); q.GetGossipAddress() != "" && (!ok || m.Status != gossip.Alive) {
			n.gossip.RejoinNow(q.GetGossipAddress())
		}
	}
	n.membersChanged()
	if keys := v.GetGossipKeys(); len(keys) > 0 {
		if err := n.SetKeys(keys); err != nil {
			n.log.Error("cannot take over the gossip keys", "error", err)
		}
	}
}

// membersChanged closes all connections of revoked nodes, and reserves places in gossip for the
// other nodes.
func (n *network) membersChanged() {
	n.mu.Lock()
	registry := n.registry
	n.mu.Unlock()
	if registry != nil {
		var ids []string
		for _, node := range registry.State().Snapshot().Nodes(nil) {
			if !node.Revoked {
				ids = append(ids, node.ID)
			}
		}
		n.gossip.Expect(ids)
	}
	n.mux.CloseRevoked()
	n.pool.CloseRevoked()
	n.probes.CloseRevoked()
	n.stream.CloseRevoked()
}

// SetKeys passes gossip its keys, replacing earlier ones step by step, and stores them for the next
// start.
func (n *network) SetKeys(keys [][]byte) error {
	if err := n.gossip.ReplaceKeys(gossip.Keys(keys)); err != nil {
		return err
	}
	if err := n.identity.SetGossipKeys(keys); err != nil && core.KindOf(err) != core.Unsupported {
		return err
	}
	return nil
}

// Members and Changed are gossip's.
func (n *network) Members() []gossip.Member { return n.gossip.Members() }
func (n *network) Changed() <-chan struct{} { return n.gossip.Changed() }

// Ping pings a node through gossip.
func (n *network) Ping(ctx context.Context, id string) error { return n.gossip.Ping(ctx, id) }

// conn returns the connection to another node.
func (n *network) conn(id, address string, role core.Role) (grpc.ClientConnInterface, error) {
	c, err := n.pool.Conn(id, address, role)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// probe returns a connection to a queen with this ID at an address.
func (n *network) probe(id, address string) (grpc.ClientConnInterface, error) {
	c, err := n.probes.Conn(id, address, core.RoleQueen)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// raftStream is rpc.RaftStream with raft's types.
type raftStream struct{ *rpc.RaftStream }

func (s raftStream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.RaftStream.Dial(string(address), timeout)
}
