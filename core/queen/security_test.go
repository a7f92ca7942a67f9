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
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// secured is a cluster whose queen is its first node.
type secured struct {
	*cluster
	gossip   *gossipstub.Pool
	identity *pki.Identity
	operator string // token
	join     queenv1.JoinServiceClient
	changes  atomic.Int64 // calls of NodesChanged
	left     []string
}

// laterConn is a connection that is made after it is handed out.
type laterConn struct {
	made chan struct{} // closed when conn is there
	conn grpc.ClientConnInterface
}

func (l *laterConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	<-l.made
	return l.conn.Invoke(ctx, method, args, reply, opts...)
}

func (l *laterConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	<-l.made
	return l.conn.NewStream(ctx, desc, method, opts...)
}

// agents answers AgentService for nodes that are told to leave.
type agents struct {
	grpc.ClientConnInterface
	left func(node string)
	node string
}

func (a agents) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	if method != hivev1.AgentService_Leave_FullMethodName {
		return core.Errorf(core.Unavailable, "nobody serves %s", method)
	}
	a.left(a.node)
	return nil
}

func newSecured(t *testing.T, change ...func(*Options)) *secured {
	t.Helper()
	s := &secured{gossip: &gossipstub.Pool{}}
	id, hash, text := token.New()
	s.operator = text
	now := time.Now()
	made, err := pki.Init(t.TempDir(), pki.InitOptions{
		Name: "desk", NodeID: "aaaaaaaa", NodeName: "alpha", RPCAddress: "10.0.0.1:7834", Roles: []core.Role{core.RoleQueen, core.RoleHive}, Now: now,
		Token: core.Token{ID: id, Name: "operator", Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: now.UTC().Truncate(time.Second)},
	})
	must.NoError(t, err)
	s.identity = made.Identity
	seed, err := s.identity.Seed()
	must.NoError(t, err)
	planted := make(chan struct{})
	self := &laterConn{made: make(chan struct{})}
	s.cluster = newCluster(t, "", append([]func(*Options){func(o *Options) {
		o.Network = &membership.Network{
			Identity: s.identity, Gossip: s.gossip, Self: self, CertificateTTL: 90 * 24 * time.Hour,
			NodesChanged: func() { s.changes.Add(1) },
			Conn: func(node, _ string, _ core.Role) (grpc.ClientConnInterface, error) {
				return agents{node: node, left: func(n string) { s.left = append(s.left, n) }}, nil
			},
			Seed: &membership.Seed{
				Cluster: core.Cluster{ID: s.identity.Cluster(), Name: "desk", CACertificates: seed.CAPEM, SealedCAKey: seed.SealedCAKey, SealedGossipKeys: seed.SealedGossipKeys},
				Token:   seed.Token,
				Node:    core.Node{ID: "aaaaaaaa", Name: "alpha", Roles: []core.Role{core.RoleHive, core.RoleQueen}, RPCAddress: "10.0.0.1:7834", KeyHash: s.identity.Node().KeyHash},
				Planted: func() error { close(planted); return s.identity.DropSeed() },
			},
		}
	}}, change...)...)
	self.conn = s.server
	close(self.made)
	<-planted
	s.join = queenv1.NewJoinServiceClient(s.server)
	return s
}

// machine is a machine that wants to join.
type machine struct {
	key pki.Secret
	req *queenv1.JoinRequest
}

func newMachine(t *testing.T, id, name, joinToken string, roles ...string) *machine {
	t.Helper()
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, id)
	must.NoError(t, err)
	return &machine{key: key, req: &queenv1.JoinRequest{Token: joinToken, Node: id, Name: name, Roles: roles, RpcAddress: "10.0.0.9:7834", CertificateRequest: csr}}
}

func (s *secured) joinToken(roles ...core.Role) string {
	s.t.Helper()
	made, err := s.q.Tokens.CreateToken(s.t.Context(), core.TokenRequest{Kind: core.TokenJoin, Roles: roles})
	must.NoError(s.t, err)
	return made.Secret
}

func (s *secured) tryJoin(m *machine) (*queenv1.JoinResponse, error) {
	resp, err := s.join.Join(s.t.Context(), m.req)
	return resp, rpc.FromStatus(err)
}

func TestTheSeedIsPlantedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		c, err := s.q.Registry.Cluster()
		must.NoError(t, err)
		must.Eq(t, s.identity.Cluster(), c.ID)
		must.Eq(t, "desk", c.Name)
		nodes, err := s.q.Members.Nodes(t.Context())
		must.NoError(t, err)
		must.Len(t, 1, nodes)
		must.Eq(t, "alpha", nodes[0].Name)
		s.eventually("the seed is not kept to be planted again", func() bool {
			seed, err := s.identity.Seed()
			must.NoError(t, err)
			return seed == nil
		})
		s.eventually("gossip has the registry's key", func() bool { return s.gossip.Primary() != nil })
		got, err := s.q.Tokens.Authorize(t.Context(), s.operator, core.ScopeAdmin)
		must.NoError(t, err)
		must.Eq(t, "operator", got.Name)
	})
}

func TestJoin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		text := s.joinToken(core.RoleQueen)
		m := newMachine(t, "bbbbbbbb", "beta", text, "queen", "hive")
		resp, err := s.tryJoin(m)
		must.NoError(t, err)
		must.Eq(t, s.identity.Cluster(), resp.GetCluster())
		must.Eq(t, []byte(s.identity.SealKey()), resp.GetSealKey())
		must.Eq(t, 1, len(resp.GetView().GetGossipKeys()))

		// What it got is an identity, which shakes hands with the first node.
		dir := t.TempDir()
		id, err := pki.Create(dir, pki.Material{
			ClusterName: resp.GetClusterName(), Name: "beta", RPCAddress: resp.GetRpcAddress(), CAPEM: resp.GetCaCertificates(), NodePEM: resp.GetCertificate(),
			Key: m.key, SealKey: resp.GetSealKey(), GossipKeys: resp.GetView().GetGossipKeys(),
		})
		must.NoError(t, err)
		must.True(t, id.Has(core.RoleQueen))
		must.Eq(t, "bbbbbbbb", id.Node().ID)
		n, ok := s.q.Registry.View().Node(nil, "bbbbbbbb")
		must.True(t, ok)
		must.Eq(t, id.Node().KeyHash, n.KeyHash)

		// The answer may have been lost: the same machine may ask again, no other may.
		_, err = s.tryJoin(m)
		must.NoError(t, err)
		_, err = s.tryJoin(newMachine(t, "cccccccc", "gamma", text, "hive"))
		mustFail(t, err, core.Unauthenticated, "used already")
		_, err = s.tryJoin(newMachine(t, "bbbbbbbb", "beta", text, "hive")) // another key
		mustFail(t, err, core.Unauthenticated, "used already")

		// A hive gets no seal key.
		hive, err := s.tryJoin(newMachine(t, "cccccccc", "gamma", s.joinToken(core.RoleHive), "hive"))
		must.NoError(t, err)
		must.Eq(t, 0, len(hive.GetSealKey()))

		s.eventually("everybody is told of the nodes", func() bool { return s.changes.Load() >= 3 })
	})
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		good := s.joinToken()
		expired := s.joinToken()
		parsed, err := token.Parse(expired)
		must.NoError(t, err)
		_, err = s.q.Tokens.RevokeToken(t.Context(), parsed.ID)
		must.NoError(t, err)
		ca, err := pki.NewCA("0123456789abcdef", "other", time.Now())
		must.NoError(t, err)
		_, _, foreign := token.NewJoin(ca.Fingerprint())
		joined, err := s.tryJoin(newMachine(t, "dddddddd", "delta", s.joinToken(), "hive"))
		must.NoError(t, err)
		must.NotNil(t, joined)

		with := func(change func(*queenv1.JoinRequest)) *machine {
			m := newMachine(t, "bbbbbbbb", "beta", good, "hive")
			change(m.req)
			return m
		}
		for name, tt := range map[string]struct {
			m    *machine
			kind core.Kind
		}{
			"an API token":            {newMachine(t, "bbbbbbbb", "beta", s.operator, "hive"), core.Unauthenticated},
			"no token":                {newMachine(t, "bbbbbbbb", "beta", "", "hive"), core.Unauthenticated},
			"a revoked token":         {newMachine(t, "bbbbbbbb", "beta", expired, "hive"), core.Unauthenticated},
			"another cluster's token": {newMachine(t, "bbbbbbbb", "beta", foreign, "hive"), core.Unauthenticated},
			"a role not given":        {newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleHive), "queen"), core.Forbidden},
			"no role":                 {newMachine(t, "bbbbbbbb", "beta", good), core.Invalid},
			"an unknown role":         {newMachine(t, "bbbbbbbb", "beta", good, "king"), core.Invalid},
			"a name that is taken":    {newMachine(t, "bbbbbbbb", "ALPHA", good, "hive"), core.Conflict},
			"an id that is taken":     {newMachine(t, "dddddddd", "delta2", good, "hive"), core.Conflict},
			"a bad id":                {with(func(r *queenv1.JoinRequest) { r.Node = "../../x" }), core.Invalid},
			"a bad name":              {with(func(r *queenv1.JoinRequest) { r.Name = "a b" }), core.Invalid},
			"no address":              {with(func(r *queenv1.JoinRequest) { r.RpcAddress = "" }), core.Invalid},
			"an unspecified address":  {with(func(r *queenv1.JoinRequest) { r.RpcAddress = "0.0.0.0:7834" }), core.Invalid},
			"no port":                 {with(func(r *queenv1.JoinRequest) { r.RpcAddress = "10.0.0.9:0" }), core.Invalid},
			"a bad host":              {with(func(r *queenv1.JoinRequest) { r.Hosts = []string{"a b"} }), core.Invalid},
			"too many hosts":          {with(func(r *queenv1.JoinRequest) { r.Hosts = make([]string, membership.MaxHosts+1) }), core.Invalid},
			"no certificate request":  {with(func(r *queenv1.JoinRequest) { r.CertificateRequest = nil }), core.Invalid},
			"a damaged request":       {with(func(r *queenv1.JoinRequest) { r.CertificateRequest[len(r.CertificateRequest)-1] ^= 1 }), core.Invalid},
		} {
			_, err := s.tryJoin(tt.m)
			must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(name, err))
			must.NotEq(t, "", core.HintOf(err), must.Sprint(name))
			if secret := tt.m.req.GetToken(); secret != "" {
				must.StrNotContains(t, err.Error(), secret)
			}
		}
		// After all that the token is still good for one machine.
		_, err = s.tryJoin(newMachine(t, "bbbbbbbb", "beta", good, "hive"))
		must.NoError(t, err)
	})
}

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
		must.False(t, s.q.Registry.View().Revoked(nil, "cccccccc")) // it still speaks
		time.Sleep(2 * membership.LeaveGrace)
		must.True(t, s.q.Registry.View().Revoked(nil, "cccccccc"))

		// The only voting queen stays.
		_, err = s.q.Members.RevokeNode(t.Context(), "nobody")
		mustFail(t, err, core.NotFound)
	})
}

