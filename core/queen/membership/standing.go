package membership

import (
	"bytes"
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// standingPatience bounds the wait for the leader before a node is reported as unknown.
const standingPatience = 2 * time.Second

// Standing returns the cluster's view of a certificate, to holders of its key. Errors:
// Unauthenticated, Unavailable, Unsupported.
func (s *joinService) Standing(ctx context.Context, req *queenv1.StandingRequest) (*queenv1.StandingResponse, error) {
	m := s.m
	if m.net == nil {
		return nil, registry.ErrAlone()
	}
	binding, err := rpc.Binding(ctx)
	if err != nil {
		return nil, err
	}
	peer, err := m.net.Identity.CheckVouch(req.GetCertificate(), req.GetSignature(), binding)
	if err != nil {
		return nil, err
	}
	is := func() queenv1.Standing {
		n, known := m.registry.View().Node(nil, peer.ID)
		switch {
		case known && n.Revoked:
			return queenv1.Standing_STANDING_REVOKED
		case !known, !bytes.Equal(n.KeyHash, peer.KeyHash):
			return queenv1.Standing_STANDING_UNKNOWN
		}
		return queenv1.Standing_STANDING_MEMBER
	}
	if _, err := m.registry.Cluster(); err != nil {
		return nil, err
	}
	if is() == queenv1.Standing_STANDING_UNKNOWN { // it may have joined a moment ago
		limited, cancel := context.WithTimeout(ctx, standingPatience)
		defer cancel()
		if err := m.registry.CatchUp(limited); err != nil {
			return nil, core.Prefix(err, "look the node up")
		}
	}
	return &queenv1.StandingResponse{Standing: is()}, nil
}
