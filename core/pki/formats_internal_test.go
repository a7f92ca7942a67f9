package pki

import (
	"crypto/hmac"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// Every later version reads what people keep for years or what the registry has sealed: these
// formats do not change.
func TestFormatsStable(t *testing.T) {
	t.Parallel()
	key := make([]byte, sealKeyBytes)
	for i := range key {
		key[i] = byte(i)
	}
	const text = "rbee-recovery-0123456789abcdef-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh_c8szj"
	must.Eq(t, text, string(formatRecoveryKey("0123456789abcdef", key)))
	cluster, got, err := ParseRecoveryKey(text)
	must.NoError(t, err)
	must.Eq(t, "0123456789abcdef", cluster)
	must.Eq(t, key, []byte(got))
	for _, wrong := range []string{text + "A", text + "AA", text + "!", text[:len(text)-1], text[:len(text)-1] + "!", "x" + text, text[1:]} {
		_, _, err := ParseRecoveryKey(wrong)
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(wrong))
	}
	must.Eq(t, "CA key of cluster a", caKeyLabel("a"))
	must.Eq(t, "gossip keys of cluster a", gossipKeysLabel("a"))
}

// A proof depends on this node's key, and differs from everything that the key signs elsewhere.
func TestProof(t *testing.T) {
	t.Parallel()
	i := &Identity{}
	i.state.Store(&state{key: Secret("the key")})
	sum := sha256.Sum256([]byte("the key"))
	mac := hmac.New(sha256.New, sum[:])
	mac.Write([]byte("rbee local proof\nmessage"))
	must.Eq(t, mac.Sum(nil), i.Proof([]byte("message")))
	must.NotEq(t, i.Proof([]byte("message")), i.Proof([]byte("another")))
	other := &Identity{}
	other.state.Store(&state{key: Secret("another key")})
	must.NotEq(t, i.Proof([]byte("message")), other.Proof([]byte("message")))
}

// An error about one of several keys names the key.
func TestCheckGossipKeys(t *testing.T) {
	t.Parallel()
	a, b := NewGossipKey(), NewGossipKey()
	for says, keys := range map[string]Secrets{
		"key 2 is there twice": {a, a}, "key 3 is there twice": {a, b, a}, "key 1 has 31 bytes": {a[:31]}, "key 2 has 33 bytes": {a, append(slices.Clip(b), 0)}, "there are 0": nil,
	} {
		must.ErrorContains(t, checkGossipKeys(keys), says)
	}
	many := Secrets{}
	for range maxGossipKeys {
		many = append(many, NewGossipKey())
	}
	must.NoError(t, checkGossipKeys(many))
	must.ErrorContains(t, checkGossipKeys(append(many, NewGossipKey())), "there are 17")
	_, err := decodeGossipKeys([]byte("[]"))
	must.Error(t, err)
}

// A half-written file does not get in the way, and a file that is much too large is not read.
func TestPutAndRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	i := &Identity{dir: dir}
	must.NoError(t, os.WriteFile(filepath.Join(dir, ".a.new"), []byte("left by a crash"), 0o600))
	must.NoError(t, i.put("a", []byte("text")))
	b, err := i.get("a")
	must.NoError(t, err)
	must.Eq(t, "text", string(b))
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 1, left)

	root, err := os.OpenRoot(dir)
	must.NoError(t, err)
	defer root.Close()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	_, err = readFile(root, "folder")
	must.ErrorContains(t, err, "folder is not a file")
	for size, kind := range map[int64]core.Kind{maxFileBytes: "", maxFileBytes + 1: core.Integrity, 1 << 32: core.Integrity} {
		must.NoError(t, os.Truncate(filepath.Join(dir, "a"), size)) // takes no space on disk
		_, err = readFile(root, "a")
		must.Eq(t, kind, core.KindOf(err))
	}

	// A failed removal is reported.
	must.NoError(t, os.MkdirAll(filepath.Join(dir, fileSeed, "x"), 0o700))
	must.Eq(t, core.Internal, core.KindOf(i.DropSeed()))
	_, err = i.Seed()
	must.Error(t, err)
	must.NoError(t, os.MkdirAll(filepath.Join(dir, fileInfo, "x"), 0o700))
	i.state.Store(&state{info: info{RPCAddress: "a:1"}})
	must.Error(t, i.SetRPCAddress("b:1"))
	must.Eq(t, "a:1", i.RPCAddress())
	none := &Identity{}
	_, err = none.get("a")
	must.ErrorIs(t, err, os.ErrNotExist)
	must.NoError(t, none.DropSeed())
	_, err = NewRequest([]byte("no key"), "0a0b0c0d")
	must.Eq(t, core.Integrity, core.KindOf(err))
}
