package fsm

import (
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// KeepRevoked copies what no snapshot may undo into a registry that was read from a snapshot, from
// a known registry of the same cluster: revoked nodes and tokens, replaced secrets of tokens, used
// join tokens, removed starts of hives, and the keys of the cluster, unless the snapshot's are
// newer. A revocation in either registry stays.
func KeepRevoked(restored *state.Store, known *state.Snapshot) error {
	index := restored.AppliedIndex()
	return restored.Update(index, func(t *state.Txn) error {
		e := &entry{Txn: t, index: index, rules: Version}
		e.keepCluster(known)
		for _, stone := range known.Tombstones(nil) {
			e.keepTombstone(stone)
		}
		for _, n := range known.Nodes(nil) {
			if err := e.keepNode(n); err != nil {
				return err
			}
		}
		for _, gone := range known.RevokedTokens(nil) {
			gone.Index = min(gone.Index, index)
			e.PutRevokedToken(gone)
			e.DeleteToken(gone.Token)
		}
		for _, used := range known.Tokens(nil) {
			e.keepSecret(used)
			if token, ok := e.Token(used.ID); ok && used.UsedBy != "" {
				token.UsedBy, token.UsedKeyHash, token.UsedAt, token.ModifyIndex = used.UsedBy, used.UsedKeyHash, used.UsedAt, index
				e.PutToken(token)
			}
		}
		return nil
	})
}

// keepCluster keeps the nodes' current keys: those of the snapshot may have been replaced since.
func (e *entry) keepCluster(known *state.Snapshot) {
	now, ok := known.Cluster(nil)
	if !ok {
		return
	}
	was, ok := e.Cluster()
	if !ok || was.ID != now.ID || was.GossipVersion > now.GossipVersion {
		return
	}
	now.CreateIndex, now.ModifyIndex = was.CreateIndex, e.index
	e.PutCluster(now)
}

func (e *entry) keepNode(n core.Node) error {
	if !n.Revoked {
		return nil
	}
	if _, ok := e.Node(n.ID); !ok {
		// it joined after the snapshot, and its certificate is still valid
		n.CreateIndex, n.ModifyIndex = e.index, e.index
		e.PutNode(n)
	}
	return e.revokeNode(n.ID)
}

// keepTombstone prevents removed starts of a hive from returning. A later start in the snapshot
// stays.
func (e *entry) keepTombstone(stone state.Tombstone) {
	if h, ok := e.Hive(stone.Hive); ok && h.Incarnation > stone.Incarnation {
		return
	} else if ok {
		e.removeHive(stone.Hive)
	}
	if old, ok := e.Tombstone(stone.Hive); !ok || old.Incarnation < stone.Incarnation {
		e.PutTombstone(state.Tombstone{Hive: stone.Hive, Incarnation: stone.Incarnation, Index: e.index})
	}
}

// Adopt adds a node to a registry that was read from a snapshot and does not know the node, or
// knows it with another key or address. It revokes other nodes with the same name, which the node
// replaces, and returns their ids. If it revokes any, the cluster's keys count as newer than that
// revocation: hives find an unknown queen by gossip alone, and a key replaced at once would shut
// them out. Errors: Conflict for a revoked node.
func Adopt(restored *state.Store, n core.Node) (replaced []string, err error) {
	index := restored.AppliedIndex()
	err = restored.Update(index, func(t *state.Txn) error {
		e := &entry{Txn: t, index: index, rules: Version}
		old, known := e.Node(n.ID)
		if known && old.Revoked {
			return core.Errorf(core.Conflict, "restore snapshot: this machine, node %s (%s), is revoked", old.ID, old.Name).Hint(
				"Restore on another queen's machine, or on a machine with an empty data_dir and the cluster's recovery key.")
		}
		for {
			other, ok := e.NodeNamed(n.Name)
			if !ok || other.ID == n.ID || other.Revoked {
				break
			}
			if err := e.revokeNode(other.ID); err != nil {
				return err
			}
			replaced = append(replaced, other.ID)
		}
		if c, ok := e.Cluster(); ok && len(replaced) > 0 {
			c.ModifyIndex = index
			e.PutCluster(c)
		}
		n.Revoked, n.CreateIndex, n.ModifyIndex = false, index, index
		if known {
			n.CreateIndex, n.ModifyIndex = old.CreateIndex, old.ModifyIndex
		}
		if !known || !sameNode(n, old) {
			n.ModifyIndex = index
			e.PutNode(n)
		}
		return nil
	})
	return replaced, err
}
