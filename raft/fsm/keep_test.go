package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// applied returns a state machine after these commands.
func applied(t *testing.T, from *fsm.FSM, commands ...*raftv1.Command) *fsm.FSM {
	t.Helper()
	f := fsm.New()
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, from)))))
	for _, c := range commands {
		r := apply(t, f, f.State().AppliedIndex()+1, c)
		must.NoError(t, r.Err)
	}
	return f
}

// A revocation in the snapshot or in the current registry stays, whichever of the two is newer.
func TestKeepRevoked(t *testing.T) {
	t.Parallel()
	begun := applied(t, fsm.New(),
		fsm.InitCluster(cluster("c"), new(apiToken("t1")), new(node("n1", "one"))),
		fsm.PutNode(node("n2", "two"), ""), fsm.PutNode(node("n3", "three"), ""),
		fsm.PutToken(apiToken("t2")), fsm.PutToken(apiToken("t3")), fsm.PutToken(joinToken("j1")),
		fsm.SyncHive(hive("n2", 5, ""), nil), fsm.SyncHive(hive("h9", 5, ""), nil), fsm.SyncHive(hive("h8", 5, ""), nil),
	)
	saved := applied(t, begun, fsm.RevokeNode("n3"), fsm.RevokeToken("t3"))
	now := applied(t, begun,
		fsm.RevokeNode("n2"), fsm.RevokeToken("t2"), fsm.RemoveHive("h9"), fsm.DeleteToken("t1"),
		fsm.PutNode(node("n4", "four"), "j1"), fsm.PutNode(node("n5", "five"), ""), fsm.RevokeNode("n5"),
		fsm.SetKeyring([]byte("new keys"), 1),
	)
	store := saved.State()
	must.NoError(t, fsm.KeepRevoked(store, now.State().Snapshot()))
	s := store.Snapshot()
	for id, revoked := range map[string]bool{"n1": false, "n2": true, "n3": true, "n5": true} {
		n, ok := s.Node(nil, id)
		must.True(t, ok, must.Sprint(id))
		must.Eq(t, revoked, n.Revoked, must.Sprint(id))
	}
	_, ok := s.Node(nil, "n4")
	must.False(t, ok) // it joined after the snapshot
	for id, there := range map[string]bool{"t1": true, "t2": false, "t3": false, "j1": true} {
		_, ok := s.Token(nil, id)
		must.Eq(t, there, ok, must.Sprint(id))
	}
	used, _ := s.Token(nil, "j1")
	must.Eq(t, "n4", used.UsedBy) // it admits no other machine
	c, _ := s.Cluster(nil)
	must.Eq(t, "new keys", string(c.SealedGossipKeys))
	must.Eq(t, 2, c.GossipVersion)
	for id, there := range map[string]bool{"n2": false, "h9": false, "h8": true} {
		_, ok := s.Hive(nil, id)
		must.Eq(t, there, ok, must.Sprint(id))
	}
	stones := map[string]uint64{}
	for _, stone := range s.Tombstones(nil) {
		stones[stone.Hive] = stone.Incarnation
	}
	must.Eq(t, map[string]uint64{"n2": 5, "h9": 5}, stones)

	// The result is a regular state, and repeating the operation changes nothing.
	once := snapshot(t, saved)
	must.NoError(t, fsm.KeepRevoked(store, now.State().Snapshot()))
	must.Eq(t, once, snapshot(t, saved))
	must.NoError(t, fsm.New().Restore(io.NopCloser(bytes.NewReader(once))))
}

// A hive that was removed in the snapshot, returned and was removed again stays removed with its
// latest start; one that has started since stays.
func TestKeepLatestRemoval(t *testing.T) {
	t.Parallel()
	saved := applied(t, fsm.New(), fsm.SyncHive(hive("h1", 5, ""), nil), fsm.SyncHive(hive("h2", 5, ""), nil), fsm.RemoveHive("h1"), fsm.RemoveHive("h2"))
	now := applied(t, saved, fsm.SyncHive(hive("h1", 6, ""), nil), fsm.RemoveHive("h1"))
	later := applied(t, saved, fsm.SyncHive(hive("h2", 7, ""), nil))
	stones := func(f *fsm.FSM) map[string]uint64 {
		m := map[string]uint64{}
		for _, stone := range f.State().Snapshot().Tombstones(nil) {
			m[stone.Hive] = stone.Incarnation
		}
		return m
	}
	must.NoError(t, fsm.KeepRevoked(saved.State(), now.State().Snapshot()))
	must.Eq(t, map[string]uint64{"h1": 6, "h2": 5}, stones(saved))
	must.NoError(t, fsm.KeepRevoked(later.State(), now.State().Snapshot()))
	_, ok := later.State().Snapshot().Hive(nil, "h2")
	must.True(t, ok)
}

