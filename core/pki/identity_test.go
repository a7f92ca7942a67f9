package pki_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

func initOptions() pki.InitOptions {
	return pki.InitOptions{
		Name: "home", NodeID: "0a0b0c0d", NodeName: "box", RPCAddress: "10.0.0.1:7834", Hosts: []string{"box.lan"},
		Roles: []core.Role{core.RoleQueen, core.RoleHive}, Now: time.Now(),
		Token: core.Token{ID: "operator01", Name: "operator", Kind: core.TokenAPI, SecretHash: bytes.Repeat([]byte{'h'}, 32), Scopes: core.Scopes(), CreatedAt: time.Now()},
	}
}

func initialise(t testing.TB, dir string) pki.InitResult {
	t.Helper()
	r, err := pki.Init(dir, initOptions())
	must.NoError(t, err)
	return r
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, pki.Folder, name))
	must.NoError(t, err)
	return b
}

func write(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	must.NoError(t, os.WriteFile(filepath.Join(dir, pki.Folder, name), data, 0o600))
}

func TestInit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	r := initialise(t, dir)
	st, err := os.Stat(dir)
	must.NoError(t, err)
	must.Eq(t, 0o700|os.ModeDir, st.Mode())
	st, err = os.Stat(filepath.Join(dir, pki.Folder))
	must.NoError(t, err)
	must.Eq(t, 0o700|os.ModeDir, st.Mode())
	entries, err := os.ReadDir(filepath.Join(dir, pki.Folder))
	must.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		fi, err := e.Info()
		must.NoError(t, err)
		must.Eq(t, os.FileMode(0o600), fi.Mode(), must.Sprint(e.Name()))
	}
	must.Eq(t, []string{"ca.pem", "gossip.key", "identity.json", "init.json", "node.key", "node.pem", "seal.key"}, names)
	all, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 1, all) // no temporary files remain

	id, err := pki.Load(dir)
	must.NoError(t, err)
	must.Eq(t, r.Identity.Cluster(), id.Cluster())
	must.Eq(t, "home", id.ClusterName())
	must.Eq(t, "10.0.0.1:7834", id.RPCAddress())
	n := id.Node()
	must.Eq(t, "0a0b0c0d", n.ID)
	must.Eq(t, "box", n.Name)
	must.Eq(t, []core.Role{core.RoleQueen, core.RoleHive}, n.Roles)
	must.True(t, id.Has(core.RoleQueen))
	must.Eq(t, r.Identity.SealKey(), id.SealKey())
	must.NoError(t, id.Certificate().Leaf.VerifyHostname("box.lan"))
	must.NoError(t, id.Certificate().Leaf.VerifyHostname("10.0.0.1"))
	f, err := pki.Fingerprint(id.CAPEM())
	must.NoError(t, err)
	must.Eq(t, r.Fingerprint, f)

	seed, err := id.Seed()
	must.NoError(t, err)
	must.Eq(t, initOptions().Token.SecretHash, seed.Token.SecretHash)
	must.Eq(t, core.Scopes(), seed.Token.Scopes)
	ca, err := id.CA(seed.CAPEM, seed.SealedCAKey)
	must.NoError(t, err)
	must.Eq(t, r.Fingerprint, ca.Fingerprint())
	// The CA's key is never stored in clear.
	for _, name := range names {
		must.StrNotContains(t, string(read(t, dir, name)), string(ca.KeyPEM()))
	}
	keys, err := id.OpenGossipKeys(seed.SealedGossipKeys)
	must.NoError(t, err)
	kept, err := id.GossipKeys()
	must.NoError(t, err)
	must.Eq(t, kept, keys)

	// A second Init is refused.
	before := read(t, dir, "node.pem")
	_, err = pki.Init(dir, initOptions())
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "rbee cluster leave")
	must.Eq(t, before, read(t, dir, "node.pem"))
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	_, err = pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
	must.Eq(t, core.Conflict, core.KindOf(err))

	must.NoError(t, id.DropSeed())
	must.NoError(t, id.DropSeed())
	seed, err = id.Seed()
	must.NoError(t, err)
	must.Nil(t, seed)

	must.NoError(t, pki.Remove(dir))
	must.NoError(t, pki.Remove(dir))
	must.NoError(t, pki.Remove(filepath.Join(dir, "nowhere")))
	_, err = pki.Load(dir)
	must.Eq(t, core.NotFound, core.KindOf(err))
	all, err = os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, all)
	initialise(t, dir)
}

func TestInitRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*pki.InitOptions){
		"no queen":    func(o *pki.InitOptions) { o.Roles = []core.Role{core.RoleHive} },
		"no token":    func(o *pki.InitOptions) { o.Token = core.Token{} },
		"join token":  func(o *pki.InitOptions) { o.Token.Kind = core.TokenJoin },
		"no token id": func(o *pki.InitOptions) { o.Token.ID = "" },
		"no secret":   func(o *pki.InitOptions) { o.Token.SecretHash = nil },
		"no node id":  func(o *pki.InitOptions) { o.NodeID = "" },
		"bad address": func(o *pki.InitOptions) { o.RPCAddress = "10.0.0.1" },
		"bad host":    func(o *pki.InitOptions) { o.Hosts = []string{"a b"} },
		"long name":   func(o *pki.InitOptions) { o.Name = string(make([]byte, 100)) },
	} {
		dir := t.TempDir()
		o := initOptions()
		change(&o)
		_, err := pki.Init(dir, o)
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err))
		left, err := os.ReadDir(dir)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := pki.Load(dir)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "rbee cluster init")
	must.NoError(t, os.Mkdir(filepath.Join(dir, pki.Folder), 0o700))
	_, err = pki.Load(dir)
	must.Eq(t, core.NotFound, core.KindOf(err))

	ca := newCA(t, clusterID)
	otherKey, otherCert := sign(t, ca, signing{id: "ffffffff", roles: []core.Role{core.RoleQueen}})
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		kind   core.Kind
	}{
		"garbage identity": {func(t *testing.T, d string) { write(t, d, "identity.json", []byte("{garbage")) }, core.Integrity},
		"empty identity":   {func(t *testing.T, d string) { write(t, d, "identity.json", nil) }, core.Integrity},
		"another node": {func(t *testing.T, d string) {
			write(t, d, "identity.json", []byte(`{"cluster":"0123456789abcdef","node":"0a0b0c0d"}`))
		}, core.Integrity},
		"garbage CA":         {func(t *testing.T, d string) { write(t, d, "ca.pem", []byte("garbage")) }, core.Integrity},
		"another CA":         {func(t *testing.T, d string) { write(t, d, "ca.pem", ca.CertPEM()) }, core.Integrity},
		"garbage certs":      {func(t *testing.T, d string) { write(t, d, "node.pem", []byte("garbage")) }, core.Integrity},
		"a CA's certificate": {func(t *testing.T, d string) { write(t, d, "node.pem", read(t, d, "ca.pem")) }, core.Unauthenticated},
		"another certs":      {func(t *testing.T, d string) { write(t, d, "node.pem", otherCert) }, core.Integrity},
		"garbage key":        {func(t *testing.T, d string) { write(t, d, "node.key", []byte("garbage")) }, core.Integrity},
		"another key":        {func(t *testing.T, d string) { write(t, d, "node.key", otherKey) }, core.Integrity},
		"truncated seal key": {func(t *testing.T, d string) { write(t, d, "seal.key", make([]byte, 31)) }, core.Integrity},
		"huge file":          {func(t *testing.T, d string) { write(t, d, "ca.pem", make([]byte, 2<<20)) }, core.Integrity},
		"no key": {func(t *testing.T, d string) {
			must.NoError(t, os.Remove(filepath.Join(d, pki.Folder, "node.key")))
		}, core.Integrity},
		"folder as key": {func(t *testing.T, d string) {
			must.NoError(t, os.Remove(filepath.Join(d, pki.Folder, "node.key")))
			must.NoError(t, os.Mkdir(filepath.Join(d, pki.Folder, "node.key"), 0o700))
		}, core.Integrity},
		"readable key": {func(t *testing.T, d string) {
			must.NoError(t, os.Chmod(filepath.Join(d, pki.Folder, "node.key"), 0o640))
		}, core.Forbidden},
		"key that others may run": {func(t *testing.T, d string) {
			must.NoError(t, os.Chmod(filepath.Join(d, pki.Folder, "node.key"), 0o601))
		}, core.Forbidden},
		"readable seal key": {func(t *testing.T, d string) {
			must.NoError(t, os.Chmod(filepath.Join(d, pki.Folder, "seal.key"), 0o604))
		}, core.Forbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			initialise(t, dir)
			c.change(t, dir)
			_, err := pki.Load(dir)
			must.Eq(t, c.kind, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			must.Eq(t, name == "huge file", strings.Contains(err.Error(), "is too large"))
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	dir := t.TempDir()
	_, err := pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key, SealKey: pki.NewSealKey()})
	must.Eq(t, core.Invalid, core.KindOf(err))
	_, err = pki.Create(dir, pki.Material{CAPEM: newCA(t, clusterID).CertPEM(), NodePEM: certPEM, Key: key})
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key, GossipKeys: pki.Secrets{[]byte("short")}})
	must.Eq(t, core.Invalid, core.KindOf(err))
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	// An empty folder does not get in the way.
	must.NoError(t, os.Mkdir(filepath.Join(dir, pki.Folder), 0o755))
	id, err := pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
	must.NoError(t, err)
	must.Nil(t, id.SealKey())
	must.Eq(t, "node 0a0b0c0d", id.Node().Name)
	must.Eq(t, "home", id.ClusterName())
	_, err = id.CA(ca.CertPEM(), []byte("sealed"))
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "rbee tls cert create")
	_, err = id.SealGossipKeys(pki.Secrets{pki.NewGossipKey()})
	must.Eq(t, core.Unsupported, core.KindOf(err))
	_, err = id.OpenGossipKeys([]byte("sealed"))
	must.Eq(t, core.Unsupported, core.KindOf(err))
	_, err = id.GossipKeys()
	must.Eq(t, core.NotFound, core.KindOf(err))
	st, err := os.Stat(filepath.Join(dir, pki.Folder))
	must.NoError(t, err)
	must.Eq(t, 0o700|os.ModeDir, st.Mode())
}

