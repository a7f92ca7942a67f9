package pki_test

import (
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// The recovery key and the contents of the registry produce a queen of the cluster, whose
// certificate the old nodes accept. With one wrong character, or another cluster's key, nothing is
// written.
func TestRecover(t *testing.T) {
	t.Parallel()
	now := time.Now()
	options := func() pki.InitOptions {
		return pki.InitOptions{
			NodeID: "0123abcd", NodeName: "one", RPCAddress: "10.0.0.1:7834", Roles: []core.Role{core.RoleQueen}, Now: now,
			Token: core.Token{ID: "t", Kind: core.TokenAPI, SecretHash: []byte("hash")},
		}
	}
	made, err := pki.Init(t.TempDir(), options())
	must.NoError(t, err)
	other, err := pki.Init(t.TempDir(), options())
	must.NoError(t, err)
	seed, err := made.Identity.Seed()
	must.NoError(t, err)
	text, err := made.Identity.RecoveryKey()
	must.NoError(t, err)
	cluster, key, err := pki.ParseRecoveryKey(" " + string(text) + "\n")
	must.NoError(t, err)
	must.Eq(t, made.Identity.Cluster(), cluster)
	for i := range text {
		wrong := []byte(string(text))
		wrong[i] ^= 1
		_, _, err := pki.ParseRecoveryKey(string(wrong))
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(i))
		must.False(t, strings.Contains(err.Error()+core.HintOf(err), string(text[len(text)-20:])))
	}

	recovery := pki.RecoverOptions{
		Cluster: core.Cluster{ID: cluster, CACertificates: seed.CAPEM, SealedCAKey: seed.SealedCAKey, SealedGossipKeys: seed.SealedGossipKeys},
		SealKey: key, NodeID: "89abcdef", NodeName: "one", RPCAddress: "10.0.0.2:7834", Roles: []core.Role{core.RoleQueen}, Now: now,
	}
	wrong := recovery
	wrong.SealKey = other.Identity.SealKey()
	dir := t.TempDir()
	_, err = pki.Recover(dir, wrong)
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = pki.Load(dir)
	must.Eq(t, core.NotFound, core.KindOf(err))

	id, err := pki.Recover(dir, recovery)
	must.NoError(t, err)
	must.Eq(t, "89abcdef", id.Node().ID)
	must.Eq(t, made.Identity.CAPEM(), id.CAPEM())
	_, err = id.CA(seed.CAPEM, seed.SealedCAKey)
	must.NoError(t, err)
	was, err := made.Identity.GossipKeys()
	must.NoError(t, err)
	is, err := id.GossipKeys()
	must.NoError(t, err)
	must.Eq(t, was, is)
	_, err = pki.Load(dir)
	must.NoError(t, err)
}