// A snapshot with newer keys keeps them, and a registry of another cluster provides none.
func TestKeepRevokedKeys(t *testing.T) {
	t.Parallel()
	begun := applied(t, fsm.New(), fsm.InitCluster(cluster("c"), nil, nil))
	saved := applied(t, begun, fsm.SetKeyring([]byte("newer"), 1))
	other := applied(t, fsm.New(), fsm.InitCluster(cluster("d"), nil, nil), fsm.SetKeyring([]byte("a"), 1), fsm.SetKeyring([]byte("b"), 2))
	for _, known := range []*fsm.FSM{begun, other, fsm.New()} {
		must.NoError(t, fsm.KeepRevoked(saved.State(), known.State().Snapshot()))
		c, _ := saved.State().Snapshot().Cluster(nil)
		must.Eq(t, "c", c.ID)
		must.Eq(t, "newer", string(c.SealedGossipKeys))
	}
}

// The ids of revoked tokens are bounded; the oldest are dropped first.
func TestRevokedTokensBounded(t *testing.T) {
	t.Parallel()
	s := state.New()
	must.NoError(t, s.Update(1, func(txn *state.Txn) error {
		for i := range uint64(state.MaxRevokedTokens + 2) {
			txn.PutRevokedToken(state.RevokedToken{Token: fmt.Sprintf("t%06d", i), Index: i})
			// a repetition does not count
			txn.PutRevokedToken(state.RevokedToken{Token: fmt.Sprintf("t%06d", i), Index: i})
		}
		return nil
	}))
	left := s.Snapshot().RevokedTokens(nil)
	must.SliceLen(t, state.MaxRevokedTokens, left)
	must.Eq(t, "t000002", left[0].Token)
}

// The restoring machine is in the registry, whatever the snapshot knows about it, in place of nodes
// with its name.
func TestAdopt(t *testing.T) {
	t.Parallel()
	f := applied(t, fsm.New(),
		fsm.PutNode(node("n1", "one"), ""), fsm.PutNode(node("n2", "two"), ""), fsm.PutNode(node("n3", "three"), ""), fsm.RevokeNode("n3"),
		fsm.SyncHive(hive("n1", 5, ""), nil),
	)
	replaced, err := fsm.Adopt(f.State(), node("n9", "ONE"))
	must.NoError(t, err)
	must.Eq(t, []string{"n1"}, replaced)
	s := f.State().Snapshot()
	must.True(t, s.Revoked(nil, "n1"))
	_, ok := s.Hive(nil, "n1")
	must.False(t, ok)
	n, ok := s.NodeNamed(nil, "one")
	must.True(t, ok)
	must.Eq(t, "n9", n.ID)

	moved := node("n2", "two")
	moved.RPCAddress = "elsewhere:1"
	replaced, err = fsm.Adopt(f.State(), moved)
	must.NoError(t, err)
	must.SliceEmpty(t, replaced)
	n, _ = f.State().Snapshot().Node(nil, "n2")
	must.Eq(t, "elsewhere:1", n.RPCAddress)
	before := snapshot(t, f)
	_, err = fsm.Adopt(f.State(), node("n3", "three"))
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.Eq(t, before, snapshot(t, f))
}

// The keys of the cluster count as newer only if the machine replaces another one: a queen that
// hives know need not send them again.
func TestAdoptRenewsKeys(t *testing.T) {
	t.Parallel()
	f := applied(t, fsm.New(), fsm.InitCluster(cluster("c"), nil, nil), fsm.PutNode(node("n1", "one"), ""), fsm.PutNode(node("n2", "two"), ""))
	modified := func() uint64 {
		c, _ := f.State().Snapshot().Cluster(nil)
		return c.ModifyIndex
	}
	before := modified()
	_, err := fsm.Adopt(f.State(), node("n1", "one"))
	must.NoError(t, err)
	must.Eq(t, before, modified())
	_, err = fsm.Adopt(f.State(), node("n9", "two"))
	must.NoError(t, err)
	must.Eq(t, f.State().AppliedIndex(), modified())
}
