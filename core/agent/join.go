package agent

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/token"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// joinTimeout bounds the whole of joining, including an election.
const joinTimeout = 30 * time.Second

// Join adds this machine to a cluster: it redeems tokenAtHost, "TOKEN@host" or "TOKEN@host:port",
// at a queen and writes the received identity to the data folder. It does not start anything. If
// the configuration does not set the roles of this machine, Join takes those that the token grants
// and sets them in cfg. Errors: Invalid for a malformed token or an address that others cannot
// reach, Conflict when the machine is already in a cluster or its name is already in use, InUse
// when an agent uses the data folder, Unauthenticated for a used, revoked or expired token or a
// queen of another cluster; Forbidden for a role that the token does not allow, Unavailable when no
// queen answers.
func Join(ctx context.Context, cfg *config.Config, tokenAtHost string) error {
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	return join(ctx, cfg, tokenAtHost)
}

// join is Join for a caller that holds the lock on the data folder.
func join(ctx context.Context, cfg *config.Config, tokenAtHost string) error {
	const op = "join the cluster"
	if cfg.TLS.Given() {
		return core.Errorf(core.Invalid, "%s: the configuration names certificates that were made elsewhere", op).Hint(
			"With those a machine needs no token: start the agent. Take the block tls out of the configuration to get a certificate by token.")
	}
	parsed, address, err := token.ParseJoin(tokenAtHost)
	if err != nil {
		return err
	}
	before, err := pki.Load(cfg.DataDir)
	switch {
	case core.KindOf(err) == core.NotFound:
		before = nil
	case err == nil && Ended(before, parsed.Fingerprint, time.Now()):
	default:
		if err == nil {
			err = core.Errorf(core.Conflict, "%s: this machine is in a cluster already", op)
		}
		return core.WithHint(err, "To give up that cluster, run \"rbee cluster leave\" first.")
	}
	id, err := joiningID(cfg, before)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := cfg.CheckAdvertised(ctx); err != nil {
		return core.Prefix(err, op)
	}
	host, err := hostTowards(ctx, cfg, address)
	if err != nil {
		return err
	}
	if queen, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(queen) != nil && config.Loopback(host) && !config.Loopback(queen) {
		return core.Errorf(core.Invalid, "%s: the others of that cluster do not reach this machine at %s, which every machine takes for itself", op, host).Hint(
			"Set bind { advertise = … }, or --advertise, to an address that they reach it at.")
	}
	key, request, err := joiningKey(id, before)
	if err != nil {
		return err
	}
	conn, err := rpc.JoinConn(ctx, address, parsed.Fingerprint)
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &queenv1.JoinRequest{
		Token: parsed.Text(), Node: id, Name: nodeName(cfg), RpcAddress: net.JoinHostPort(host, strconv.Itoa(cfg.Bind.RPCPort)),
		CertificateRequest: request, Hosts: hostNames(cfg),
	}
	for _, r := range roles(cfg) {
		req.Roles = append(req.Roles, string(r))
	}
	req.RolesOptional = !cfg.RolesGiven()
	resp, err := queenv1.NewJoinServiceClient(conn).Join(ctx, req)
	if err != nil {
		return core.Prefix(rpc.WrongPort(ctx, address, parsed.Fingerprint, rpc.FromStatus(err)), op)
	}
	view := resp.GetView()
	var identity *pki.Identity
	if before != nil {
		identity, err = before, errors.Join(before.Replace(resp.GetCertificate(), resp.GetCaCertificates()), before.SetGossipKeys(view.GetGossipKeys()), before.SetRPCAddress(req.GetRpcAddress()))
	} else {
		identity, err = pki.Create(cfg.DataDir, pki.Material{
			ClusterName: resp.GetClusterName(), Name: req.GetName(), RPCAddress: req.GetRpcAddress(), AddressFound: cfg.Bind.Advertise == "",
			CAPEM:   resp.GetCaCertificates(),
			NodePEM: resp.GetCertificate(), Key: key, SealKey: resp.GetSealKey(), GossipKeys: view.GetGossipKeys(),
		})
	}
	if err != nil {
		return err
	}
	cfg.DefaultRoles(identity.Has(core.RoleQueen), identity.Has(core.RoleHive))
	var queens []hive.QueenAddress
	for _, q := range view.GetQueens() {
		queens = append(queens, hive.QueenAddress{ID: q.GetId(), RPCAddress: q.GetRpcAddress()})
	}
	return storeQueens(filepath.Join(cfg.DataDir, queensFile), queens)
}

// Ended reports whether a machine's certificate has expired, in the cluster whose CA has this
// fingerprint: the machine was away for too long to renew it, and rejoins with its previous ID.
func Ended(id *pki.Identity, fingerprint string, now time.Time) bool {
	if id.Check(now) == nil {
		return false
	}
	own, err := pki.Fingerprint(id.CAPEM())
	return err == nil && own == fingerprint && now.After(id.Node().NotAfter)
}

// joiningID returns the ID with which a machine joins: its previous ID if it rejoins.
func joiningID(cfg *config.Config, before *pki.Identity) (string, error) {
	if before != nil {
		return before.Node().ID, nil
	}
	return nodeID(cfg.DataDir)
}

// joiningKey returns a new key and the request for its certificate. A machine that rejoins keeps
// its key: only the request is returned.
func joiningKey(id string, before *pki.Identity) (key pki.Secret, request []byte, err error) {
	if before != nil {
		request, err = before.Request()
		return nil, request, err
	}
	if key, err = pki.NewKey(); err != nil {
		return nil, nil, err
	}
	request, err = pki.NewRequest(key, id)
	return key, request, err
}

// renewNow asks the queens in turn to renew the certificate.
func (n *network) renewNow(ctx context.Context, hosts []string) error {
	request, err := n.identity.Request()
	if err != nil {
		return err
	}
	err = core.Errorf(core.Unavailable, "renew the certificate: no queen is known")
	for _, q := range n.queens.List() {
		conn, connErr := n.queens.Conn(q)
		if connErr != nil {
			err = errors.Join(err, connErr)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, joinTimeout)
		resp, callErr := queenv1.NewJoinServiceClient(conn).Renew(limited, &queenv1.RenewRequest{CertificateRequest: request, Hosts: hosts, RpcAddress: n.identity.RPCAddress()})
		cancel()
		if callErr == nil {
			return n.identity.Replace(resp.GetCertificate(), resp.GetCaCertificates())
		}
		err = rpc.FromStatus(callErr)
	}
	return err
}
