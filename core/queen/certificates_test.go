package queen

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc/metadata"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

func TestRevokedNodeAndLeaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		for id, name := range map[string]string{"bbbbbbbb": "beta", "cccccccc": "gamma"} {
			_, err := s.tryJoin(newMachine(t, id, name, s.joinToken(), "hive"))
			must.NoError(t, err)
		}
		n, err := s.q.Members.RevokeNode(t.Context(), "BETA")
		must.NoError(t, err)
		must.True(t, n.Revoked)
		must.True(t, s.q.Registry.View().Revoked(nil, "bbbbbbbb"))
		s.eventually("the view tells of it", func() bool { return slices.Contains(s.q.Members.View(registry.WatchSet{}).GetRevoked(), "bbbbbbbb") })
		_, err = s.tryJoin(newMachine(t, "bbbbbbbb", "beta2", s.joinToken(), "hive"))
		mustFail(t, err, core.Conflict)

		left, err := s.q.Members.LeaveNode(t.Context(), "gamma")
		must.NoError(t, err)
		must.Eq(t, "cccccccc", left.ID)
		must.Eq(t, []string{"cccccccc"}, s.left)
		must.False(t, s.q.Registry.View().Revoked(nil, "cccccccc")) // it is not revoked yet
		time.Sleep(2 * membership.LeaveGrace)
		must.True(t, s.q.Registry.View().Revoked(nil, "cccccccc"))

		// The only voting queen cannot be revoked.
		_, err = s.q.Members.RevokeNode(t.Context(), "nobody")
		mustFail(t, err, core.NotFound)
	})
}

// A renamed machine has the name of a dead node: a revocation by that name revokes neither.
func TestRevokeNameOfTwo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		for id, name := range map[string]string{"bbbbbbbb": "beta", "cccccccc": "gamma"} {
			_, err := s.tryJoin(newMachine(t, id, name, s.joinToken(), "hive"))
			must.NoError(t, err)
		}
		_, err := s.node.Apply(t.Context(), fsm.SyncHive(core.Hive{ID: "cccccccc", Name: "Beta", Incarnation: 1}, nil))
		must.NoError(t, err)
		_, err = s.q.Members.RevokeNode(t.Context(), "beta")
		mustFail(t, err, core.Conflict)
		must.StrContains(t, err.Error(), "bbbbbbbb, cccccccc")
		must.False(t, s.q.Registry.View().Revoked(nil, "bbbbbbbb"))
		n, err := s.q.Members.RevokeNode(t.Context(), "bbbbbbbb")
		must.NoError(t, err)
		must.Eq(t, "bbbbbbbb", n.ID)
		n, err = s.q.Members.RevokeNode(t.Context(), "beta")
		must.NoError(t, err)
		must.Eq(t, "cccccccc", n.ID, must.Sprint("the only one left"))
	})
}

// caller returns a client of the queen whose calls come from the given node, as forwarded by
// another queen.
func (s *secured) caller(id string) (queenv1.JoinServiceClient, context.Context) {
	s.t.Helper()
	pipe := rpc.NewPipe()
	server := rpc.NewNodeServer(rpc.ServerOptions{Logger: coretest.Logger(s.t), Self: s.identity.Node()})
	s.q.Register(server)
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { must.NoError(s.t, rpc.Serve(ctx, server, pipe.Listener(), time.Second)) })
	conn, err := rpc.Client(pipe)
	must.NoError(s.t, err)
	s.t.Cleanup(func() {
		must.NoError(s.t, conn.Close())
		cancel()
		wg.Wait()
	})
	return queenv1.NewJoinServiceClient(conn), metadata.AppendToOutgoingContext(s.t.Context(), "rbee-forwarded", "1", "rbee-caller", id)
}

