package pki

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"

	"github.com/rbee-project/rbee/core"
)

const (
	sealKeyBytes   = 32
	gossipKeyBytes = 32
	// sealVersion is the first byte of sealed data: AES-256-GCM, a random nonce of 12 bytes in
	// front, the label as additional data.
	sealVersion   = 1
	maxGossipKeys = 16
)

// NewSealKey creates a key for Seal and Open: 32 random bytes.
func NewSealKey() Secret { return random(sealKeyBytes) }

// NewGossipKey creates a key for the gossip pool: 32 random bytes.
func NewGossipKey() Secret { return random(gossipKeyBytes) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// Seal encrypts plain so that only Open with the same key and label returns it. The label names the
// purpose, so that one sealed value cannot replace another. Errors: Invalid if the key is not one
// of NewSealKey's.
func Seal(key, plain []byte, label string) ([]byte, error) {
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	return a.Seal([]byte{sealVersion}, nil, plain, []byte(label)), nil
}

// Open decrypts what Seal returned. Errors: Invalid if the key is not one of NewSealKey's;
// Integrity if the key or the label differs, or the bytes were changed.
func Open(key, sealed []byte, label string) (Secret, error) {
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return nil, unopened(label, "it is not sealed in a way that this version knows")
	}
	plain, err := a.Open(nil, nil, sealed[1:], []byte(label))
	if err != nil {
		return nil, unopened(label, "the seal key is another, or it was changed")
	}
	return plain, nil
}

func aead(key []byte) (cipher.AEAD, error) {
	if len(key) != sealKeyBytes {
		return nil, core.Errorf(core.Invalid, "the seal key has %d bytes, not %d", len(key), sealKeyBytes).Hint(
			"A queen gets the seal key when it joins; join it again.")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "use the seal key")
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	return a, core.Wrap(err, core.Internal, "use the seal key")
}

func unopened(label, why string) error {
	return core.Errorf(core.Integrity, "%s: %s", "open the sealed "+label, why).Hint(
		"Queens of one cluster share one seal key: if this queen's is lost or from another cluster, join it again.")
}

// These functions return the labels of a registry's sealed values. They include the cluster's ID,
// so that no value can be copied from another cluster.
func caKeyLabel(cluster string) string      { return "CA key of cluster " + cluster }
func gossipKeysLabel(cluster string) string { return "gossip keys of cluster " + cluster }

// sealGossipKeys seals the keys of a cluster's pool, the one in use first.
func sealGossipKeys(sealKey []byte, cluster string, keys Secrets) ([]byte, error) {
	plain, err := encodeGossipKeys(keys)
	if err != nil {
		return nil, err
	}
	return Seal(sealKey, plain, gossipKeysLabel(cluster))
}

func openGossipKeys(sealKey []byte, cluster string, sealed []byte) (Secrets, error) {
	plain, err := Open(sealKey, sealed, gossipKeysLabel(cluster))
	if err != nil {
		return nil, err
	}
	return decodeGossipKeys(plain)
}

func encodeGossipKeys(keys Secrets) ([]byte, error) {
	if err := checkGossipKeys(keys); err != nil {
		return nil, err
	}
	b, err := json.Marshal([][]byte(keys))
	return b, core.Wrap(err, core.Internal, "encode the gossip keys")
}

func decodeGossipKeys(b []byte) (Secrets, error) {
	var keys [][]byte
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, core.Errorf(core.Integrity, "read the gossip keys: they are not a list of keys").Hint("Join the node again.")
	}
	return keys, checkGossipKeys(keys)
}

func checkGossipKeys(keys Secrets) error {
	if len(keys) == 0 || len(keys) > maxGossipKeys {
		return core.Errorf(core.Invalid, "there are %d gossip keys, not 1 to %d", len(keys), maxGossipKeys).Hint("Remove keys that are no longer used.")
	}
	for i, k := range keys {
		if len(k) != gossipKeyBytes {
			return core.Errorf(core.Invalid, "gossip key %d has %d bytes, not %d", i+1, len(k), gossipKeyBytes).Hint("A key is 32 random bytes.")
		}
		for _, other := range keys[:i] {
			if bytes.Equal(k, other) {
				return core.Errorf(core.Invalid, "gossip key %d is there twice", i+1).Hint("Name every key once.")
			}
		}
	}
	return nil
}
