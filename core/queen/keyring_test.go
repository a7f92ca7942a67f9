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

// The gossip keys that a revoked or departed node knows become useless, whichever queen wrote the
// revocation to the registry.
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
				k, err := s.q.Members.Keyring(t.Context())
				return err == nil && len(k.Keys) == 1 && !known[k.Primary] && pki.KeyFingerprint(s.gossip.Primary()) == k.Primary
			})
			known[pki.KeyFingerprint(s.gossip.Primary())] = true
		}
		replaced("the first key")
		_, err := s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "install"})
		must.NoError(t, err)
		time.Sleep(time.Minute)
		k, err := s.q.Members.Keyring(t.Context())
		must.NoError(t, err)
		must.Len(t, 2, k.Keys) // keys are not replaced without a reason
		for _, key := range k.Keys {
			known[key] = true
		}

		_, err = s.q.Members.RevokeNode(t.Context(), "bbbbbbbb")
		must.NoError(t, err)
		replaced("after a revocation")
		_, err = s.q.Members.LeaveNode(t.Context(), "cccccccc")
		must.NoError(t, err)
		replaced("after a leave")
		must.NoError(t, s.q.Registry.Write(t.Context(), "", fsm.RevokeNode("dddddddd"))) // by a leader that died right after
		replaced("after a revocation by another leader")

		// The hives receive the new keys.
		view := s.q.Members.View(registry.WatchSet{})
		must.Len(t, 1, view.GetGossipKeys())
		must.Eq(t, pki.KeyFingerprint(s.gossip.Primary()), pki.KeyFingerprint(view.GetGossipKeys()[0]))
	})
}
