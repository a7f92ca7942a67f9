package registry_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
	"github.com/rbee-project/rbee/raft/state"
)

// cluster is one queen's identity and the registry of its cluster.
type cluster struct {
	dir  string // the machine's data folder
	id   *pki.Identity
	seed *pki.Seed
	node core.Node
	reg  *memregistry.Registry
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	dir := t.TempDir()
	made, err := pki.Init(dir, pki.InitOptions{
		Name: "hill", NodeID: "aaaaaaaa", NodeName: "one", RPCAddress: "127.0.0.1:7834", Roles: []core.Role{core.RoleQueen},
		Token: core.Token{ID: "op", Kind: core.TokenAPI, SecretHash: bytes.Repeat([]byte{1}, 32), Scopes: []core.Scope{core.ScopeAdmin}}, Now: time.Now(),
	})
	must.NoError(t, err)
	c := &cluster{dir: dir, id: made.Identity}
	c.seed, err = c.id.Seed()
	must.NoError(t, err)
	c.node = core.Node{ID: "aaaaaaaa", Name: "one", Roles: []core.Role{core.RoleQueen}, RPCAddress: "127.0.0.1:7834", KeyHash: bytes.Repeat([]byte{2}, 32)}
	c.init(t, c.id.Cluster(), c.seed.SealedCAKey)
	return c
}

// init rebuilds the registry.
func (c *cluster) init(t *testing.T, id string, sealedCAKey []byte) {
	t.Helper()
	c.reg = memregistry.New()
	c.apply(t, fsm.InitCluster(core.Cluster{ID: id, Name: "hill", CACertificates: c.seed.CAPEM, SealedCAKey: sealedCAKey, SealedGossipKeys: c.seed.SealedGossipKeys},
		nil, &c.node))
}

func (c *cluster) apply(t *testing.T, command *raftv1.Command) {
	t.Helper()
	must.NoError(t, c.reg.Write(t.Context(), "", command))
}

// saved reads the registry back as a stored snapshot.
func (c *cluster) saved(t *testing.T) *registry.Snapshot {
	t.Helper()
	var file bytes.Buffer
	s := registry.NewSealing(&file)
	must.NoError(t, fsm.WriteSnapshot(s, c.reg.View()))
	must.NoError(t, s.Seal())
	snap, err := registry.ReadSnapshot(&file)
	must.NoError(t, err)
	return snap
}

// founding returns the options for a raft folder that does not exist yet.
func (c *cluster) founding(t *testing.T) registry.Founding {
	t.Helper()
	return registry.Founding{
		Dir: filepath.Join(t.TempDir(), "raft"), Identity: c.id, Node: c.node, Now: time.Now(), Logger: hclog.NewNullLogger(),
		Old: filepath.Join(t.TempDir(), "old"),
	}
}

// contents returns what a raft folder holds.
func contents(t *testing.T, dir string) *state.Snapshot {
	t.Helper()
	found, err := node.Salvage(dir, hclog.NewNullLogger())
	must.NoError(t, err)
	must.SliceEmpty(t, found.Problems)
	return found.State
}

func TestFound(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.apply(t, fsm.SyncHive(core.Hive{ID: "h1"}, nil))
	snap := c.saved(t)
	must.Eq(t, c.id.Cluster(), snap.Cluster.ID)
	o := c.founding(t)
	done, err := snap.Found(o)
	must.NoError(t, err)
	must.Eq(t, registry.Founded{}, done)
	s := contents(t, o.Dir)
	_, ok := s.Hive(nil, "h1")
	must.True(t, ok)
	now, _ := s.Cluster(nil)
	must.Eq(t, snap.Cluster, now) // its keys are the machine's own: no change is announced
	n, _ := s.Node(nil, "aaaaaaaa")
	must.Eq(t, c.node.RPCAddress, n.RPCAddress)
	must.StrContains(t, configuration(t, o.Dir), `"127.0.0.1:7834"`)
}

// configuration returns raft's own list of servers in a folder created from a snapshot.
func configuration(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
	must.NoError(t, err)
	must.Len(t, 1, found)
	b, err := os.ReadFile(found[0])
	must.NoError(t, err)
	return string(b)
}

