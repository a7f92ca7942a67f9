package pki

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Identity identifies this node in its cluster: it holds the node's certificate and key, the CA's
// certificates, and for queens the key that opens sealed settings. It is safe for concurrent use:
// the TLS configurations it returns always follow the newest certificate. It hides its keys when
// formatted.
type Identity struct {
	// dir is the cluster folder; empty: the configuration names the files, and nothing is ever
	// written.
	dir string

	write sync.Mutex // serialises changes to the files
	state atomic.Pointer[state]
}

// state is one consistent view of an identity. It is replaced, never changed.
type state struct {
	info    info
	node    Node
	caPEM   []byte
	nodePEM []byte
	key     Secret // PEM
	sealKey Secret
	tls     *tls.Certificate
	roots   *x509.CertPool
	began   time.Time // NotBefore of the node's certificate
}

// info is the content of identity.json: facts that are not in a certificate.
type info struct {
	Cluster     string      `json:"cluster"`
	ClusterName string      `json:"cluster_name"`
	Node        string      `json:"node"`
	Name        string      `json:"name"`
	Roles       []core.Role `json:"roles"`
	RPCAddress  string      `json:"rpc_address"`
	// AddressFound reports that the address was detected, not configured, and may be detected
	// again. Older identities lack the field.
	AddressFound bool `json:"address_found,omitempty"`
	// AddressNew reports that the address has changed since the cluster signed the certificate.
	AddressNew bool `json:"address_new,omitempty"`
}

// Material holds the parts of an identity. It hides its keys when formatted.
type Material struct {
	ClusterName string
	Name        string // node name
	RPCAddress  string // host:port at which others reach the node's RPC port
	// AddressFound reports that the address was detected rather than configured.
	AddressFound bool
	CAPEM        []byte // one or more CA certificates, the signing one first
	NodePEM      []byte // the node's certificate, with the cluster, the node's ID and its roles
	Key          Secret // PEM
	SealKey      Secret // queens only; empty: none
	GossipKeys   Secrets
	Seed         *Seed // first queen only
}

// Format prints the node, without its keys.
func (m Material) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "identity of %s in %s", m.Name, m.ClusterName)
}

// build checks that all parts belong together. It ignores the clock: an expired certificate needs
// renewal, but is not a broken file.
func build(i info, caPEM, nodePEM []byte, key, sealKey Secret) (*state, error) {
	cas, err := parseCertificates(caPEM)
	if err != nil {
		return nil, err
	}
	roots, err := Roots(caPEM)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(nodePEM)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	node, err := NodeOf(leaf)
	if err != nil {
		return nil, err
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	if !k.PublicKey.Equal(leaf.PublicKey) {
		return nil, damaged("the node's key belongs to another certificate")
	}
	if len(sealKey) != 0 && len(sealKey) != sealKeyBytes {
		return nil, damaged("the seal key is damaged")
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	when := leaf.NotBefore // a moment at which all of them are valid, if any
	for _, c := range certs[1:] {
		when = later(when, c.NotBefore)
	}
	for _, c := range cas {
		if c.NotBefore.Before(leaf.NotAfter) {
			when = later(when, c.NotBefore)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: when, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, damaged("the node's certificate is not signed by the cluster's CA")
	}
	if (i.Cluster != "" && i.Cluster != node.Cluster) || (i.Node != "" && i.Node != node.ID) {
		return nil, damaged("the node's certificate is for another node")
	}
	i.Cluster, i.Node, i.Roles = node.Cluster, node.ID, node.Roles
	if i.Name == "" {
		i.Name = node.Name
	}
	if i.ClusterName == "" && len(cas[0].Subject.OrganizationalUnit) == 1 {
		i.ClusterName = cas[0].Subject.OrganizationalUnit[0]
	}
	// The chain includes the CA's certificate, so that a joining machine can compare it with the
	// fingerprint in its token.
	chain := [][]byte{}
	for _, c := range chains[0] {
		chain = append(chain, c.Raw)
	}
	for _, c := range cas {
		if !slices.ContainsFunc(chain, func(der []byte) bool { return bytes.Equal(der, c.Raw) }) {
			chain = append(chain, c.Raw)
		}
	}
	return &state{
		info: i, node: node, caPEM: caPEM, nodePEM: nodePEM, key: key, sealKey: sealKey,
		tls:   &tls.Certificate{Certificate: chain, PrivateKey: k, Leaf: leaf},
		roots: roots, began: leaf.NotBefore,
	}, nil
}

// Format prints the node, without its keys.
func (i *Identity) Format(f fmt.State, _ rune) {
	s := i.state.Load()
	fmt.Fprintf(f, "node %s of cluster %s", s.node.ID, s.node.Cluster)
}

// MarshalJSON encodes the text that Format prints.
func (i *Identity) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(i)) }

// Cluster returns the cluster's ID.
func (i *Identity) Cluster() string { return i.state.Load().info.Cluster }

// ClusterName returns the cluster's display name; it may be empty.
func (i *Identity) ClusterName() string { return i.state.Load().info.ClusterName }

// Node returns the contents of the node's certificate, with the node's name.
func (i *Identity) Node() Node {
	s := i.state.Load()
	n := s.node
	n.Name = s.info.Name
	n.Roles = slices.Clone(n.Roles)
	return n
}

// Has reports whether the node has the role.
func (i *Identity) Has(r core.Role) bool { return i.state.Load().node.Has(r) }

// RPCAddress returns the address, host:port, at which others reach the node's RPC port.
func (i *Identity) RPCAddress() string { return i.state.Load().info.RPCAddress }

// AddressFound reports whether RPCAddress was detected rather than configured; a detected address
// may have changed since.
func (i *Identity) AddressFound() bool { return i.state.Load().info.AddressFound }

// Outdated reports whether the cluster should sign a new certificate at once: because the cluster
// does not know the node's address yet, because a queen's certificate does not cover that address,
// or because an older certificate covers host names although the node is not a queen.
func (i *Identity) Outdated() bool {
	s := i.state.Load()
	if !s.node.Has(core.RoleQueen) {
		return s.info.AddressNew || len(s.tls.Leaf.IPAddresses) > 0 || slices.Contains(s.tls.Leaf.DNSNames, "localhost")
	}
	host, _, err := net.SplitHostPort(s.info.RPCAddress)
	return s.info.AddressNew || err == nil && !i.ValidFor(host)
}

// ValidFor reports whether the certificate names a host, so that clients that reach the node there
// accept it.
func (i *Identity) ValidFor(host string) bool {
	return i.state.Load().tls.Leaf.VerifyHostname(host) == nil
}

// CAPEM returns the CA's certificates, the signing one first.
func (i *Identity) CAPEM() []byte { return slices.Clone(i.state.Load().caPEM) }

// SealKey returns the key that opens sealed settings of the registry. It is nil on a hive, and in a
// cluster whose certificates are made elsewhere.
func (i *Identity) SealKey() Secret { return slices.Clone(i.state.Load().sealKey) }

// Proof returns a MAC of a message under the node's key; only a process that can read this node's
// files can compute it.
func (i *Identity) Proof(message []byte) []byte {
	key := sha256.Sum256(i.state.Load().key)
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("rbee local proof\n"))
	mac.Write(message)
	return mac.Sum(nil)
}

