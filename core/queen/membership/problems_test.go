package membership

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// The status names missing queens and hives, and warns of two queens, which are worse than one.
func TestStatusMembership(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		leader := l.leader(queens...)
		l.until("all are proven", func() bool { return len(leader.q.proven()) == 2 })
		problems := func() string {
			list, err := leader.q.Queens(t.Context())
			must.NoError(t, err)
			return strings.Join(leader.q.Problems(leader.q.Registry.View(), list), "\n")
		}
		must.Eq(t, "", problems())
		i := slices.IndexFunc(queens, func(m *lanQueen) bool { return m != leader })
		gone := queens[i]
		gone.stop()
		l.until("it is missed", func() bool { return problems() == "queen "+gone.cert.Name+" ("+gone.address+") does not answer" })

		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.RevokeNode(gone.id)))
		must.NoError(t, leader.node.RemoveServer(t.Context(), gone.node.ID()))
		must.StrContains(t, problems(), "two queens vote")
		must.StrNotContains(t, problems(), gone.cert.Name)

		never := core.Node{ID: "dddddddd", Name: "delta", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.9:7834", KeyHash: gone.cert.KeyHash}
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.PutNode(never, "")))
		must.StrContains(t, problems(), "hive delta has not reported")
		leader.q.departs("dddddddd")
		must.StrNotContains(t, problems(), "delta")
		time.Sleep(departingFor)
		must.StrContains(t, problems(), "hive delta has not reported")
		queen := core.Node{ID: "eeeeeeee", Name: "echo", Roles: []core.Role{core.RoleQueen}, RPCAddress: "10.0.0.10:7834", KeyHash: gone.cert.KeyHash}
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.PutNode(queen, "")))
		must.StrContains(t, problems(), "queen echo is not part of raft")
		must.NoError(t, leader.q.Registry.Write(t.Context(), "", fsm.SyncHive(core.Hive{ID: "dddddddd", Name: "delta", Incarnation: 1}, nil)))
		must.StrContains(t, problems(), "hive delta has no worker types")
	})
}

// A revoked node still knows a gossip key from files: the registry cannot replace it.
func TestStatusGossipKeyFile(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		sealed []byte
		told   bool
	}{"keys in the registry": {[]byte("sealed"), false}, "keys in files": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := state.New()
			must.NoError(t, s.Update(1, func(txn *state.Txn) error {
				txn.PutCluster(core.Cluster{ID: "c", SealedGossipKeys: tt.sealed})
				txn.PutNode(core.Node{ID: "bbbbbbbb", Name: "beta", Roles: []core.Role{core.RoleHive}, Revoked: true})
				return nil
			}))
			problems := (&Members{}).Problems(s.Snapshot(), nil)
			must.Eq(t, tt.told, strings.Contains(strings.Join(problems, "; "), "beta was revoked and knows the gossip key"))
		})
	}
}
