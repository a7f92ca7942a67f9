package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

func hash(b byte) []byte { return bytes.Repeat([]byte{b}, sha256.Size) }

var born = time.Unix(1_700_000_000, 0).UTC()

func cluster(id string) core.Cluster {
	return core.Cluster{ID: id, Name: "cluster " + id, CACertificates: []byte("ca"), SealedCAKey: []byte("key"), SealedGossipKeys: []byte("gossip"), GossipVersion: 1}
}

func node(id, name string) core.Node {
	return core.Node{
		ID: id, Name: name, Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.1:7834", KeyHash: hash(0), CertificateExpiresAt: born.Add(90 * 24 * time.Hour),
	}
}

func apiToken(id string) core.Token {
	return core.Token{ID: id, Name: "token " + id, Kind: core.TokenAPI, SecretHash: hash(1), Scopes: core.Scopes(), CreatedAt: born}
}

func joinToken(id string) core.Token {
	return core.Token{ID: id, Kind: core.TokenJoin, SecretHash: hash(2), Roles: []core.Role{core.RoleHive}, CreatedAt: born, TTL: core.Duration(time.Hour)}
}

func with[T any](v T, change func(*T)) T { change(&v); return v }

func stone(hive string, incarnation, index uint64) []state.Tombstone {
	return []state.Tombstone{{Hive: hive, Incarnation: incarnation, Index: index}}
}

func intent(hive, nonce string) []state.RetireIntent {
	return []state.RetireIntent{{Hive: hive, Nonce: nonce}}
}

// world is the registry without hives and workers.
type world struct {
	cluster core.Cluster
	nodes   []core.Node
	tokens  []core.Token
	stones  []state.Tombstone
	intents []state.RetireIntent
}

func worldOf(s *state.Snapshot) world {
	c, _ := s.Cluster(nil)
	return world{c, s.Nodes(nil), s.Tokens(nil), s.Tombstones(nil), s.RetireIntents(nil)}
}

