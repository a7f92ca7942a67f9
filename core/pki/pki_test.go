package pki_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

const clusterID = "0123456789abcdef"

func newCA(t testing.TB, id string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(id, "home", time.Now().Add(-72*time.Hour))
	must.NoError(t, err)
	return ca
}

type signing struct {
	id    string
	roles []core.Role
	hosts []string
	ttl   time.Duration
	now   time.Time
}

// sign creates a key and a certificate.
func sign(t testing.TB, ca *pki.CA, s signing) (key pki.Secret, certPEM []byte) {
	t.Helper()
	if s.now.IsZero() {
		s.now = time.Now()
	}
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, s.id)
	must.NoError(t, err)
	certPEM, _, err = ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: s.id, Name: "node " + s.id, Roles: s.roles}, s.hosts, s.ttl, s.now)
	must.NoError(t, err)
	return key, certPEM
}

// identity creates a node of the CA's cluster.
func identity(t testing.TB, ca *pki.CA, s signing) *pki.Identity {
	t.Helper()
	key, certPEM := sign(t, ca, s)
	id, err := pki.Create(t.TempDir(), pki.Material{
		ClusterName: "home", Name: "node " + s.id, RPCAddress: "10.0.0.1:7834", CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key,
	})
	must.NoError(t, err)
	return id
}

func parseCert(t testing.TB, certPEM []byte) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode(certPEM)
	must.NotNil(t, b)
	c, err := x509.ParseCertificate(b.Bytes)
	must.NoError(t, err)
	return c
}

func pemOf(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }

func TestSign(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	now := time.Now().Truncate(time.Second)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "0a0b0c0d")
	must.NoError(t, err)
	hosts := []string{"box.lan", "10.0.0.7", "fe80::1", "Box.lan", "10.0.0.7"}
	certPEM, n, err := ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Name: "box", Roles: []core.Role{core.RoleHive, core.RoleQueen}}, hosts, 0, now)
	must.NoError(t, err)
	c := parseCert(t, certPEM)
	spki, err := x509.MarshalPKIXPublicKey(c.PublicKey)
	must.NoError(t, err)
	must.Eq(t, pki.Node{
		Cluster: clusterID, ID: "0a0b0c0d", Name: "box", Roles: []core.Role{core.RoleQueen, core.RoleHive}, KeyHash: pki.KeyHash(spki), NotAfter: now.Add(pki.DefaultTTL).UTC(),
	}, n)
	must.Eq(t, []string{"hive." + clusterID + ".rbee", "queen." + clusterID + ".rbee", "localhost", "box.lan"}, c.DNSNames)
	must.Eq(t, "[127.0.0.1 ::1 10.0.0.7 fe80::1]", fmt.Sprint(c.IPAddresses))
	must.Eq(t, "rbee://"+clusterID+"/node/0a0b0c0d", c.URIs[0].String())
	must.Eq(t, "0a0b0c0d", c.Subject.CommonName)
	must.Eq(t, now.Add(-time.Hour).UTC(), c.NotBefore)
	must.False(t, c.IsCA)
	roots, err := pki.Roots(ca.CertPEM())
	must.NoError(t, err)
	for _, name := range []string{"queen." + clusterID + ".rbee", "hive." + clusterID + ".rbee", "localhost", "box.lan", "127.0.0.1", "::1", "10.0.0.7"} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			_, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}})
			must.NoError(t, err)
		}
	}

	// No certificate outlives the CA's.
	late := ca.NotAfter().Add(-time.Hour)
	_, n, err = ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive}}, nil, 0, late)
	must.NoError(t, err)
	must.Eq(t, ca.NotAfter(), n.NotAfter)
	_, _, err = ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive}}, nil, 0, ca.NotAfter())
	must.Eq(t, core.Unavailable, core.KindOf(err))
}

