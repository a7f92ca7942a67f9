package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// insider has the CA of a cluster. Once the first queen has started, nobody outside the registry
// has it.
type insider struct {
	t  *testing.T
	ca *pki.CA
}

// certificate returns a certificate signed by the cluster's CA, like that of a node with these
// roles.
func (i insider) certificate(id string, notAfter time.Duration, roles ...core.Role) tls.Certificate {
	i.t.Helper()
	return signed(i.t, i.ca, id, notAfter, roles...)
}

func signed(t *testing.T, ca *pki.CA, id string, ttl time.Duration, roles ...core.Role) tls.Certificate {
	t.Helper()
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, id)
	must.NoError(t, err)
	now := time.Now()
	if ttl < 0 {
		now, ttl = now.Add(2*ttl), -ttl
	}
	pem, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: id, Roles: roles}, []string{"127.0.0.1"}, ttl, now)
	must.NoError(t, err)
	pair, err := tls.X509KeyPair(pem, key)
	must.NoError(t, err)
	return pair
}

// knock performs a handshake with an RPC port and returns how that ended: nil when the port
// accepted the connection and waits for more.
func knock(address, protocol string, version uint16, certificates ...tls.Certificate) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12, MaxVersion: version, //nolint:gosec // it is the server that is tested
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // also one that the server did not ask for
			if len(certificates) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certificates[0], nil
		},
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	// In TLS 1.3 a client's certificate is refused after the client's own handshake has ended.
	_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// refusals returns the counts of refused connections and requests by reason, from a queen's