func TestApplyToCluster(t *testing.T) {
	t.Parallel()
	type cmds = []*raftv1.Command
	in := func(c core.Cluster, create, modify uint64) core.Cluster {
		c.CreateIndex, c.ModifyIndex = create, modify
		return c
	}
	n := func(n core.Node, create, modify uint64) core.Node {
		n.CreateIndex, n.ModifyIndex = create, modify
		return n
	}
	k := func(t core.Token, create, modify uint64) core.Token {
		t.CreateIndex, t.ModifyIndex = create, modify
		return t
	}
	used := func(t core.Token, by string) core.Token {
		t.UsedBy, t.UsedAt, t.UsedKeyHash = by, born, hash(0)
		return t
	}
	revoked := func(n core.Node) core.Node { n.Revoked = true; return n }
	c1, n1, n2, t1, j1 := cluster("c1"), node("n1", "one"), node("n2", "two"), apiToken("t1"), joinToken("j1")
	sync := func(id string, incarnation uint64, w ...core.Worker) *raftv1.Command {
		return fsm.SyncHive(hive(id, incarnation, ""), w)
	}
	w1 := worker("n1", "w1", wReady, "nonce1")
	for _, tt := range []struct {
		name   string
		before cmds            // at 1, 2, …
		cmd    *raftv1.Command // at 10
		kind   core.Kind
		want   world
		hives  string // ids
	}{
		{
			name: "a cluster is made", cmd: fsm.InitCluster(c1, &t1, &n1),
			want: world{cluster: in(c1, 10, 10), nodes: []core.Node{n(n1, 10, 10)}, tokens: []core.Token{k(t1, 10, 10)}},
		},
		{name: "a cluster alone", cmd: fsm.InitCluster(with(c1, func(c *core.Cluster) { c.GossipVersion = 0 }), nil, nil), want: world{cluster: in(c1, 10, 10)}},
		{
			name:   "made again after its token was deleted, its node revoked and its keys changed",
			before: cmds{fsm.InitCluster(c1, &t1, &n1), fsm.DeleteToken("t1"), fsm.RevokeNode("n1"), fsm.SetKeyring([]byte("new"), 1)},
			cmd:    fsm.InitCluster(c1, &t1, &n1),
			want: world{
				cluster: in(with(c1, func(c *core.Cluster) { c.SealedGossipKeys, c.GossipVersion = []byte("new"), 2 }), 1, 4),
				nodes:   []core.Node{n(revoked(n1), 1, 3)},
			},
		},
		{
			name: "another cluster", before: cmds{fsm.InitCluster(c1, nil, nil)}, cmd: fsm.InitCluster(cluster("c2"), &t1, &n1),
			kind: core.Conflict, want: world{cluster: in(c1, 1, 1)},
		},
		{
			name: "a cluster whose node is there with another key", before: cmds{fsm.PutNode(with(n1, func(n *core.Node) { n.KeyHash = hash(9) }), "")},
			cmd: fsm.InitCluster(c1, &t1, &n1), kind: core.Conflict,
			want: world{nodes: []core.Node{n(with(n1, func(n *core.Node) { n.KeyHash = hash(9) }), 1, 1)}},
		},

		{name: "a node", cmd: fsm.PutNode(revoked(n1), ""), want: world{nodes: []core.Node{n(n1, 10, 10)}}},
		{name: "a node again", before: cmds{fsm.PutNode(n1, "")}, cmd: fsm.PutNode(n1, ""), want: world{nodes: []core.Node{n(n1, 1, 1)}}},
		{
			name: "a node with another certificate, name and address", before: cmds{fsm.PutNode(n1, "")},
			cmd: fsm.PutNode(with(n1, func(n *core.Node) {
				n.Name, n.RPCAddress, n.CertificateExpiresAt = "ONE", "h:2", born.Add(time.Hour)
			}), ""),
			want: world{nodes: []core.Node{n(with(n1, func(n *core.Node) {
				n.Name, n.RPCAddress, n.CertificateExpiresAt = "ONE", "h:2", born.Add(time.Hour)
			}), 1, 10)}},
		},
		{
			name: "a node with another node's name", before: cmds{fsm.PutNode(n1, "")}, cmd: fsm.PutNode(node("n2", "oNe"), ""),
			kind: core.Conflict, want: world{nodes: []core.Node{n(n1, 1, 1)}},
		},
		{
			name: "a node with a revoked node's name", before: cmds{fsm.PutNode(n1, ""), fsm.RevokeNode("n1")}, cmd: fsm.PutNode(node("n2", "one"), ""),
			want: world{nodes: []core.Node{n(revoked(n1), 1, 2), n(node("n2", "one"), 10, 10)}},
		},
		{
			name: "a node with another key", before: cmds{fsm.PutNode(n1, "")}, cmd: fsm.PutNode(with(n1, func(n *core.Node) { n.KeyHash = hash(7) }), ""),
			kind: core.Conflict, want: world{nodes: []core.Node{n(n1, 1, 1)}},
		},
		{
			name: "a node that was revoked", before: cmds{fsm.PutNode(n1, ""), fsm.RevokeNode("n1"), fsm.PutToken(j1)}, cmd: fsm.PutNode(n1, "j1"),
			kind: core.Conflict, want: world{nodes: []core.Node{n(revoked(n1), 1, 2)}, tokens: []core.Token{k(j1, 3, 3)}},
		},
		{
			name: "a node uses up its join token", before: cmds{fsm.PutToken(j1)}, cmd: fsm.PutNode(n1, "j1"),
			want: world{nodes: []core.Node{n(n1, 10, 10)}, tokens: []core.Token{k(used(j1, "n1"), 1, 10)}},
		},
		{
			name: "a node joins again with its own token and another certificate", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "j1")},
			cmd: fsm.PutNode(with(n1, func(n *core.Node) { n.CertificateExpiresAt = born.Add(time.Hour) }), "j1"),
			want: world{
				nodes:  []core.Node{n(with(n1, func(n *core.Node) { n.CertificateExpiresAt = born.Add(time.Hour) }), 2, 10)},
				tokens: []core.Token{k(used(j1, "n1"), 1, 2)},
			},
		},
		{
			name: "a join token serves once", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "j1")}, cmd: fsm.PutNode(n2, "j1"),
			kind: core.Unauthenticated, want: world{nodes: []core.Node{n(n1, 2, 2)}, tokens: []core.Token{k(used(j1, "n1"), 1, 2)}},
		},
		{
			name: "a join token serves one key", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "j1")},
			cmd:  fsm.PutNode(with(n1, func(n *core.Node) { n.KeyHash = hash(7) }), "j1"),
			kind: core.Unauthenticated, want: world{nodes: []core.Node{n(n1, 2, 2)}, tokens: []core.Token{k(used(j1, "n1"), 1, 2)}},
		},
		{name: "no such join token", cmd: fsm.PutNode(n1, "j1"), kind: core.Unauthenticated},
		{
			name: "an API token does not join", before: cmds{fsm.PutToken(t1)}, cmd: fsm.PutNode(n1, "t1"),
			kind: core.Unauthenticated, want: world{tokens: []core.Token{k(t1, 1, 1)}},
		},
		{
			name: "a join token for hives makes no queen", before: cmds{fsm.PutToken(j1)},
			cmd:  fsm.PutNode(with(n1, func(n *core.Node) { n.Roles = []core.Role{core.RoleHive, core.RoleQueen} }), "j1"),
			kind: core.Forbidden, want: world{tokens: []core.Token{k(j1, 1, 1)}},
		},
		{
			name: "a refused node leaves its token unused", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "")}, cmd: fsm.PutNode(node("n2", "one"), "j1"),
			kind: core.Conflict, want: world{nodes: []core.Node{n(n1, 2, 2)}, tokens: []core.Token{k(j1, 1, 1)}},
		},

		{
			name: "a revoked node loses its hive", before: cmds{fsm.PutNode(n1, ""), sync("n1", 5, w1), fsm.RetireWorker("", "w1"), sync("other", 1)}, cmd: fsm.RevokeNode("n1"),
			want: world{nodes: []core.Node{n(revoked(n1), 1, 10)}, stones: stone("n1", 5, 10)}, hives: "[other]",
		},
		{
			name: "revoked twice", before: cmds{fsm.PutNode(n1, ""), sync("n1", 5), fsm.RevokeNode("n1")}, cmd: fsm.RevokeNode("n1"),
			want: world{nodes: []core.Node{n(revoked(n1), 1, 3)}, stones: stone("n1", 5, 3)},
		},
		{name: "revoking nobody", cmd: fsm.RevokeNode("n1"), kind: core.NotFound},
		{
			name: "a revoked node's hive does not come back, however new", before: cmds{fsm.PutNode(n1, ""), fsm.RevokeNode("n1")}, cmd: sync("n1", 99),
			kind: core.Forbidden, want: world{nodes: []core.Node{n(revoked(n1), 1, 2)}},
		},
		{
			name: "a node that left", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "j1"), fsm.PutNode(n2, ""), sync("n1", 5)}, cmd: fsm.RemoveNode("n1"),
			want: world{nodes: []core.Node{n(n2, 3, 3)}, stones: stone("n1", 5, 10)},
		},
		{name: "nobody left", cmd: fsm.RemoveNode("n1")},
		{
			name: "a revoked node is not forgotten", before: cmds{fsm.PutNode(n1, ""), fsm.RevokeNode("n1")}, cmd: fsm.RemoveNode("n1"),
			kind: core.Conflict, want: world{nodes: []core.Node{n(revoked(n1), 1, 2)}},
		},
		{
			name: "a node that left comes back with a new token", before: cmds{fsm.PutNode(n1, ""), fsm.RemoveNode("n1"), fsm.PutToken(j1)},
			cmd:  fsm.PutNode(with(n1, func(n *core.Node) { n.KeyHash = hash(0) }), "j1"),
			want: world{nodes: []core.Node{n(n1, 10, 10)}, tokens: []core.Token{k(used(j1, "n1"), 3, 10)}},
		},

		{
			name: "a token that was used already is made unused", cmd: fsm.PutToken(used(j1, "n1")), want: world{tokens: []core.Token{k(j1, 10, 10)}},
		},
		{
			name: "a token again, after it was used", before: cmds{fsm.PutToken(j1), fsm.PutNode(n1, "j1")}, cmd: fsm.PutToken(j1),
			want: world{nodes: []core.Node{n(n1, 2, 2)}, tokens: []core.Token{k(used(j1, "n1"), 1, 2)}},
		},
		{
			name: "another token with the id", before: cmds{fsm.PutToken(t1)}, cmd: fsm.PutToken(with(t1, func(t *core.Token) { t.SecretHash = hash(9) })),
			kind: core.Conflict, want: world{tokens: []core.Token{k(t1, 1, 1)}},
		},
		{
			name: "another token's longer life", before: cmds{fsm.PutToken(t1)}, cmd: fsm.PutToken(with(t1, func(t *core.Token) { t.TTL = core.Duration(time.Hour) })),
			kind: core.Conflict, want: world{tokens: []core.Token{k(t1, 1, 1)}},
		},
		{
			name: "a short life is not an eternal one", cmd: fsm.PutToken(with(t1, func(t *core.Token) { t.TTL = core.Duration(time.Millisecond) })),
			want: world{tokens: []core.Token{k(with(t1, func(t *core.Token) { t.TTL = core.Duration(time.Second) }), 10, 10)}},
		},
		{name: "a token is deleted", before: cmds{fsm.PutToken(t1)}, cmd: fsm.DeleteToken("t1")},
		{name: "no token is deleted", cmd: fsm.DeleteToken("t1")},

		{
			name: "gossip keys", before: cmds{fsm.InitCluster(c1, nil, nil)}, cmd: fsm.SetKeyring([]byte("new"), 1),
			want: world{cluster: in(with(c1, func(c *core.Cluster) { c.SealedGossipKeys, c.GossipVersion = []byte("new"), 2 }), 1, 10)},
		},
		{
			name: "the same gossip keys again", before: cmds{fsm.InitCluster(c1, nil, nil), fsm.SetKeyring([]byte("new"), 1)}, cmd: fsm.SetKeyring([]byte("new"), 1),
			want: world{cluster: in(with(c1, func(c *core.Cluster) { c.SealedGossipKeys, c.GossipVersion = []byte("new"), 2 }), 1, 2)},
		},
		{
			name: "gossip keys that somebody else changed", before: cmds{fsm.InitCluster(c1, nil, nil), fsm.SetKeyring([]byte("new"), 1)}, cmd: fsm.SetKeyring([]byte("newer"), 1),
			kind: core.Conflict, want: world{cluster: in(with(c1, func(c *core.Cluster) { c.SealedGossipKeys, c.GossipVersion = []byte("new"), 2 }), 1, 2)},
		},
		{name: "gossip keys of no cluster", cmd: fsm.SetKeyring([]byte("new"), 0), kind: core.NotFound},

		// C-27: what was removed does not return.
		{
			name: "a removed hive leaves its incarnation", before: cmds{sync("n1", 5, w1), fsm.RetireWorker("", "w1")}, cmd: fsm.RemoveHive("n1"),
			want: world{stones: stone("n1", 5, 10)},
		},
		{
			name: "removed twice", before: cmds{sync("n1", 5), fsm.RemoveHive("n1")}, cmd: fsm.RemoveHive("n1"),
			want: world{stones: stone("n1", 5, 2)},
		},
		{
			name: "an old report of a removed hive", before: cmds{sync("n1", 5, w1), fsm.RemoveHive("n1")}, cmd: sync("n1", 4, w1),
			kind: core.Conflict, want: world{stones: stone("n1", 5, 2)},
		},
		{
			name: "the last report of a removed hive", before: cmds{sync("n1", 5, w1), fsm.RemoveHive("n1")}, cmd: sync("n1", 5, w1),
			kind: core.Conflict, want: world{stones: stone("n1", 5, 2)},
		},
		{
			name: "a removed hive that was started again", before: cmds{sync("n1", 5, w1), fsm.RemoveHive("n1")}, cmd: sync("n1", 6), hives: "[n1]",
		},
		{
			name: "removed, back, and removed again", before: cmds{sync("n1", 5), fsm.RemoveHive("n1"), sync("n1", 7)}, cmd: fsm.RemoveHive("n1"),
			want: world{stones: stone("n1", 7, 10)},
		},
		{
			name: "a hive that was removed by an older version",
			// as that version applied it
			before: cmds{sync("n1", 5), {MinFsm: 1, Op: fsm.RemoveHive("n1").GetOp()}}, cmd: sync("n1", 5), hives: "[n1]",
		},

		// Retirement outlives the worker's entry.
		{
			name: "a retire intent", before: cmds{sync("n1", 5, w1)}, cmd: fsm.RetireWorker("", "w1"),
			want: world{intents: intent("n1", "nonce1")}, hives: "[n1]",
		},
		{
			name: "a retire intent outlives that its hive is down", before: cmds{sync("n1", 5, w1), fsm.RetireWorker("", "w1")}, cmd: fsm.SetHiveStatus("n1", down, 5),
			want: world{intents: intent("n1", "nonce1")}, hives: "[n1]",
		},
		{
			name: "a retire intent goes with its worker", before: cmds{sync("n1", 5, w1), fsm.RetireWorker("", "w1"), fsm.SetHiveStatus("n1", down, 5)},
			cmd:   sync("n1", 5, worker("n1", "w1", wReady, "nonce2")),
			hives: "[n1]",
		},
		{
			name: "a worker that a hive retires has no intent", before: cmds{sync("n1", 5, w1)}, cmd: sync("n1", 5, worker("n1", "w1", retiring, "nonce1")), hives: "[n1]",
		},
		{
			name: "a worker without a nonce has no intent", before: cmds{sync("n1", 5, worker("n1", "w1", wReady, ""))}, cmd: fsm.RetireWorker("", "w1"), hives: "[n1]",
		},
		{
			name: "a worker that an older version retired has no intent", before: cmds{sync("n1", 5, w1)},
			cmd: &raftv1.Command{MinFsm: 1, Op: fsm.RetireWorker("", "w1").GetOp()}, hives: "[n1]",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := fsm.New()
			for i, c := range tt.before {
				must.NoError(t, fsm.Validate(c))
				must.NoError(t, apply(t, f, uint64(i+1), c).Err, must.Sprint(i))
			}
			must.NoError(t, fsm.Validate(tt.cmd))
			r := apply(t, f, 10, tt.cmd)
			must.Eq(t, tt.kind, core.KindOf(r.Err), must.Sprint(r.Err))
			tt.want.nodes = append([]core.Node{}, tt.want.nodes...)
			tt.want.tokens = append([]core.Token{}, tt.want.tokens...)
			tt.want.stones = append([]state.Tombstone{}, tt.want.stones...)
			tt.want.intents = append([]state.RetireIntent{}, tt.want.intents...)
			if tt.hives == "" {
				tt.hives = "[]"
			}
			for range 2 {
				got := worldOf(f.State().Snapshot())
				must.Eq(t, tt.want.cluster, got.cluster)
				must.Eq(t, tt.want.nodes, got.nodes)
				must.Eq(t, tt.want.tokens, got.tokens)
				must.Eq(t, tt.want.stones, got.stones)
				must.Eq(t, tt.want.intents, got.intents)
				ids := []string{}
				for _, h := range f.State().Hives(nil) {
					ids = append(ids, h.ID)
				}
				must.Eq(t, tt.hives, fmt.Sprint(ids))
				must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
			}
			if tt.kind != "" && tt.kind != core.NotFound {
				must.NotEq(t, "", core.HintOf(r.Err))
			}
		})
	}
}

