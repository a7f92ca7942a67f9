package membership

import (
	"bytes"
	"context"
	"encoding/base64"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/token"
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
// The registry shows whether that is due, so that the next leader completes a rotation that a dead
// leader did not.
func (m *Members) keepKeyring(ctx context.Context) error {
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		s := m.registry.View()
		c, ok := s.Cluster(ws)
		if !ok || !keyringDue(c, s, ws) {
			_ = registry.Wait(ctx, ws)
			continue
		}
		if err := m.replaceKeyring(ctx, c); err != nil && ctx.Err() == nil {
			if core.KindOf(err) != core.Conflict { // another queen changed the keys meanwhile
				m.log.Error("failed to replace the gossip key that a revoked node knows, retrying", "error", err)
			}
			_ = registry.WaitUntil(ctx, registry.WatchSet{}, time.Now().Add(keyringRetry))
		}
	}
	return nil
}

// replaceKeyring makes a new gossip key the only one. For some seconds every node still accepts the
// old ones: see gossip.Pool.ReplaceKeys.
func (m *Members) replaceKeyring(ctx context.Context, c core.Cluster) error {
	keys := pki.Secrets{pki.NewGossipKey()}
	sealed, err := m.net.Identity.SealGossipKeys(keys)
	if err != nil {
		return err
	}
	if err := m.registry.Write(ctx, "keyring replace", fsm.SetKeyring(sealed, c.GossipVersion)); err != nil {
		return err
	}
	m.log.Info("gossip key replaced, because a node was revoked or left", "key", pki.KeyFingerprint(keys[0]))
	return nil
}

// Keyring returns the fingerprints of the gossip keys. Errors: Unsupported, Unavailable, Integrity.
func (m *Members) Keyring(context.Context) (core.Keyring, error) {
	c, err := m.registry.Cluster()
	if err != nil {
		return core.Keyring{}, err
	}
	keys, err := m.gossipKeys(c)
	return keyringOf(keys), err
}

func keyringOf(keys pki.Secrets) core.Keyring {
	k := core.Keyring{Keys: []string{}}
	for _, key := range keys {
		k.Keys = append(k.Keys, pki.KeyFingerprint(key))
	}
	if len(k.Keys) > 0 {
		k.Primary = k.Keys[0]
	}
	return k
}

// ChangeKeyring performs one step of a rotation: install a new key everywhere, use it for sending,
// remove the old one. Errors: Invalid; NotFound for an unknown fingerprint; Conflict if the keys
// changed meanwhile, or the primary would be removed; Unavailable; Unsupported.
func (m *Members) ChangeKeyring(ctx context.Context, change core.KeyringChange) (core.Keyring, error) {
	if m.net == nil {
		return core.Keyring{}, registry.ErrAlone()
	}
	if err := m.registry.CatchUp(ctx); err != nil {
		return core.Keyring{}, err
	}
	c, err := m.registry.Cluster()
	if err != nil {
		return core.Keyring{}, err
	}
	if keyringDue(c, m.registry.View(), nil) {
		return core.Keyring{}, core.Errorf(core.Unavailable, "the gossip keys are being replaced, because a node was revoked or left").Hint("Try again in a moment.")
	}
	keys, err := m.gossipKeys(c)
	if err != nil {
		return core.Keyring{}, err
	}
	if keys, err = changeKeys(keys, change); err != nil {
		return core.Keyring{}, err
	}
	sealed, err := m.net.Identity.SealGossipKeys(keys)
	if err != nil {
		return core.Keyring{}, err
	}
	if err := m.registry.Write(ctx, "keyring "+change.Action, fsm.SetKeyring(sealed, c.GossipVersion)); err != nil {
		return core.Keyring{}, err
	}
	m.log.Info("gossip keys changed", "action", change.Action, "keys", len(keys))
	return keyringOf(keys), nil
}

func changeKeys(keys pki.Secrets, change core.KeyringChange) (pki.Secrets, error) {
	at := slices.IndexFunc(keys, func(k []byte) bool { return pki.KeyFingerprint(k) == change.Fingerprint })
	if change.Action != "install" && at < 0 {
		return nil, core.Errorf(core.NotFound, "there is no gossip key %q", token.Clip(change.Fingerprint)).Hint("See all with `rbee operator keyring list`.")
	}
	switch change.Action {
	case "install":
		key := []byte(pki.NewGossipKey())
		if change.Key != "" {
			var err error
			if key, err = base64.StdEncoding.DecodeString(change.Key); err != nil || len(key) != gossipKeyBytes {
				return nil, core.Errorf(core.Invalid, "the key is not base64 of %d bytes", gossipKeyBytes).Hint("Leave it out to have one made.")
			}
		}
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return keys, nil
		}
		if len(keys) >= registry.MaxGossipKeys {
			return nil, core.Errorf(core.TooLarge, "there are %d gossip keys already", len(keys)).Hint("Remove those that are not used any more.")
		}
		return append(keys, key), nil
	case "use":
		key := keys[at]
		return slices.Insert(slices.Delete(keys, at, at+1), 0, key), nil
	case "remove":
		if at == 0 {
			return nil, core.Errorf(core.Conflict, "the primary gossip key is in use").Hint("Use another one first: `rbee operator keyring use`.")
		}
		return slices.Delete(keys, at, at+1), nil
	}
	return nil, core.Errorf(core.Invalid, "there is no change %q of the keyring", token.Clip(change.Action)).Hint("It is install, use or remove.")
}

// gossipKeyBytes is the length of a gossip key: AES-256.
const gossipKeyBytes = 32

// gossipKeys decrypts the registry's gossip keys, the primary first.
func (m *Members) gossipKeys(c core.Cluster) (pki.Secrets, error) {
	if len(c.SealedGossipKeys) == 0 {
		return nil, nil
	}
	return m.net.Identity.OpenGossipKeys(c.SealedGossipKeys)
}

func (m *Members) setGossipKeys(c core.Cluster) error {
	keys, err := m.gossipKeys(c)
	if err != nil || len(keys) == 0 {
		return err
	}
	return m.net.Gossip.SetKeys(keys)
}
