package job

import (
	"context"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/wire"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// Register serves JobService on s. Errors keep their kind if s does, as those of rpc.NewServer do.
func (m *Manager) Register(s grpc.ServiceRegistrar) { jobv1.RegisterJobServiceServer(s, service{m: m}) }

type service struct {
	jobv1.UnimplementedJobServiceServer
	m *Manager
}

func (s service) Submit(_ context.Context, req *jobv1.SubmitRequest) (*jobv1.SubmitResponse, error) {
	// Check the operation before reading the request: a newer operation may have unknown fields.
	op := req.GetOperation()
	if op != "" {
		if err := s.m.Knows(core.Operation(op)); err != nil {
			return nil, err
		}
	}
	r, err := operation.Decode(req.GetRequestJson())
	if err != nil {
		return nil, err
	}
	if op != "" && op != string(r.Operation) {
		return nil, core.Errorf(core.Invalid, "submit job: the request is for %q, not for %q", r.Operation, op)
	}
	j, err := s.m.Submit(r)
	if err != nil {
		return nil, err
	}
	return &jobv1.SubmitResponse{Job: wire.JobToProto(j)}, nil
}

func (s service) Get(_ context.Context, req *jobv1.GetRequest) (*jobv1.GetResponse, error) {
	j, err := s.m.Get(req.GetId())
	if err != nil {
		return nil, err
	}
	return &jobv1.GetResponse{Job: wire.JobToProto(j)}, nil
}

func (s service) List(_ context.Context, req *jobv1.ListRequest) (*jobv1.ListResponse, error) {
	if id := req.GetRequestId(); id != "" {
		j, ok := s.m.ByRequest(id)
		if !ok {
			return &jobv1.ListResponse{}, nil
		}
		return &jobv1.ListResponse{Jobs: []*jobv1.Job{wire.JobToProto(j)}}, nil
	}
	return &jobv1.ListResponse{Jobs: wire.All(s.m.List(), wire.JobToProto)}, nil
}

func (s service) Cancel(_ context.Context, req *jobv1.CancelRequest) (*jobv1.CancelResponse, error) {
	j, err := s.m.Cancel(req.GetId())
	if err != nil {
		return nil, err
	}
	return &jobv1.CancelResponse{Job: wire.JobToProto(j)}, nil
}

func (s service) Events(req *jobv1.EventsRequest, stream grpc.ServerStreamingServer[jobv1.EventsResponse]) error {
	return s.m.Events(stream.Context(), req.GetId(), req.GetAfterSeq(), func(e core.Event) error {
		return stream.Send(&jobv1.EventsResponse{Event: wire.EventToProto(e)})
	})
}
