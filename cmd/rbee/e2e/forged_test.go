package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
)

// forge runs a member of the cluster's gossip pool that is not a real queen, with the keys that a
// hive has on its disk. It announces m.
func forge(t *testing.T, from, seed *node, ip string, m gossip.Member) *gossip.Pool {
	t.Helper()
	id, err := pki.Load(from.dir)
	must.NoError(t, err)
	keys, err := id.GossipKeys()
	must.NoError(t, err)
	m.Incarnation = 1
	p, err := gossip.New(gossip.Options{
		Self: m, Bind: net.JoinHostPort(ip, "0"), Keys: gossip.Keys(keys), ClusterID: id.Cluster(), RetryJoin: []string{seed.ip + ":7835"},
		Logger: hclog.NewNullLogger(),
	})
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return p
}

// seen counts the real queens that a pool considers alive.
func seen(p *gossip.Pool) int {
	n := 0
	for _, m := range p.Members() {
		if m.Status == gossip.Alive && strings.HasPrefix(m.Name, "queen-") && !strings.HasPrefix(m.ID, "f0f0f0f") {
			n++
		}
	}
	return n
}

// A hive whose machine was taken over forges queens in gossip: one of an old version, and two with
// the raft ids of real followers. The registry keeps working, raft keeps its addresses, a dead
// leader is replaced, and revoking the hive makes its key useless.
func TestForgedMembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	hive, leader := c.nodeNamed("hive-1"), c.leader()
	addresses := func() string {
		var out []string
		for _, q := range asJSON[[]core.Queen](c.leader(), "queen", "list") {
			out = append(out, q.Name+" "+q.Address)
		}
		slices.Sort(out)
		return strings.Join(out, ", ")
	}
	before := addresses()
	nowhere := net.JoinHostPort(c.net+".66", "7834")
	forged := []*gossip.Pool{forge(t, hive, leader, c.net+".66", gossip.Member{
		ID: "f0f0f0f0", Name: "forged", Queen: true, FSM: 1, RaftID: "f0f0f0f0.00000001", RPCAddress: nowhere,
	})}
	for i, f := range c.followers(leader) {
		var real core.Queen
		for _, q := range asJSON[[]core.Queen](leader, "queen", "list") {
			if q.Name == f.name {
				real = q
			}
		}
		must.NotEq(t, "", real.RaftID)
		forged = append(forged, forge(t, hive, leader, c.net+".66", gossip.Member{
			ID: fmt.Sprintf("f0f0f0f%d", i+1), Name: f.name, Queen: true, FSM: 1, RaftID: real.RaftID, RPCAddress: nowhere,
		}))
	}
	for _, p := range forged {
		coretest.Eventually(t, patience, func() error {
			if n := seen(p); n < 3 {
				return fmt.Errorf("a forged member sees %d queens", n)
			}
			return nil
		})
	}
	for range 5 {
		leader.must("token", "create", "--type", "api", "--scope", "read")
		must.Eq(t, before, addresses())
	}

	// The hive is revoked: its gossip key no longer receives anything.
	leader.must("tls", "revoke", hive.name, "--yes")
	for _, p := range forged {
		coretest.Eventually(t, patience, func() error {
			if n := seen(p); n > 0 {
				return fmt.Errorf("a forged member still sees %d queens", n)
			}
			return nil
		})
	}
	leader.must("token", "create", "--type", "api", "--scope", "read")
	must.Eq(t, before, addresses())

	// The leader dies.
	leader.kill()
	coretest.Eventually(t, patience, func() error {
		next := c.followers(leader)[0]
		if out := next.run("token", "create", "--type", "api", "--scope", "read"); out.code != 0 {
			return errors.New(out.stderr)
		}
		return nil
	})
	for _, q := range asJSON[[]core.Queen](c.leader(), "queen", "list") {
		must.StrNotContains(t, q.Address, c.net+".66")
	}
}

// Three queens lose their addresses at once, as when a router is replaced. They find each other
// again, since they prove their identities to each other wherever they are.
func TestAllQueensMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	for _, n := range c.nodes {
		n.stop(syscall.SIGTERM)
	}
	for _, n := range c.nodes {
		n.readdress()
	}
	// They can find the pool again, as through a name that is looked up anew, but get no other
	// help.
	first := c.nodes[0]
	for _, n := range c.nodes[1:] {
		n.configure("gossip {\n  retry_join = [\"" + first.ip + "\"]\n}\n")
	}
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.queens() {
		n.awaitAnswer()
	}
	c.await(func(s core.Status) error {
		for _, q := range s.Queens {
			if !strings.HasSuffix(strings.TrimSuffix(q.Address, ":7834"), "7") {
				return fmt.Errorf("queen %s is known at %s", q.Name, q.Address)
			}
		}
		if len(s.Problems) > 0 || s.Leader == "" {
			return fmt.Errorf("problems: %v", s.Problems)
		}
		return nil
	})
	c.leader().must("token", "create", "--type", "api", "--scope", "read")
}
