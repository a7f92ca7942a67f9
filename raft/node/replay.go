package node

import (
	"errors"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

// At start Raft 1.8 can apply what is known to be committed (Config.RestoreCommittedLogs), but it
// skips the membership entries in it, so that a lone voter never elects itself after a restart, and
// it blocks forever on more than 128 batches. So the node does it: disk persists the commit index
// together with the entries, replay applies up to it before raft starts, and the state machine
// skips what raft then applies again.

// replay restores the newest readable snapshot and applies the entries after it that are known to
// be committed.
func (n *Node) replay(logs raft.LogStore, snaps raft.SnapshotStore) error {
	list, err := snaps.List()
	if err != nil {
		return core.Wrap(err, core.Unavailable, "list raft snapshots")
	}
	var restored, needed uint64
	for i, meta := range list {
		// a snapshot holds only committed entries, and raft continues from the newest, readable or
		// not
		needed = max(needed, meta.Index)
		_, r, err := snaps.Open(meta.ID)
		if err == nil {
			err = n.fsm.Restore(r)
		}
		if err == nil {
			restored = meta.Index
			break
		}
		if core.KindOf(err) == core.Unsupported {
			// an older snapshot would only lead to entries that are just as new
			return core.Wrap(err, core.Unsupported, "restore raft state")
		}
		n.log.Warn("raft snapshot is not readable", "snapshot", meta.ID, "left", len(list)-1-i, "error", err)
	}
	if n.store != nil {
		committed, err := n.store.GetCommitIndex()
		if err != nil {
			return err
		}
		needed = max(needed, committed)
	}
	for i := restored + 1; i <= needed; i++ {
		var l raft.Log
		err := logs.GetLog(i, &l)
		if err == nil && isStandIn(&l) {
			err = errors.New("it is in a snapshot that is damaged")
		}
		if err != nil {
			return core.Errorf(core.Integrity, "restore raft state: the snapshots reach to index %d and entry %d is not readable: %w", restored, i, err).Hint(moveAway)
		}
		if l.Type != raft.LogCommand {
			continue
		}
		if err := n.fsm.Check(&l); err != nil {
			return core.Prefix(err, "restore raft state")
		}
		n.fsm.Apply(&l)
	}
	return nil
}