// Clients that check only host names, such as browsers and OpenAI clients, cannot mistake a hive
// for a queen.
func TestHiveCertificateNamesNoHost(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	hosts := []string{"box.lan", "10.0.0.7", "localhost", "127.0.0.1"}
	for _, role := range []core.Role{core.RoleHive, core.RoleQueen} {
		key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{role}, hosts: hosts})
		c := parseCert(t, certPEM)
		for _, host := range append(hosts, "::1") {
			must.Eq(t, role == core.RoleQueen, c.VerifyHostname(host) == nil, must.Sprint(role, host))
		}
		must.NoError(t, c.VerifyHostname(pki.ServerName(role, clusterID)))

		// A certificate in the old format, or for another address, is renewed at once.
		id, err := pki.Create(t.TempDir(), pki.Material{Name: "box", RPCAddress: "10.0.0.7:7834", CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
		must.NoError(t, err)
		must.False(t, id.Outdated())
		must.NoError(t, id.SetRPCAddress("10.0.0.8:7834"))
		must.True(t, id.Outdated())
		csr, err := id.Request()
		must.NoError(t, err)
		renewed, _, err := ca.Sign(csr, id.Node(), []string{"10.0.0.8"}, 0, time.Now())
		must.NoError(t, err)
		must.NoError(t, id.Replace(renewed, ca.CertPEM()))
		must.False(t, id.Outdated())
	}
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	template := parseCert(t, certPEM)
	template.DNSNames = append(template.DNSNames, "localhost")
	old := resign(t, ca, template)
	id, err := pki.Create(t.TempDir(), pki.Material{Name: "box", RPCAddress: "10.0.0.7:7834", CAPEM: ca.CertPEM(), NodePEM: old, Key: key})
	must.NoError(t, err)
	must.True(t, id.Outdated())
}

// resign signs a certificate as an older CA did.
func resign(t *testing.T, ca *pki.CA, template *x509.Certificate) []byte {
	t.Helper()
	block, _ := pem.Decode(ca.KeyPEM())
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, parseCert(t, ca.CertPEM()), template.PublicKey, key)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "0a0b0c0d")
	must.NoError(t, err)
	other, err := pki.NewRequest(key, "ffffffff")
	must.NoError(t, err)
	badSignature := bytes.Clone(csr)
	badSignature[len(badSignature)-1] ^= 1
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	edCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "0a0b0c0d"}}, edKey)
	must.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must.NoError(t, err)
	p384CSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "0a0b0c0d"}}, p384)
	must.NoError(t, err)
	good := pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Roles: []core.Role{core.RoleHive}}
	with := func(f func(*pki.Node)) pki.Node { n := good; f(&n); return n }
	for name, c := range map[string]struct {
		csr   []byte
		node  pki.Node
		hosts []string
		ttl   time.Duration
	}{
		"no request":         {csr: nil, node: good},
		"garbage request":    {csr: []byte("garbage"), node: good},
		"PEM request":        {csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), node: good},
		"truncated request":  {csr: csr[:len(csr)-5], node: good},
		"large request":      {csr: make([]byte, 1<<20), node: good},
		"bad signature":      {csr: badSignature, node: good},
		"ed25519 key":        {csr: edCSR, node: good},
		"P-384 key":          {csr: p384CSR, node: good},
		"another's request":  {csr: other, node: good},
		"another cluster":    {csr: csr, node: with(func(n *pki.Node) { n.Cluster = "ffffffffffffffff" })},
		"no cluster":         {csr: csr, node: with(func(n *pki.Node) { n.Cluster = "" })},
		"no role":            {csr: csr, node: with(func(n *pki.Node) { n.Roles = nil })},
		"unknown role":       {csr: csr, node: with(func(n *pki.Node) { n.Roles = []core.Role{"root"} })},
		"long name":          {csr: csr, node: with(func(n *pki.Node) { n.Name = strings.Repeat("x", 65) })},
		"control characters": {csr: csr, node: with(func(n *pki.Node) { n.Name = "a\nb" })},
		// A hive that could name its own hosts could otherwise become a queen.
		"role as host":            {csr: csr, node: good, hosts: []string{"queen." + clusterID + ".rbee"}},
		"role as host, upper":     {csr: csr, node: good, hosts: []string{"QUEEN." + clusterID + ".RBEE"}},
		"role as host, final dot": {csr: csr, node: good, hosts: []string{"queen." + clusterID + ".rbee."}},
		"wildcard":                {csr: csr, node: good, hosts: []string{"*." + clusterID + ".rbee"}},
		"any wildcard":            {csr: csr, node: good, hosts: []string{"*.lan"}},
		"empty host":              {csr: csr, node: good, hosts: []string{""}},
		"host with port":          {csr: csr, node: good, hosts: []string{"a:1"}},
		"host with null":          {csr: csr, node: good, hosts: []string{"a\x00.lan"}},
		"many hosts":              {csr: csr, node: good, hosts: strings.Split(strings.Repeat("a,", 70)+"a", ",")},
		"negative life":           {csr: csr, node: good, ttl: -time.Hour},
	} {
		_, _, err := ca.Sign(c.csr, c.node, c.hosts, c.ttl, time.Now())
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err), must.Sprint(name))
		must.Eq(t, name == "large request", strings.Contains(err.Error(), "it is too large"), must.Sprint(name))
	}
	bad := with(func(n *pki.Node) { n.ID = "ABCDEFGH" })
	upper, err := pki.NewRequest(key, "ABCDEFGH")
	must.NoError(t, err)
	_, _, err = ca.Sign(upper, bad, nil, 0, time.Now())
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func TestNewCARefuses(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "short", "0123456789ABCDEF", "a.b.c.d.e.f", strings.Repeat("a", 33)} {
		_, err := pki.NewCA(id, "home", time.Now())
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(id))
	}
	_, err := pki.NewCA(clusterID, strings.Repeat("n", 65), time.Now())
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func TestParseCA(t *testing.T) {
	t.Parallel()
	a, b := newCA(t, clusterID), newCA(t, clusterID)
	got, err := pki.ParseCA(append(a.CertPEM(), b.CertPEM()...), a.KeyPEM())
	must.NoError(t, err)
	must.Eq(t, clusterID, got.Cluster())
	must.Eq(t, a.CertPEM(), got.CertPEM())
	must.Eq(t, a.Fingerprint(), got.Fingerprint())
	f, err := pki.Fingerprint(a.CertPEM())
	must.NoError(t, err)
	must.Eq(t, a.Fingerprint(), f)
	must.NotEq(t, b.Fingerprint(), f)
	must.Len(t, 52, []byte(f))

	nodeKey, nodeCert := sign(t, a, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	for name, c := range map[string]struct{ cert, key []byte }{
		"another's key":   {a.CertPEM(), b.KeyPEM()},
		"a node's":        {nodeCert, nodeKey},
		"no certificate":  {nil, a.KeyPEM()},
		"no key":          {a.CertPEM(), nil},
		"swapped":         {a.KeyPEM(), a.CertPEM()},
		"garbage":         {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), a.KeyPEM()},
		"garbage key":     {a.CertPEM(), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
		"key among certs": {append(a.CertPEM(), a.KeyPEM()...), a.KeyPEM()},
		"huge":            {bytes.Repeat([]byte("x"), 2<<20), a.KeyPEM()},
	} {
		_, err := pki.ParseCA(c.cert, c.key)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err))
	}
	_, err = pki.Fingerprint([]byte("garbage"))
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = pki.Roots(selfSigned(t)) // it may sign, but states that it is not a CA
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = pki.Roots(nodeCert)
	must.Eq(t, core.Integrity, core.KindOf(err))
}

