package membership

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Queens lists the queens known to raft, and those of the registry that answer but are not, or not
// yet, known to raft.
func (m *Members) Queens(context.Context) ([]core.Queen, error) {
	servers, err := m.registry.Queens()
	if err != nil || m.net == nil {
		return servers, err
	}
	status := map[string]string{}
	for _, g := range m.net.Gossip.Members() {
		status[g.ID] = string(g.Status)
	}
	registry := m.registry.View()
	own, proofs := m.ownMember(), m.proven()
	known := map[string]bool{}
	for i := range servers {
		s := &servers[i]
		known[s.ID] = true
		s.Gossip = cmp.Or(status[s.ID], "unknown")
		if n, ok := registry.Node(nil, s.ID); ok {
			s.Name = n.Name
		}
		if s.ID == m.opts.ID {
			s.HTTPAddress, s.Version, s.Name = own.HTTPAddress, m.opts.Version, cmp.Or(s.Name, own.Name)
		}
		for _, p := range proofs {
			if p.node.ID == s.ID {
				s.HTTPAddress, s.Version = p.said.GetHttpAddress(), p.said.GetVersion()
				s.Name = cmp.Or(s.Name, p.node.Name)
			}
		}
	}
	for _, p := range proofs {
		if n, ok := trusted(registry, p.node.ID); ok && !known[n.ID] && p.alive() {
			servers = append(servers, core.Queen{
				ID: n.ID, RaftID: p.said.GetRaftId(), Name: n.Name, Address: p.said.GetRpcAddress(), HTTPAddress: p.said.GetHttpAddress(),
				Version: p.said.GetVersion(), Gossip: cmp.Or(status[n.ID], "unknown"),
			})
		}
	}
	slices.SortFunc(servers, func(a, b core.Queen) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return servers, nil
}

// queenNamed finds a queen by node id, name or raft id.
func (m *Members) queenNamed(ctx context.Context, name string) (core.Queen, error) {
	queens, err := m.Queens(ctx)
	if err != nil {
		return core.Queen{}, err
	}
	var names []string
	for _, s := range queens {
		if name != "" && (s.ID == name || s.RaftID == name || s.Name == name) {
			return s, nil
		}
		names = append(names, s.ID, s.Name)
	}
	return core.Queen{}, core.Errorf(core.NotFound, "there is no queen %q", name).Hint("%sSee all with `rbee queen list`.", core.NearestHint(name, names))
}

// FSMVersion is the state machine version of this build.
const FSMVersion uint32 = fsm.Version

// Leader returns the current leader, as far as this queen knows; it does not wait. local: this
// queen leads and has taken over. Errors: Unavailable.
func (m *Members) Leader(context.Context) (nodeID, address string, local bool, err error) {
	if m.registry.Leads() {
		return m.opts.ID, "", true, nil
	}
	queens, err := m.registry.Queens()
	if err != nil {
		return "", "", false, err
	}
	for _, s := range queens {
		if s.Leader && s.ID != m.opts.ID {
			return s.ID, s.Address, false, nil
		}
	}
	return "", "", false, m.registry.NotLeader()
}

// keepQueens keeps raft's configuration in line with the live queens: new ones are added and
// promoted, dead ones removed as long as a majority remains.
func (m *Members) keepQueens(ctx context.Context) error {
	return m.registry.Autopilot(ctx, raftMembers{m})
}

// self returns a client of the leader's services, on whichever queen.
func (m *Members) self() (queenv1.ClusterServiceClient, error) {
	if m.net == nil {
		return nil, registry.ErrAlone()
	}
	return queenv1.NewClusterServiceClient(m.net.Self), nil
}

const (
	// handOverTries is how often a call is retried when the leader hands over the leadership to a
	// queen that can do it.
	handOverTries = 5
	// handOverPatience is the longest wait for a leader after which a call is still retried.
	handOverPatience = 3 * time.Second
)

// RemoveQueen removes a queen from raft, by node id, name or raft id. Errors: NotFound; Conflict
// for the last one; Unavailable; Unsupported.
func (m *Members) RemoveQueen(ctx context.Context, id string) error {
	c, err := m.self()
	if err != nil {
		return err
	}
	for range handOverTries {
		began := time.Now()
		if _, err = c.RemoveQueen(ctx, &queenv1.RemoveQueenRequest{Id: id}); err == nil {
			return nil
		}
		if err = rpc.FromStatus(err); core.KindOf(err) != core.Unavailable || ctx.Err() != nil || time.Since(began) > handOverPatience {
			return err // there is no leader at all
		}
		select {
		case <-ctx.Done():
		case <-time.After(seedRetry):
		}
	}
	return err
}

// TransferLeadership transfers the leadership to a queen, by node id or name; empty: to the most
// up-to-date one. Errors: NotFound, Conflict, Unavailable.
func (m *Members) TransferLeadership(ctx context.Context, to string) error {
	c, err := m.self()
	if err != nil {
		return err
	}
	_, err = c.TransferLeadership(ctx, &queenv1.TransferLeadershipRequest{To: to})
	return rpc.FromStatus(err)
}
