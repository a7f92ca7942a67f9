package client

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
)

// checkQueen refuses a cluster's certificate that is not a queen's. The chain and the host name are
// already verified; but every node of a cluster has a certificate of the same CA, and users' tokens
// must not reach a hive. A certificate belongs to a cluster when it, or a CA above it, names one:
// rbee://<cluster id>. This holds for certificates that the cluster signs, for those of "rbee tls
// cert create", and for any other that an agent loads from its tls block. A certificate that names
// no cluster belongs to a proxy in front, for which the host name is the only check.
func checkQueen(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // crypto/tls refuses it
	}
	leaf := cs.PeerCertificates[0]
	clusters := clustersOf(leaf)
	for _, chain := range cs.VerifiedChains {
		clusters = append(clusters, clustersOf(chain[1:]...)...)
	}
	for _, id := range clusters {
		if !slices.Contains(leaf.DNSNames, "queen."+id+".rbee") {
			return &notQueenError{leaf.Subject.CommonName}
		}
	}
	return nil
}

func clustersOf(certs ...*x509.Certificate) []string {
	var ids []string
	for _, c := range certs {
		for _, u := range c.URIs {
			if u.Scheme == "rbee" {
				ids = append(ids, u.Host)
			}
		}
	}
	return ids
}

// notQueenError reports that a node other than a queen answered.
type notQueenError struct {
	node string // node ID
}

func (e *notQueenError) Error() string {
	return "the certificate is that of node " + e.node + ", which is no queen"
}
