package pki_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/pki"
)

// C-08: an identity, and each change to it, is on disk before anyone learns of it.
func TestPowerLossIdentity(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		data := filepath.Join(dir, "data")
		made, err := pki.Init(data, pki.InitOptions{
			NodeID: "0123abcd", NodeName: "one", RPCAddress: "10.0.0.1:7834", Roles: []core.Role{core.RoleQueen}, Now: time.Now(),
			Token: core.Token{ID: "t", Kind: core.TokenAPI, SecretHash: []byte("hash")},
		})
		must.NoError(t, err)
		ack("a cluster")
		id := made.Identity
		must.NoError(t, id.SetRPCAddress("10.0.0.2:7834"))
		ack("an address")
		must.NoError(t, id.SetGossipKeys(pki.Secrets{pki.NewGossipKey()}))
		ack("gossip keys")
		seed, err := made.Identity.Seed()
		must.NoError(t, err)
		ca, err := id.CA(seed.CAPEM, seed.SealedCAKey)
		must.NoError(t, err)
		csr, err := id.Request()
		must.NoError(t, err)
		renewed, _, err := ca.Sign(csr, id.Node(), nil, 0, time.Now())
		must.NoError(t, err)
		must.NoError(t, id.Replace(renewed, id.CAPEM()))
		ack("a certificate")
		must.NoError(t, id.DropSeed())
		ack("a seed that is in the registry")
		must.NoError(t, pki.Remove(data))
		ack("a node that left")
	}})
}
