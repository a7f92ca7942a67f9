package agent

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

// InitResult describes a newly initialized cluster.
type InitResult struct {
	Cluster     string      `json:"cluster"`      // cluster ID
	ClusterName string      `json:"cluster_name"` // display name; may be empty
	Node        string      `json:"node"`         // ID of this machine
	Name        string      `json:"name"`         // name of this machine
	Roles       []core.Role `json:"roles"`
	RPCAddress  string      `json:"rpc_address"` // host:port at which others reach this machine
	Fingerprint string      `json:"fingerprint"` // of the CA's certificate, as in join tokens
	DataDir     string      `json:"data_dir"`
	Doubt       string      `json:"doubt,omitempty"` // why others may not reach this machine at RPCAddress; empty: no reason is known
	Token       string      `json:"token"`           // the first operator token: the only copy
}

// Init initializes a cluster with this machine as its first queen, without starting it: it writes
// everything to the data folder of cfg. It keeps an existing registry. Errors: Conflict when the
// machine is already in a cluster, InUse when an agent uses the data folder, Invalid when cfg has
// no queen, has certificates from files, or yields no address at which others reach this machine.
func Init(ctx context.Context, cfg *config.Config, clusterName string, now time.Time) (InitResult, error) {
	const op = "begin a cluster"
	if cfg.TLS.Given() {
		return InitResult{}, core.Errorf(core.Invalid, "%s: the configuration names certificates that were made elsewhere", op).Hint(
			"With those the cluster begins when the agent starts. Take the block tls out of the configuration to have certificates made.")
	}
	if !cfg.Queen.Enabled {
		return InitResult{}, core.Errorf(core.Invalid, "%s: this machine is not a queen", op).Hint("Begin the cluster on a machine with queen { enabled = true }.")
	}
	if err := cfg.CheckAdvertised(ctx); err != nil {
		return InitResult{}, core.Prefix(err, op)
	}
	host, err := cfg.AdvertiseHost(ctx)
	if err != nil {
		return InitResult{}, err
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return InitResult{}, err
	}
	defer unlock()
	id, err := nodeID(cfg.DataDir)
	if err != nil {
		return InitResult{}, err
	}
	tokenID, hash, text := token.New()
	made, err := pki.Init(cfg.DataDir, pki.InitOptions{
		Name: clusterName, NodeID: id, NodeName: nodeName(cfg), RPCAddress: net.JoinHostPort(host, strconv.Itoa(cfg.Bind.RPCPort)), AddressFound: cfg.Bind.Advertise == "",
		Hosts: hostNames(cfg), Roles: roles(cfg),
		CertificateTTL: cfg.Queen.CertificateTTL, Now: now,
		Token: core.Token{ID: tokenID, Name: "operator", Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: now.UTC().Truncate(time.Second)},
	})
	if err != nil {
		return InitResult{}, err
	}
	i := made.Identity
	return InitResult{
		Cluster: i.Cluster(), ClusterName: i.ClusterName(), Node: id, Name: i.Node().Name, Roles: i.Node().Roles, RPCAddress: i.RPCAddress(),
		Fingerprint: made.Fingerprint, DataDir: cfg.DataDir, Doubt: config.Doubt(host), Token: text,
	}, nil
}

// Forget removes this machine's membership without notifying the cluster: it is for a cluster that
// no longer exists. A queen's registry is moved to a folder whose name it returns; empty: there was
// no registry. Errors: NotFound when the machine is not in a cluster, InUse when an agent uses the
// data folder.
func Forget(cfg *config.Config) (aside string, err error) {
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return "", err
	}
	defer unlock()
	id, err := pki.Load(cfg.DataDir)
	if core.KindOf(err) == core.NotFound {
		return "", err
	}
	cluster := "damaged"
	if err == nil {
		cluster = id.Cluster()
	}
	// The registry first: a machine that kept it would wait for the other queens forever.
	for n := 0; ; n++ {
		aside = filepath.Join(cfg.DataDir, "raft-of-"+cluster)
		if n > 0 {
			aside += "-" + strconv.Itoa(n)
		}
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	switch err := disk.Rename(filepath.Join(cfg.DataDir, "raft"), aside); {
	case errors.Is(err, fs.ErrNotExist):
		aside = ""
	case err != nil:
		return "", core.Wrap(err, core.Internal, "put the registry aside")
	}
	// The ID belongs to the cluster as well: a revoked ID is never accepted again.
	err = pki.Remove(cfg.DataDir)
	for _, name := range []string{"gossip", "node-id"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.DataDir, name)))
	}
	return aside, core.Wrap(err, core.Internal, "forget the cluster")
}

// nodeName returns this machine's name: the configured name, else the host name as far as it is
// valid.
func nodeName(cfg *config.Config) string {
	if cfg.Name != "" {
		return cfg.Name
	}
	name, err := os.Hostname()
	if err != nil || name == core.LocalHive {
		return ""
	}
	return name
}

// hostNames returns the names and addresses, besides the advertised one, for which this machine's
// certificate is to be valid.
func hostNames(cfg *config.Config) []string {
	var hosts []string
	if name, err := os.Hostname(); err == nil && name != "" && !strings.HasSuffix(strings.ToLower(name), ".rbee") && !strings.ContainsAny(name, " /:") {
		hosts = append(hosts, name)
	}
	if ip, err := netip.ParseAddr(cfg.Bind.Address); err == nil && !ip.IsUnspecified() {
		hosts = append(hosts, ip.Unmap().String())
	}
	return hosts
}

// roles returns the roles that the configuration enables.
func roles(cfg *config.Config) []core.Role {
	var list []core.Role
	if cfg.Queen.Enabled {
		list = append(list, core.RoleQueen)
	}
	if cfg.Hive.Enabled {
		list = append(list, core.RoleHive)
	}
	return list
}
