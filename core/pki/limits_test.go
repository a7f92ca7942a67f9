package pki_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pki"
)

// Names and hosts may be as long as documented, and no longer.
func TestSignAtTheBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id   string
		good bool
	}{{"0123456", false}, {"01234567", true}, {strings.Repeat("a", 32), true}, {strings.Repeat("a", 33), false}} {
		_, err := pki.NewCA(c.id, strings.Repeat("n", 64), time.Now())
		must.Eq(t, c.good, err == nil, must.Sprint(c.id))
	}
	ca := newCA(t, clusterID)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "0a0b0c0d")
	must.NoError(t, err)
	hosts := func(n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprint("host", i))
		}
		return all
	}
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5) // 250 bytes
	for name, c := range map[string]struct {
		name  string
		hosts []string
		good  bool
	}{
		"longest name":    {strings.Repeat("n", 64), nil, true},
		"longer name":     {strings.Repeat("n", 65), nil, false},
		"delete":          {"a\x7f", nil, false},
		"not UTF-8":       {"a\xff", nil, false},
		"a space":         {"the box", nil, true},
		"most hosts":      {"", hosts(64), true},
		"more hosts":      {"", hosts(65), false},
		"longest label":   {"", []string{strings.Repeat("a", 63)}, true},
		"longer label":    {"", []string{strings.Repeat("a", 64)}, false},
		"longest host":    {"", []string{long + "aaa"}, true},
		"longer host":     {"", []string{long + "aaaa"}, false},
		"empty label":     {"", []string{"a..b"}, false},
		"all that may be": {"", []string{"a-z_0.lan"}, true},
	} {
		certPEM, _, err := ca.Sign(csr, pki.Node{Cluster: clusterID, ID: "0a0b0c0d", Name: c.name, Roles: []core.Role{core.RoleQueen}}, c.hosts, 0, time.Now())
		must.Eq(t, c.good, err == nil, must.Sprint(name, err))
		if c.good {
			must.True(t, parseCert(t, certPEM).BasicConstraintsValid) // some clients want an explicit "not a CA"
		}
	}
}

// A CA and a bundle of certificates are checked in full.
func TestParseCAReadsEverything(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	block, _ := pem.Decode(ca.KeyPEM())
	raw, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must.NoError(t, err)
	key := raw.(*ecdsa.PrivateKey)
	own := func(change func(*x509.Certificate)) []byte {
		c := *parseCert(t, ca.CertPEM())
		c.SerialNumber = big.NewInt(1)
		change(&c)
		der, err := x509.CreateCertificate(rand.Reader, &c, &c, &key.PublicKey, key)
		must.NoError(t, err)
		return pemOf(der)
	}
	uri := func(scheme, host string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: scheme, Host: host}} }
	}
	good := own(uri("rbee", clusterID))
	for name, c := range map[string]struct {
		cert []byte
		good bool
	}{
		"as it is":         {good, true},
		"another scheme":   {own(uri("http", clusterID)), false},
		"no cluster":       {own(uri("rbee", "home")), false},
		"no URI":           {own(func(c *x509.Certificate) { c.URIs = nil }), false},
		"two URIs":         {own(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), false},
		"may not sign":     {own(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), false},
		"another block":    {pem.EncodeToMemory(&pem.Block{Type: "TRUSTED CERTIFICATE", Bytes: parseCert(t, good).Raw}), false},
		"a key beside it":  {append(slices.Clip(good), ca.KeyPEM()...), false},
		"text beside it":   {append([]byte("the CA of home\n"), good...), true},
		"more than a file": {append(slices.Clip(good), make([]byte, 1<<20)...), false},
	} {
		_, err := pki.ParseCA(c.cert, ca.KeyPEM())
		must.Eq(t, c.good, err == nil, must.Sprint(name, err))
		if !c.good {
			must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name))
		}
	}
	// OpenSSL's older key format is accepted as well.
	der, err := x509.MarshalECPrivateKey(key)
	must.NoError(t, err)
	_, err = pki.ParseCA(good, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	must.NoError(t, err)
	_, err = pki.ParseCA(good, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}))
	must.Eq(t, core.Integrity, core.KindOf(err))
}

// A client's certificate of another cluster is refused although the same CA signed it.
func TestServerRefusesAnotherCluster(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "0000000a", roles: []core.Role{core.RoleQueen}})
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	const other = "ffffffffffffffff"
	template := parseCert(t, certPEM)
	template.DNSNames = []string{pki.ServerName(core.RoleHive, other)}
	template.URIs = []*url.URL{{Scheme: "rbee", Host: other, Path: "/node/0a0b0c0d"}}
	cert, err := tls.X509KeyPair(resign(t, ca, template), key)
	must.NoError(t, err)
	client := queen.ClientConfig("x", core.RoleQueen, "")
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	_, serverErr, _ := shake(t, queen.ServerConfig("x"), client)
	must.ErrorContains(t, serverErr, "it is of another cluster")
}

