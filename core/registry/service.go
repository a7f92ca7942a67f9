package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// LeaderService answers the calls that other queens' registries make to the leader's: it is the
// registry's part of ClusterService. Its errors are classified; the gRPC server of core/rpc carries
// them.
type LeaderService struct {
	r   *Registry
	log hclog.Logger
}

// Service returns the service of the registry.
func (r *Registry) Service(log hclog.Logger) *LeaderService { return &LeaderService{r: r, log: log} }

// Apply commits a command if this queen leads. Errors: those of the state machine, Unavailable.
func (s *LeaderService) Apply(ctx context.Context, req *queenv1.ApplyRequest) (*queenv1.ApplyResponse, error) {
	if !s.r.Leads() {
		return nil, s.r.NotLeader()
	}
	var c raftv1.Command
	if err := proto.Unmarshal(req.GetCommand(), &c); err != nil {
		return nil, core.Errorf(core.Invalid, "read a command: %w", err).Hint("Install the same version of rbee on all queens.")
	}
	result, err := s.r.Apply(ctx, "", &c)
	if err != nil {
		return nil, err
	}
	return &queenv1.ApplyResponse{Index: result.Index}, nil
}

// ReadIndex returns the index that a read must have reached. Errors: Unavailable.
func (s *LeaderService) ReadIndex(ctx context.Context, req *queenv1.ReadIndexRequest) (*queenv1.ReadIndexResponse, error) {
	if !s.r.Leads() {
		return nil, s.r.NotLeader()
	}
	index, err := s.r.ReadIndex(ctx, req.GetVerify())
	if err != nil {
		return nil, err
	}
	return &queenv1.ReadIndexResponse{Index: index, Leader: s.r.id}, nil
}

// SaveSnapshot sends the leader's registry. Errors: Unavailable.
func (s *LeaderService) SaveSnapshot(_ *queenv1.SaveSnapshotRequest, stream queenv1.ClusterService_SaveSnapshotServer) error {
	if !s.r.Leads() {
		return s.r.NotLeader()
	}
	return s.r.node.SaveSnapshot(stream.Context(), chunkWriter(func(p []byte) error {
		return stream.Send(&queenv1.SaveSnapshotResponse{Data: p})
	}))
}

// chunkWriter splits what is written into messages.
type chunkWriter func(p []byte) error

func (w chunkWriter) Write(p []byte) (int, error) {
	n := 0
	for chunk := range slices.Chunk(p, snapshotChunk) {
		if err := w(bytes.Clone(chunk)); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}

// RestoreSnapshot replaces the leader's registry. Errors: Integrity, TooLarge, Unavailable.
func (s *LeaderService) RestoreSnapshot(stream queenv1.ClusterService_RestoreSnapshotServer) error {
	r := s.r
	if !r.Leads() {
		return r.NotLeader()
	}
	var data bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if data.Len()+len(part.GetData()) > MaxSnapshotBytes {
			return ErrSnapshotSize()
		}
		data.Write(part.GetData())
	}
	if err := r.node.RestoreSnapshot(stream.Context(), bytes.NewReader(data.Bytes())); err != nil {
		return err
	}
	s.log.Warn("the registry was replaced by a snapshot", "bytes", data.Len())
	return stream.SendAndClose(&queenv1.RestoreSnapshotResponse{Index: r.AppliedIndex()})
}
