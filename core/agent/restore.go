package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
)

// RestoreResult describes what RestoreOffline did.
type RestoreResult struct {
	core.SnapshotInfo
	Node     string   `json:"node"`               // this machine, now the only queen
	Aside    string   `json:"aside,omitempty"`    // the previous raft folder; empty: none
	Revoked  []string `json:"revoked,omitempty"`  // nodes that this machine replaces
	Problems []string `json:"problems,omitempty"` // unreadable parts of the previous raft folder
}

// RestoreOffline makes a snapshot the registry of this machine, which becomes the only queen of its
// cluster. No agent may run here meanwhile. If the machine has no identity, recoveryKey makes it a
// new queen of the cluster. RestoreOffline reads the old raft folder as far as possible (revoked
// nodes stay revoked) and moves it aside; it never deletes it.
//
// Errors: NotFound when the machine is not in a cluster and there is no recovery key, InUse while
// an agent uses the data folder, Conflict for a snapshot of another cluster and on a revoked
// machine, Integrity, Unsupported, Invalid.
func RestoreOffline(ctx context.Context, cfg *config.Config, r io.Reader, recoveryKey string, now time.Time, log hclog.Logger) (RestoreResult, error) {
	const op = "restore the snapshot"
	if !cfg.Queen.Enabled {
		return RestoreResult{}, core.Errorf(core.Invalid, "%s: this machine is not a queen", op).Hint("Restore on a machine with queen { enabled = true }.")
	}
	snap, err := registry.ReadSnapshot(r)
	if err != nil {
		return RestoreResult{}, err
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return RestoreResult{}, core.WithHint(err, "Stop the agent of this machine first. While a queen answers, restore without --offline.")
	}
	defer unlock()
	o := registry.Founding{Dir: filepath.Join(cfg.DataDir, "raft"), Now: now, Logger: log}
	if o.Identity, err = restoredIdentity(ctx, cfg, snap.Cluster, recoveryKey, now); err != nil {
		return RestoreResult{}, err
	}
	done := RestoreResult{SnapshotInfo: snap.Info}
	if o.Identity != nil {
		o.Node = nodeOf(o.Identity)
	} else if o.Node.ID, err = nodeID(cfg.DataDir); err != nil {
		return RestoreResult{}, err
	}
	done.Node = o.Node.ID
	// Move the old folder first: if the machine stops here, its agent finds no registry and reports
	// that, and the restore is repeated.
	if o.Old, err = putAside(o.Dir, now); err != nil {
		return RestoreResult{}, err
	}
	made, err := snap.Found(o)
	done.Aside, done.Revoked, done.Problems = o.Old, made.Revoked, made.Problems
	if err != nil && o.Old != "" {
		err = errors.Join(err, core.Wrap(disk.Rename(o.Old, o.Dir), core.Internal, "put the registry back"))
	}
	return done, err
}

// restoredIdentity returns this machine's identity, or makes it a queen with the recovery key; nil:
// it is not in a cluster, and the snapshot belongs to none.
func restoredIdentity(ctx context.Context, cfg *config.Config, c core.Cluster, recoveryKey string, now time.Time) (*pki.Identity, error) {
	const op = "restore the snapshot"
	id, err := identityOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if id != nil {
		if !id.Has(core.RoleQueen) {
			return nil, core.Errorf(core.Invalid, "%s: this machine is a hive of the cluster", op).Hint("Restore on a queen's machine, or on a machine with an empty data_dir and the recovery key.")
		}
		return id, nil
	}
	if c.ID == "" {
		return nil, nil //nolint:nilnil // alone
	}
	if recoveryKey == "" {
		return nil, core.Errorf(core.NotFound, "%s: this machine is in no cluster, and the snapshot is of cluster %s", op, c.ID).Hint(
			"Restore on a queen's machine, whose data_dir has the folder %q. If no such folder is left, say --recovery-key FILE with what \"rbee operator recovery-key\" printed. "+
				"Without either the cluster's CA is lost: begin a new one with \"rbee cluster init\", and have every machine join it.", pki.Folder)
	}
	cluster, key, err := pki.ParseRecoveryKey(recoveryKey)
	if err != nil {
		return nil, err
	}
	if cluster != c.ID {
		return nil, core.Errorf(core.Conflict, "%s: the recovery key is of cluster %s, the snapshot of cluster %s", op, cluster, c.ID).Hint("Use the recovery key of the same cluster.")
	}
	host, err := cfg.AdvertiseHost(ctx)
	if err != nil {
		return nil, err
	}
	node, err := nodeID(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	return pki.Recover(cfg.DataDir, pki.RecoverOptions{
		Cluster: c, SealKey: key, NodeID: node, NodeName: nodeName(cfg), RPCAddress: net.JoinHostPort(host, strconv.Itoa(cfg.Bind.RPCPort)),
		AddressFound: cfg.Bind.Advertise == "", Hosts: hostNames(cfg), Roles: roles(cfg), CertificateTTL: cfg.Queen.CertificateTTL, Now: now,
	})
}

// putAside renames a folder and returns the new name; empty: the folder does not exist.
func putAside(dir string, now time.Time) (string, error) {
	base := dir + "-before-" + now.UTC().Format("20060102T150405Z")
	for n := 0; ; n++ {
		aside := base
		if n > 0 {
			aside += "-" + strconv.Itoa(n)
		}
		if _, err := os.Lstat(aside); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		switch err := disk.Rename(dir, aside); {
		case errors.Is(err, fs.ErrNotExist):
			return "", nil
		case err != nil:
			return "", core.Wrap(err, core.Internal, "put the registry aside")
		}
		return aside, nil
	}
}

// RecoveryKey returns the recovery key of this machine's cluster; keep it apart from the cluster's
// snapshots. Errors: NotFound, Unsupported on a hive.
func RecoveryKey(cfg *config.Config) (pki.Secret, error) {
	id, err := pki.Load(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	return id.RecoveryKey()
}

// knowsQueen reports whether this node knows, or once knew, another queen from which to get the
// registry.
func (p *process) knowsQueen() bool {
	self := p.net.identity.Node().ID
	return len(p.cfg.Gossip.RetryJoin) > 0 || p.net.gossip.KnowsQueen() ||
		slices.ContainsFunc(p.net.queens.List(), func(q hive.QueenAddress) bool { return q.ID != self })
}

// lostRegistry is the error of a queen that would wait for a registry that no longer exists.
func lostRegistry(id *pki.Identity, dir string) error {
	return core.Errorf(core.NotFound, "start the queen: this machine is a queen of cluster %s, but its registry in %s is gone, and it knows no other queen", id.Cluster(), dir).Hint(
		"Restore a snapshot: \"rbee operator snapshot restore --offline FILE\". If there is another queen, name its host in gossip { retry_join = [...] } and start again. " +
			"Without a snapshot and another queen the cluster is lost: \"rbee cluster leave --forget\", then \"rbee cluster init\".")
}
