package queen

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/fsm"
)

// What a node that was revoked or left knows of the gossip keys is worth nothing any more, whoever
// wrote the revocation to the registry.
func TestKeyringReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		for _, id := range []string{"bbbbbbbb", "cccccccc", "dddddddd"} {
			_, err := s.tryJoin(newMachine(t, id, "name-"+id, s.joinToken(core.RoleHive), "hive"))
			must.NoError(t, err)
		}
		known := map[string]bool{}
		replaced := func(what string) {
			t.Helper()
			s.eventually(what, func() bool {
				k, err := s.q.Keyring(t.Context())
				return err == nil && len(k.Keys) == 1 && !known[k.Primary] && s.gossip.primary() == k.Primary
			})
			known[s.gossip.primary()] = true
		}
		replaced("the first key")
		_, err := s.q.ChangeKeyring(t.Context(), core.KeyringChange{Action: "install"})
		must.NoError(t, err)
		time.Sleep(time.Minute)
		k, err := s.q.Keyring(t.Context())
		must.NoError(t, err)
		must.Len(t, 2, k.Keys) // nothing is replaced without a reason
		for _, key := range k.Keys {
			known[key] = true
		}

		_, err = s.q.RevokeNode(t.Context(), "bbbbbbbb")
		must.NoError(t, err)
		replaced("after a revocation")
		_, err = s.q.LeaveNode(t.Context(), "cccccccc")
		must.NoError(t, err)
		replaced("after a leave")
		must.NoError(t, s.q.registry.Write(t.Context(), "", fsm.RevokeNode("dddddddd"))) // by a leader that died then
		replaced("after a revocation by another leader")

		// The keys that the hives are told are the new ones.
		view := s.q.clusterView(registry.WatchSet{})
		must.Len(t, 1, view.GetGossipKeys())
		must.Eq(t, s.gossip.primary(), pki.KeyFingerprint(view.GetGossipKeys()[0]))
	})
}

// Keys are due for replacement while a revoked node may know them, unless they are in files.
func TestKeyringDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		c := core.Cluster{ModifyIndex: 1, SealedGossipKeys: []byte("sealed")}
		must.False(t, keyringDue(c, s.q.registry.View(), nil))
		_, err := s.tryJoin(newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleHive), "hive"))
		must.NoError(t, err)
		must.False(t, keyringDue(c, s.q.registry.View(), nil))
		_, err = s.q.RevokeNode(t.Context(), "bbbbbbbb")
		must.NoError(t, err)
		must.True(t, keyringDue(c, s.q.registry.View(), nil))
		c.SealedGossipKeys = nil // they are in files
		must.False(t, keyringDue(c, s.q.registry.View(), nil))
	})
}