// A machine that was renamed has the name of a dead node: neither is revoked by it.
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

// caller returns a client of the queen whose calls come from a node, as another queen passes them
// on.
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

// A node that asks for a new certificate is known by its key, and says where it is now.
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

		// One that says nothing, as an older agent, stays where it was.
		time.Sleep(time.Hour)
		c := certificate("")
		must.NoError(t, c.VerifyHostname("10.0.0.9"))
		must.NoError(t, c.VerifyHostname("beta.lan"))
		now := beta()
		must.Eq(t, before.RPCAddress, now.RPCAddress)
		must.Eq(t, c.NotAfter, now.CertificateExpiresAt)
		must.Eq(t, time.Hour, now.CertificateExpiresAt.Sub(before.CertificateExpiresAt))

		// One that has moved is known there, by a certificate for there only.
		c = certificate("10.0.0.10:7834")
		must.NoError(t, c.VerifyHostname("10.0.0.10"))
		must.Error(t, c.VerifyHostname("10.0.0.9"))
		now = beta()
		must.Eq(t, "10.0.0.10:7834", now.RPCAddress)
		must.Eq(t, before.KeyHash, now.KeyHash)
		must.Eq(t, before.Roles, now.Roles)

		// What is refused changes nothing.
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

func TestAloneHasNoCluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		_, err := c.q.Tokens.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: core.Scopes()})
		mustFail(t, err, core.Unsupported)
		must.StrContains(t, core.HintOf(err), "cluster init")
		_, err = c.q.Members.Nodes(t.Context())
		mustFail(t, err, core.Unsupported)
		info, err := c.q.Registry.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		must.False(t, info.Stale)
		_, err = c.q.Registry.Sync(t.Context(), "eventual")
		mustFail(t, err, core.Invalid)
	})
}

