package limits

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/inference"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// trip is the latency of a message to the leader, and of its answer.
const trip = time.Millisecond

// queens is three queens with one registry, in a bubble; the first one leads.
type queens struct {
	t        *testing.T
	registry *memregistry.Registry
	list     [3]*Limiter
	leader   atomic.Int32 // -1: none
	asked    atomic.Int64
	stop     [3]context.CancelFunc // stops the duties of each
	wg       sync.WaitGroup
}

// seat is one queen's registry, and its connection to the leader.
type seat struct {
	*memregistry.Registry
	q *queens
	n int
}

func (s seat) Leads() bool { return int(s.q.leader.Load()) == s.n }

func (s seat) NotLeader() error { return core.Errorf(core.Unavailable, "this queen does not lead") }

func (s seat) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	s.q.asked.Add(1)
	select {
	case <-time.After(trip):
	case <-ctx.Done():
		return ctx.Err()
	}
	leader := s.q.leader.Load()
	if leader < 0 {
		return s.NotLeader()
	}
	defer time.Sleep(trip)
	switch r := req.(type) {
	case *queenv1.AdmitRequest:
		answer, err := s.q.list[leader].Serve(proto.CloneOf(r))
		if err != nil {
			return err
		}
		proto.Merge(resp.(proto.Message), answer)
		return nil
	case *queenv1.SettleRequest:
		return s.q.list[leader].ServeSettle(proto.CloneOf(r))
	}
	return fmt.Errorf("unexpected %s", method)
}

func (seat) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	panic("no streams")
}

func newQueens(t *testing.T) *queens {
	t.Helper()
	q := &queens{t: t, registry: memregistry.New()}
	for i := range q.list {
		id := fmt.Sprint("q", i)
		must.NoError(t, q.registry.Write(t.Context(), "test", fsm.PutNode(core.Node{
			ID: id, Name: id, Roles: []core.Role{core.RoleQueen, core.RoleHive}, RPCAddress: "h:1", KeyHash: make([]byte, 32),
		}, "")))
		s := seat{q.registry, q, i}
		q.list[i] = New(Options{Registry: s, ID: id, Leader: s, Logger: coretest.Logger(t)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	for _, l := range q.list {
		q.wg.Go(func() { l.Run(ctx) })
	}
	q.leader.Store(-1)
	q.lead(0)
	t.Cleanup(func() {
		cancel()
		q.lead(-1)
		q.wg.Wait()
	})
	return q
}

// lead gives the leadership to a queen; -1: to none.
func (q *queens) lead(n int) {
	if old := q.leader.Swap(-1); old >= 0 {
		q.stop[old]()
	}
	synctest.Wait()
	if n < 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	q.stop[n] = cancel
	q.wg.Go(func() { must.NoError(q.t, q.list[n].Lead(ctx)) })
	synctest.Wait()
	q.leader.Store(int32(n))
}

func (q *queens) token(id string, limits ...core.Limit) {
	q.t.Helper()
	must.NoError(q.t, q.registry.Write(q.t.Context(), "test", fsm.PutToken(core.Token{
		ID: id, Kind: core.TokenAPI, SecretHash: make([]byte, 32), Scopes: []core.Scope{core.ScopeInfer}, CreatedAt: time.Unix(1, 0), Limits: limits,
	})))
}

// ask asks a queen to admit a request, which ends at once with the tokens that it used.
func (q *queens) ask(queen int, key string, tokens, used int64) bool {
	_, settle, err := q.list[queen].Admit(q.t.Context(), key, tokens)
	if err != nil {
		limit, ok := err.(*inference.LimitError) //nolint:errorlint // that is the contract
		must.True(q.t, ok, must.Sprint(err))
		must.Eq(q.t, core.Overloaded, core.KindOf(err))
		must.Positive(q.t, limit.RetryAfter)
		return false
	}
	if settle != nil {
		settle(used)
	}
	return true
}

// Clients that flood three queens with one key are held to a limit of 100 requests a minute, and
// exceed it by at most 5 % in any minute.
func TestLimitOverQueens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueens(t)
		q.token("greedy", core.Limit{Of: core.LimitRequests, Count: 100, Per: time.Minute})
		q.token("free")
		var mu sync.Mutex
		var admitted []time.Time
		began := time.Now()
		var wg sync.WaitGroup
		for client := range 30 {
			wg.Go(func() {
				for time.Since(began) < 3*time.Minute {
					if q.ask(client%3, "greedy", 10, 10) {
						mu.Lock()
						admitted = append(admitted, time.Now())
						mu.Unlock()
					}
					time.Sleep(time.Duration(37+client) * 7 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		most := 0
		for i, from := range admitted {
			n := 0
			for _, at := range admitted[i:] {
				if at.Sub(from) < time.Minute {
					n++
				}
			}
			most = max(most, n)
		}
		t.Logf("%d requests in 3 minutes, at most %d within one", len(admitted), most)
		must.LessEq(t, 105, most)
		must.GreaterEq(t, 285, len(admitted))

		asked := q.asked.Load()
		for range 1000 {
			must.True(t, q.ask(1, "free", 1, 1))
		}
		must.Eq(t, asked, q.asked.Load(), must.Sprint("a key without limits asks nobody"))
	})
}

// Tokens are counted by the actual usage of requests, and running requests across all queens.
func TestTokensAndConcurrencyOverQueens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueens(t)
		q.token("k", core.Limit{Of: core.LimitTokens, Count: 1000, Per: time.Minute}, core.Limit{Of: core.LimitConcurrent, Count: 2})
		for i := range 8 { // each is estimated at 300 and uses 100
			must.True(t, q.ask(i%3, "k", 300, 100), must.Sprint(i))
			time.Sleep(10 * trip)
		}
		must.False(t, q.ask(0, "k", 300, 100))
		must.True(t, q.ask(0, "k", 50, 50))
		time.Sleep(62 * time.Second)

		_, first, err := q.list[1].Admit(t.Context(), "k", 10)
		must.NoError(t, err)
		rates, second, err := q.list[2].Admit(t.Context(), "k", 10)
		must.NoError(t, err)
		must.Zero(t, rates[1].Remaining)
		rates, _, err = q.list[0].Admit(t.Context(), "k", 10)
		must.Error(t, err)
		must.Eq(t, int64(980), rates[0].Remaining, must.Sprint("a refusal tells the state, too"))
		time.Sleep(time.Minute) // they keep running
		must.False(t, q.ask(0, "k", 10, 10))
		first(10)
		time.Sleep(10 * trip)
		must.True(t, q.ask(0, "k", 10, 10))
		second(10)
	})
}

// A new leader learns from each live queen what it has admitted; without a leader, each queen has
// its share.
func TestLimitOutlastsLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueens(t)
		q.token("k", core.Limit{Of: core.LimitRequests, Count: 90, Per: time.Minute})
		admitted := 0
		ask := func(n int) {
			for i := range n {
				if q.ask(i%3, "k", 0, 0) {
					admitted++
				}
			}
		}
		ask(60)
		must.Eq(t, 60, admitted)
		q.lead(-1)
		ask(60) // each queen has admitted 20 of its 30
		must.Between(t, 85, admitted, 90)
		q.lead(1)
		ask(60)
		t.Logf("%d of 90 over two leaders and a time without one", admitted)
		must.Between(t, 90, admitted, 94)
	})
}

