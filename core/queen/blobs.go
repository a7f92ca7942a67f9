package queen

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/swarm"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// findBlobTimeout bounds the query to all hives for who has a file. A hive that does not answer is
// ignored.
const findBlobTimeout = 1500 * time.Millisecond

// maxAvoided bounds the list of hives that a claim avoids.
const maxAvoided = 1024

// blobService tells hives where to fetch files from. Its errors are classified; the gRPC server of
// core/rpc carries them.
type blobService struct {
	queenv1.UnimplementedBlobServiceServer
	q     *Queen
	board *swarm.Board // tracks which hive has which file; only while leading
}

func newBlobService(q *Queen) *blobService {
	s := &blobService{q: q}
	s.board = swarm.NewBoard(s.hive)
	return s
}

// Claim records a hive's progress on a file and returns where the hive should fetch it from.
// Errors: Invalid, Overloaded, Unavailable when this queen does not lead.
func (s *blobService) Claim(ctx context.Context, req *queenv1.ClaimRequest) (*queenv1.ClaimResponse, error) {
	return s.claim(ctx, rpc.Caller(ctx), req)
}

func (s *blobService) claim(ctx context.Context, hive string, req *queenv1.ClaimRequest) (*queenv1.ClaimResponse, error) {
	c := swarm.Claim{
		Hive: hive, Digest: req.GetDigest(), Stage: swarm.Stage(req.GetStage()), HaveBytes: req.GetHaveBytes(), Source: req.GetSource(),
		Avoid: req.GetAvoid(), NoOrigin: req.GetNoOrigin(), Mute: req.GetMute(),
	}
	switch {
	case c.Hive == "":
		return nil, core.Errorf(core.Unauthenticated, "claim a file: unknown caller")
	case !swarm.ValidDigest(c.Digest) || c.Stage < swarm.Asking || c.Stage > swarm.Over || c.HaveBytes < 0 || len(c.Avoid) > maxAvoided:
		return nil, core.Errorf(core.Invalid, "claim a file: malformed claim from hive %s", c.Hive).Hint("This is a defect of the hive's agent: please report it.")
	case !s.q.Registry.Leads():
		return nil, s.q.Registry.NotLeader()
	}
	if c.Stage != swarm.Whole && c.Stage != swarm.Over {
		ask, asked, err := s.board.Begin(time.Now(), c.Digest)
		if err != nil {
			return nil, err
		}
		if ask {
			s.board.Asked(time.Now(), c.Digest, s.find(ctx, c.Digest))
		}
		select {
		case <-asked:
		case <-ctx.Done():
			return nil, core.FromContext(ctx)
		}
	}
	p, err := s.board.Claim(time.Now(), c)
	if err != nil {
		return nil, err
	}
	resp := &queenv1.ClaimResponse{Origin: p.Origin, Waiting: p.Waiting, Nobody: p.Nobody, Again: durationpb.New(p.Again)}
	for _, x := range p.Seeders {
		resp.Seeders = append(resp.Seeders, &queenv1.Seeder{Hive: x.Hive, Name: x.Name, RpcAddress: x.Address})
	}
	return resp, nil
}

// find asks the live hives what they have of a file. Others may wait for the result besides the
// caller that owns ctx, whose end does not stop it.
func (s *blobService) find(ctx context.Context, digest string) map[string]swarm.Holding {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), findBlobTimeout)
	defer cancel()
	live, _ := s.q.hives.Live()
	var mu sync.Mutex // guards found
	found := map[string]swarm.Holding{}
	var wg sync.WaitGroup
	for _, h := range live {
		wg.Go(func() {
			resp, err := hives.Ask(ctx, s.q.hives, h.ID, func(ctx context.Context, c hives.Conn) (*hivev1.FindBlobResponse, error) {
				return hivev1.NewHiveServiceClient(c).FindBlob(ctx, &hivev1.FindBlobRequest{Digest: digest})
			})
			if err != nil {
				s.q.log.Debug("hive did not report whether it has a file", "hive", h.ID, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found[h.ID] = swarm.Holding{Whole: resp.GetWhole(), Fetching: resp.GetFetching(), FromOrigin: resp.GetFromOrigin(), HaveBytes: max(resp.GetHaveBytes(), 0)}
		})
	}
	wg.Wait()
	return found
}

// hive returns what the board needs to know about a hive; false: it is down or does not exist.
func (s *blobService) hive(id string) (swarm.Hive, bool) {
	h, ok := s.q.Registry.View().Hive(nil, id)
	if !ok || h.Status == core.HiveDown {
		return swarm.Hive{}, false
	}
	s.q.liveness.Hive(id).AddTo(&h)
	return swarm.Hive{Name: h.Name, Address: h.RPCAddress, Suspect: h.Status == core.HiveSuspect}, true
}
