package gossip

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

// Keys encrypt the pool: 16, 24 or 32 bytes each (32 is AES-256), the one that encrypts first; all decrypt. They show themselves to no format verb
// and no JSON; but hclog takes slices apart by itself, so never hand it one.
type Keys [][]byte

const hidden = "[secret]"

// Format hides the keys from every verb.
func (Keys) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String hides the keys.
func (Keys) String() string { return hidden }

// MarshalText hides the keys, in JSON too.
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
		return core.WithHint(core.Errorf("", core.Invalid, "there is no gossip key"), "A pool is always encrypted: \"rbee cluster init\" makes the first key.")
	}
	for i, key := range k {
		if err := memberlist.ValidateKey(key); err != nil {
			return core.WithHint(core.E(fmt.Sprintf("gossip key %d", i+1), core.Invalid, err), "A key is 32 random bytes.")
		}
	}
	return nil
}

// changeRing makes the ring's keys exactly those wanted, the first of them primary.
//
// Keyring.RemoveKey of memberlist 0.7.0 moves the keys behind the removed one within the slice that GetKeys has handed out to whoever decrypts at
// that moment. Only the removal of the last key moves none, so keys are taken off the end, and wanted ones among them put back.
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