// A worker marked as retiring while its hive was cut off is still retiring when the hive returns
// with it.
func TestRetireIntentSurvivesDown(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	w := worker("h1", "w1", wReady, "n1")
	index := uint64(0)
	do := func(c *raftv1.Command) {
		index++
		must.NoError(t, apply(t, f, index, c).Err)
	}
	states := func() (list []core.WorkerState) {
		for _, w := range f.State().Workers(nil) {
			list = append(list, w.State)
		}
		return list
	}
	do(fsm.SyncHive(hive("h1", 1, ""), []core.Worker{w}))
	do(fsm.RetireWorker("", "w1"))
	do(fsm.SetHiveStatus("h1", down, 1))
	must.SliceEmpty(t, states())
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
	do(fsm.SyncHive(hive("h1", 2, ""), []core.Worker{w})) // its agent was restarted as well
	must.Eq(t, []core.WorkerState{retiring}, states())
	// the nonce identifies the worker
	do(fsm.SyncHive(hive("h1", 2, ""), []core.Worker{worker("h1", "renamed", wReady, "n1")}))
	must.Eq(t, []core.WorkerState{retiring}, states())
	do(fsm.SyncHive(hive("h1", 2, ""), nil))
	must.SliceEmpty(t, f.State().Snapshot().RetireIntents(nil))

	// Without the intent, as in an older version's state, the worker would be ready again.
	do(fsm.SyncHive(hive("h1", 2, ""), []core.Worker{w}))
	do(&raftv1.Command{MinFsm: 1, Op: fsm.RetireWorker("", "w1").GetOp()})
	do(fsm.SetHiveStatus("h1", down, 2))
	do(fsm.SyncHive(hive("h1", 2, ""), []core.Worker{w}))
	must.Eq(t, []core.WorkerState{wReady}, states())
}

