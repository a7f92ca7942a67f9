package registry

import (
	"bytes"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
	"github.com/rbee-project/rbee/raft/state"
)

// MaxGossipKeys bounds the gossip keys of a cluster.
const MaxGossipKeys = 8

// Snapshot is a snapshot of the registry, read and checked, for a restore without a cluster.
type Snapshot struct {
	Info    core.SnapshotInfo
	Cluster core.Cluster // zero: belongs to no cluster

	store *state.Store
}

// ReadSnapshot reads a whole snapshot. Errors: Integrity, Unsupported, TooLarge.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	data, info, err := ReadSealed(r)
	if err != nil {
		return nil, err
	}
	store, err := fsm.ReadSnapshot(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	c, _ := store.Snapshot().Cluster(nil)
	return &Snapshot{Info: info, Cluster: c, store: store}, nil
}

// Founding describes how a snapshot becomes the registry of a cluster whose only queen is this
// machine.
type Founding struct {
	Dir      string        // raft folder to create; it must not exist
	Identity *pki.Identity // of this machine; nil: it belongs to no cluster
	Node     core.Node     // this machine's registry entry; outside a cluster only the id counts
	Old      string        // previous raft folder, honored if readable; may be missing
	Now      time.Time
	Logger   hclog.Logger
}

// Founded is the outcome of Snapshot.Found.
type Founded struct {
	Revoked  []string // ids of nodes that this machine replaces
	Problems []string // what could not be read from the previous raft folder
}

// Found creates a raft folder from the snapshot. Whatever the previous raft folder knows as revoked
// stays revoked, and the cluster's newest keys stay. A snapshot can be used once. Errors: Conflict
// for a snapshot of another cluster and on a revoked machine, Integrity when this machine's seal
// key differs from the snapshot's, InUse, Unavailable.
func (s *Snapshot) Found(o Founding) (Founded, error) {
	address := "in-process/" + o.Node.ID
	if id := o.Identity; id != nil {
		if s.Cluster.ID != id.Cluster() {
			return Founded{}, core.Errorf(core.Conflict, "restore snapshot: the snapshot is of cluster %q, this machine is in cluster %q", s.Cluster.ID, id.Cluster()).Hint(
				"A snapshot goes back only into the cluster that it was taken of: its keys and certificates are that cluster's.")
		}
		if err := s.checkKeys(id); err != nil {
			return Founded{}, err
		}
		address = id.RPCAddress()
	} else if s.Cluster.ID != "" {
		return Founded{}, core.Errorf(core.Conflict, "restore snapshot: the snapshot is of cluster %q, and this machine is in none", s.Cluster.ID)
	}
	old, err := node.Salvage(o.Old, o.Logger)
	if err != nil {
		return Founded{}, err
	}
	done := Founded{Problems: old.Problems}
	if err := fsm.KeepRevoked(s.store, old.State); err != nil {
		return done, err
	}
	if o.Identity != nil {
		if done.Revoked, err = fsm.Adopt(s.store, o.Node); err != nil {
			return done, err
		}
		if err := s.keepGossipKeys(o.Identity); err != nil {
			return done, err
		}
	}
	return done, node.Found(o.Dir, o.Node.ID, address, s.store, old, o.Now, o.Logger)
}

// checkKeys returns an error unless the machine's seal key opens the sealed parts of the snapshot:
// otherwise the queen could not sign certificates.
func (s *Snapshot) checkKeys(id *pki.Identity) error {
	if len(s.Cluster.SealedCAKey) == 0 {
		return nil // certificates are issued elsewhere
	}
	if _, err := id.CA(s.Cluster.CACertificates, s.Cluster.SealedCAKey); err != nil {
		return err
	}
	_, err := id.OpenGossipKeys(s.Cluster.SealedGossipKeys)
	return err
}

// keepGossipKeys adds this machine's own gossip keys to the registry's. Neither set need be the
// newest: the machine's may come from a backup, and the snapshot may predate a rotation. With all
// keys the queen can hear every remaining node and tell it which keys are current.
func (s *Snapshot) keepGossipKeys(id *pki.Identity) error {
	c, ok := s.store.Snapshot().Cluster(nil)
	if !ok || len(c.SealedGossipKeys) == 0 {
		return nil
	}
	theirs, err := id.OpenGossipKeys(c.SealedGossipKeys)
	if err != nil {
		return err
	}
	ours, err := id.GossipKeys()
	if err != nil && core.KindOf(err) != core.NotFound {
		return err
	}
	all := slices.Clone(ours)
	for _, k := range theirs {
		if !slices.ContainsFunc(all, func(other []byte) bool { return bytes.Equal(k, other) }) && len(all) < MaxGossipKeys {
			all = append(all, k)
		}
	}
	if err := id.SetGossipKeys(all); err != nil {
		return err
	}
	if slices.EqualFunc(all, theirs, bytes.Equal) {
		return nil
	}
	if c.SealedGossipKeys, err = id.SealGossipKeys(all); err != nil {
		return err
	}
	c.GossipVersion++
	return s.store.Update(s.store.AppliedIndex(), func(t *state.Txn) error {
		t.PutCluster(c)
		return nil
	})
}
