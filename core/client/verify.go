package client

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
)

// checkQueen refuses a certificate of a cluster that is not a queen's. Its chain is verified
// already, and its host name; but every node of a cluster has a certificate of the same CA, and a
// hive must not be sent the tokens of people. A certificate is one of a cluster when it, or a CA
// above it, names one: rbee://<cluster id>. That is so for those that the cluster signs, for those
// of "rbee tls cert create", and for any other that an agent takes from its tls block. One that
// names no cluster is that of a proxy in front, and the host name is all there is to check.
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

// notQueenError says that a node that is no queen has answered.
type notQueenError struct {
	node string // its id
}

func (e *notQueenError) Error() string {
	return "the certificate is that of node " + e.node + ", which is no queen"
}