// metrics.
func (n *node) refusals() map[string]int {
	n.c.t.Helper()
	req, err := http.NewRequestWithContext(n.c.t.Context(), http.MethodGet, n.url()+"/metrics", http.NoBody)
	must.NoError(n.c.t, err)
	req.Header.Set("Authorization", "Bearer "+n.c.token)
	hc := n.c.httpClient()
	defer hc.CloseIdleConnections()
	resp, err := hc.Do(req)
	must.NoError(n.c.t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	must.NoError(n.c.t, err)
	found := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^rbee_(?:rpc_refused_total|gateway_refused_requests_total)\{reason="(\w+)"\} (\d+)`).FindAllStringSubmatch(string(page), -1) {
		found[m[1]], _ = strconv.Atoi(m[2])
	}
	return found
}

// withInsider starts a cluster of one queen, which is also a hive, and keeps its CA for the test.
func withInsider(t *testing.T) (*cluster, *node, insider) {
	t.Helper()
	c := newCluster(t)
	first := c.add("queen-1", true, true)
	out := first.run("cluster", "init", "--config", first.file, "--format", "json")
	must.Eq(t, 0, out.code, must.Sprint(out.stderr))
	var made struct{ Token string }
	must.NoError(t, json.Unmarshal([]byte(out.stdout), &made))
	c.token = made.Token
	identity, err := pki.Load(first.dir)
	must.NoError(t, err)
	c.ca = identity.CAPEM()
	seed, err := identity.Seed()
	must.NoError(t, err)
	ca, err := identity.CA(seed.CAPEM, seed.SealedCAKey)
	must.NoError(t, err)
	first.start()
	first.awaitAnswer()
	c.await(func(s core.Status) error {
		if len(s.Hives) == 0 {
			return errors.New("no hive yet")
		}
		return nil
	})
	_, err = os.Stat(first.dir + "/cluster/init.json")
	must.ErrorIs(t, err, os.ErrNotExist) // the sealed key is only in the registry

	return c, first, insider{t, ca}
}

// Intruders are refused and counted: on the RPC port without the right certificate, with a token
// after its time, after being revoked.
func TestIntruders(t *testing.T) {
	t.Parallel()
	c, first, in := withInsider(t)
	ca := in.ca
	rpcPort := first.ip + ":7834"
	other, err := pki.NewCA("00112233445566ff", "other", time.Now())
	must.NoError(t, err)
	queen := in.certificate("eeeeeeee", time.Hour, core.RoleQueen)
	hive := in.certificate("ffffffff", time.Hour, core.RoleHive)
	for name, tt := range map[string]struct {
		err    error
		reason rpc.Reason // empty: it is let in
	}{
		"a queen to raft":             {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS13, queen), ""},
		"a queen to data":             {knock(rpcPort, rpc.ProtocolData, tls.VersionTLS13, queen), ""},
		"another CA":                  {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS13, signed(t, other, "eeeeeeee", time.Hour, core.RoleQueen)), rpc.ReasonWrongCA},
		"an expired certificate":      {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS13, in.certificate("eeeeeeee", -time.Hour, core.RoleQueen)), rpc.ReasonExpired},
		"a hive to raft":              {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS13, hive), rpc.ReasonWrongRole},
		"a hive to data":              {knock(rpcPort, rpc.ProtocolData, tls.VersionTLS13, hive), rpc.ReasonWrongRole},
		"a hive to files":             {knock(rpcPort, rpc.ProtocolBlob, tls.VersionTLS13, hive), ""},
		"a queen to files":            {knock(rpcPort, rpc.ProtocolBlob, tls.VersionTLS13, queen), rpc.ReasonWrongRole},
		"no certificate to raft":      {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS13), rpc.ReasonNoCertificate},
		"no certificate to data":      {knock(rpcPort, rpc.ProtocolData, tls.VersionTLS13), rpc.ReasonNoCertificate},
		"TLS 1.2":                     {knock(rpcPort, rpc.ProtocolRaft, tls.VersionTLS12, queen), rpc.ReasonTLSVersion},
		"anybody to gRPC, which asks": {knock(rpcPort, rpc.ProtocolGRPC, tls.VersionTLS13), ""},
	} {
		if tt.reason == "" {
			must.NoError(t, tt.err, must.Sprint(name))
			continue
		}
		must.Error(t, tt.err, must.Sprint(name))
		coretest.Eventually(t, patience, func() error {
			if first.refusals()[string(tt.reason)] == 0 {
				return fmt.Errorf("%s is not counted as %s: %v", name, tt.reason, first.refusals())
			}
			return nil
		})
	}

	// A join token admits one machine, once.
	second := c.add("hive-2", false, true)
	joinToken := asJSON[core.NewToken](first, "token", "create", "--type", "join", "--role", "queen").Secret // it uses only a part of the token
	second.start("-join", joinToken+"@"+first.ip)
	hives := func(want int) func(core.Status) error {
		return func(s core.Status) error {
			if len(s.Hives) != want {
				return fmt.Errorf("%d hives, not %d", len(s.Hives), want)
			}
			return nil
		}
	}
	c.await(hives(2))
	for _, role := range []core.Role{core.RoleHive, core.RoleQueen} { // with its own key, which no other machine has
		resp, err := second.joinAgain(joinToken, first.ip+":7834", core.RoleHive, role)
		if role == core.RoleHive {
			must.NoError(t, err)
			must.SliceEmpty(t, resp.GetSealKey())
			continue
		}
		must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(err))
		must.Nil(t, resp)
	}
	// A hive that answers at a queen's address receives no token, even with a certificate of an
	// earlier release, which names hosts.
	own, err := pki.Load(second.dir)
	must.NoError(t, err)
	for _, certificate := range []tls.Certificate{*own.Certificate(), withHosts(t, ca, hive)} {
		var asked atomic.Int64
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}
		s.Config.ErrorLog = log.New(t.Output(), "", 0)
		s.StartTLS()
		posing := first.run("hive", "list", "--addr", s.URL)
		s.Close()
		must.Eq(t, 1, posing.code, must.Sprint(posing.stdout))
		must.StrContains(t, posing.stderr, "certificate")
		must.Eq(t, 0, asked.Load())
	}
	third := c.add("hive-3", false, true)
	replay := third.run("cluster", "join", joinToken+"@"+first.ip, "--config", third.file)
	must.Eq(t, 1, replay.code)
	must.StrContains(t, replay.stderr, "used already")
	wrong := third.run("cluster", "join", strings.TrimSuffix(joinToken, joinToken[len(joinToken)-4:])+"aaaa@"+first.ip, "--config", third.file)
	must.Eq(t, 1, wrong.code) // the server's CA is not the token's

	// A token without the scope, no token, and a wrong token.
	var reader core.NewToken
	must.NoError(t, json.Unmarshal([]byte(first.must("token", "create", "--type", "api", "--scope", "read", "--format", "json")), &reader))
	as := func(tok string, args ...string) result {
		was := c.token
		c.token = tok
		defer func() { c.token = was }()
		return first.run(args...)
	}
	must.Eq(t, 0, as(reader.Secret, "hive", "list").code)
	for _, r := range []result{as(reader.Secret, "token", "list"), as(reader.Secret, "infer", "--model", "rbee-tiny", "--prompt", "x"), as("", "hive", "list"), as(otherSecret(reader.Secret), "hive", "list")} {
		must.Eq(t, 1, r.code, must.Sprint(r.stdout, r.stderr))
	}
	// The operator's token is lost: a user who may read the queen's data folder creates another
	// one, which is logged. A plugin, which can reach the socket but not read the folder, cannot.
	lost := c.token
	c.token = ""
	for _, n := range []*node{first, second} {
		n.env = append(n.env, "RBEE_DATA_DIR="+n.dir)
	}
	made2 := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "admin,read", "--local")
	must.Eq(t, 0, as(made2.Secret, "token", "list").code)
	must.StrContains(t, first.log.String(), "token made through the local socket")
	must.StrContains(t, first.log.String(), fmt.Sprintf("user %d, process ", os.Getuid()))
	must.Eq(t, http.StatusForbidden, postToSocket(t, filepath.Join(first.dir, "run", "agent.sock"), "/v1/tokens", `{"kind":"api","scopes":["admin"]}`))
	must.Eq(t, 1, second.run("token", "create", "--type", "api", "--scope", "admin", "--local").code) // a hive creates no tokens
	c.token = lost
	first.must("token", "revoke", made2.ID, "--yes")
	first.must("token", "revoke", reader.ID, "--yes")
	must.Eq(t, 1, as(reader.Secret, "hive", "list").code) // takes effect at once on the queen that was asked

	// A revoked node is disconnected within a second, including its open connections.
	revoked := time.Now()
	first.must("tls", "revoke", "hive-2", "--yes")
	c.await(hives(1))
	t.Logf("a revoked hive is out %s after the command began", time.Since(revoked)) // promised: 1 s, on an otherwise idle machine
	must.Less(t, 10*time.Second, time.Since(revoked))
	coretest.Eventually(t, patience, func() error {
		if r := first.refusals(); r[string(rpc.ReasonRevoked)] == 0 {
			return fmt.Errorf("the revoked node is not counted: %v", r)
		}
		return nil
	})
	counted := first.refusals()
	for _, reason := range []string{"no_token", "bad_token", "missing_scope"} {
		must.Positive(t, counted[reason], must.Sprint(reason, counted))
	}
	t.Logf("refused: %v", counted)
	second.stop(syscall.SIGTERM)

	// The logs contain no secret.
	for _, n := range c.nodes {
		for _, secret := range []string{c.token, joinToken, reader.Secret} {
			must.StrNotContains(t, n.log.String(), secret[strings.LastIndex(secret, "_")+1:])
			must.StrNotContains(t, n.log.String(), strings.Split(secret, "_")[2])
		}
	}
}

// withHosts re-signs a certificate for 127.0.0.1 as well.
func withHosts(t *testing.T, ca *pki.CA, old tls.Certificate) tls.Certificate {
	t.Helper()
	signer, err := tls.X509KeyPair(ca.CertPEM(), ca.KeyPEM())
	must.NoError(t, err)
	template, err := x509.ParseCertificate(old.Certificate[0])
	must.NoError(t, err)
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.Leaf, template.PublicKey, signer.PrivateKey)
	must.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: old.PrivateKey}
}

// joinAgain repeats the call with which a node joined, with its own id, key, name and address, but
// these roles.
func (n *node) joinAgain(joinToken, queen string, roles ...core.Role) (*queenv1.JoinResponse, error) {
	t := n.c.t
	t.Helper()
	id, err := pki.Load(n.dir)
	must.NoError(t, err)
	fingerprint, err := pki.Fingerprint(id.CAPEM())
	must.NoError(t, err)
	request, err := id.Request()
	must.NoError(t, err)
	conn, err := rpc.JoinConn(t.Context(), queen, fingerprint)
	must.NoError(t, err)
	defer conn.Close()
	req := &queenv1.JoinRequest{Token: joinToken, Node: id.Node().ID, Name: id.Node().Name, RpcAddress: id.RPCAddress(), CertificateRequest: request}
	for _, r := range slices.Compact(roles) {
		req.Roles = append(req.Roles, string(r))
	}
	resp, err := queenv1.NewJoinServiceClient(conn).Join(t.Context(), req)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	return resp, nil
}

// postToSocket sends a request to a unix socket.
func postToSocket(t *testing.T, socket, path, body string) int {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost"+path, strings.NewReader(body))
	must.NoError(t, err)
	resp, err := hc.Do(req)
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

// otherSecret returns a token with the same id and another secret.
func otherSecret(token string) string {
	last := "a"
	if strings.HasSuffix(token, last) {
		last = "b"
	}
	return token[:len(token)-1] + last
}
