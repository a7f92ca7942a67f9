package queen

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// secured is a cluster whose queen is its first node.
type secured struct {
	*cluster
	gossip   *gossipstub.Pool
	identity *pki.Identity
	operator string // operator token
	join     queenv1.JoinServiceClient
	changes  atomic.Int64 // calls of NodesChanged
	left     []string
}

// laterConn is a connection that is established after it is handed out.
type laterConn struct {
	made chan struct{} // closed once conn is set
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

// agents serves AgentService for nodes that are asked to leave.
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

func TestSeedPlantedOnce(t *testing.T) {
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

		// The machine received an identity that can shake hands with the first node.
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

		// The answer may have been lost: the same machine may ask again, but no other.
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
		// After all this, the token is still valid for one machine.
		_, err = s.tryJoin(newMachine(t, "bbbbbbbb", "beta", good, "hive"))
		must.NoError(t, err)
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

// A join token makes a hive unless a queen's was requested explicitly, and the role is final:
// neither the same token, minutes or hours later, nor the renewal of the certificate turns a hive
// into a queen.
func TestUsedJoinTokenRoles(t *testing.T) {
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

			// Another token does not widen the roles either, and a renewed certificate has the
			// roles in the registry.
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

// A machine that requests no roles gets those of its token.
func TestJoinTokenRoles(t *testing.T) {
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