// C-27: packets of earlier starts of a hive, replayed in any order among those of the newest start,
// never restore a worker.
func TestOldIncarnationsNeverResurrect(t *testing.T) {
	t.Parallel()
	var f *fsm.FSM
	index := uint64(0)
	do := func(c *raftv1.Command) error {
		index++
		r := apply(t, f, index, c)
		return slices.Concat(r.Errs, []error{r.Err})[0]
	}
	report := func(incarnation uint64) fsm.HiveState {
		return fsm.HiveState{Hive: hive("h1", incarnation, ""), Workers: []core.Worker{worker("h1", fmt.Sprint("w", incarnation), wReady, fmt.Sprint("n", incarnation))}}
	}
	for _, end := range []string{"replaced", "removed", "revoked", "left"} {
		f, index = fsm.New(), 0
		must.NoError(t, do(fsm.PutNode(node("h1", "one"), "")))
		for incarnation := uint64(1); incarnation <= 3; incarnation++ {
			must.NoError(t, do(fsm.SyncHive(report(incarnation).Hive, report(incarnation).Workers)))
		}
		refused := uint64(2)
		switch end {
		case "removed":
			must.NoError(t, do(fsm.RemoveHive("h1")))
			refused = 3
		case "revoked":
			must.NoError(t, do(fsm.RevokeNode("h1")))
			refused = 9
		case "left":
			must.NoError(t, do(fsm.RemoveNode("h1")))
			refused = 3
		}
		before := records(t, f)
		for incarnation := uint64(0); incarnation <= refused; incarnation++ {
			must.Error(t, do(fsm.SyncHive(report(incarnation).Hive, report(incarnation).Workers)))
			must.Error(t, do(fsm.SyncHives([]fsm.HiveState{report(incarnation)})))
			must.True(t, bytes.Equal(before, records(t, f)), must.Sprint(end, incarnation))
			must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
		}
		if end != "revoked" {
			must.NoError(t, do(fsm.SyncHives([]fsm.HiveState{report(4)})))
			must.Len(t, 1, f.State().Workers(nil))
			must.SliceEmpty(t, f.State().Snapshot().Tombstones(nil))
		}
	}
}