func TestOpenOtherClustersSeals(t *testing.T) {
	t.Parallel()
	a, b := initialise(t, t.TempDir()).Identity, initialise(t, t.TempDir()).Identity
	seed, err := b.Seed()
	must.NoError(t, err)
	_, err = a.CA(seed.CAPEM, seed.SealedCAKey)
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = a.OpenGossipKeys(seed.SealedGossipKeys)
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = b.OpenGossipKeys(seed.SealedCAKey) // one sealed value in the place of another
	must.Eq(t, core.Integrity, core.KindOf(err))
	k := pki.NewGossipKey()
	_, err = b.SealGossipKeys(pki.Secrets{k, k})
	must.Eq(t, core.Invalid, core.KindOf(err))
	_, err = b.SealGossipKeys(nil)
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.Len(t, 16, []byte(pki.KeyFingerprint(k)))
}

func TestReplaceConsistent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newCA(t, clusterID)
	now := time.Now().Truncate(time.Second)
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}, ttl: 90 * 24 * time.Hour, now: now})
	id, err := pki.Create(dir, pki.Material{RPCAddress: "a:1", CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
	must.NoError(t, err)
	must.Eq(t, now.Add(60*24*time.Hour).UTC(), id.RenewAt().UTC())
	// A certificate with a lifetime of minutes is not due at once because of backdating.
	must.Eq(t, now.Add(6*time.Minute).UTC(), identity(t, ca, signing{id: "0a0b0c0e", roles: []core.Role{core.RoleHive}, ttl: 9 * time.Minute, now: now}).RenewAt().UTC())
	must.NoError(t, id.Check(now))
	must.Eq(t, core.Forbidden, core.KindOf(id.Check(now.Add(91*24*time.Hour))))
	must.Eq(t, core.Forbidden, core.KindOf(id.Check(now.Add(-2*time.Hour))))

	csr, err := id.Request()
	must.NoError(t, err)
	ca2 := newCA(t, clusterID)
	renewed, _, err := ca2.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive, core.RoleQueen}}, nil, time.Hour, now)
	must.NoError(t, err)
	otherKeys := func(node string, by *pki.CA) []byte {
		_, c := sign(t, by, signing{id: node, roles: []core.Role{core.RoleHive}})
		return c
	}
	stranger, _, err := newCA(t, "ffffffffffffffff").Sign(csr, pki.Node{Cluster: "ffffffffffffffff", ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive}}, nil, 0, now)
	must.NoError(t, err)
	before := read(t, dir, "ca.pem")
	for name, c := range map[string][2][]byte{
		"unknown CA":  {renewed, ca.CertPEM()},
		"another key": {otherKeys("0a0b0c0d", ca2), ca2.CertPEM()},
		"garbage":     {[]byte("garbage"), ca2.CertPEM()},
		"garbage CA":  {renewed, []byte("garbage")},
		"stranger":    {stranger, ca2.CertPEM()},
	} {
		err := id.Replace(c[0], c[1])
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name))
		must.Eq(t, before, read(t, dir, "ca.pem"))
		must.Eq(t, certPEM, read(t, dir, "node.pem"))
	}
	must.NoError(t, id.Replace(renewed, ca2.CertPEM()))
	must.Eq(t, []core.Role{core.RoleQueen, core.RoleHive}, id.Node().Roles)
	must.NoError(t, id.SetRPCAddress("b:2"))
	must.NoError(t, id.SetGossipKeys(pki.Secrets{pki.NewGossipKey(), pki.NewGossipKey()}))
	again, err := pki.Load(dir)
	must.NoError(t, err)
	must.Eq(t, "b:2", again.RPCAddress())
	must.Eq(t, id.Node(), again.Node())
	must.Eq(t, ca2.CertPEM(), again.CAPEM())
	keys, err := again.GossipKeys()
	must.NoError(t, err)
	must.Len(t, 2, keys)
	must.Eq(t, core.Invalid, core.KindOf(id.SetGossipKeys(nil)))
}

