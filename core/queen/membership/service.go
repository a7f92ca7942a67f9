package membership

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// NodesService answers other queens about the nodes of the cluster: it is membership's part of
// ClusterService. Its errors are classified; the gRPC server of core/rpc carries them.
type NodesService struct{ m *Members }

// Service returns the service of the members.
func (m *Members) Service() *NodesService { return &NodesService{m: m} }

// Announce records another queen's announcement and answers with this queen's.
func (s *NodesService) Announce(ctx context.Context, req *queenv1.AnnounceRequest) (*queenv1.AnnounceResponse, error) {
	if s.m.net == nil {
		return nil, registry.ErrAlone()
	}
	peer, ok := rpc.Peer(ctx)
	if !ok {
		return nil, core.Errorf(core.Unauthenticated, "an announcement needs a certificate")
	}
	if err := s.m.believe(peer, req.GetSelf()); err != nil {
		return nil, err
	}
	return &queenv1.AnnounceResponse{Self: s.m.announcement()}, nil
}

// TransferLeadership transfers the leadership to the named queen, or to the most up-to-date one.
// Errors: NotFound, Conflict, Unavailable.
func (s *NodesService) TransferLeadership(ctx context.Context, req *queenv1.TransferLeadershipRequest) (*queenv1.TransferLeadershipResponse, error) {
	m := s.m
	if !m.registry.Leads() {
		return nil, m.registry.NotLeader()
	}
	if req.GetTo() == "" {
		return &queenv1.TransferLeadershipResponse{}, m.registry.LeadershipTransfer(ctx)
	}
	to, err := m.queenNamed(ctx, req.GetTo())
	switch {
	case err != nil:
		return nil, err
	case to.Leader:
		return &queenv1.TransferLeadershipResponse{}, nil
	case !to.Voter:
		return nil, core.Errorf(core.Conflict, "queen %s does not vote yet", to.Name).Hint("Wait until it does: `rbee queen list`.")
	}
	return &queenv1.TransferLeadershipResponse{}, m.registry.LeadershipTransferTo(ctx, to.RaftID, to.Address)
}

// RemoveQueen removes a queen from raft. Errors: NotFound; Conflict for the last one; Unavailable
// if this queen does not lead, or hands over the leadership because it is the one to remove.
func (s *NodesService) RemoveQueen(ctx context.Context, req *queenv1.RemoveQueenRequest) (*queenv1.RemoveQueenResponse, error) {
	m := s.m
	if !m.registry.Leads() {
		return nil, m.registry.NotLeader()
	}
	queen, err := m.queenNamed(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	queens, err := m.registry.Queens()
	if err != nil {
		return nil, err
	}
	voters := 0
	for _, other := range queens {
		if other.Voter {
			voters++
		}
	}
	switch {
	case queen.Voter && voters == 1:
		return nil, core.Errorf(core.Conflict, "%s is the only voting queen", queen.Name).Hint("Have another queen join first.")
	case queen.ID == m.opts.ID:
		// The named queen leads: another one must remove it.
		if err := m.registry.LeadershipTransfer(ctx); err != nil {
			return nil, err
		}
		return nil, core.Errorf(core.Unavailable, "the leadership was handed over").Hint("Try again: the new leader does it.")
	}
	m.disprove(queen.ID) // its earlier announcement must not bring it back
	if err := m.registry.RemoveServer(ctx, queen.RaftID); err != nil {
		return nil, err
	}
	m.log.Info("queen taken out of raft", "node", queen.ID, "name", queen.Name)
	return &queenv1.RemoveQueenResponse{}, nil
}

// LeaveNode makes another node leave permanently. Errors: NotFound, Conflict, Unavailable.
func (s *NodesService) LeaveNode(ctx context.Context, req *queenv1.LeaveNodeRequest) (*queenv1.LeaveNodeResponse, error) {
	n, err := nodeNamed(s.m.registry.View(), req.GetNode())
	switch {
	case err != nil:
		return nil, err
	case n.ID == s.m.opts.ID:
		return nil, core.Errorf(core.Conflict, "a queen cannot take itself out")
	}
	if err := s.m.checkLast(n, "taken out"); err != nil {
		return nil, err
	}
	return &queenv1.LeaveNodeResponse{}, s.m.takeOut(ctx, n)
}