// A certificate that does not match the node's role or address is renewed at once.
func TestOutdated(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	made := func(role core.Role, address string, change func(*x509.Certificate)) *pki.Identity {
		key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{role}, hosts: []string{"10.0.0.7"}})
		template := parseCert(t, certPEM)
		if change != nil {
			change(template)
		}
		id, err := pki.Create(t.TempDir(), pki.Material{Name: "box", RPCAddress: address, CAPEM: ca.CertPEM(), NodePEM: resign(t, ca, template), Key: key})
		must.NoError(t, err)
		return id
	}
	must.False(t, made(core.RoleHive, "10.0.0.9:1", nil).Outdated())
	must.True(t, made(core.RoleHive, "10.0.0.9:1", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 7)} }).Outdated())
	must.True(t, made(core.RoleHive, "10.0.0.9:1", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "localhost") }).Outdated())
	must.False(t, made(core.RoleQueen, "10.0.0.7:1", nil).Outdated())
	must.False(t, made(core.RoleQueen, "", nil).Outdated())
	must.True(t, made(core.RoleQueen, "10.0.0.9:1", nil).Outdated())
	for _, role := range []core.Role{core.RoleHive, core.RoleQueen} {
		id := made(role, "10.0.0.7:1", nil)
		must.NoError(t, id.SetRPCAddress("127.0.0.1:1")) // covered, but unknown to the cluster
		must.True(t, id.Outdated())
	}
	must.NoError(t, made(core.RoleQueen, "", nil).ServerConfig().VerifyConnection(tls.ConnectionState{}), must.Sprint("where nothing is to be negotiated"))
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	_, err := pki.Create(t.TempDir(), pki.Material{CAPEM: append(ca.CertPEM(), certPEM...), NodePEM: certPEM, Key: key})
	must.ErrorContains(t, err, "a certificate that should be a CA's is not")
}

// An expired certificate is not damage: the node loads, and Check reports the expiry.
func TestLoadExpired(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID) // three days ago
	made := ca.NotAfter().Add(-pki.CATTL)
	key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}, ttl: time.Minute, now: made})
	dir := t.TempDir()
	_, err := pki.Create(dir, pki.Material{CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key})
	must.NoError(t, err)
	id, err := pki.Load(dir)
	must.NoError(t, err)
	must.Eq(t, core.Forbidden, core.KindOf(id.Check(time.Now())))
	must.NoError(t, id.Check(made.Add(time.Minute))) // up to the last second
	must.NoError(t, id.Check(made.Add(-time.Hour)))
}

// A certificate made elsewhere is not backdated: its whole lifetime counts.
func TestRenewAtNotBackdated(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	now := time.Now().Truncate(time.Second)
	for _, life := range []time.Duration{30 * time.Minute, time.Hour} {
		key, certPEM := sign(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
		template := parseCert(t, certPEM)
		template.NotBefore, template.NotAfter = now, now.Add(life)
		id, err := pki.Create(t.TempDir(), pki.Material{CAPEM: ca.CertPEM(), NodePEM: resign(t, ca, template), Key: key})
		must.NoError(t, err)
		must.Eq(t, now.Add(life*2/3).UTC(), id.RenewAt().UTC())
	}
}

// A queen's certificate must name this cluster, whatever hosts it is valid for.
func TestClientRefusesAnotherCluster(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	hive := identity(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	key, certPEM := sign(t, ca, signing{id: "0000000a", roles: []core.Role{core.RoleQueen}})
	const other = "ffffffffffffffff"
	template := parseCert(t, certPEM)
	template.DNSNames = []string{pki.ServerName(core.RoleQueen, other), pki.ServerName(core.RoleQueen, clusterID)}
	template.URIs = []*url.URL{{Scheme: "rbee", Host: other, Path: "/node/0000000a"}}
	cert, err := tls.X509KeyPair(resign(t, ca, template), key)
	must.NoError(t, err)
	server := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"x"}}
	_, _, clientErr := shake(t, server, hive.ClientConfig("x", core.RoleQueen, ""))
	must.ErrorContains(t, clientErr, "it is of another cluster")
}

