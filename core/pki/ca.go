package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Lifetimes of certificates.
const (
	CATTL      = 10 * 365 * 24 * time.Hour // lifetime of a CA certificate
	DefaultTTL = 90 * 24 * time.Hour       // default lifetime of a node's certificate
	// backdate is how long before their creation certificates become valid, because clocks differ.
	backdate = time.Hour
)

const (
	maxPEMBytes     = 1 << 20
	maxRequestBytes = 16 << 10
	maxHosts        = 64
	maxNameBytes    = 64 // limit of X.520 for an organizational unit
)

// CA signs the certificates of a cluster's nodes. It is immutable, safe for concurrent use, and
// hides its key when formatted.
type CA struct {
	cluster string
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey
}

// NewCA creates the CA of a new cluster. name is a display name. Errors: Invalid for an ID that is
// not 8 to 32 hex digits or a name over 64 bytes.
func NewCA(clusterID, name string, now time.Time) (*CA, error) {
	if !isClusterID(clusterID) {
		return nil, core.Errorf(core.Invalid, "make a CA: %q is not a cluster id", clusterID).Hint("A cluster id is 8 to 32 lower-case hex digits.")
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "make a CA")
	}
	subject := pkix.Name{Organization: []string{"rbee"}, CommonName: "rbee CA " + clusterID}
	if name != "" {
		subject.OrganizationalUnit = []string{name}
	}
	template := &x509.Certificate{
		Subject:               subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CATTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{{Scheme: "rbee", Host: clusterID}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "make a CA")
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{cluster: clusterID, cert: cert, certPEM: encodePEM(blockCertificate, der), key: key}, core.Wrap(err, core.Internal, "make a CA")
}

// ParseCA parses a CA's certificate and key, both PEM. The first of several certificates is the
// CA's. Errors: Integrity.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	cert := certs[0]
	if err := checkCA(cert); err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, damaged("the CA's key belongs to another certificate")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "rbee" || !isClusterID(cert.URIs[0].Host) {
		return nil, damaged("the CA's certificate names no cluster of rbee")
	}
	return &CA{cluster: cert.URIs[0].Host, cert: cert, certPEM: encodePEM(blockCertificate, cert.Raw), key: key}, nil
}

// Cluster returns the ID of the CA's cluster.
func (c *CA) Cluster() string { return c.cluster }

// NotAfter returns when the CA's certificate expires, and with it every certificate that it signed.
func (c *CA) NotAfter() time.Time { return c.cert.NotAfter }

// CertPEM returns the CA's certificate, PEM.
func (c *CA) CertPEM() []byte { return slices.Clone(c.certPEM) }

// KeyPEM returns the CA's private key, PEM. Seal it, or keep it with mode 0600.
func (c *CA) KeyPEM() Secret { return encodeKey(c.key) }

// Fingerprint returns the fingerprint of the CA's certificate, as in join tokens.
func (c *CA) Fingerprint() string { return fingerprint(c.cert) }

// Format prints the CA's cluster, never its key.
func (c *CA) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "CA of cluster %s", c.cluster) }

// Sign signs the certificate of node n (its Cluster, ID, Roles and Name) for the key of a PKCS #10
// request (DER). It uses only the request's key and common name, which must be the node ID. A
// queen's certificate is also valid for localhost, the loopback addresses and the hosts (DNS names,
// addresses), because browsers and OpenAI clients check only those. A node that is not a queen
// serves no such client: its certificate names no host, and cannot pass for a queen's. A ttl of 0
// means DefaultTTL; no certificate outlives the CA's. The returned node describes the new
// certificate. Errors: Invalid for a bad request, node or host; Unavailable if the CA's certificate
// has expired.
func (c *CA) Sign(csrDER []byte, n Node, hosts []string, ttl time.Duration, now time.Time) (certPEM []byte, node Node, err error) {
	key, err := requestKey(csrDER, n.ID)
	if err != nil {
		return nil, Node{}, err
	}
	template, err := c.template(n, hosts)
	if err != nil {
		return nil, Node{}, err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < 0 {
		return nil, Node{}, core.Errorf(core.Invalid, "sign a certificate: it would have ended before it began").Hint("The time to live must be positive.")
	}
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(ttl)
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if !now.Before(c.cert.NotAfter) {
		return nil, Node{}, core.Errorf(core.Unavailable, "sign a certificate: the CA's certificate ended on %s", c.cert.NotAfter.Format(time.DateOnly)).Hint(
			"The cluster needs a new CA.")
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key, c.key)
	if err != nil {
		return nil, Node{}, core.Wrap(err, core.Internal, "sign a certificate")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, Node{}, core.Wrap(err, core.Internal, "sign a certificate")
	}
	node, err = NodeOf(cert)
	return encodePEM(blockCertificate, der), node, err
}

// template returns the certificate of a node, without its validity and key.
func (c *CA) template(n Node, hosts []string) (*x509.Certificate, error) {
	const op = "sign a certificate"
	switch {
	case n.Cluster != c.cluster:
		return nil, core.Errorf(core.Invalid, "%s: the node is of cluster %q, the CA of %s", op, n.Cluster, c.cluster).Hint("A node belongs to one cluster: join it with a token of this one.")
	case !IsNodeID(n.ID):
		return nil, core.Errorf(core.Invalid, "%s: %q is not a node id", op, n.ID).Hint("A node id is 8 lower-case hex digits.")
	case len(n.Roles) == 0:
		return nil, core.Errorf(core.Invalid, "%s: the node has no role", op).Hint("A node is a queen, a hive or both.")
	case len(hosts) > maxHosts:
		return nil, core.Errorf(core.Invalid, "%s: %d host names are too many", op, len(hosts)).Hint("A certificate can have %d.", maxHosts)
	}
	if err := checkName(n.Name); err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"rbee"}, CommonName: n.ID},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{nodeURI(c.cluster, n.ID)},
	}
	if n.Name != "" {
		t.Subject.OrganizationalUnit = []string{n.Name}
	}
	for _, r := range n.Roles {
		if r != core.RoleQueen && r != core.RoleHive {
			return nil, core.Errorf(core.Invalid, "%s: there is no role %q", op, r).Hint("A node is a queen, a hive or both.")
		}
		t.DNSNames = appendNew(t.DNSNames, ServerName(r, c.cluster))
	}
	names, ips := []string{"localhost"}, []string{"127.0.0.1", "::1"}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = appendNew(ips, ip.String())
			continue
		}
		if err := checkHost(h); err != nil {
			return nil, err
		}
		names = appendNew(names, strings.ToLower(h))
	}
	if !n.Has(core.RoleQueen) {
		return t, nil
	}
	t.DNSNames = append(t.DNSNames, names...)
	for _, ip := range ips {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(ip))
	}
	return t, nil
}

