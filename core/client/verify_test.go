package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// authority is a CA; uri names its cluster, empty: none.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func uris(t *testing.T, uri string) []*url.URL {
	t.Helper()
	if uri == "" {
		return nil
	}
	u, err := url.Parse(uri)
	must.NoError(t, err)
	return []*url.URL{u}
}

func newAuthority(t *testing.T, uri string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: uris(t, uri),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	must.NoError(t, err)
	c, err = x509.ParseCertificate(der)
	must.NoError(t, err)
	return &authority{c, key}
}

// leaf returns a certificate for 127.0.0.1 with these names.
func (a *authority) leaf(t *testing.T, uri string, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "0a0b0c0d"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: uris(t, uri),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	must.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A node that is not a queen never receives a token, whatever hosts its certificate is valid for; a
// proxy with its own certificate does.
func TestQueenRoleRequired(t *testing.T) {
	t.Parallel()
	const cluster = "rbee://0123456789abcdef"
	ours, operators := newAuthority(t, cluster), newAuthority(t, "")
	for name, tt := range map[string]struct {
		ca      *authority
		leaf    tls.Certificate
		refused bool
	}{
		"a queen":                           {ours, ours.leaf(t, cluster+"/node/0a0b0c0d", "queen.0123456789abcdef.rbee"), false},
		"a hive with host names":            {ours, ours.leaf(t, cluster+"/node/0a0b0c0d", "hive.0123456789abcdef.rbee", "localhost"), true},
		"nobody, by the cluster's CA":       {ours, ours.leaf(t, "", "localhost"), true},
		"another cluster's queen":           {ours, ours.leaf(t, "rbee://ffffffffffffffff/node/0a0b0c0d", "queen.ffffffffffffffff.rbee"), true},
		"a queen by a CA of files":          {operators, operators.leaf(t, cluster+"/node/0a0b0c0d", "queen.0123456789abcdef.rbee"), false},
		"a hive by a CA of files":           {operators, operators.leaf(t, cluster+"/node/0a0b0c0d", "hive.0123456789abcdef.rbee"), true},
		"a proxy with another CA's":         {operators, operators.leaf(t, "", "llm.example.com"), false},
		"a proxy that has a URI of its own": {operators, operators.leaf(t, "spiffe://example.com/proxy"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				_, _ = w.Write([]byte(`{"data":[]}`))
			}))
			s.TLS = &tls.Config{Certificates: []tls.Certificate{tt.leaf}, MinVersion: tls.VersionTLS12}
			s.Config.ErrorLog = log.New(t.Output(), "", 0)
			s.StartTLS()
			defer s.Close()
			c, err := New(Options{
				Addresses: []string{s.URL}, Token: "secret",
				CACert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tt.ca.cert.Raw}),
			})
			must.NoError(t, err)
			defer c.Close()
			_, err = c.Models(t.Context())
			if !tt.refused {
				must.NoError(t, err)
				return
			}
			must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(err))
			must.StrContains(t, err.Error(), "no queen")
			must.Eq(t, 0, asked.Load())
		})
	}
}