// An identity names its node and cluster: the certificate alone could belong to any node.
func TestLoadWithoutIdentity(t *testing.T) {
	t.Parallel()
	for _, info := range []map[string]string{{"name": "x"}, {"cluster": clusterID}, {"node": "0a0b0c0d"}, {"cluster": "home", "node": "0a0b0c0d"}, {"cluster": clusterID, "node": "me"}} {
		dir := t.TempDir()
		initialise(t, dir)
		b, err := disk.Seal(info)
		must.NoError(t, err)
		write(t, dir, "identity.json", b)
		_, err = pki.Load(dir)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(info))
	}
}

// The seed of a new cluster's registry is complete, or loading it fails.
func TestSeedIncomplete(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id := initialise(t, dir).Identity
	sound := read(t, dir, "init.json")
	must.NoError(t, disk.CheckSeal(sound))
	var parts map[string]any
	must.NoError(t, json.Unmarshal(sound, &parts))
	for part := range parts {
		for _, text := range []any{nil, ""} {
			was := parts[part]
			if _, ok := was.(string); !ok {
				continue
			}
			parts[part] = text
			b, err := disk.Seal(parts)
			must.NoError(t, err)
			write(t, dir, "init.json", b)
			parts[part] = was
			seed, err := id.Seed()
			if core.KindOf(err) != core.Integrity { // a part that nothing depends on
				must.NoError(t, err)
				must.True(t, len(seed.SealedCAKey) > 0 && len(seed.SealedGossipKeys) > 0 && len(seed.Token.SecretHash) > 0, must.Sprint(part))
			}
		}
	}
	write(t, dir, "init.json", sound)
	_, err := id.Seed()
	must.NoError(t, err)
}

// A registry whose CA does not fit, or an invalid node, yields no certificate and writes nothing.
func TestRecoverRefuses(t *testing.T) {
	t.Parallel()
	made := initialise(t, t.TempDir()).Identity
	seed, err := made.Seed()
	must.NoError(t, err)
	good := pki.RecoverOptions{
		Cluster: core.Cluster{ID: made.Cluster(), CACertificates: seed.CAPEM, SealedCAKey: seed.SealedCAKey, SealedGossipKeys: seed.SealedGossipKeys},
		SealKey: made.SealKey(), NodeID: "89abcdef", RPCAddress: ":7834", Roles: []core.Role{core.RoleQueen}, Now: time.Now(),
	}
	for name, c := range map[string]struct {
		change func(*pki.RecoverOptions)
		kind   core.Kind
	}{
		"certificates made elsewhere": {func(o *pki.RecoverOptions) { o.Cluster.SealedCAKey = nil }, core.Unsupported},
		"no CA":                       {func(o *pki.RecoverOptions) { o.Cluster.CACertificates = nil }, core.Integrity},
		"another CA":                  {func(o *pki.RecoverOptions) { o.Cluster.CACertificates = newCA(t, clusterID).CertPEM() }, core.Integrity},
		"no gossip keys":              {func(o *pki.RecoverOptions) { o.Cluster.SealedGossipKeys = nil }, core.Integrity},
		"no role":                     {func(o *pki.RecoverOptions) { o.Roles = nil }, core.Invalid},
		"no address":                  {func(o *pki.RecoverOptions) { o.RPCAddress = "10.0.0.1" }, core.Invalid},
		"a role as host":              {func(o *pki.RecoverOptions) { o.Hosts = []string{"queen.rbee"} }, core.Invalid},
		"no node":                     {func(o *pki.RecoverOptions) { o.NodeID = "" }, core.Invalid},
	} {
		dir, o := t.TempDir(), good
		c.change(&o)
		_, err := pki.Recover(dir, o)
		must.Eq(t, c.kind, core.KindOf(err), must.Sprint(name, err))
		left, err := os.ReadDir(dir)
		must.NoError(t, err)
		must.SliceEmpty(t, left, must.Sprint(name))
	}
	_, err = made.CA([]byte("garbage"), seed.SealedCAKey)
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, err = made.CA(newCA(t, made.Cluster()).CertPEM(), seed.SealedCAKey)
	must.Eq(t, core.Integrity, core.KindOf(err))

	// A certificate never contains an address that names no machine.
	for _, address := range []string{":7834", "0.0.0.0:7834", "[::]:7834"} {
		good.RPCAddress = address
		id, err := pki.Recover(t.TempDir(), good)
		must.NoError(t, err, must.Sprint(address))
		must.Len(t, 2, id.Certificate().Leaf.IPAddresses) // only the loopback addresses
	}
}

// The configured files are opened at their paths, or the error names the path.
func TestLoadFilesInNoFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := pki.LoadFiles(pki.Files{CA: filepath.Join(file, "ca.pem")})
	must.Eq(t, core.Internal, core.KindOf(err))
	must.StrContains(t, err.Error(), file)
	_, err = pki.LoadFiles(pki.Files{CA: filepath.Join(dir, "none", "ca.pem")})
	must.Eq(t, core.NotFound, core.KindOf(err))
	_, err = pki.LoadFiles(pki.Files{CA: dir + "/"})
	must.Error(t, err)
}

