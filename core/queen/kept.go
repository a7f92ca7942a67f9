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

// keptTimeout bounds the wait for the other queens: a stored answer is not worth a longer wait.
const keptTimeout = 2 * time.Second

// Kept acts on an answer of the Responses API that this queen stores or is generating: it returns,
// deletes or cancels it, on behalf of the token that created it. found is false if it has none.
type Kept func(act core.KeptAct, id, key string) (answer []byte, found bool)

// keptActs maps the acts to their wire values.
var keptActs = map[core.KeptAct]queenv1.KeptAct{
	core.KeptGet: queenv1.KeptAct_KEPT_ACT_GET, core.KeptDelete: queenv1.KeptAct_KEPT_ACT_DELETE, core.KeptCancel: queenv1.KeptAct_KEPT_ACT_CANCEL,
}

// ServeKept sets the function that answers other queens. It is called once, before they ask.
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

// KeptElsewhere asks the other queens concurrently and returns the answer of the first one that has
// it. If none has it and some could not be asked, the error is Unavailable and names that.
func (q *Queen) KeptElsewhere(ctx context.Context, act core.KeptAct, id, key string) (answer []byte, found bool, err error) {
	if q.Registry.Alone() {
		return nil, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, keptTimeout)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards the results
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
	if err = rpc.FromStatus(err); core.KindOf(err) == core.Unsupported { // an older version does not share its answers
		return nil, false, nil
	}
	return resp.GetAnswer(), resp.GetFound(), err
}
