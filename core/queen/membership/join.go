package membership

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// MaxHosts bounds the names in a node's certificate besides its address.
const MaxHosts = 16

var (
	nodeNameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	hostNameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?$`)
)

// joinService admits machines to the cluster. The leader answers; other queens forward the calls.
type joinService struct {
	queenv1.UnimplementedJoinServiceServer
	m *Members
}

// leading returns the registry and the cluster, on the leader. Errors: Unavailable if another queen
// leads.
func (m *Members) leading() (*state.Snapshot, core.Cluster, error) {
	if !m.registry.Leads() {
		return nil, core.Cluster{}, m.registry.NotLeader()
	}
	c, err := m.registry.Cluster()
	return m.registry.View(), c, err
}

// Join checks the token, signs the certificate, and adds the node to the registry, which uses up
// the token. Errors: Unauthenticated for an invalid token; Forbidden for a role that the token does
// not grant; Conflict for a name or an id in use; Invalid; Unsupported; Unavailable.
func (s *joinService) Join(ctx context.Context, req *queenv1.JoinRequest) (*queenv1.JoinResponse, error) {
	m := s.m
	registry, c, err := m.leading()
	if err != nil {
		return nil, err
	}
	p, err := token.Parse(req.GetToken())
	if err != nil || p.Kind != core.TokenJoin {
		return nil, errJoinToken("this is not a join token")
	}
	t, ok := registry.Token(nil, p.ID)
	if !ok || t.Kind != core.TokenJoin || !p.Matches(t.SecretHash) {
		return nil, errJoinToken("the join token is not valid: it is unknown, was revoked, or has expired")
	}
	n, hosts, err := nodeOf(req)
	if err != nil {
		return nil, err
	}
	if err := m.checkSameMachine(registry, n); err != nil {
		return nil, err
	}
	if req.GetRolesOptional() {
		n.Roles = slices.DeleteFunc(n.Roles, func(r core.Role) bool { return !slices.Contains(t.Roles, r) })
	}
	if n.KeyHash, err = requestKey(req.GetCertificateRequest()); err != nil {
		return nil, err
	}
	registered, _ := registry.Node(nil, n.ID)
	// The state machine decides; this check avoids a signature and a log entry for what it would
	// refuse.
	if err := fsm.CheckJoin(t, n, registered, m.opts.Now()); err != nil {
		return nil, err
	}
	certificate, err := m.sign(c, req.GetCertificateRequest(), &n, m.ownHosts(registry, n, hosts))
	if err != nil {
		return nil, err
	}
	if err := m.registry.Write(ctx, "join "+n.ID, fsm.PutNode(n, t.ID)); err != nil {
		return nil, err
	}
	m.log.Info("node joined", "node", n.ID, "name", n.Name, "roles", n.Roles, "address", n.RPCAddress, "token", t.ID)
	resp := &queenv1.JoinResponse{
		Cluster: c.ID, ClusterName: c.Name, CaCertificates: c.CACertificates, Certificate: certificate, View: m.View(nil), RpcAddress: n.RPCAddress,
	}
	if n.Has(core.RoleQueen) {
		resp.SealKey = m.net.Identity.SealKey()
	}
	return resp, nil
}

func errJoinToken(why string) error {
	return core.Errorf(core.Unauthenticated, "%s", why).Hint("Make a new one on a machine of the cluster: `rbee token create --type join`. Each takes one machine in.")
}

// Renew signs a new certificate for the calling node, with the key that it has always had. Errors:
// Forbidden, Invalid, Unavailable, Unsupported.
func (s *joinService) Renew(ctx context.Context, req *queenv1.RenewRequest) (*queenv1.RenewResponse, error) {
	m := s.m
	registry, c, err := m.leading()
	if err != nil {
		return nil, err
	}
	id := rpc.Caller(ctx)
	n, ok := registry.Node(nil, id)
	if !ok || n.Revoked {
		return nil, core.Errorf(core.Forbidden, "node %q is not part of the cluster", id).Hint("Have it join again, with a new join token and an empty cluster folder.")
	}
	key, err := requestKey(req.GetCertificateRequest())
	if err != nil {
		return nil, err
	}
	if !sameKey(n, key) {
		return nil, core.Errorf(core.Forbidden, "node %s (%s) asks with another key than it joined with", n.ID, n.Name).Hint("If that is right, revoke the node and have it join again.")
	}
	if address := req.GetRpcAddress(); address != "" && address != n.RPCAddress {
		if err := checkAddress(address); err != nil {
			return nil, err
		}
		m.log.Info("node has another address", "node", n.ID, "name", n.Name, "address", address, "before", n.RPCAddress)
		n.RPCAddress = address
	}
	hosts, err := checkHosts(req.GetHosts(), n.RPCAddress)
	if err != nil {
		return nil, err
	}
	certificate, err := m.sign(c, req.GetCertificateRequest(), &n, m.ownHosts(registry, n, hosts))
	if err != nil {
		return nil, err
	}
	if err := m.registry.Write(ctx, "renew "+n.ID, fsm.PutNode(n, "")); err != nil {
		return nil, err
	}
	m.log.Info("certificate renewed", "node", n.ID, "name", n.Name, "expires", n.CertificateExpiresAt)
	return &queenv1.RenewResponse{CaCertificates: c.CACertificates, Certificate: certificate}, nil
}

// sign signs the node's certificate with the cluster's CA and sets its expiry in n.
func (m *Members) sign(c core.Cluster, request []byte, n *core.Node, hosts []string) ([]byte, error) {
	if len(c.SealedCAKey) == 0 {
		return nil, registry.ErrNoCAKey()
	}
	ca, err := m.net.Identity.CA(c.CACertificates, c.SealedCAKey)
	if err != nil {
		return nil, err
	}
	certificate, signed, err := ca.Sign(request, pki.Node{Cluster: c.ID, ID: n.ID, Name: n.Name, Roles: n.Roles}, hosts, m.net.CertificateTTL, m.opts.Now())
	if err != nil {
		return nil, err
	}
	n.KeyHash, n.CertificateExpiresAt = signed.KeyHash, signed.NotAfter.UTC().Truncate(time.Second)
	return certificate, nil
}

// nodeOf validates the node that a joining machine describes.
func nodeOf(req *queenv1.JoinRequest) (n core.Node, hosts []string, err error) {
	invalid := func(hint, format string, args ...any) (core.Node, []string, error) {
		return core.Node{}, nil, core.Errorf(core.Invalid, format, args...).Hint("%s", hint)
	}
	n = core.Node{ID: req.GetNode(), Name: req.GetName(), RPCAddress: req.GetRpcAddress()}
	switch {
	case !pki.IsNodeID(n.ID):
		return invalid("This is a defect of the joining agent: please report it.", "the node id is not 8 hex digits")
	case !nodeNameForm.MatchString(n.Name):
		return invalid("Set name = … in its configuration: up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or a digit.", "the machine has no proper name")
	}
	for _, r := range req.GetRoles() {
		role := core.Role(r)
		if role != core.RoleQueen && role != core.RoleHive {
			return invalid("The roles are queen and hive.", "there is no role %q", r[:min(len(r), 40)])
		}
		if !n.Has(role) {
			n.Roles = append(n.Roles, role)
		}
	}
	if len(n.Roles) == 0 {
		return invalid("Enable its queen, its hive, or both.", "the machine joins as nothing")
	}
	slices.Sort(n.Roles)
	if err := checkAddress(n.RPCAddress); err != nil {
		return core.Node{}, nil, err
	}
	hosts, err = checkHosts(req.GetHosts(), n.RPCAddress)
	return n, hosts, err
}

// checkAddress returns an error if other nodes cannot reach an RPC port at the address.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	number, portErr := strconv.Atoi(port)
	ip, ipErr := netip.ParseAddr(host)
	if err != nil || portErr != nil || number < 1 || number > 65535 || ipErr == nil && ip.IsUnspecified() || ipErr != nil && !hostNameForm.MatchString(host) {
		return core.Errorf(core.Invalid, "%q is not an address that other machines can reach", address[:min(len(address), 100)]).Hint(
			"Set bind { advertise = … } to the address that the other machines reach this one at.")
	}
	return nil
}

// checkHosts returns the names that a node requests for its certificate, including the host of its
// address.
func checkHosts(asked []string, rpcAddress string) ([]string, error) {
	host, _, err := net.SplitHostPort(rpcAddress)
	if err != nil {
		return nil, core.Errorf(core.Invalid, "the node's address: %w", err)
	}
	hosts := []string{host}
	if len(asked) > MaxHosts {
		return nil, core.Errorf(core.Invalid, "a certificate for %d host names", len(asked)).Hint("At most %d.", MaxHosts)
	}
	for _, h := range asked {
		if _, err := netip.ParseAddr(h); err != nil && (len(h) > 253 || !hostNameForm.MatchString(h)) {
			return nil, core.Errorf(core.Invalid, "%q is neither a host name nor an IP address", h[:min(len(h), 100)]).Hint("Check the host name of the machine.")
		}
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts, nil
}

// ownHosts returns those hosts that node n may have in its certificate: not the name or address of
// another node of the cluster, at which clients would look for that node. Agents with the same host
// in their addresses are on one machine and share its names; a node that took over a removed node's
// address counts as such as well. A host is dropped rather than the certificate refused, since
// otherwise a machine with another's old name would lose its own certificate.
func (m *Members) ownHosts(registry *state.Snapshot, n core.Node, hosts []string) []string {
	fold := func(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }
	hostOf := func(n core.Node) string {
		host, _, err := net.SplitHostPort(n.RPCAddress)
		if ip, ipErr := netip.ParseAddr(host); err == nil && ipErr == nil {
			return ip.Unmap().String()
		}
		return fold(host)
	}
	self := hostOf(n)
	taken := map[string]core.Node{}
	for _, other := range registry.Nodes(nil) {
		if host := hostOf(other); other.ID != n.ID && !other.Revoked && host != self {
			taken[host], taken[fold(other.Name)] = other, other
		}
	}
	return slices.DeleteFunc(slices.Clone(hosts), func(host string) bool {
		name := hostOf(core.Node{RPCAddress: net.JoinHostPort(host, "0")})
		other, found := taken[name]
		if found = found && name != fold(n.Name); found {
			m.log.Warn("left a host out of a certificate: it is another node's", "host", host, "node", n.ID, "name", n.Name, "other", other.ID)
		}
		return found
	})
}

// requestKey returns the hash of the key in a certificate request, whose signature proves that the
// sender holds it.
func requestKey(der []byte) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, core.Errorf(core.Invalid, "the certificate request is not valid: %w", err).Hint("This is a defect of the joining agent: please report it.")
	}
	sum := sha256.Sum256(r.RawSubjectPublicKeyInfo)
	return sum[:], nil
}

// sameKey reports whether a certificate request has the key known for the node.
func sameKey(n core.Node, keyHash []byte) bool {
	return len(n.KeyHash) > 0 && bytes.Equal(n.KeyHash, keyHash)
}
