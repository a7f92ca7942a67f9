package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// fileCluster is a cluster whose certificates were created by hand.
type fileCluster struct {
	*cluster
	pki string // folder
}

// addWithFiles creates a certificate for another machine and writes its configuration.
func (c *fileCluster) addWithFiles(name string, queen bool, settings string) *node {
	c.t.Helper()
	n := c.add(name, queen, !queen)
	role := "hive"
	if queen {
		role = "queen"
	}
	n.must("tls", "cert", "create", "--out", c.pki, "--name", name, "--role", role, "--host", n.ip)
	text, err := os.ReadFile(n.file)
	must.NoError(c.t, err)
	file := func(name string) string { return filepath.Join(c.pki, name) }
	changed := strings.Replace(string(text), "queen {\n", "queen {\n"+settings, 1) + fmt.Sprintf(
		"gossip {\n  key_file = %q\n  retry_join = [%q, %q]\n}\ntls {\n  ca_file = %q\n  cert_file = %q\n  key_file = %q\n}\n",
		file("gossip.key"), c.net+".1", c.net+".2", file("ca.pem"), file(name+".pem"), file(name+".key"))
	must.NoError(c.t, os.WriteFile(n.file, []byte(changed), 0o600))
	n.env = append(n.env, "RBEE_CACERT="+file("ca.pem")) // the last entry takes effect
	return n
}

// Three queens with certificates from files find each other and start one cluster; a fourth and a
// hive join in the same way, and tokens admit no machine.
func TestClusterOfFiles(t *testing.T) {
	t.Parallel()
	c := &fileCluster{newCluster(t), t.TempDir()}
	must.Eq(t, 0, stray(t, nil, "tls", "ca", "create", "--out", c.pki).code)
	var err error
	c.ca, err = os.ReadFile(filepath.Join(c.pki, "ca.pem"))
	must.NoError(t, err)
	secret, err := os.ReadFile(filepath.Join(c.pki, "operator.token"))
	must.NoError(t, err)
	c.token = strings.TrimSpace(string(secret))
	expect := "  bootstrap_expect = 3\n  operator_token_file = " + fmt.Sprintf("%q", filepath.Join(c.pki, "operator.token")) + "\n"
	for i := range 3 {
		c.addWithFiles(fmt.Sprintf("queen-%d", i+1), true, expect)
	}
	// Two of three wait for the third.
	c.nodes[0].start()
	c.nodes[1].start()
	coretest.Eventually(t, patience, func() error {
		if !strings.Contains(c.nodes[0].log.String(), "found=2 expected=3") {
			return errors.New("two have not met yet")
		}
		return nil
	})
	c.nodes[1].awaitAnswer()
	alone := c.nodes[1].run("hive", "list")
	must.Eq(t, 1, alone.code)
	must.StrContains(t, alone.stderr, "could not be checked") // without a registry there are no tokens
	began := time.Now()
	c.nodes[2].start()
	c.awaitVoters(3, 0)
	fmt.Printf("three queens formed a cluster %d ms after the start of the third\n", time.Since(began).Milliseconds())
	must.SliceLen(t, 1, asJSON[[]core.Token](c.nodes[2], "token", "list"))
	coretest.Eventually(t, patience, func() error {
		if nodes := asJSON[[]core.Node](c.nodes[0], "tls", "list"); len(nodes) != 3 {
			return fmt.Errorf("%d queens are listed", len(nodes))
		}
		return nil
	})

	hive := c.addWithFiles("hive-1", false, "")
	hive.start()
	c.awaitVoters(3, 1)
	c.nodes[0].must("worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
	must.StrContains(t, c.nodes[1].must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")

	// There are no join tokens here, and the error explains what to do instead.
	refused(t, c.nodes[1].run("token", "create", "--type", "join"), 1, "no machine can join by token", "rbee tls cert create")
	refused(t, c.nodes[1].run("operator", "keyring", "install"), 1)

	// A fourth queen that expects no others is added, and does not start a separate cluster.
	fourth := c.addWithFiles("queen-4", true, "")
	fourth.start()
	c.awaitVoters(4, 1)

	// From now on the operator's token is the registry's: a restarted queen does not restore the
	// old one.
	second := asJSON[core.NewToken](c.nodes[0], "token", "create", "--type", "api", "--scope", "admin", "--scope", "read")
	c.nodes[0].must("token", "revoke", strings.Split(c.token, "_")[1], "--yes")
	c.nodes[0].stop(syscall.SIGTERM)
	c.nodes[0].start()
	c.nodes[0].awaitAnswer()
	was := c.token
	c.token = second.Secret
	c.awaitVoters(4, 1)
	must.SliceLen(t, 1, asJSON[[]core.Token](c.nodes[0], "token", "list"))
	c.token = was
	must.Eq(t, 1, c.nodes[0].run("token", "list").code)
	c.token = second.Secret
}

func (c *cluster) awaitVoters(queens, hives int) {
	c.t.Helper()
	c.await(func(s core.Status) error {
		voters, ready := 0, 0
		for _, q := range s.Queens {
			if q.Voter {
				voters++
			}
		}
		for _, h := range s.Hives {
			if h.Status == core.HiveReady {
				ready++
			}
		}
		if voters != queens || ready != hives || s.Leader == "" {
			return fmt.Errorf("%d voters, %d hives: %v", voters, ready, s.Problems)
		}
		return nil
	})
}
