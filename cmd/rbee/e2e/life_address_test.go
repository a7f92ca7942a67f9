package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// noticed bounds how long a machine may stay unreachable after its address changed while it runs.
const noticed = 15 * time.Second

// readdressed gives a machine another address while its agent runs.
func (n *node) readdressed() {
	t := n.c.t
	t.Helper()
	before := n.ip
	to := strings.Replace(n.ip, ".77.0.", ".77.0.1", 1) // .1 becomes .11
	must.NoError(t, n.c.lan.readdress(before, to, 300*time.Millisecond))
	n.ip = to
}

// Machines whose addresses change while they run are found again without a restart: a hive, a
// queen that follows, and the queen that leads.
func TestAddressChangesWhileRunning(t *testing.T) {
	t.Parallel()
	c := newLANCluster(t)
	c.listen = "0.0.0.0"
	c.start(3, 1)
	c.serve()
	hive := c.nodeNamed("hive-1")
	answers := func() error {
		for _, q := range c.queens() {
			if _, _, err := c.client(q).Chat(t.Context(), tinyQuestion(4)); err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
		}
		return nil
	}
	ready := func() error {
		out := c.client(c.queens()...)
		s, err := out.Status(t.Context())
		if err != nil {
			return err
		}
		for _, w := range s.Workers {
			if w.State != core.WorkerReady {
				return fmt.Errorf("worker %s: %s", w.ID, w.State)
			}
		}
		for _, h := range s.Hives {
			if h.Status != core.HiveReady || !strings.HasPrefix(h.RPCAddress, hive.ip+":") {
				return fmt.Errorf("hive %s is %s at %s", h.Name, h.Status, h.RPCAddress)
			}
		}
		voters := 0
		for _, q := range s.Queens {
			n := c.nodeNamed(q.Name)
			if !q.Voter || q.Gossip != "alive" || !strings.HasPrefix(q.Address, n.ip+":") || !strings.HasPrefix(q.HTTPAddress, n.ip+":") {
				return fmt.Errorf("queen %s is %s at %s and %s", q.Name, q.Gossip, q.Address, q.HTTPAddress)
			}
			voters++
		}
		if voters != 3 || len(s.Problems) > 0 {
			return fmt.Errorf("%d voters: %v", voters, s.Problems)
		}
		return nil
	}
	coretest.Eventually(t, patience, ready)
	leader := c.leader()
	for _, n := range []*node{hive, c.followers(leader)[0], leader} {
		pid := n.process.Load().cmd.Process.Pid
		n.readdressed()
		began := time.Now()
		coretest.Eventually(t, patience, answers)
		answered := time.Since(began)
		coretest.Eventually(t, patience, ready)
		took := time.Since(began)
		t.Logf("%s: all queens answer after %s, all is well after %s", n.name, answered.Round(100*time.Millisecond), took.Round(100*time.Millisecond))
		if os.Getenv("RBEE_TEST_PATIENT") == "" {
			must.Less(t, noticed, answered)
		}
		must.Eq(t, pid, n.process.Load().cmd.Process.Pid)
		must.True(t, n.running())
	}
	// A machine that joins now learns the new addresses, and clients accept the certificates.
	for _, q := range c.queens() {
		conn, err := c.dial(t.Context(), net.JoinHostPort(q.ip, "7833"))
		must.NoError(t, err)
		must.NoError(t, conn.Close())
	}
}
