package agent

import (
	"cmp"
	"context"
	"slices"

	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/raft/node"
)

// bootstrap waits until as many queens have found each other as the configuration expects, all of them new, and has them form a cluster. All
// do so with the same list, so that it does not matter who is first. A queen that meets a cluster which exists waits to be added to it.
func (p *process) bootstrap(ctx context.Context) error {
	expect := p.cfg.Queen.BootstrapExpect
	for !p.registry.HasState() {
		changed := p.net.Changed()
		voters, problem := firstVoters(p.net.Members(), expect)
		switch {
		case problem != "":
			p.log.Warn("no cluster is formed", "reason", problem)
		case len(voters) == expect:
			if err := p.registry.Bootstrap(voters); err != nil {
				return err
			}
			if err := p.net.gossip.Update(func(m *gossip.Member) { m.HasState = true }); err != nil {
				return err
			}
			p.log.Info("the cluster is formed", "queens", len(voters))
			continue
		default:
			p.log.Info("waiting for queens to form a cluster", "found", len(voters), "expected", expect)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// firstVoters are the queens that form a new cluster, sorted, at most as many as expected; none when a cluster exists already or the queens do
// not agree on their number.
func firstVoters(members []gossip.Member, expect int) (voters []node.Voter, problem string) {
	for _, m := range members {
		switch {
		case !m.Queen || m.Status != gossip.Alive:
			continue
		case m.HasState:
			return nil, "a cluster exists already: this queen waits to be added to it"
		case int(m.BootstrapExpect) != expect:
			return nil, "queen " + m.Name + " expects another number of queens: set the same bootstrap_expect on all"
		}
		voters = append(voters, node.Voter{ID: m.RaftID, Address: m.RPCAddress})
	}
	slices.SortFunc(voters, func(a, b node.Voter) int { return cmp.Compare(a.ID, b.ID) })
	if len(voters) > expect {
		return nil, "there are more queens than expected: set bootstrap_expect to their number"
	}
	return voters, ""
}