// selfSigned creates a certificate that may sign others only by its key usage.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestNodeOfRefuses(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	_, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	_, otherPEM := sign(t, newCA(t, "ffffffffffffffff"), signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	for name, change := range map[string]func(*x509.Certificate){
		"another name": func(c *x509.Certificate) { c.Subject.CommonName = "ffffffff" },
		"no URI":       func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":     func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"https":        func(c *x509.Certificate) { u := *c.URIs[0]; u.Scheme = "https"; c.URIs[0] = &u },
		"query":        func(c *x509.Certificate) { u := *c.URIs[0]; u.RawQuery = "a"; c.URIs[0] = &u },
		"id in upper case": func(c *x509.Certificate) {
			u := *c.URIs[0]
			u.Path, c.URIs[0], c.Subject.CommonName = "/node/0A0B0C0D", &u, "0A0B0C0D"
		},
		"cluster in upper case": func(c *x509.Certificate) {
			u := *c.URIs[0]
			u.Host, c.URIs[0], c.DNSNames = "0123456789ABCDEF", &u, []string{pki.ServerName(core.RoleHive, "0123456789ABCDEF")}
		},
		"deeper":             func(c *x509.Certificate) { u := *c.URIs[0]; u.Path += "/x"; c.URIs[0] = &u },
		"no role":            func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} },
		"role of another":    func(c *x509.Certificate) { c.URIs = parseCert(t, otherPEM).URIs },
		"role in upper case": func(c *x509.Certificate) { c.DNSNames = []string{"HIVE." + clusterID + ".rbee"} },
		"a CA":               func(c *x509.Certificate) { c.IsCA = true },
	} {
		c := parseCert(t, certPEM)
		change(c)
		_, err := pki.NodeOf(c)
		must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err))
	}
	_, err := pki.NodeOf(nil)
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
	_, err = pki.NodeOf(parseCert(t, ca.CertPEM()))
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
}