// A crash at any moment of Replace leaves an identity that loads.
func TestReplaceCrashSafe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, ca2 := newCA(t, clusterID), newCA(t, clusterID)
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	id, err := pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
	must.NoError(t, err)
	csr, err := id.Request()
	must.NoError(t, err)
	renewed, _, err := ca2.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive}}, nil, 0, time.Now())
	must.NoError(t, err)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loads := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// The two files are read one after the other, so a reader may see them at different
			// moments; a crash sees one moment.
			caPEM, node := read(t, dir, "ca.pem"), read(t, dir, "node.pem")
			if bytes.Equal(caPEM, read(t, dir, "ca.pem")) && bytes.Equal(node, read(t, dir, "node.pem")) {
				copied := t.TempDir()
				must.NoError(t, os.Mkdir(filepath.Join(copied, pki.Folder), 0o700))
				for _, name := range []string{"identity.json", "node.key"} {
					write(t, copied, name, read(t, dir, name))
				}
				write(t, copied, "ca.pem", caPEM)
				write(t, copied, "node.pem", node)
				_, err := pki.Load(copied)
				must.NoError(t, err)
				loads++
			}
		}
	})
	for range 20 {
		must.NoError(t, id.Replace(renewed, ca2.CertPEM()))
		must.NoError(t, id.Replace(certPEM, ca.CertPEM()))
	}
	close(stop)
	wg.Wait()
	must.Positive(t, loads)
}

func TestLoadFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newCA(t, clusterID)
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleQueen}})
	f := pki.Files{CA: filepath.Join(dir, "ca.pem"), Certificate: filepath.Join(dir, "n.pem"), Key: filepath.Join(dir, "n.key"), RPCAddress: "a:1"}
	_, err := pki.LoadFiles(f)
	must.Eq(t, core.NotFound, core.KindOf(err))
	for path, data := range map[string][]byte{f.CA: ca.CertPEM(), f.Certificate: certPEM, f.Key: key} {
		must.NoError(t, os.WriteFile(path, data, 0o600))
	}
	id, err := pki.LoadFiles(f)
	must.NoError(t, err)
	must.Eq(t, "0a0b0c0d", id.Node().ID)
	must.Eq(t, "node 0a0b0c0d", id.Node().Name)
	must.Eq(t, "a:1", id.RPCAddress())
	must.Nil(t, id.SealKey())
	must.Eq(t, core.Unsupported, core.KindOf(id.Replace(certPEM, ca.CertPEM())))
	must.Eq(t, core.Unsupported, core.KindOf(id.SetGossipKeys(pki.Secrets{pki.NewGossipKey()})))
	seed, err := id.Seed()
	must.NoError(t, err)
	must.Nil(t, seed)
	_, err = id.CA(ca.CertPEM(), nil)
	must.Eq(t, core.Unsupported, core.KindOf(err))

	must.NoError(t, id.Reload(f))
	key2, cert2 := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleQueen}})
	must.NoError(t, os.WriteFile(f.Certificate, cert2, 0o600))
	must.Eq(t, core.Integrity, core.KindOf(id.Reload(f))) // the key does not fit
	must.Eq(t, certPEM, pemOf(id.Certificate().Certificate[0]))
	must.NoError(t, os.WriteFile(f.Key, key2, 0o600))
	must.NoError(t, id.Reload(f))
	must.Eq(t, cert2, pemOf(id.Certificate().Certificate[0]))
	key3, cert3 := sign(t, ca, signing{id: "ffffffff", roles: []core.Role{core.RoleQueen}})
	must.NoError(t, os.WriteFile(f.Certificate, cert3, 0o600))
	must.NoError(t, os.WriteFile(f.Key, key3, 0o600))
	must.Eq(t, core.Conflict, core.KindOf(id.Reload(f)))
	must.NoError(t, os.Chmod(f.Key, 0o604))
	_, err = pki.LoadFiles(f)
	must.Eq(t, core.Forbidden, core.KindOf(err))
}

func FuzzLoad(f *testing.F) {
	dir := f.TempDir()
	initialise(f, dir)
	good := [][]byte{read(f, dir, "identity.json"), read(f, dir, "ca.pem"), read(f, dir, "node.pem"), read(f, dir, "node.key"), read(f, dir, "init.json")}
	f.Add(good[0], good[1], good[2], good[3], good[4])
	f.Add([]byte("{}"), good[1], good[2], good[3], []byte("{}"))
	f.Add(good[0], good[2], good[1], good[3], []byte("null"))
	f.Add(good[0], []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), good[2], good[1], good[4][:50])
	f.Fuzz(func(t *testing.T, identity, ca, node, key, seed []byte) {
		dir := t.TempDir()
		must.NoError(t, os.Mkdir(filepath.Join(dir, pki.Folder), 0o700))
		for name, data := range map[string][]byte{"identity.json": identity, "ca.pem": ca, "node.pem": node, "node.key": key, "init.json": seed} {
			write(t, dir, name, data)
		}
		id, err := pki.Load(dir)
		if err != nil {
			if k := core.KindOf(err); k != core.Integrity && k != core.Unauthenticated {
				t.Fatalf("damaged files are %s: %v", k, err)
			}
			return
		}
		if !pki.IsNodeID(id.Node().ID) || len(id.Node().Roles) == 0 {
			t.Fatalf("loaded as %+v", id.Node())
		}
		if _, err := id.Seed(); err != nil && core.KindOf(err) != core.Integrity {
			t.Fatalf("a damaged seed is %s: %v", core.KindOf(err), err)
		}
		if _, err := json.Marshal(id); err != nil {
			t.Fatal(err)
		}
	})
}