// Certificate returns the node's certificate, with its key and the chain up to and including the
// CA's. Callers must not change it.
func (i *Identity) Certificate() *tls.Certificate { return i.state.Load().tls }

// Roots returns the CA's certificates. Callers must not change them.
func (i *Identity) Roots() *x509.CertPool { return i.state.Load().roots }

// RenewAt returns when to renew the certificate: when a third of its lifetime is left, counted from
// its creation.
func (i *Identity) RenewAt() time.Time {
	s := i.state.Load()
	life := s.node.NotAfter.Sub(s.began.Add(backdate))
	if life <= 0 { // made elsewhere, without backdating
		life = s.node.NotAfter.Sub(s.began)
	}
	return s.node.NotAfter.Add(-life / 3)
}

// Check returns an error if the certificate is not valid at a time. Errors: Forbidden.
func (i *Identity) Check(now time.Time) error {
	s := i.state.Load()
	switch {
	case now.After(s.node.NotAfter):
		return core.Errorf(core.Forbidden, "check this node's certificate: it ended on %s", s.node.NotAfter.UTC().Format(time.RFC3339)).Hint(
			"The node was away for too long to renew it. Join it again: \"rbee cluster join\" with a new token.")
	case now.Before(s.began):
		return core.Errorf(core.Forbidden, "check this node's certificate: it begins on %s, which this machine's clock has not reached", s.began.UTC().Format(time.RFC3339)).Hint(
			"Set the clock of this machine.")
	}
	return nil
}

// Request creates the request for a new certificate: PKCS #10, DER, for the node's current key.
func (i *Identity) Request() ([]byte, error) {
	s := i.state.Load()
	return NewRequest(s.key, s.node.ID)
}

// CA returns the cluster's CA, from its sealed key in the registry. caPEM holds the registry's CA
// certificates, the signing one first. Errors: Unsupported if this node cannot open the key or
// there is none, Integrity.
func (i *Identity) CA(caPEM, sealedKey []byte) (*CA, error) {
	s := i.state.Load()
	if len(s.sealKey) == 0 || len(sealedKey) == 0 {
		return nil, core.Errorf(core.Unsupported, "sign certificates: this cluster's certificates are made elsewhere").Hint(
			"Make the node's certificate with \"rbee tls cert create\", copy it to the machine and name it in its configuration: tls { … }.")
	}
	key, err := Open(s.sealKey, sealedKey, caKeyLabel(s.info.Cluster))
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(caPEM, key)
	if err != nil {
		return nil, err
	}
	if ca.cluster != s.info.Cluster {
		return nil, damaged("the CA is of another cluster")
	}
	return ca, nil
}

// SealGossipKeys seals the gossip keys for the registry, the one in use first. Errors: Invalid,
// Unsupported without a seal key.
func (i *Identity) SealGossipKeys(keys Secrets) ([]byte, error) {
	s := i.state.Load()
	if len(s.sealKey) == 0 {
		return nil, noSealKey()
	}
	return sealGossipKeys(s.sealKey, s.info.Cluster, keys)
}

// OpenGossipKeys opens keys that SealGossipKeys sealed. Errors: Unsupported without a seal key,
// Integrity.
func (i *Identity) OpenGossipKeys(sealed []byte) (Secrets, error) {
	s := i.state.Load()
	if len(s.sealKey) == 0 {
		return nil, noSealKey()
	}
	return openGossipKeys(s.sealKey, s.info.Cluster, sealed)
}

// KeyFingerprint returns the display form of a gossip key: the first 8 bytes of its SHA-256, in
// hex.
func KeyFingerprint(key []byte) string {
	h := sha256.Sum256(key)
	return fmt.Sprintf("%x", h[:8])
}

func noSealKey() error {
	return core.Errorf(core.Unsupported, "use the seal key: this node has none").Hint("Only queens that joined with a token have it.")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