// A node that requests a new certificate is identified by its key, and reports its current address.
func TestRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		m := newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleQueen), "queen")
		_, err := s.tryJoin(m)
		must.NoError(t, err)
		beta := func() core.Node {
			t.Helper()
			n, ok := s.q.Registry.View().Node(nil, "bbbbbbbb")
			must.True(t, ok)
			return n
		}
		before := beta()
		must.Eq(t, "10.0.0.9:7834", before.RPCAddress)
		request := func(address string) *queenv1.RenewRequest {
			return &queenv1.RenewRequest{CertificateRequest: m.req.GetCertificateRequest(), Hosts: []string{"beta.lan"}, RpcAddress: address}
		}
		client, as := s.caller("bbbbbbbb")
		certificate := func(address string) *x509.Certificate {
			t.Helper()
			resp, err := client.Renew(as, request(address))
			must.NoError(t, rpc.FromStatus(err))
			block, _ := pem.Decode(resp.GetCertificate())
			must.NotNil(t, block)
			c, err := x509.ParseCertificate(block.Bytes)
			must.NoError(t, err)
			return c
		}

		// One that reports no address, like an older agent, keeps the old one.
		time.Sleep(time.Hour)
		c := certificate("")
		must.NoError(t, c.VerifyHostname("10.0.0.9"))
		must.NoError(t, c.VerifyHostname("beta.lan"))
		now := beta()
		must.Eq(t, before.RPCAddress, now.RPCAddress)
		must.Eq(t, c.NotAfter, now.CertificateExpiresAt)
		must.Eq(t, time.Hour, now.CertificateExpiresAt.Sub(before.CertificateExpiresAt))

		// A node that has moved is known at the new address, with a certificate for that address
		// only.
		c = certificate("10.0.0.10:7834")
		must.NoError(t, c.VerifyHostname("10.0.0.10"))
		must.Error(t, c.VerifyHostname("10.0.0.9"))
		now = beta()
		must.Eq(t, "10.0.0.10:7834", now.RPCAddress)
		must.Eq(t, before.KeyHash, now.KeyHash)
		must.Eq(t, before.Roles, now.Roles)

		// A refused request changes nothing.
		for _, address := range []string{"10.0.0.11", "0.0.0.0:7834", ":7834", "10.0.0.11:0", "10.0.0.11:70000", "no name:7834"} {
			_, err = client.Renew(as, request(address))
			mustFail(t, rpc.FromStatus(err), core.Invalid, address)
		}
		bad := request("10.0.0.11:7834")
		bad.CertificateRequest = bad.CertificateRequest[:len(bad.CertificateRequest)-1]
		_, err = client.Renew(as, bad)
		mustFail(t, rpc.FromStatus(err), core.Invalid)
		bad.CertificateRequest = newMachine(t, "bbbbbbbb", "beta", "", "hive").req.GetCertificateRequest()
		_, err = client.Renew(as, bad)
		mustFail(t, rpc.FromStatus(err), core.Forbidden, "another key")
		stranger, none := s.caller("cccccccc")
		_, err = stranger.Renew(none, request("10.0.0.11:7834"))
		mustFail(t, rpc.FromStatus(err), core.Forbidden, "not part of the cluster")
		must.Eq(t, now, beta())

		_, err = s.q.Members.RevokeNode(t.Context(), "beta")
		must.NoError(t, err)
		_, err = client.Renew(as, request("10.0.0.11:7834"))
		mustFail(t, rpc.FromStatus(err), core.Forbidden, "not part of the cluster")
	})
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		s.eventually("the first key", func() bool { return s.gossip.Primary() != nil })
		before, err := s.q.Members.Keyring(t.Context())
		must.NoError(t, err)
		must.Len(t, 1, before.Keys)
		_, err = s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "remove", Fingerprint: before.Primary})
		mustFail(t, err, core.Conflict)
		_, err = s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "install", Key: base64.StdEncoding.EncodeToString([]byte("short"))})
		mustFail(t, err, core.Invalid)
		_, err = s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "shred", Fingerprint: before.Primary})
		mustFail(t, err, core.Invalid)

		both, err := s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "install"})
		must.NoError(t, err)
		must.Len(t, 2, both.Keys)
		must.Eq(t, before.Primary, both.Primary)
		used, err := s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "use", Fingerprint: both.Keys[1]})
		must.NoError(t, err)
		must.Eq(t, both.Keys[1], used.Primary)
		s.eventually("gossip uses it", func() bool { return pki.KeyFingerprint(s.gossip.Primary()) == used.Primary })
		after, err := s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "remove", Fingerprint: before.Primary})
		must.NoError(t, err)
		must.Eq(t, []string{used.Primary}, after.Keys)
		_, err = s.q.Members.ChangeKeyring(t.Context(), core.KeyringChange{Action: "use", Fingerprint: before.Primary})
		mustFail(t, err, core.NotFound)
	})
}

