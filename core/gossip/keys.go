package gossip

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

// Keys encrypt the pool: 16, 24 or 32 bytes each (32 is AES-256). The first one encrypts; all
// decrypt. Format verbs and JSON hide them; but hclog prints slices element by element, so never
// pass it one.
type Keys [][]byte

const hidden = "[secret]"

// Format hides the keys from every verb.
func (Keys) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String hides the keys.
func (Keys) String() string { return hidden }

// MarshalText hides the keys in JSON.
func (Keys) MarshalText() ([]byte, error) { return []byte(hidden), nil }

func (k Keys) clone() Keys {
	out := make(Keys, len(k))
	for i := range k {
		out[i] = bytes.Clone(k[i])
	}
	return out
}

func (k Keys) check() error {
	if len(k) == 0 {
		return core.Errorf(core.Invalid, "there is no gossip key").Hint("A pool is always encrypted: \"rbee cluster init\" makes the first key.")
	}
	for i, key := range k {
		if err := memberlist.ValidateKey(key); err != nil {
			return core.WithHint(core.Wrap(err, core.Invalid, fmt.Sprintf("gossip key %d", i+1)), "A key is 32 random bytes.")
		}
	}
	return nil
}

// keyStep is the pause between the steps of ReplaceKeys. Within it, every node connected to a queen
// receives the new keys.
const keyStep = 3 * time.Second

// ReplaceKeys replaces the pool's keys without losing the nodes that receive them some seconds
// later: the pool accepts the new keys at once, encrypts with the first of them after keyStep, and
// drops the old ones after another keyStep. If the pool does not run, ReplaceKeys acts as SetKeys.
// Errors: Invalid.
func (p *Pool) ReplaceKeys(keys Keys) error {
	if err := keys.check(); err != nil {
		return err
	}
	keys = keys.clone()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list == nil {
		p.next = nil
		return p.setKeysLocked(keys)
	}
	if p.next == nil && sameKeys(keys, p.opts.Keys) || p.next != nil && sameKeys(keys, p.next) {
		return nil
	}
	if err := p.setKeysLocked(union(p.opts.Keys, keys)); err != nil {
		return err
	}
	p.next, p.nextAt = keys, time.Now().Add(keyStep)
	p.signal()
	return nil
}

// stepKeys takes the due steps of ReplaceKeys. The returned channel fires at the next step; it is
// nil if there is none.
func (p *Pool) stepKeys() <-chan time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		return nil
	}
	if left := time.Until(p.nextAt); left > 0 {
		return time.After(left)
	}
	var err error
	if slices.Equal(p.opts.Keys[0], p.next[0]) {
		err, p.next = p.setKeysLocked(p.next), nil
	} else {
		err, p.nextAt = p.setKeysLocked(union(p.next, p.opts.Keys)), time.Now().Add(keyStep)
	}
	if err != nil {
		p.log.Error("cannot replace the gossip keys", "error", err)
		p.next = nil
	}
	if p.next == nil {
		return nil
	}
	return time.After(keyStep)
}

// setKeysLocked replaces the ring's keys. The caller holds p.mu.
func (p *Pool) setKeysLocked(keys Keys) error {
	if sameKeys(keys, p.opts.Keys) {
		return nil
	}
	if err := changeRing(p.ring, keys); err != nil {
		return core.Wrap(err, core.Internal, "change the gossip keys")
	}
	p.opts.Keys = keys
	return nil
}

func sameKeys(a, b Keys) bool { return slices.EqualFunc(a, b, slices.Equal[[]byte]) }

// union returns the keys of a, then those of b that a lacks.
func union(a, b Keys) Keys {
	out := slices.Clone(a)
	for _, k := range b {
		if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, k) }) {
			out = append(out, k)
		}
	}
	return out
}

// changeRing makes the ring's keys exactly the wanted ones, the first of them primary.
//
// Keyring.RemoveKey of memberlist 0.7.0 shifts the keys behind the removed one within the slice
// that GetKeys has returned to a decrypting goroutine. Only removing the last key shifts none, so
// changeRing removes keys from the end and adds wanted ones among them back.
func changeRing(ring *memberlist.Keyring, want Keys) error {
	for _, k := range want {
		if err := ring.AddKey(k); err != nil {
			return err
		}
	}
	if err := ring.UseKey(want[0]); err != nil {
		return err
	}
	unwanted := func(k []byte) bool {
		return !slices.ContainsFunc(want, func(w []byte) bool { return bytes.Equal(w, k) })
	}
	for {
		keys := ring.GetKeys()
		if !slices.ContainsFunc(keys, unwanted) {
			break
		}
		if err := ring.RemoveKey(keys[len(keys)-1]); err != nil {
			return err
		}
	}
	for _, k := range want {
		if err := ring.AddKey(k); err != nil {
			return err
		}
	}
	return nil
}
