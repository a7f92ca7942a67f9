package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// shake runs one handshake over TCP and one byte each way, and returns the result of each side.
func shake(t testing.TB, server, client *tls.Config) (serverState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		s := tls.Server(c, server)
		if err := s.Handshake(); err != nil {
			done <- err
			return
		}
		serverState = s.ConnectionState()
		_, err = io.CopyN(s, s, 1)
		done <- err
	}()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", l.Addr().String(), client)
	if err == nil {
		_, err = c.Write([]byte("x"))
		if err == nil {
			// With TLS 1.3 the server's refusal arrives only now.
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		c.Close()
	}
	serverErr = <-done
	return serverState, serverErr, err
}

func TestHandshakeWithinCluster(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "00000001", roles: []core.Role{core.RoleQueen}})
	hive := identity(t, ca, signing{id: "00000002", roles: []core.Role{core.RoleHive}})
	for _, node := range []string{"", "00000001"} {
		state, serverErr, clientErr := shake(t, queen.ServerConfig("rbee-raft/1", "h2"), hive.ClientConfig("h2", core.RoleQueen, node))
		must.NoError(t, serverErr)
		must.NoError(t, clientErr)
		must.Eq(t, tls.VersionTLS13, state.Version)
		must.Eq(t, "h2", state.NegotiatedProtocol)
		n, err := pki.NodeOf(state.PeerCertificates[0])
		must.NoError(t, err)
		must.Eq(t, "00000002", n.ID)
		must.Eq(t, []core.Role{core.RoleHive}, n.Roles)
	}
	// A joining machine presents no certificate.
	state, serverErr, clientErr := shake(t, queen.ServerConfig("h2"), pki.JoinConfig("h2", ca.Fingerprint()))
	must.NoError(t, serverErr)
	must.NoError(t, clientErr)
	must.SliceEmpty(t, state.PeerCertificates)
}

// Each refusal of a server's certificate hints at what to check.
func TestServerRefusals(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "00000001", roles: []core.Role{core.RoleQueen}})
	expired := identity(t, ca, signing{id: "00000003", roles: []core.Role{core.RoleQueen}, ttl: time.Hour, now: time.Now().Add(-48 * time.Hour)})
	clientOnly := *queen.Certificate().Leaf
	clientOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for name, c := range map[string]struct {
		shown      []*x509.Certificate
		says, hint string
	}{
		"nothing shown":            {says: "it showed no certificate"},
		"expired":                  {shown: []*x509.Certificate{expired.Certificate().Leaf}, says: "expired", hint: "Compare the clocks"},
		"a client's certificate":   {shown: []*x509.Certificate{&clientOnly}, says: "usage", hint: "not of one cluster"},
		"a queen's, and in order":  {shown: []*x509.Certificate{queen.Certificate().Leaf}},
		"the name comes after all": {shown: []*x509.Certificate{identity(t, ca, signing{id: "00000002", roles: []core.Role{core.RoleHive}}).Certificate().Leaf}, says: "not", hint: "does not have the role"},
	} {
		err := queen.ClientConfig("h2", core.RoleQueen, "").VerifyConnection(tls.ConnectionState{PeerCertificates: c.shown, NegotiatedProtocol: "h2"})
		if c.says == "" {
			must.NoError(t, err, must.Sprint(name))
			continue
		}
		must.ErrorContains(t, err, c.says, must.Sprint(name))
		must.Eq(t, core.Unauthenticated, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), c.hint, must.Sprint(name))
	}
}

