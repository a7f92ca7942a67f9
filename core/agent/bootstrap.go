package agent

import (
	"cmp"
	"context"
	"slices"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/raft/node"
)

// bootstrap forms a cluster of this queen and others, and announces in gossip that a cluster
// exists.
func (p *process) bootstrap(ctx context.Context) error {
	if err := begin(ctx, p.registry, p.queen.Members.Announced, p.cfg.Queen.BootstrapExpect, p.log); err != nil {
		return err
	}
	if err := p.net.gossip.Update(func(m *gossip.Member) { m.HasState = true }); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// starter is a queen without a cluster; *node.Node implements it.
type starter interface {
	HasState() bool
	Bootstrap(voters []node.Voter) error
}

// begin waits until as many new queens as expected have found each other, and then bootstraps the
// cluster. All of them do so with the same list, so that it does not matter which is first. A queen
// that finds an existing cluster waits to be added to it. announced returns the queens that proved
// their identity, and a channel that is closed at the next change. Errors: the starter's; ctx's.
func begin(ctx context.Context, s starter, announced func() ([]gossip.Member, <-chan struct{}), expect int, log hclog.Logger) error {
	for !s.HasState() {
		members, changed := announced()
		voters, problem := firstVoters(members, expect)
		switch {
		case problem != "":
			log.Warn("no cluster is formed", "reason", problem)
		case len(voters) == expect:
			err := s.Bootstrap(voters)
			if core.KindOf(err) == core.Conflict {
				// Another queen was so much faster that this queen already has its log or has voted
				// for it: the cluster is the same.
				log.Info("the cluster was formed meanwhile", "queens", len(voters))
				return nil
			}
			if err == nil {
				log.Info("the cluster is formed", "queens", len(voters))
			}
			return err
		default:
			log.Info("waiting for queens to form a cluster", "found", len(voters), "expected", expect)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// firstVoters returns the queens that form a new cluster, sorted, at most as many as expected; none
// if a cluster already exists or the queens disagree on their number.
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