// A snapshot is refused by another cluster and by a machine that cannot use it.
func TestFoundRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, c *cluster, o *registry.Founding)
		kind   core.Kind
	}{
		{"another cluster's", func(t *testing.T, c *cluster, _ *registry.Founding) { c.init(t, "other", c.seed.SealedCAKey) }, core.Conflict},
		{"on a machine without a cluster", func(_ *testing.T, _ *cluster, o *registry.Founding) { o.Identity = nil }, core.Conflict},
		{"sealed with another key", func(t *testing.T, c *cluster, _ *registry.Founding) {
			c.init(t, c.id.Cluster(), newCluster(t).seed.SealedCAKey)
		}, core.Integrity},
		{"gossip keys sealed with another key", func(t *testing.T, c *cluster, _ *registry.Founding) {
			c.apply(t, fsm.SetKeyring(newCluster(t).seed.SealedGossipKeys, 1))
		}, core.Integrity},
		{"of certificates made elsewhere, gossip keys sealed with another key", func(t *testing.T, c *cluster, _ *registry.Founding) {
			c.init(t, c.id.Cluster(), nil)
			c.apply(t, fsm.SetKeyring(newCluster(t).seed.SealedGossipKeys, 1))
		}, core.Integrity},
		{"an old folder in use", func(t *testing.T, _ *cluster, o *registry.Founding) {
			o.Old = t.TempDir()
			n, err := node.Open(node.Options{ID: "aaaaaaaa", Dir: o.Old})
			must.NoError(t, err)
			t.Cleanup(func() { must.NoError(t, n.Shutdown()) })
		}, core.InUse},
		{"a machine whose gossip keys are damaged", func(t *testing.T, c *cluster, _ *registry.Founding) {
			must.NoError(t, os.WriteFile(filepath.Join(c.dir, pki.Folder, "gossip.key"), []byte("x"), 0o600))
		}, core.Integrity},
		{"a machine that is revoked", func(t *testing.T, c *cluster, _ *registry.Founding) { c.apply(t, fsm.RevokeNode("aaaaaaaa")) }, core.Conflict},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			o := c.founding(t)
			tt.change(t, c, &o)
			_, err := c.saved(t).Found(o)
			must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(err))
			_, err = os.Stat(o.Dir)
			must.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

// Where a cluster's certificates are issued elsewhere, there is no key to check.
func TestFoundWithoutCAKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.init(t, c.id.Cluster(), nil)
	_, err := c.saved(t).Found(c.founding(t))
	must.NoError(t, err)
}

// A machine outside any cluster accepts the snapshot of another such machine.
func TestFoundAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.reg = memregistry.New()
	c.apply(t, fsm.SyncHive(core.Hive{ID: "h1"}, nil))
	o := c.founding(t)
	o.Identity = nil
	_, err := c.saved(t).Found(o)
	must.NoError(t, err)
	must.StrContains(t, configuration(t, o.Dir), `"in-process/aaaaaaaa"`)
	_, ok := contents(t, o.Dir).Hive(nil, "h1")
	must.True(t, ok)
}

// Nodes revoked since the snapshot stay revoked, even when a new machine replaces another.
func TestFoundKeepsRevocations(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.apply(t, fsm.PutNode(core.Node{ID: "n2", Name: "two", Roles: []core.Role{core.RoleHive}, KeyHash: bytes.Repeat([]byte{3}, 32)}, ""))
	snap := c.saved(t)
	c.apply(t, fsm.RevokeNode("n2"))
	before := c.founding(t)
	_, err := c.saved(t).Found(before)
	must.NoError(t, err)

	o := c.founding(t)
	o.Old, o.Node.ID = before.Dir, "bbbbbbbb"
	done, err := snap.Found(o)
	must.NoError(t, err)
	must.Eq(t, []string{"aaaaaaaa"}, done.Revoked)
	s := contents(t, o.Dir)
	must.True(t, s.Revoked(nil, "n2"))
	must.True(t, s.Revoked(nil, "aaaaaaaa"))
	must.False(t, s.Revoked(nil, "bbbbbbbb"))
}

// With the keys of the machine and those of the snapshot the queen can hear every remaining node.
// The machine's keys come first, the registry has the same list, and the change is announced.
func TestFoundGossipKeys(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	first, err := c.id.GossipKeys()
	must.NoError(t, err)
	own := pki.Secrets{pki.NewGossipKey()}
	must.NoError(t, c.id.SetGossipKeys(own))
	snap := c.saved(t)
	o := c.founding(t)
	_, err = snap.Found(o)
	must.NoError(t, err)
	all, err := c.id.GossipKeys()
	must.NoError(t, err)
	must.Eq(t, append(own, first...), all)
	now, _ := contents(t, o.Dir).Cluster(nil)
	must.Eq(t, snap.Cluster.GossipVersion+1, now.GossipVersion)
	sealed, err := c.id.OpenGossipKeys(now.SealedGossipKeys)
	must.NoError(t, err)
	must.Eq(t, all, sealed)
}

// A machine that has lost its gossip keys takes the snapshot's.
func TestFoundGossipKeysLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	were, err := c.id.GossipKeys()
	must.NoError(t, err)
	must.NoError(t, os.Remove(filepath.Join(c.dir, pki.Folder, "gossip.key")))
	_, err = c.saved(t).Found(c.founding(t))
	must.NoError(t, err)
	are, err := c.id.GossipKeys()
	must.NoError(t, err)
	must.Eq(t, were, are)
}

// The number of keys stays within MaxGossipKeys; the machine's own are kept.
func TestFoundGossipKeysBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var own pki.Secrets
	for range registry.MaxGossipKeys {
		own = append(own, pki.NewGossipKey())
	}
	must.NoError(t, c.id.SetGossipKeys(own))
	_, err := c.saved(t).Found(c.founding(t))
	must.NoError(t, err)
	all, err := c.id.GossipKeys()
	must.NoError(t, err)
	must.Eq(t, own, all)
}