// Any form of printing an identity hides its keys and names its owner.
func TestIdentityInText(t *testing.T) {
	t.Parallel()
	key := pki.NewSealKey()
	m := pki.Material{Name: "box", ClusterName: "home", Key: key, SealKey: key}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		must.Eq(t, "identity of box in home", fmt.Sprintf(format, m))
	}
	ca := newCA(t, clusterID)
	must.Eq(t, "CA of cluster "+clusterID, fmt.Sprintf("%+v", ca))
	id := identity(t, ca, signing{id: "0a0b0c0d", roles: []core.Role{core.RoleHive}})
	must.Eq(t, "node 0a0b0c0d of cluster "+clusterID, fmt.Sprintf("%#v", id))
	text, err := json.Marshal(map[string]any{"key": key, "keys": pki.Secrets{key}})
	must.NoError(t, err)
	must.StrContains(t, string(text), `{"key":"[secret]","keys":"[secret]"}`)
	must.StrNotContains(t, string(text), fmt.Sprintf("%x", []byte(key)))
	n := id.Node()
	n.Roles[0] = "changed" // the copy belongs to the caller
	must.Eq(t, []core.Role{core.RoleHive}, id.Node().Roles)
	b, err := json.Marshal(id)
	must.NoError(t, err)
	must.Eq(t, `"node 0a0b0c0d of cluster `+clusterID+`"`, string(b))
}

// A node's certificate names one node, in exactly one form.
func TestNodeOf(t *testing.T) {
	t.Parallel()
	good := func() *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: "0a0b0c0d"}, DNSNames: []string{pki.ServerName(core.RoleHive, clusterID)},
			URIs: []*url.URL{{Scheme: "rbee", Host: clusterID, Path: "/node/0a0b0c0d"}},
		}
	}
	n, err := pki.NodeOf(good())
	must.NoError(t, err)
	must.Eq(t, "0a0b0c0d", n.ID)
	must.Eq(t, []core.Role{core.RoleHive}, n.Roles)
	must.Eq(t, "", n.Name)
	for name, change := range map[string]func(*x509.Certificate){
		"a CA":             func(c *x509.Certificate) { c.IsCA = true },
		"no URI":           func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":         func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"another scheme":   func(c *x509.Certificate) { c.URIs[0].Scheme = "http" },
		"another path":     func(c *x509.Certificate) { c.URIs[0].Path = "/hive/0a0b0c0d" },
		"no node id":       func(c *x509.Certificate) { c.URIs[0].Path, c.Subject.CommonName = "/node/me", "me" },
		"no cluster id":    func(c *x509.Certificate) { c.URIs[0].Host, c.DNSNames = "home", []string{"hive.home.rbee"} },
		"a query":          func(c *x509.Certificate) { c.URIs[0].RawQuery = "x=1" },
		"a user":           func(c *x509.Certificate) { c.URIs[0].User = url.User("me") },
		"another name":     func(c *x509.Certificate) { c.Subject.CommonName = "ffffffff" },
		"another's role":   func(c *x509.Certificate) { c.DNSNames = []string{pki.ServerName(core.RoleHive, "ffffffffffffffff")} },
		"no role":          func(c *x509.Certificate) { c.DNSNames = nil },
		"a role of no one": func(c *x509.Certificate) { c.DNSNames = []string{"root." + clusterID + ".rbee"} },
	} {
		c := good()
		change(c)
		_, err := pki.NodeOf(c)
		must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(name))
	}
	_, err = pki.NodeOf(nil)
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
}

// The CA that a token names may be anywhere behind a queen's certificate in the chain.
func TestJoinFindsCA(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "0000000a", roles: []core.Role{core.RoleQueen}})
	state := tls.ConnectionState{NegotiatedProtocol: "x", PeerCertificates: []*x509.Certificate{
		queen.Certificate().Leaf, parseCert(t, newCA(t, clusterID).CertPEM()), parseCert(t, ca.CertPEM()),
	}}
	must.NoError(t, pki.JoinConfig("x", ca.Fingerprint()).VerifyConnection(state))
	must.Error(t, pki.JoinConfig("x", newCA(t, clusterID).Fingerprint()).VerifyConnection(state))
	hive := identity(t, ca, signing{id: "0000000b", roles: []core.Role{core.RoleHive}})
	state.PeerCertificates[0] = hive.Certificate().Leaf
	must.ErrorContains(t, pki.JoinConfig("x", ca.Fingerprint()).VerifyConnection(state), "not a queen")
}
