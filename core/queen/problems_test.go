package queen

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// The status says when the first certificate ends, and names those that nobody renewed in time.
func TestStatusCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		s := newSecured(t, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
		_, err := s.tryJoin(newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleHive), "hive"))
		must.NoError(t, err)
		n, ok := s.q.registry.View().Node(nil, "bbbbbbbb")
		must.True(t, ok)
		must.False(t, n.CertificateExpiresAt.IsZero())
		problems := func() []string {
			first, list := s.q.certificates(s.q.registry.View())
			must.True(t, first.Equal(n.CertificateExpiresAt))
			return list
		}
		must.SliceEmpty(t, problems())
		status, err := s.q.Status(t.Context())
		must.NoError(t, err)
		must.True(t, status.CertificatesEnd.Equal(n.CertificateExpiresAt))
		ahead.Store(int64(time.Until(n.CertificateExpiresAt) - s.q.opts.Membership.CertificateTTL/4 + time.Minute))
		must.Len(t, 1, problems())
		must.StrContains(t, problems()[0], "the certificate of beta ends on "+n.CertificateExpiresAt.UTC().Format(time.DateOnly))
		ahead.Add(int64(s.q.opts.Membership.CertificateTTL / 4))
		must.Len(t, 1, problems())
		must.StrContains(t, problems()[0], "the certificate of beta has ended")
		must.NoError(t, s.q.registry.Write(t.Context(), "", fsm.RevokeNode("bbbbbbbb")))
		first, list := s.q.certificates(s.q.registry.View())
		must.True(t, first.IsZero())
		must.SliceEmpty(t, list)
	})
}

// The status names queens and hives that should be there and are not, and two queens, which are
// worse than one.
func TestStatusMembership(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, queens := newLAN(t, 3, true)
		leader := l.leader(queens...)
		l.until("all are proven", func() bool { return len(leader.q.proven()) == 2 })
		problems := func() string {
			list, err := leader.q.Queens(t.Context())
			must.NoError(t, err)
			return strings.Join(leader.q.membershipProblems(leader.q.registry.View(), list), "\n")
		}
		must.Eq(t, "", problems())
		i := slices.IndexFunc(queens, func(m *lanQueen) bool { return m != leader })
		gone := queens[i]
		gone.stop()
		l.until("it is missed", func() bool { return problems() == "queen "+gone.cert.Name+" ("+gone.address+") does not answer" })

		must.NoError(t, leader.q.registry.Write(t.Context(), "", fsm.RevokeNode(gone.id)))
		must.NoError(t, leader.node.RemoveServer(t.Context(), gone.node.ID()))
		must.StrContains(t, problems(), "two queens vote")
		must.StrNotContains(t, problems(), gone.cert.Name)

		never := core.Node{ID: "dddddddd", Name: "delta", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.9:7834", KeyHash: gone.cert.KeyHash}
		must.NoError(t, leader.q.registry.Write(t.Context(), "", fsm.PutNode(never, "")))
		must.StrContains(t, problems(), "hive delta has not reported")
		leader.q.departs("dddddddd")
		must.StrNotContains(t, problems(), "delta")
		time.Sleep(departingFor)
		must.StrContains(t, problems(), "hive delta has not reported")
		queen := core.Node{ID: "eeeeeeee", Name: "echo", Roles: []core.Role{core.RoleQueen}, RPCAddress: "10.0.0.10:7834", KeyHash: gone.cert.KeyHash}
		must.NoError(t, leader.q.registry.Write(t.Context(), "", fsm.PutNode(queen, "")))
		must.StrContains(t, problems(), "queen echo is not part of raft")
		must.NoError(t, leader.q.registry.Write(t.Context(), "", fsm.SyncHive(core.Hive{ID: "dddddddd", Name: "delta", Incarnation: 1}, nil)))
		must.StrContains(t, problems(), "hive delta has no worker types")
	})
}

// A revoked node still knows a gossip key that comes from files: the registry cannot replace it.
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
			problems := (&Queen{}).membershipProblems(s.Snapshot(), nil)
			must.Eq(t, tt.told, strings.Contains(strings.Join(problems, "; "), "beta was revoked and knows the gossip key"))
		})
	}
}