func TestHandshakesRefused(t *testing.T) {
	t.Parallel()
	ca, foreignCA, twinCA := newCA(t, clusterID), newCA(t, "ffffffffffffffff"), newCA(t, clusterID)
	queens, hives := []core.Role{core.RoleQueen}, []core.Role{core.RoleHive}
	queen := identity(t, ca, signing{id: "00000001", roles: queens})
	hive := identity(t, ca, signing{id: "00000002", roles: hives})
	longAgo := time.Now().Add(-48 * time.Hour)
	expired := identity(t, ca, signing{id: "00000003", roles: []core.Role{core.RoleQueen, core.RoleHive}, ttl: time.Hour, now: longAgo})
	early := identity(t, ca, signing{id: "00000006", roles: []core.Role{core.RoleQueen, core.RoleHive}, now: time.Now().Add(48 * time.Hour)})
	foreign := identity(t, foreignCA, signing{id: "00000004", roles: []core.Role{core.RoleQueen, core.RoleHive}})
	// Another CA that claims the same cluster.
	twin := identity(t, twinCA, signing{id: "00000005", roles: []core.Role{core.RoleQueen, core.RoleHive}})
	old := func(c *tls.Config) *tls.Config {
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return c
	}
	// A client that accepts any server.
	anything := func(c *tls.Config) *tls.Config { c.VerifyConnection = nil; return c }
	one := func(c *tls.Config) *tls.Config { c.NextProtos = nil; return c }

	isUnknownCA := func(err error) bool { _, ok := errors.AsType[x509.UnknownAuthorityError](err); return ok }
	isInvalid := func(err error) bool {
		e, ok := errors.AsType[x509.CertificateInvalidError](err)
		return ok && e.Reason == x509.Expired
	}
	isName := func(err error) bool { _, ok := errors.AsType[x509.HostnameError](err); return ok }
	isRefused := func(err error) bool { return core.KindOf(err) == core.Unauthenticated }
	any := func(err error) bool { return err != nil }

	for name, c := range map[string]struct {
		server, client *tls.Config
		onServer       func(error) bool // nil: not checked
		onClient       func(error) bool
	}{
		"client of a foreign CA":     {server: queen.ServerConfig("h2"), client: anything(foreign.ClientConfig("h2", core.RoleQueen, "")), onServer: isUnknownCA},
		"client of a twin CA":        {server: queen.ServerConfig("h2"), client: anything(twin.ClientConfig("h2", core.RoleQueen, "")), onServer: isUnknownCA},
		"client expired":             {server: queen.ServerConfig("h2"), client: expired.ClientConfig("h2", core.RoleQueen, ""), onServer: isInvalid},
		"client not valid yet":       {server: queen.ServerConfig("h2"), client: early.ClientConfig("h2", core.RoleQueen, ""), onServer: isInvalid},
		"client with TLS 1.2":        {server: queen.ServerConfig("h2"), client: old(hive.ClientConfig("h2", core.RoleQueen, "")), onServer: any},
		"client with another ALPN":   {server: queen.ServerConfig("h2"), client: hive.ClientConfig("http/1.1", core.RoleQueen, ""), onServer: any},
		"client without ALPN":        {server: queen.ServerConfig("h2"), client: anything(one(hive.ClientConfig("h2", core.RoleQueen, ""))), onServer: isRefused},
		"server of a foreign CA":     {server: foreign.ServerConfig("h2"), client: queen.ClientConfig("h2", core.RoleQueen, ""), onClient: isUnknownCA},
		"server of a twin CA":        {server: twin.ServerConfig("h2"), client: queen.ClientConfig("h2", core.RoleQueen, ""), onClient: isUnknownCA},
		"server expired":             {server: expired.ServerConfig("h2"), client: queen.ClientConfig("h2", core.RoleQueen, ""), onClient: isInvalid},
		"server with the wrong role": {server: hive.ServerConfig("h2"), client: queen.ClientConfig("h2", core.RoleQueen, ""), onClient: isName},
		"server with the wrong id":   {server: queen.ServerConfig("h2"), client: hive.ClientConfig("h2", core.RoleQueen, "0000000f"), onClient: isRefused},
		"server with TLS 1.2": {
			server:   &tls.Config{Certificates: []tls.Certificate{*queen.Certificate()}, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}},
			client:   hive.ClientConfig("h2", core.RoleQueen, ""),
			onClient: any,
		},
		"server without ALPN": {
			server:   &tls.Config{Certificates: []tls.Certificate{*queen.Certificate()}},
			client:   hive.ClientConfig("h2", core.RoleQueen, ""),
			onClient: isRefused,
		},
		"join with another fingerprint": {server: queen.ServerConfig("h2"), client: pki.JoinConfig("h2", twinCA.Fingerprint()), onClient: isRefused},
		"join with none":                {server: queen.ServerConfig("h2"), client: pki.JoinConfig("h2", ""), onClient: isRefused},
		"join through a hive":           {server: hive.ServerConfig("h2"), client: pki.JoinConfig("h2", ca.Fingerprint()), onClient: isRefused},
		"join with TLS 1.2":             {server: queen.ServerConfig("h2"), client: old(pki.JoinConfig("h2", ca.Fingerprint())), onServer: any},
		"join through an expired queen": {server: expired.ServerConfig("h2"), client: pki.JoinConfig("h2", ca.Fingerprint()), onClient: isInvalid},
		"join, the CA only shown": {
			// An attacker in between has the CA's certificate, which is public, but nothing signed
			// by it.
			server:   &tls.Config{Certificates: []tls.Certificate{{Certificate: append(twin.Certificate().Certificate[:1:1], queen.Certificate().Certificate[1]), PrivateKey: twin.Certificate().PrivateKey}}, NextProtos: []string{"h2"}},
			client:   pki.JoinConfig("h2", ca.Fingerprint()),
			onClient: isUnknownCA,
		},
		"join, a node's own fingerprint": {
			server: queen.ServerConfig("h2"), client: pki.JoinConfig("h2", fingerprintOf(t, queen.Certificate().Certificate[0])), onClient: isRefused,
		},
		"RPC with TLS 1.2": {server: queen.ServerConfig("h2"), client: old(queen.ClientConfig("h2", core.RoleQueen, "")), onServer: any},
		"HTTP with TLS 1.1": {
			server: queen.HTTPConfig(), onServer: any,
			client: &tls.Config{RootCAs: queen.Roots(), ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, serverErr, clientErr := shake(t, c.server, c.client)
			must.Error(t, serverErr)
			must.Error(t, clientErr)
			if c.onServer != nil {
				must.True(t, c.onServer(serverErr), must.Sprintf("the server says %T: %v", serverErr, serverErr))
			}
			if c.onClient != nil {
				must.True(t, c.onClient(clientErr), must.Sprintf("the client says %T: %v", clientErr, clientErr))
			}
		})
	}
}

