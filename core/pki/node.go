// Package pki manages the cluster's certificates: its CA, the identity of a node on its disk, the
// roles that a certificate grants, and the sealing of secrets in the registry.
//
// Every node has one ECDSA P-256 certificate from the cluster's CA. Its common name is the node ID,
// its URI name is rbee://<cluster id>/node/<node id>, and each of its roles is a DNS name:
// queen.<cluster id>.rbee, hive.<cluster id>.rbee. So TLS itself checks the role: a client that
// dials a queen asks for the server name of a queen.
package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Node describes the holder of a certificate.
type Node struct {
	Cluster  string // cluster ID
	ID       string // 8 hex digits
	Name     string // display name when the certificate was signed
	Roles    []core.Role
	KeyHash  []byte // SHA-256 of the public key (PKIX)
	NotAfter time.Time
}

// Has reports whether the certificate grants the role.
func (n Node) Has(r core.Role) bool { return slices.Contains(n.Roles, r) }

// ServerName returns the DNS name in the certificates of a cluster's nodes with the role.
func ServerName(role core.Role, cluster string) string { return string(role) + "." + cluster + ".rbee" }

// IsNodeID reports whether the text is a valid node ID: 8 lower-case hex digits.
func IsNodeID(id string) bool { return len(id) == 8 && strings.Trim(id, "0123456789abcdef") == "" }

// isClusterID reports whether the text is a valid cluster ID: 8 to 32 lower-case hex digits.
func isClusterID(id string) bool {
	return len(id) >= 8 && len(id) <= 32 && strings.Trim(id, "0123456789abcdef") == ""
}

// NodeOf returns the node that a certificate names. It does not verify the certificate; TLS has
// done that. Errors: Unauthenticated for a certificate that is not a node's.
func NodeOf(cert *x509.Certificate) (Node, error) {
	if cert == nil {
		return Node{}, notNode("there is no certificate")
	}
	if cert.IsCA || len(cert.URIs) != 1 {
		return Node{}, notNode("the certificate is not one of a node")
	}
	u := cert.URIs[0]
	id, ok := strings.CutPrefix(u.Path, "/node/")
	if u.Scheme != "rbee" || !ok || !IsNodeID(id) || !isClusterID(u.Host) || *u != *nodeURI(u.Host, id) {
		return Node{}, notNode("the certificate names no node")
	}
	if cert.Subject.CommonName != id {
		return Node{}, notNode("the certificate names two nodes")
	}
	n := Node{Cluster: u.Host, ID: id, KeyHash: KeyHash(cert.RawSubjectPublicKeyInfo), NotAfter: cert.NotAfter}
	if len(cert.Subject.OrganizationalUnit) == 1 {
		n.Name = cert.Subject.OrganizationalUnit[0]
	}
	for _, r := range []core.Role{core.RoleQueen, core.RoleHive} {
		if slices.Contains(cert.DNSNames, ServerName(r, n.Cluster)) {
			n.Roles = append(n.Roles, r)
		}
	}
	if len(n.Roles) == 0 {
		return Node{}, notNode("the certificate gives no role")
	}
	return n, nil
}

func nodeURI(cluster, id string) *url.URL {
	return &url.URL{Scheme: "rbee", Host: cluster, Path: "/node/" + id}
}

// KeyHash returns the SHA-256 that identifies a public key (PKIX, DER).
func KeyHash(spki []byte) []byte {
	h := sha256.Sum256(spki)
	return h[:]
}

func notNode(why string) error {
	return core.WithHint(core.WithKind(stringError(why), core.Unauthenticated), "Use the certificate that the node got when it joined the cluster.")
}

type stringError string

func (e stringError) Error() string { return string(e) }