func TestSeal(t *testing.T) {
	t.Parallel()
	key := pki.NewSealKey()
	sealed, err := pki.Seal(key, []byte("plain"), "label")
	must.NoError(t, err)
	must.StrNotContains(t, string(sealed), "plain")
	plain, err := pki.Open(key, sealed, "label")
	must.NoError(t, err)
	must.Eq(t, "plain", string(plain))
	again, err := pki.Seal(key, []byte("plain"), "label")
	must.NoError(t, err)
	must.NotEq(t, sealed, again)

	for name, open := range map[string]func() error{
		"another key":   func() error { _, err := pki.Open(pki.NewSealKey(), sealed, "label"); return err },
		"another label": func() error { _, err := pki.Open(key, sealed, "Label"); return err },
		"no label":      func() error { _, err := pki.Open(key, sealed, ""); return err },
	} {
		err := open()
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err))
	}
	for n := range sealed {
		_, err := pki.Open(key, sealed[:n], "label")
		must.Eq(t, core.Integrity, core.KindOf(err))
		flipped := bytes.Clone(sealed)
		flipped[n] ^= 1
		_, err = pki.Open(key, flipped, "label")
		must.Eq(t, core.Integrity, core.KindOf(err))
	}
	for _, bad := range [][]byte{nil, key[:16], append(bytes.Clone(key), 0)} {
		_, err := pki.Seal(bad, []byte("plain"), "label")
		must.Eq(t, core.Invalid, core.KindOf(err))
		_, err = pki.Open(bad, sealed, "label")
		must.Eq(t, core.Invalid, core.KindOf(err))
	}
}

func TestSecretsHideThemselves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := initialise(t, dir)
	id := r.Identity
	seed, err := id.Seed()
	must.NoError(t, err)
	keys, err := id.GossipKeys()
	must.NoError(t, err)
	ca, err := id.CA(seed.CAPEM, seed.SealedCAKey)
	must.NoError(t, err)
	key := read(t, dir, "node.key")
	material := pki.Material{Name: "n", CAPEM: ca.CertPEM(), Key: key, SealKey: id.SealKey(), GossipKeys: keys, Seed: seed}
	things := []any{id, *seed, seed, ca, material, &material, id.SealKey(), keys, ca.KeyPEM(), pki.Secret(key), r}
	must.Eq(t, "[secret] [secret]", fmt.Sprintf("%s %x", id.SealKey(), keys))
	var b bytes.Buffer
	for _, thing := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&b, verb+" ", thing)
		}
		j, err := json.Marshal(thing)
		must.NoError(t, err)
		b.Write(j)
	}
	// hclog prints slices element by element; types that contain secrets are safe.
	for _, thing := range []any{id, *seed, seed, ca, material, &material, r} {
		for _, asJSON := range []bool{false, true} {
			hclog.New(&hclog.LoggerOptions{Output: &b, JSONFormat: asJSON}).Info("x", "x", thing)
		}
	}
	got := b.String()
	for name, secret := range map[string][]byte{"seal key": id.SealKey(), "gossip key": keys[0], "CA key": ca.KeyPEM()[40:100], "node key": key[40:100], "token hash": seed.Token.SecretHash} {
		for _, form := range []string{"%s", "%x", "%X", "%d", "%q"} {
			text := strings.Trim(fmt.Sprintf(form, secret), `"[]`)
			// Report the leak without printing all of it.
			must.False(t, strings.Contains(got, text), must.Sprint(name, " leaks with ", form[1:]))
		}
		j, _ := json.Marshal(secret)
		must.False(t, strings.Contains(got, strings.Trim(string(j), `"`)), must.Sprint(name, " leaks in base64"))
	}
}

func FuzzSign(f *testing.F) {
	ca := newCA(f, clusterID)
	key, err := pki.NewKey()
	must.NoError(f, err)
	csr, err := pki.NewRequest(key, "0a0b0c0d")
	must.NoError(f, err)
	f.Add(csr, "box.lan", "box")
	f.Add([]byte("garbage"), "queen."+clusterID+".rbee", "")
	f.Add(csr, "*", strings.Repeat("x", 65))
	f.Fuzz(func(t *testing.T, csr []byte, host, name string) {
		certPEM, n, err := ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Name: name, Roles: []core.Role{core.RoleHive}}, []string{host}, 0, time.Now())
		if err != nil {
			if core.KindOf(err) != core.Invalid {
				t.Fatalf("a bad request is %s: %v", core.KindOf(err), err)
			}
			return
		}
		if n.ID != "0a0b0c0d" || n.Has(core.RoleQueen) || !n.Has(core.RoleHive) {
			t.Fatalf("a hive got the certificate of %+v with host %q", n, host)
		}
		if err := parseCert(t, certPEM).VerifyHostname("queen." + clusterID + ".rbee"); err == nil {
			t.Fatalf("host %q gives the role of a queen", host)
		}
	})
}
