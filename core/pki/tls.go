package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
)

// ServerConfig returns the TLS 1.3 configuration of the RPC port. A client may present a
// certificate; if it does, the certificate must belong to a node of this cluster. The caller
// decides which calls need one. Without alpn, no protocol is negotiated; otherwise a client must
// offer one of them.
func (i *Identity) ServerConfig(alpn ...string) *tls.Config {
	current := func() *tls.Config {
		return &tls.Config{
			MinVersion:     tls.VersionTLS13,
			NextProtos:     alpn,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.Certificate(), nil },
			ClientAuth:     tls.VerifyClientCertIfGiven,
			ClientCAs:      i.Roots(),
			// A resumed session would skip the checks for expiry and revocation.
			SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				if len(alpn) > 0 && !slices.Contains(alpn, cs.NegotiatedProtocol) {
					return refused("it did not say what it wants to speak")
				}
				if len(cs.PeerCertificates) == 0 {
					return nil
				}
				n, err := NodeOf(cs.PeerCertificates[0])
				if err == nil && n.Cluster != i.Cluster() {
					err = refused("it is of another cluster")
				}
				return err
			},
		}
	}
	c := current()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return current(), nil }
	return c
}

// ClientConfig returns a TLS 1.3 configuration for connecting to a node of this cluster that must
// have the role and, unless it is empty, the ID. A handshake fails with Unauthenticated or with an
// error of crypto/x509. A renewed certificate and new CAs take effect with the next handshake.
func (i *Identity) ClientConfig(alpn string, role core.Role, nodeID string) *tls.Config {
	name := ServerName(role, i.Cluster())
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{alpn},
		ServerName:           name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.Certificate(), nil },
		InsecureSkipVerify:   true, // VerifyConnection does all of it, with the present CAs
		VerifyConnection: func(cs tls.ConnectionState) error {
			n, err := verifyServer(cs, i.Roots(), name)
			switch {
			case err != nil:
				return err
			case n.Cluster != i.Cluster():
				return refused("it is of another cluster")
			case nodeID != "" && n.ID != nodeID:
				return core.Errorf(core.Unauthenticated, "check the other side's certificate: this is node %s, not %s", n.ID, nodeID).Hint(
					"The address belongs to another node now: \"rbee status\" shows where the nodes are.")
			case alpn != "" && cs.NegotiatedProtocol != alpn:
				return refused("it does not speak " + alpn)
			}
			return nil
		},
	}
}

// JoinConfig returns a TLS 1.3 configuration for connecting to a queen of a cluster of which only
// the fingerprint of the CA's certificate is known, from a join token. It presents no certificate.
// A handshake fails with Unauthenticated or with an error of crypto/x509.
func JoinConfig(alpn, fingerprintOfCA string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpn},
		InsecureSkipVerify: true, // VerifyConnection does all of it
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates[min(1, len(cs.PeerCertificates)):] {
				if fingerprint(c) != fingerprintOfCA || checkCA(c) != nil {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				n, err := verifyServer(cs, roots, "")
				if err == nil && !n.Has(core.RoleQueen) {
					err = refused("it is not a queen")
				}
				return err
			}
			return core.Errorf(core.Unauthenticated, "check the queen's certificate: it is not of the cluster that the token is for").Hint(
				"Make sure that the address is that of a queen, and that the token is from the same cluster. If both are so, somebody is in between.")
		},
	}
}

// HTTPConfig returns the TLS configuration of the HTTP port: the node's certificate, no client
// certificates. It accepts TLS 1.2 for proxies and clients that support nothing newer, such as
// Debian's nginx; between machines only 1.3 is allowed, see ServerConfig.
func (i *Identity) HTTPConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.Certificate(), nil },
	}
}

// verifyServer checks a server's chain as crypto/tls would. It does not check an empty name.
func verifyServer(cs tls.ConnectionState, roots *x509.CertPool, name string) (Node, error) {
	if len(cs.PeerCertificates) == 0 {
		return Node{}, refused("it showed no certificate")
	}
	leaf, intermediates := cs.PeerCertificates[0], x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	// Check the name after the chain: the error for a foreign node is its cluster, not its role.
	if err == nil && name != "" {
		err = leaf.VerifyHostname(name)
	}
	if err != nil {
		return Node{}, &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: classify(err)}
	}
	return NodeOf(leaf)
}

// classify adds a kind and a hint to errors of crypto/x509; errors.As still finds the original.
func classify(err error) error {
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return core.WithHint(core.Wrap(err, core.Unauthenticated, "check the other side's certificate"),
			"Compare the clocks of both machines (here it is %s); a node that was away for too long has to join again.", time.Now().UTC().Format(time.RFC3339))
	case errors.As(err, &name):
		return core.WithHint(core.Wrap(err, core.Unauthenticated, "check the other side's certificate"), "That node does not have the role that is needed here.")
	}
	return core.WithHint(core.Wrap(err, core.Unauthenticated, "check the other side's certificate"), "The two nodes are not of one cluster.")
}

func refused(why string) error {
	return core.Errorf(core.Unauthenticated, "check the other side: %s", why).Hint("Both sides must be nodes of one cluster: \"rbee cluster join\" takes a machine in.")
}
