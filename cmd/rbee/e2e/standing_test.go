package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/rpc"
)

// A machine that was removed from the cluster reports so once, with how to rejoin, and does not
// disturb the others.
func TestOutcastsKnowIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 2)
	leader := c.leader()
	revoked, removed, queen := c.nodeNamed("hive-1"), c.nodeNamed("hive-2"), c.followers(leader)[0]

	// One hive is revoked while it runs, one leaves while it is off, and a queen is revoked.
	removed.stop(syscall.SIGTERM)
	for _, step := range []struct {
		n    *node
		args []string
	}{{revoked, []string{"tls", "revoke"}}, {removed, []string{"cluster", "leave"}}, {queen, []string{"tls", "revoke"}}} {
		leader.must(append(step.args, step.n.name, "--yes")...)
		for _, p := range asJSON[core.Status](leader, "status").Problems {
			must.StrNotContains(t, p, "hive "+step.n.name)
			must.StrNotContains(t, p, "queen "+step.n.name+" is not part of raft")
		}
	}
	removed.start()
	const line = "the cluster refuses its certificate for ever"
	for _, n := range []*node{revoked, removed, queen} {
		n.env = append(n.env, "RBEE_DATA_DIR="+n.dir, "RBEE_ADDR="+leader.url())
		coretest.Eventually(t, patience, func() error {
			if !strings.Contains(n.log.String(), line) {
				return errors.New(n.name + " does not know it")
			}
			return nil
		})
		coretest.Eventually(t, patience, func() error {
			r := n.run("status")
			if !strings.Contains(r.stdout+r.stderr, "this machine, "+n.name+", was revoked") || !strings.Contains(r.stdout+r.stderr, "cluster leave --forget") {
				return fmt.Errorf("%s: status says: %s%s", n.name, r.stdout, r.stderr)
			}
			return nil
		})
	}
	// None tries to connect any more, and none reports it again.
	refused := func() int { return leader.refusals()[string(rpc.ReasonRevoked)] }
	before := refused()
	<-time.After(12 * time.Second)
	must.LessEq(t, 2, refused()-before)
	for _, n := range []*node{revoked, removed, queen} {
		must.Eq(t, 1, strings.Count(n.log.String(), line), must.Sprint(n.name))
	}
	// It rejoins as instructed.
	revoked.stop(syscall.SIGTERM)
	revoked.must("cluster", "leave", "--forget", "--config", revoked.file, "--yes")
	revoked.start("-join", leader.joinToken(revoked)+"@"+leader.ip)
	c.await(func(s core.Status) error {
		for _, h := range s.Hives {
			if h.Name == revoked.name && h.Status == core.HiveReady {
				return nil
			}
		}
		return errors.New("it is not back")
	})
	must.StrNotContains(t, revoked.must("status"), "was revoked")
}
