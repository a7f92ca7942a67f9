package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"

	"github.com/rbee-project/rbee/core"
)

// vouched returns the message that is signed; binding is a value that both ends of one connection
// know.
func vouched(binding []byte) []byte {
	sum := sha256.Sum256(append([]byte("rbee standing\n"), binding...))
	return sum[:]
}

// Vouch returns this node's certificate, DER, and a signature that proves possession of its key.
// The proof is only valid over one connection, whose exported keying material is binding. Errors:
// Internal.
func (i *Identity) Vouch(binding []byte) (certificate, signature []byte, err error) {
	s := i.state.Load()
	key, err := parseKey(s.key)
	if err != nil {
		return nil, nil, err
	}
	signature, err = ecdsa.SignASN1(rand.Reader, key, vouched(binding))
	return s.tls.Leaf.Raw, signature, core.Wrap(err, core.Internal, "sign with the node's key")
}

// CheckVouch returns the node of a certificate that this cluster's CA signed at any time, if its
// key made the signature over a connection with this binding. Errors: Unauthenticated.
func (i *Identity) CheckVouch(certificate, signature, binding []byte) (Node, error) {
	no := func() (Node, error) {
		return Node{}, core.Errorf(core.Unauthenticated, "check a certificate: it is not of this cluster, or its key is not there")
	}
	if len(certificate) > maxPEMBytes || len(binding) == 0 {
		return no()
	}
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return no()
	}
	node, err := NodeOf(leaf)
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if err != nil || !ok || node.Cluster != i.Cluster() || !ecdsa.VerifyASN1(key, vouched(binding), signature) {
		return no()
	}
	when := leaf.NotBefore // an expired certificate still belongs to the node
	cas, err := parseCertificates(i.CAPEM())
	if err != nil {
		return Node{}, err
	}
	for _, c := range cas {
		if c.NotBefore.Before(leaf.NotAfter) {
			when = later(when, c.NotBefore)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: i.Roots(), CurrentTime: when, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return no()
	}
	return node, nil
}