// C-28: of two machines with the same id, the second is refused, and the first is not disturbed.
func TestTwoMachinesWithOneID(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	must.NoError(t, apply(t, f, 1, fsm.PutToken(joinToken("j1"))).Err)
	must.NoError(t, apply(t, f, 2, fsm.PutToken(joinToken("j2"))).Err)
	first := node("n1", "first")
	must.NoError(t, apply(t, f, 3, fsm.PutNode(first, "j1")).Err)
	must.NoError(t, apply(t, f, 4, fsm.SyncHive(hive("n1", 9, ""), []core.Worker{worker("n1", "w1", wReady, "x")})).Err)
	before := records(t, f)

	second := node("n1", "second")
	second.KeyHash = hash(9)
	r := apply(t, f, 5, fsm.PutNode(second, "j2"))
	must.Eq(t, core.Conflict, core.KindOf(r.Err))
	must.StrContains(t, core.HintOf(r.Err), "Two machines have one node id")
	// a copied data folder, one copy of which was started more often
	r = apply(t, f, 6, fsm.SyncHive(hive("n1", 1, ""), nil))
	must.Eq(t, core.Conflict, core.KindOf(r.Err))
	must.StrContains(t, core.HintOf(r.Err), "Another agent runs with this hive's id")
	must.True(t, bytes.Equal(before, records(t, f)))
}

