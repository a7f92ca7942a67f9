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

// InitResult is a cluster that was just begun.
type InitResult struct {
	Cluster     string      `json:"cluster"`      // id
	ClusterName string      `json:"cluster_name"` // for people; may be empty
	Node        string      `json:"node"`         // id of this machine
	Name        string      `json:"name"`         // of this machine
	Roles       []core.Role `json:"roles"`
	RPCAddress  string      `json:"rpc_address"` // host:port at which others reach this machine
	Fingerprint string      `json:"fingerprint"` // of the CA's certificate, as join tokens have it
	DataDir     string      `json:"data_dir"`
	Doubt       string      `json:"doubt,omitempty"` // why others may not reach this machine at RPCAddress; empty: no reason is known
	Token       string      `json:"token"`           // the first operator token, with all scopes: it is nowhere else
}

// Init begins a cluster on this machine, its first queen, without starting it: everything is
// written to the data folder of cfg. A registry that is there already is kept. Errors: Conflict
// when the machine is in a cluster already, InUse when an agent uses the data folder, Invalid when
// cfg has no queen, has certificates from files, or no address can be found that others reach this
// machine at.
func Init(ctx context.Context, cfg *config.Config, clusterName string, now time.Time) (InitResult, error) {
	const op = "begin a cluster"
	if cfg.TLS.Given() {
		return InitResult{}, core.Errorf(core.Invalid, "%s: the configuration names certificates that were made elsewhere", op).Hint(
			"With those the cluster begins when the agent starts. Take the block tls out of the configuration to have certificates made.")
	}
	if !cfg.Queen.Enabled {
		return InitResult{}, core.Errorf(core.Invalid, "%s: this machine is no queen", op).Hint("Begin the cluster on a machine with queen { enabled = true }.")
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

// Forget has this machine forget its cluster without telling anybody there: for a cluster that is
// no more. The registry of a queen is put aside, in a folder whose name it returns; empty: there
// was none. Errors: NotFound when the machine is in no cluster, InUse when an agent uses the data
// folder.
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
	// The registry first: a machine that kept it would wait for the other queens for ever.
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
	// The id is the cluster's as well: one that was revoked never comes back.
	err = pki.Remove(cfg.DataDir)
	for _, name := range []string{"gossip", "node-id"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.DataDir, name)))
	}
	return aside, core.Wrap(err, core.Internal, "forget the cluster")
}

// nodeName is what this machine is called: what the configuration says, else the host name as far
// as it can be one.
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

// hostNames are the names and addresses, beside the advertised one, that this machine's certificate
// is to be valid for.
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

// roles are what the configuration has this machine be.
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
