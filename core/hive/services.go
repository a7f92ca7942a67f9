package hive

import (
	"context"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// Register serves HiveService on r. The owner of Jobs serves the jobs. Requests wait until Run has
// adopted the workers of an earlier agent.
func (h *Hive) Register(r grpc.ServiceRegistrar) {
	hivev1.RegisterHiveServiceServer(r, hiveService{h: h})
}

type hiveService struct {
	hivev1.UnimplementedHiveServiceServer
	h *Hive
}

// Ask answers an operation. It does not parse the request of an unknown operation, which may have
// unknown fields.
func (s hiveService) Ask(ctx context.Context, req *hivev1.AskRequest) (*hivev1.AskResponse, error) {
	op := core.Operation(req.GetOperation())
	if _, ok := s.h.reads[op]; !ok {
		return nil, operation.Unsupported(s.h.opts.ID, s.h.opts.Version, op)
	}
	r, err := operation.Decode(req.GetRequestJson())
	if err != nil {
		return nil, err
	}
	if r.Operation != op {
		return nil, core.Errorf(core.Invalid, "the request is for %q, not for %q", r.Operation, op)
	}
	v, err := s.h.Answer(ctx, r)
	if err != nil {
		return nil, err
	}
	text, err := operation.Encode(v)
	if err != nil {
		return nil, err
	}
	return &hivev1.AskResponse{ResultJson: text}, nil
}

func (h *Hive) catalogSearch(ctx context.Context, r core.Request) ([]core.CatalogItem, error) {
	return h.catalogs.search(ctx, catalog.Query{Text: r.Text, Kind: catalog.ItemKind(r.Kind), Limit: r.Limit}, r.Source)
}