// A join token makes a hive unless a queen's is asked for by name, and what it made stays what it
// is: neither the same token, minutes or hours later, nor the renewal of the certificate makes a
// queen of a hive.
func TestUsedJoinTokenMakesNoQueen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		for _, tt := range []struct{ asked, given []core.Role }{
			{nil, []core.Role{core.RoleHive}},
			{[]core.Role{core.RoleHive}, []core.Role{core.RoleHive}},
			{[]core.Role{core.RoleQueen}, []core.Role{core.RoleHive, core.RoleQueen}},
		} {
			made, err := s.q.Tokens.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenJoin, Roles: tt.asked})
			must.NoError(t, err)
			must.Eq(t, tt.given, made.Roles)
		}
		_, err := s.tryJoin(newMachine(t, "dddddddd", "delta", s.joinToken(), "hive", "queen"))
		mustFail(t, err, core.Forbidden, "is not for a queen")

		for i, wait := range []time.Duration{0, time.Minute, 20 * time.Hour} {
			id := strings.Repeat(string(rune('b'+i)), 8)
			m := newMachine(t, id, "hive-"+id, s.joinToken(core.RoleQueen), "hive")
			_, err := s.tryJoin(m)
			must.NoError(t, err)
			time.Sleep(wait)
			m.req.Roles = []string{"queen", "hive"}
			resp, err := s.tryJoin(m)
			mustFail(t, err, core.Unauthenticated, "used already")
			must.Nil(t, resp)
			m.req.Roles = []string{"hive"}
			if _, err = s.tryJoin(m); wait < time.Hour {
				must.NoError(t, err) // the first answer may have been lost
			} else {
				mustFail(t, err, core.Unauthenticated, "used already")
			}

			// Another token does not widen it either, and a certificate that is renewed says what
			// the registry says.
			m.req.Token, m.req.Roles = s.joinToken(core.RoleQueen), []string{"queen", "hive"}
			_, err = s.tryJoin(m)
			mustFail(t, err, core.Forbidden, "cannot become")
			client, as := s.caller(id)
			renewed, err := client.Renew(as, &queenv1.RenewRequest{CertificateRequest: m.req.GetCertificateRequest()})
			must.NoError(t, rpc.FromStatus(err))
			block, _ := pem.Decode(renewed.GetCertificate())
			c, err := x509.ParseCertificate(block.Bytes)
			must.NoError(t, err)
			n, err := pki.NodeOf(c)
			must.NoError(t, err)
			must.Eq(t, []core.Role{core.RoleHive}, n.Roles)
		}
	})
}

// A machine whose roles nobody said takes those that its token gives.
func TestJoinTakesTheRolesOfItsToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t)
		for id, tt := range map[string]struct{ token, want []core.Role }{
			"bbbbbbbb": {nil, []core.Role{core.RoleHive}},
			"cccccccc": {[]core.Role{core.RoleQueen}, []core.Role{core.RoleHive, core.RoleQueen}},
		} {
			m := newMachine(t, id, "m-"+id, s.joinToken(tt.token...), "queen", "hive")
			m.req.RolesOptional = true
			resp, err := s.tryJoin(m)
			must.NoError(t, err)
			must.Eq(t, slices.Contains(tt.want, core.RoleQueen), len(resp.GetSealKey()) > 0)
			n, _ := s.q.Registry.View().Node(nil, id)
			must.Eq(t, tt.want, n.Roles)
		}
	})
}

// A queen's certificate is for its own names: not for the name or the address of another node,
// unless both are agents of one machine.
func TestCertificateNamesNoOtherNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSecured(t) // alpha at 10.0.0.1
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
			{"q4", "10.0.0.1:8834", []string{"alpha", "beta"}, []string{"beta"}},                                                                // beside alpha, on its machine
			{"q5", "box.lan:8834", []string{"gamma.lan", "10.0.0.1"}, []string{"10.0.0.1"}},
			{"q6", "10.0.0.2:7834", []string{"q6"}, nil}, // got the address that beta had
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
			_, err = s.q.Members.RevokeNode(t.Context(), id) // the next one has the address
			must.NoError(t, err)
		}
	})
}
