package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// move stops a node, gives its machine another address, as a router may, and starts it again.
func (n *node) move(sig syscall.Signal) {
	t := n.c.t
	t.Helper()
	if sig == syscall.SIGKILL {
		n.kill()
	} else {
		n.stop(sig)
	}
	n.readdress()
	n.start()
}

// readdress gives the machine of a stopped node another address.
func (n *node) readdress() {
	t := n.c.t
	t.Helper()
	before := n.ip
	n.ip += "7" // .1 becomes .17
	text, err := os.ReadFile(n.file)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(n.file, []byte(strings.ReplaceAll(string(text), fmt.Sprintf("%q", before), fmt.Sprintf("%q", n.ip))), 0o600))
}

// configure appends to the configuration of a node.
func (n *node) configure(text string) {
	t := n.c.t
	t.Helper()
	f, err := os.OpenFile(n.file, os.O_APPEND|os.O_WRONLY, 0)
	must.NoError(t, err)
	_, err = f.WriteString(text)
	must.NoError(t, err)
	must.NoError(t, f.Close())
}

// Machines whose addresses change are found again: the hive's worker answers, queens keep their
// votes, and clients accept the certificates.
func TestMovedMachines(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	c.serve()

	hive := c.nodeNamed("hive-1")
	hive.move(syscall.SIGKILL)
	at := func() error {
		for _, h := range asJSON[[]core.Hive](c.leader(), "hive", "list") {
			if h.Name == hive.name && h.Status == core.HiveReady && strings.HasPrefix(h.RPCAddress, hive.ip+":") {
				return nil
			}
		}
		return fmt.Errorf("%s is not known at %s", hive.name, hive.ip)
	}
	began := time.Now()
	coretest.Eventually(t, patience, at)
	t.Logf("a hive that was killed is known at its new address after %s", time.Since(began))
	for _, q := range c.queens() {
		coretest.Eventually(t, patience, func() error {
			_, _, err := c.client(q).Chat(t.Context(), tinyQuestion(4))
			return err
		})
	}

	leader := c.leader()
	follower := c.followers(leader)[0]
	for n, sig := range map[*node]syscall.Signal{leader: syscall.SIGTERM, follower: syscall.SIGKILL} {
		n.move(sig)
		began := time.Now()
		n.awaitAnswer()
		c.await(func(s core.Status) error {
			for _, q := range s.Queens {
				if q.Name == n.name && q.Voter && strings.HasPrefix(q.Address, n.ip+":") {
					return nil
				}
			}
			return fmt.Errorf("%s has no vote at %s: %v", n.name, n.ip, s.Queens)
		})
		t.Logf("a queen that ended by %s votes at its new address after %s", sig, time.Since(began))
	}
	c.awaitHealth(3, 1)
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM(c.ca))
	for _, n := range c.queens() {
		coretest.Eventually(t, patience, func() error {
			d := tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
			conn, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(n.ip, "7833"))
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	must.NoError(t, at())
	_, _, err := c.client(leader).Chat(t.Context(), tinyQuestion(4))
	must.NoError(t, err)
}