// A queen's certificate covers its own names: not the name or the address of another node, unless
// both are agents on one machine.
func TestCertificateNamesNoOtherNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t) // alpha is at 10.0.0.1
		for id, at := range map[string][2]string{"bbbbbbbb": {"beta", "10.0.0.2:7834"}, "cccccccc": {"Gamma.lan", "box.lan:7834"}, "dddddddd": {"delta", "[::ffff:10.0.0.4]:7834"}} {
			m := newMachine(t, id, at[0], s.joinToken(), "hive")
			m.req.RpcAddress = at[1]
			_, err := s.tryJoin(m)
			must.NoError(t, err)
		}
		_, err := s.q.Members.RevokeNode(t.Context(), "delta")
		must.NoError(t, err)
		for i, tt := range []struct {
			name, address string
			asks, refused []string
		}{
			{"q1", "10.0.0.9:7834", []string{"q1.lan", "10.0.0.10"}, nil},
			{"q2", "10.0.0.9:7834", []string{"q2", "alpha", "ALPHA.", "beta", "gamma.lan", "box.lan", "Box.lan."}, []string{"alpha", "beta", "gamma.lan", "box.lan"}},
			{"q3", "10.0.0.9:7834", []string{"10.0.0.1", "10.0.0.2", "::ffff:10.0.0.2", "delta", "10.0.0.4"}, []string{"10.0.0.1", "10.0.0.2"}}, // delta is revoked
			{"q4", "10.0.0.1:8834", []string{"alpha", "beta"}, []string{"beta"}},                                                                // on alpha's machine
			{"q5", "box.lan:8834", []string{"gamma.lan", "10.0.0.1"}, []string{"10.0.0.1"}},
			{"q6", "10.0.0.2:7834", []string{"q6"}, nil}, // has taken over beta's former address
		} {
			id := strings.Repeat(string(rune('1'+i)), 8)
			m := newMachine(t, id, tt.name, s.joinToken(core.RoleQueen), "queen")
			m.req.RpcAddress, m.req.Hosts = tt.address, tt.asks
			joined, err := s.tryJoin(m)
			must.NoError(t, err)
			client, as := s.caller(id)
			renewed, err := client.Renew(as, &queenv1.RenewRequest{CertificateRequest: m.req.GetCertificateRequest(), Hosts: tt.asks})
			must.NoError(t, rpc.FromStatus(err))
			host, _, err := net.SplitHostPort(tt.address)
			must.NoError(t, err)
			for _, certificate := range [][]byte{joined.GetCertificate(), renewed.GetCertificate()} {
				block, _ := pem.Decode(certificate)
				c, err := x509.ParseCertificate(block.Bytes)
				must.NoError(t, err)
				for _, h := range append(tt.asks, host, "localhost") {
					plain := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(h, "::ffff:"), "."))
					must.Eq(t, !slices.Contains(tt.refused, plain), c.VerifyHostname(h) == nil, must.Sprint(tt.name, " ", h))
				}
			}
			_, err = s.q.Members.RevokeNode(t.Context(), id) // the next one takes over the address
			must.NoError(t, err)
		}
	})
}