// A join token is bound to its first use: a later use is a repetition of the same call within
// minutes, or refused.
func TestJoinTokenSecondUse(t *testing.T) {
	t.Parallel()
	both := []core.Role{core.RoleHive, core.RoleQueen}
	wide := func() core.Token { return with(joinToken("j1"), func(t *core.Token) { t.Roles = both }) }
	n1 := node("n1", "one")
	for name, tt := range map[string]struct {
		node  core.Node
		after time.Duration
		kind  core.Kind
	}{
		"the same at once":           {node: n1},
		"the same minutes later":     {node: n1, after: fsm.JoinRepeat},
		"the same by a slower clock": {node: n1, after: -fsm.JoinRepeat},
		"the same too late":          {node: n1, after: fsm.JoinRepeat + time.Second, kind: core.Unauthenticated},
		"the same a day later":       {node: n1, after: 20 * time.Hour, kind: core.Unauthenticated},
		"the same long before":       {node: n1, after: -time.Hour, kind: core.Unauthenticated},
		"more roles":                 {node: with(n1, func(n *core.Node) { n.Roles = both }), kind: core.Unauthenticated},
		"another role":               {node: with(n1, func(n *core.Node) { n.Roles = []core.Role{core.RoleQueen} }), kind: core.Unauthenticated},
		"another name":               {node: with(n1, func(n *core.Node) { n.Name = "two" }), kind: core.Unauthenticated},
		"another address":            {node: with(n1, func(n *core.Node) { n.RPCAddress = "10.0.0.2:7834" }), kind: core.Unauthenticated},
		"another key":                {node: with(n1, func(n *core.Node) { n.KeyHash = hash(9) }), kind: core.Unauthenticated},
		"another id":                 {node: with(n1, func(n *core.Node) { n.ID = "n2" }), kind: core.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fsm.New()
			must.NoError(t, apply(t, f, 1, fsm.PutToken(wide())).Err)
			must.NoError(t, apply(t, f, 2, fsm.PutNode(n1, "j1")).Err)
			before := records(t, f)
			again := fsm.PutNode(tt.node, "j1")
			again.AtUnixNano = born.Add(tt.after).UnixNano()
			r := apply(t, f, 3, again)
			must.Eq(t, tt.kind, core.KindOf(r.Err), must.Sprint(r.Err))
			must.True(t, bytes.Equal(before, records(t, f)))
			if tt.kind != "" {
				must.NotEq(t, "", core.HintOf(r.Err))
			}
		})
	}
}

