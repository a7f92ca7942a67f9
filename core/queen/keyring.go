package queen

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// keyringRetry is the pause after a rotation that failed.
const keyringRetry = time.Second

// keyringDue reports whether a revoked node still knows the gossip keys: they are older than its
// revocation. A node that left counts as revoked.
func keyringDue(c core.Cluster, s *state.Snapshot, ws registry.WatchSet) bool {
	for _, n := range s.Nodes(ws) {
		if n.Revoked && n.ModifyIndex > c.ModifyIndex {
			return len(c.SealedGossipKeys) > 0
		}
	}
	return false
}

// keepKeyring replaces the gossip keys whenever a node was revoked or left, while this queen leads.
// Whether that is due follows from the registry, so that a rotation that a dead leader owes is made
// by the next one.
func (q *Queen) keepKeyring(ctx context.Context) error {
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		s := q.registry.View()
		c, ok := s.Cluster(ws)
		if !ok || !keyringDue(c, s, ws) {
			_ = registry.Wait(ctx, ws)
			continue
		}
		if err := q.replaceKeyring(ctx, c); err != nil && ctx.Err() == nil {
			if core.KindOf(err) != core.Conflict { // somebody else changed the keys meanwhile
				q.log.Error("cannot replace the gossip key that a revoked node knows, trying again", "error", err)
			}
			_ = registry.WaitUntil(ctx, registry.WatchSet{}, time.Now().Add(keyringRetry))
		}
	}
	return nil
}

// replaceKeyring makes a new gossip key the only one. Every node goes on to understand the old ones
// for some seconds: see gossip.Pool.ReplaceKeys.
func (q *Queen) replaceKeyring(ctx context.Context, c core.Cluster) error {
	keys := pki.Secrets{pki.NewGossipKey()}
	sealed, err := q.opts.Membership.Identity.SealGossipKeys(keys)
	if err != nil {
		return err
	}
	if err := q.registry.Write(ctx, "keyring replace", fsm.SetKeyring(sealed, c.GossipVersion)); err != nil {
		return err
	}
	q.log.Info("gossip key replaced, because a node was revoked or left", "key", pki.KeyFingerprint(keys[0]))
	return nil
}