func fingerprintOf(t testing.TB, der []byte) string {
	t.Helper()
	f, err := pki.Fingerprint(pemOf(der))
	must.NoError(t, err)
	return f
}

// Certificates and the CA are replaced while others keep connecting: no handshake fails.
func TestReplaceDropsNothing(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "00000001", roles: []core.Role{core.RoleQueen}})
	hive := identity(t, ca, signing{id: "00000002", roles: []core.Role{core.RoleHive}})
	l, err := tls.Listen("tcp", "127.0.0.1:0", queen.ServerConfig("h2"))
	must.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	config := hive.ClientConfig("h2", core.RoleQueen, "00000001") // a single one, as gRPC keeps it
	standing, err := tls.Dial("tcp", l.Addr().String(), config)
	must.NoError(t, err)
	echo := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	must.NoError(t, echo(standing))

	stop := make(chan struct{})
	var shakes [3]atomic.Int64
	var clients sync.WaitGroup
	for i := range shakes {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := tls.Dial("tcp", l.Addr().String(), config)
				if err == nil {
					err = echo(c)
					c.Close()
				}
				must.NoError(t, err)
				shakes[i].Add(1)
			}
		})
	}
	// Every client has finished its running handshake and one more: no handshake in flight presents
	// an older certificate. The standing connection was opened before all of this.
	settle := func() {
		for i := range shakes {
			for before := shakes[i].Load(); shakes[i].Load() < before+2 && !t.Failed(); {
				must.NoError(t, echo(standing))
			}
		}
	}
	renew := func(id *pki.Identity, by *pki.CA, caPEM []byte) {
		csr, err := id.Request()
		must.NoError(t, err)
		certPEM, _, err := by.Sign(csr, id.Node(), nil, time.Hour, time.Now())
		must.NoError(t, err)
		must.NoError(t, id.Replace(certPEM, caPEM))
	}
	for range 3 {
		renew(queen, ca, ca.CertPEM())
		renew(hive, ca, ca.CertPEM())
	}
	// A new CA is first known everywhere, then used, then the old one is removed.
	ca2 := newCA(t, clusterID)
	both := append(ca.CertPEM(), ca2.CertPEM()...)
	for _, step := range []struct {
		by    *pki.CA
		roots []byte
	}{{ca, both}, {ca2, both}, {ca2, ca2.CertPEM()}} {
		renew(queen, step.by, step.roots)
		renew(hive, step.by, step.roots)
		settle()
	}
	close(stop)
	clients.Wait()
	must.NoError(t, echo(standing))
	standing.Close()
	l.Close()
	wg.Wait()
	// Certificates of the old CA are now refused.
	stranger := identity(t, ca, signing{id: "00000003", roles: []core.Role{core.RoleHive}})
	c := stranger.ClientConfig("h2", core.RoleQueen, "")
	c.VerifyConnection = nil
	_, serverErr, _ := shake(t, queen.ServerConfig("h2"), c)
	must.Error(t, serverErr)
}

func TestHTTPConfig(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "00000001", roles: []core.Role{core.RoleQueen}})
	l, err := tls.Listen("tcp", "127.0.0.1:0", queen.HTTPConfig())
	must.NoError(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }), ReadHeaderTimeout: time.Minute}
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { must.NoError(t, s.Close()); <-done })
	roots, err := pki.Roots(ca.CertPEM())
	must.NoError(t, err)
	// TLS 1.2 is for proxies.
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MaxVersion: version}}}
		t.Cleanup(client.CloseIdleConnections)
		resp, err := client.Get("https://" + l.Addr().String())
		must.NoError(t, err)
		defer resp.Body.Close()
		must.Eq(t, http.StatusOK, resp.StatusCode)
		must.Eq(t, version, resp.TLS.Version)
	}
}
