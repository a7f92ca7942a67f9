package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
)

func TestKeyOnOtherCurve(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must.NoError(t, err)
	_, err = pki.ParseCA(newCA(t, clusterID).CertPEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	must.ErrorContains(t, err, "not one of ECDSA P-256")
}

// A folder takes the place of one of the identity's files: nothing of the new certificate counts,
// on disk or in memory.
func TestReplaceDiskError(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ca.pem", "node.pem", "identity.json"} {
		dir := t.TempDir()
		ca := newCA(t, clusterID)
		key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
		id, err := pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
		must.NoError(t, err)
		_, err = os.Stat(filepath.Join(dir, pki.Folder, "seal.key"))
		must.ErrorIs(t, err, fs.ErrNotExist) // a hive has none, not even an empty one
		csr, err := id.Request()
		must.NoError(t, err)
		renewed, _, err := ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive, core.RoleQueen}}, nil, 0, time.Now())
		must.NoError(t, err)
		path := filepath.Join(dir, pki.Folder, name)
		must.NoError(t, os.Remove(path))
		must.NoError(t, os.Mkdir(path, 0o700))
		must.Error(t, id.Replace(renewed, ca.CertPEM()), must.Sprint(name))
		must.Eq(t, certPEM, pemOf(id.Certificate().Certificate[0]), must.Sprint(name))
	}
}

func TestLoadFolderIsFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, pki.Folder), nil, 0o600))
	_, err := pki.Load(dir)
	must.Eq(t, core.Internal, core.KindOf(err))
}

// Load notices every flipped bit that no signature covers.
func TestLoadFlippedBit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	initialise(t, dir)
	path := filepath.Join(dir, pki.Folder, "identity.json")
	sound, err := os.ReadFile(path)
	must.NoError(t, err)
	for i := range sound {
		bad := slices.Clone(sound)
		bad[i] ^= 1 << (i % 8)
		must.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err = pki.Load(dir)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprintf("byte %d: %q", i, bad))
		must.StrContains(t, err.Error(), "identity.json")
		must.StrContains(t, core.HintOf(err), "backup")
	}
	must.NoError(t, os.WriteFile(path, sound, 0o600))
	_, err = pki.Load(dir)
	must.NoError(t, err)
}

// No operation on an identity leaves a file open. No other test runs concurrently, and no finalizer
// closes forgotten files.
func TestNothingStaysOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	dir := t.TempDir()
	step := func(name string, err error) {
		t.Helper()
		must.NoError(t, err, must.Sprint(name))
		must.SliceEmpty(t, coretest.OpenBelow(t, dir), must.Sprint(name))
	}
	id := initialise(t, dir).Identity
	step("make", nil)
	_, err := pki.Load(dir)
	step("load", err)
	_, err = pki.LoadFiles(pki.Files{
		CA: filepath.Join(dir, pki.Folder, "ca.pem"), Certificate: filepath.Join(dir, pki.Folder, "node.pem"), Key: filepath.Join(dir, pki.Folder, "node.key"),
	})
	step("load files", err)
	step("an address", id.SetRPCAddress("10.9.9.9:7834"))
	step("gossip keys", id.SetGossipKeys(pki.Secrets{pki.NewGossipKey()}))
	_, err = id.GossipKeys()
	step("the gossip keys again", err)
	_, err = id.Seed()
	step("a seed", err)
	step("no seed", id.DropSeed())
	_, err = pki.Init(dir, initOptions())
	must.Eq(t, core.Conflict, core.KindOf(err))
	step("make another", nil)
	entries, err := os.ReadDir(dir)
	step("the folder", err)
	must.Len(t, 1, entries, must.Sprint("of an attempt nothing is left"))
	step("leave", pki.Remove(dir))
	entries, err = os.ReadDir(dir)
	step("the empty folder", err)
	must.SliceEmpty(t, entries)
}

// Sessions are never resumed: that would skip the checks for expiry and revocation.
func TestSessionsNotResumed(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "0000000a", roles: []core.Role{core.RoleQueen}})
	server := queen.ServerConfig("x")
	now, err := server.GetConfigForClient(nil)
	must.NoError(t, err)
	must.True(t, server.SessionTicketsDisabled && now.SessionTicketsDisabled)
	client := queen.ClientConfig("x", core.RoleQueen, "")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 3 {
		state, serverErr, clientErr := shake(t, server, client)
		must.NoError(t, errors.Join(serverErr, clientErr))
		must.False(t, state.DidResume)
	}
}

// A join token pins the CA's certificate: presenting another certificate with that fingerprint is
// not enough.
func TestJoinPinsCA(t *testing.T) {
	t.Parallel()
	queen := identity(t, newCA(t, clusterID), signing{id: "0000000a", roles: []core.Role{core.RoleQueen}})
	leaf := queen.Certificate().Certificate[0]
	cert, err := x509.ParseCertificate(leaf)
	must.NoError(t, err)
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert, cert}, NegotiatedProtocol: "x"}
	must.Error(t, pki.JoinConfig("x", fingerprintOf(t, leaf)).VerifyConnection(state))
}