// checkHost refuses invalid DNS names, and names that would denote a role.
func checkHost(h string) error {
	bad := core.Errorf(core.Invalid, "sign a certificate: %q is not a host name", h).Hint("A host is a DNS name or an IP address, without a port.")
	if h == "" || len(h) > 253 {
		return bad
	}
	labels := strings.Split(strings.ToLower(h), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return bad
		}
	}
	if labels[len(labels)-1] == "rbee" {
		return core.Errorf(core.Invalid, "sign a certificate: %q is a role's name", h).Hint("Host names must not end in .rbee.")
	}
	return nil
}

func checkName(name string) error {
	if len(name) <= maxNameBytes && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
		return nil
	}
	return core.Errorf(core.Invalid, "%q is not a name", name).Hint("A name has at most %d bytes and no control characters.", maxNameBytes)
}

// requestKey checks a certificate request and returns its key.
func requestKey(csrDER []byte, nodeID string) (*ecdsa.PublicKey, error) {
	bad := func(why string) error {
		return core.Errorf(core.Invalid, "check the certificate request: %s", why).Hint("The node makes its own request when it joins: try again with the same version of rbee.")
	}
	if len(csrDER) > maxRequestBytes {
		return nil, bad("it is too large")
	}
	r, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, bad("it is not a PKCS #10 request")
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, bad("its key is not one of ECDSA P-256")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, bad("it is not signed by its own key")
	}
	if r.Subject.CommonName != nodeID {
		return nil, bad("it is for another node")
	}
	return key, nil
}

// NewKey creates the private key of a node: ECDSA P-256, PEM.
func NewKey() (Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "make a key")
	}
	return encodeKey(key), nil
}

// NewRequest creates the certificate request of a node: PKCS #10, DER. Errors: Integrity for a key
// that NewKey did not create.
func NewRequest(keyPEM []byte, nodeID string) (csrDER []byte, err error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: nodeID}}, key)
	return der, core.Wrap(err, core.Internal, "make a certificate request")
}

// Fingerprint returns the fingerprint of the first certificate, as in join tokens: SHA-256 of the
// DER, lower-case base32 without padding. Errors: Integrity.
func Fingerprint(certPEM []byte) (string, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return "", err
	}
	return fingerprint(certs[0]), nil
}

func fingerprint(cert *x509.Certificate) string {
	h := sha256.Sum256(cert.Raw)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h[:]))
}

// Roots returns the CA certificates of a PEM bundle. Errors: Integrity.
func Roots(caPEM []byte) (*x509.CertPool, error) {
	certs, err := parseCertificates(caPEM)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		if err := checkCA(c); err != nil {
			return nil, err
		}
		pool.AddCert(c)
	}
	return pool, nil
}

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY" // PKCS #8
)

func encodePEM(block string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) Secret {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // a key on a known curve always encodes
	}
	return encodePEM(blockKey, der)
}

func parseKey(keyPEM []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(keyPEM[:min(len(keyPEM), maxPEMBytes)])
	if block == nil {
		return nil, damaged("there is no private key in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case blockKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, damaged("there is no private key in PEM")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok || ec.Curve != elliptic.P256() {
		return nil, damaged("the private key is not one of ECDSA P-256")
	}
	return ec, nil
}

// parseCertificates parses one or more certificates.
func parseCertificates(certPEM []byte) ([]*x509.Certificate, error) {
	if len(certPEM) > maxPEMBytes {
		return nil, damaged("the certificates are too large")
	}
	var certs []*x509.Certificate
	for rest := certPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != blockCertificate {
			return nil, damaged("there is something else among the certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, damaged("a certificate cannot be read")
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, damaged("there is no certificate in PEM")
	}
	return certs, nil
}

func checkCA(c *x509.Certificate) error {
	if c.IsCA && c.BasicConstraintsValid && c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return nil
	}
	return damaged("a certificate that should be a CA's is not")
}

func damaged(why string) error {
	return core.WithHint(core.WithKind(stringError(why), core.Integrity), "Restore the files from a backup, or join the node again.")
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// withHostOf adds the host of an address to hosts.
func withHostOf(address string, hosts []string) ([]string, error) {
	if address == "" {
		return hosts, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, core.Errorf(core.Invalid, "%q is not host:port", address).Hint("Say the address that other machines reach this one at, as in 10.0.0.1:7834.")
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return hosts, nil
	}
	return appendNew(slices.Clone(hosts), host), nil
}