// No command gives a registered node another role; entries of an older log still apply as before.
func TestNodeKeepsItsRoles(t *testing.T) {
	t.Parallel()
	both := []core.Role{core.RoleHive, core.RoleQueen}
	n1 := node("n1", "one")
	wider := with(n1, func(n *core.Node) { n.Roles = both })
	for _, token := range []string{"", "j1"} {
		f := fsm.New()
		must.NoError(t, apply(t, f, 1, fsm.PutNode(n1, "")).Err)
		must.NoError(t, apply(t, f, 2, fsm.PutToken(with(joinToken("j1"), func(t *core.Token) { t.Roles = both }))).Err)
		r := apply(t, f, 3, fsm.PutNode(wider, token))
		must.Eq(t, core.Forbidden, core.KindOf(r.Err), must.Sprint(token))
		got, _ := f.State().Node(nil, "n1")
		must.Eq(t, n1.Roles, got.Roles)

		old := fsm.PutNode(wider, token)
		old.GetPutNode().BindToken, old.GetPutNode().KeepRoles = false, false
		must.NoError(t, apply(t, f, 4, old).Err)
		got, _ = f.State().Node(nil, "n1")
		must.Eq(t, both, got.Roles)

		must.NoError(t, apply(t, f, 5, fsm.PutNode(n1, "")).Err) // fewer roles are harmless
	}
}

// A token from a version without roles admits a machine in any role.
func TestJoinTokenWithoutRoles(t *testing.T) {
	t.Parallel()
	n := node("n1", "one")
	n.Roles = []core.Role{core.RoleQueen, core.RoleHive}
	must.NoError(t, fsm.CheckJoin(with(joinToken("j"), func(t *core.Token) { t.Roles = nil }), n, core.Node{}, born))
	must.Eq(t, core.Forbidden, core.KindOf(fsm.CheckJoin(joinToken("j"), n, core.Node{}, born)))
}