// Only a leading queen counts, and invalid messages lower no count.
func TestServeBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueens(t)
		q.token("k", core.Limit{Of: core.LimitTokens, Count: 100, Per: time.Minute})
		must.True(t, q.ask(0, "k", 100, 100))
		leader := q.list[0]
		_, err := q.list[1].Serve(&queenv1.AdmitRequest{Queen: "q2", Key: "k"})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, core.Unavailable, core.KindOf(q.list[1].ServeSettle(&queenv1.SettleRequest{Queen: "q2"})))
		for _, r := range []*queenv1.AdmitRequest{
			{Key: "k"}, {Queen: "q2", Key: "k", Tokens: -1000}, {Queen: "q2", Key: "k", History: make([]*queenv1.LimitHistory, maxHistory+1)},
		} {
			_, err := leader.Serve(r)
			must.Eq(t, core.Invalid, core.KindOf(err))
		}
		_, err = leader.Serve(&queenv1.AdmitRequest{Queen: "q2", Key: "nobody"})
		must.Eq(t, core.NotFound, core.KindOf(err))
		must.Eq(t, core.Invalid, core.KindOf(leader.ServeSettle(&queenv1.SettleRequest{Queen: "q2", Settled: make([]*queenv1.Settled, maxSettled+1)})))
		must.NoError(t, leader.ServeSettle(&queenv1.SettleRequest{Queen: "q2", Settled: []*queenv1.Settled{
			{Key: "k", AtUnixNano: 5, Tokens: 100}, {Key: "k", AtUnixNano: time.Now().UnixNano(), Tokens: -5, Used: -7}, {Key: "nobody"},
		}}))
		must.False(t, q.ask(2, "k", 100, 100))
	})
}
