package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// snapshotChunk is the size of one message of a snapshot sent between queens, in bytes.
const snapshotChunk = 256 << 10

// SaveSnapshot writes the leader's registry to w, sealed. Errors: Unavailable, and those of w.
func (r *Registry) SaveSnapshot(ctx context.Context, w io.Writer) error {
	s := NewSealing(w)
	if err := r.saveSnapshot(ctx, s); err != nil {
		return err
	}
	return s.Seal()
}

func (r *Registry) saveSnapshot(ctx context.Context, w io.Writer) error {
	if r.self == nil {
		return r.node.SaveSnapshot(ctx, w)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := queenv1.NewClusterServiceClient(r.self).SaveSnapshot(ctx, &queenv1.SaveSnapshotRequest{})
	if err != nil {
		return rpc.FromStatus(err)
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return err
		}
	}
}

// RestoreSnapshot replaces the registry with a snapshot. It reads and checks the whole snapshot
// before anything changes. Errors: Integrity for an invalid snapshot; Conflict for one of another
// cluster; TooLarge; Unavailable.
func (r *Registry) RestoreSnapshot(ctx context.Context, from io.Reader) (core.SnapshotInfo, error) {
	data, info, err := ReadSealed(from)
	if err != nil {
		return info, err
	}
	if own, ok := r.View().Cluster(nil); ok && info.Cluster != own.ID {
		return info, core.Errorf(core.Conflict, "the snapshot is of cluster %q, this is cluster %q", info.Cluster, own.ID).Hint(
			"A snapshot goes back only into the cluster that it was taken of: its keys and certificates are that cluster's.")
	}
	if r.self == nil {
		return info, r.node.RestoreSnapshot(ctx, bytes.NewReader(data))
	}
	stream, err := queenv1.NewClusterServiceClient(r.self).RestoreSnapshot(ctx)
	if err != nil {
		return info, rpc.FromStatus(err)
	}
	for chunk := range slices.Chunk(data, snapshotChunk) {
		if err := stream.Send(&queenv1.RestoreSnapshotRequest{Data: chunk}); err != nil {
			break // CloseAndRecv returns the cause
		}
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return info, rpc.FromStatus(err)
	}
	return info, r.WaitApplied(ctx, resp.GetIndex())
}
