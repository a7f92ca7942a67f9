package queen

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// keptTimeout bounds the wait for the other queens: an answer that one of them keeps is not worth
// more.
const keptTimeout = 2 * time.Second

// Kept is what a queen does with an answer of the Responses API that it keeps, or makes: it gives
// it, forgets it or ends it, for the token that it was made for. found is false where it has none.
type Kept func(act core.KeptAct, id, key string) (answer []byte, found bool)

// keptActs are the acts on the wire.
var keptActs = map[core.KeptAct]queenv1.KeptAct{
	core.KeptGet: queenv1.KeptAct_KEPT_ACT_GET, core.KeptDelete: queenv1.KeptAct_KEPT_ACT_DELETE, core.KeptCancel: queenv1.KeptAct_KEPT_ACT_CANCEL,
}

// ServeKept has other queens answered by kept. It is called once, before they ask.
func (q *Queen) ServeKept(kept Kept) { q.kept.Store(&kept) }

// Kept answers another queen.
func (s *clusterService) Kept(_ context.Context, req *queenv1.KeptRequest) (*queenv1.KeptResponse, error) {
	kept := s.q.kept.Load()
	if kept == nil {
		return &queenv1.KeptResponse{}, nil
	}
	for act, wire := range keptActs {
		if wire == req.GetAct() {
			answer, found := (*kept)(act, req.GetId(), req.GetKey())
			return &queenv1.KeptResponse{Found: found, Answer: answer}, nil
		}
	}
	return nil, core.Errorf(core.Invalid, "unknown act %d", req.GetAct())
}

// KeptElsewhere asks the other queens, all at once, and returns what the first one has that has
// it. Where none has, and not all of them could be asked, the error says so: it is Unavailable.
func (q *Queen) KeptElsewhere(ctx context.Context, act core.KeptAct, id, key string) (answer []byte, found bool, err error) {
	if q.Registry.Alone() {
		return nil, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, keptTimeout)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards what is returned
		errs []error
	)
	for _, n := range q.Registry.View().Nodes(nil) {
		if n.ID == q.opts.ID || n.Revoked || !n.Has(core.RoleQueen) {
			continue
		}
		wg.Go(func() {
			a, ok, failed := q.keptAt(ctx, n, &queenv1.KeptRequest{Act: keptActs[act], Id: id, Key: key})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case ok && !found:
				answer, found = a, true
				cancel()
			case failed != nil:
				errs = append(errs, failed)
			}
		})
	}
	wg.Wait()
	if found || len(errs) == 0 {
		return answer, found, nil
	}
	q.log.Debug("cannot ask all queens for an answer", "error", errors.Join(errs...))
	return nil, false, core.Errorf(core.Unavailable, "%d of the other queens cannot be asked", len(errs)).Hint("Ask again in a moment, or ask the queen that gave the answer.")
}

func (q *Queen) keptAt(ctx context.Context, n core.Node, req *queenv1.KeptRequest) ([]byte, bool, error) {
	conn, err := q.opts.Network.Conn(n.ID, n.RPCAddress, core.RoleQueen)
	if err != nil {
		return nil, false, err
	}
	resp, err := queenv1.NewClusterServiceClient(conn).Kept(ctx, req)
	if err = rpc.FromStatus(err); core.KindOf(err) == core.Unsupported { // an older version keeps its answers to itself
		return nil, false, nil
	}
	return resp.GetAnswer(), resp.GetFound(), err
}
