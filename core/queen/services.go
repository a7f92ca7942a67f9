package queen

import (
	"context"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// registryService answers hives. Its errors are classified; the gRPC server of core/rpc carries
// them.
type registryService struct {
	queenv1.UnimplementedRegistryServiceServer
	m *liveness.Monitor
}

// Link runs the link of one hive.
func (s *registryService) Link(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	return s.m.Serve(stream)
}

// clusterService answers other queens, and this one by way of Network.Self. Methods at the same
// embedding depth take precedence over unimplemented.
type clusterService struct {
	unimplemented
	*registry.LeaderService
	*membership.NodesService
	q *Queen
}

type unimplemented struct {
	queenv1.UnimplementedClusterServiceServer
}

// Admit counts a request of a token with limits for another queen, if this one leads.
func (s *clusterService) Admit(_ context.Context, req *queenv1.AdmitRequest) (*queenv1.AdmitResponse, error) {
	return s.q.Limits.Serve(req)
}

// Settle records how such requests have ended.
func (s *clusterService) Settle(_ context.Context, req *queenv1.SettleRequest) (*queenv1.SettleResponse, error) {
	return &queenv1.SettleResponse{}, s.q.Limits.ServeSettle(req)
}

// Sight returns how this queen sees hives.
func (s *clusterService) Sight(_ context.Context, req *queenv1.SightRequest) (*queenv1.SightResponse, error) {
	resp := &queenv1.SightResponse{Queen: s.q.opts.ID}
	for _, h := range s.q.Registry.View().Hives(nil) {
		if req.GetHive() == "" || req.GetHive() == h.ID {
			resp.Hives = append(resp.Hives, sightToProto(h.ID, s.q.sight(h.ID)))
		}
	}
	return resp, nil
}
