// Package limits enforces the limits of API tokens across all queens: the leader counts, and each
// queen asks it before it admits a request of a token with limits.
package limits

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// askPatience bounds the call to the leader: after that a queen decides alone.
	askPatience = time.Second
	// tellEvery is how often a queen reports its running requests to the leader, and retries what
	// it could not report before.
	tellEvery   = 3 * time.Second
	tellTimeout = 2 * time.Second
	// maxSettled bounds the ended requests waiting to be reported, and those in one message. Beyond
	// it they are not reported, so that the leader's count is too high.
	maxSettled = 1000
	// Bounds of another queen's messages.
	maxHistory = 2 * core.MaxLimits
	maxRunning = admission.MaxAccounts
)

// Registry is the part of the replicated registry that a Limiter needs; see core/registry.
type Registry interface {
	View() *state.Snapshot
	Leads() bool
	NotLeader() error
}

// Options are the dependencies of a Limiter. Registry and ID are required.
type Options struct {
	Registry Registry
	ID       string // of this queen
	// Leader is a connection on which the current leader answers; nil: this queen is alone.
	Leader grpc.ClientConnInterface
	Logger hclog.Logger     // nil: no log
	Now    func() time.Time // nil: time.Now
}

// Limiter implements inference.Limiter. It is safe for concurrent use.
type Limiter struct {
	o   Options
	log hclog.Logger

	mu      sync.Mutex // guards below
	own     *admission.Ledger
	leads   *admission.Ledger // counts of all queens while this one leads; nil: it does not
	running map[string]int64  // requests of tokens with limits, by token id
	settled []*queenv1.Settled
	cut     bool          // the leader is unreachable
	tell    chan struct{} // holds one: there is something to report
}

// New returns a limiter.
func New(o Options) *Limiter {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Limiter{o: o, log: o.Logger, own: admission.NewLedger(), running: map[string]int64{}, tell: make(chan struct{}, 1)}
}

// ratesOf converts the limits of a token to rates of the ledger.
func ratesOf(t core.Token) []admission.Rate {
	out := make([]admission.Rate, 0, len(t.Limits))
	for _, l := range t.Limits {
		out = append(out, admission.Rate{Of: string(l.Of), Count: l.Count, Per: l.Per})
	}
	return out
}

// Admit implements inference.Limiter. Tokens without limits cost nothing. If the leader is
// unreachable, this queen grants a token its share of what is left of the limits, as if all queens
// used them equally: requests do not wait for an election.
func (l *Limiter) Admit(ctx context.Context, key string, tokens int64) ([]inference.Rate, func(int64), error) {
	t, ok := l.o.Registry.View().Token(nil, key)
	if !ok || len(t.Limits) == 0 {
		return nil, nil, nil
	}
	rates := ratesOf(t)
	states, refused, at, err := l.ask(ctx, key, rates, tokens)
	counted := err == nil // at the leader
	if !counted {
		if ctx.Err() != nil {
			return nil, nil, core.FromContext(ctx)
		}
		states, refused, at = l.alone(key, rates, tokens, err)
	}
	if refused != nil {
		return states, nil, refusal(*refused)
	}
	l.mu.Lock()
	l.running[key]++
	if counted { // for a time with another leader, or none
		l.own.Note(key, l.o.ID, rates, tokens, at, l.o.Now())
	}
	l.mu.Unlock()
	return states, func(used int64) { l.settle(key, rates, at, tokens, used, counted) }, nil
}

func refusal(r admission.Refusal) error {
	l := core.Limit{Of: core.LimitOf(r.Rate.Of), Count: r.Rate.Count, Per: r.Rate.Per}
	return &inference.LimitError{RetryAfter: r.Retry, Err: core.Errorf(core.Overloaded, "the token has reached its limit of %s", l).Hint(
		"Ask again after the time in Retry-After, or have the limit raised.")}
}

// ask lets the leader decide.
func (l *Limiter) ask(ctx context.Context, key string, rates []admission.Rate, tokens int64) ([]admission.RateState, *admission.Refusal, time.Time, error) {
	r := &queenv1.AdmitRequest{Queen: l.o.ID, Key: key, Tokens: tokens}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	for {
		resp, err := l.admitAtLeader(ctx, r)
		if err != nil {
			return nil, nil, time.Time{}, err
		}
		if resp.GetAgain() && !r.GetHasHistory() {
			r.History, r.HasHistory = l.history(key, rates), true
			continue
		}
		if resp.GetAgain() || len(resp.GetStates()) != len(rates) || int(resp.GetRefused()) > len(rates) || resp.GetRefused() < 0 {
			return nil, nil, time.Time{}, core.Errorf(core.Internal, "malformed reply from the leader")
		}
		states := make([]admission.RateState, 0, len(rates))
		for i, s := range resp.GetStates() {
			states = append(states, admission.RateState{Rate: rates[i], Remaining: s.GetRemaining(), Reset: time.Duration(s.GetResetNanos())})
		}
		var refused *admission.Refusal
		if n := resp.GetRefused(); n > 0 {
			refused = &admission.Refusal{Rate: rates[n-1], Retry: time.Duration(resp.GetRetryNanos())}
		}
		return states, refused, time.Unix(0, resp.GetAtUnixNano()), nil
	}
}

func (l *Limiter) admitAtLeader(ctx context.Context, r *queenv1.AdmitRequest) (*queenv1.AdmitResponse, error) {
	if l.o.Registry.Leads() || l.o.Leader == nil {
		return l.Serve(r)
	}
	resp, err := queenv1.NewClusterServiceClient(l.o.Leader).Admit(ctx, r)
	return resp, rpc.FromStatus(err)
}

// history returns what this queen has admitted for a key.
func (l *Limiter) history(key string, rates []admission.Rate) []*queenv1.LimitHistory {
	l.mu.Lock()
	lists := l.own.History(key, rates, l.o.Now())
	l.mu.Unlock()
	out := make([]*queenv1.LimitHistory, 0, len(lists))
	for _, slots := range lists {
		h := &queenv1.LimitHistory{}
		for _, s := range slots {
			h.Slots = append(h.Slots, &queenv1.LimitSlot{At: s.At, Count: s.Count})
		}
		out = append(out, h)
	}
	return out
}

// alone decides without the leader.
func (l *Limiter) alone(key string, rates []admission.Rate, tokens int64, why error) ([]admission.RateState, *admission.Refusal, time.Time) {
	queens := int64(0)
	for _, n := range l.o.Registry.View().Nodes(nil) {
		if n.Has(core.RoleQueen) && !n.Revoked {
			queens++
		}
	}
	shares := slices.Clone(rates)
	for i := range shares {
		shares[i].Count = max(1, shares[i].Count/max(queens, 1))
	}
	now := l.o.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.cut = true
		l.log.Warn("cannot ask the leader about token limits: this queen enforces its share of them", "queens", queens, "error", why)
	}
	states, refused := l.own.Take(key, l.o.ID, shares, tokens, now)
	return states, refused, now
}

// settle ends a request.
func (l *Limiter) settle(key string, rates []admission.Rate, at time.Time, tokens, used int64, counted bool) {
	now := l.o.Now()
	l.mu.Lock()
	if l.running[key]--; l.running[key] <= 0 {
		delete(l.running, key)
	}
	l.own.Settle(key, l.o.ID, rates, at, tokens, used, now)
	switch {
	case !counted:
	case l.leads != nil:
		l.leads.Settle(key, l.o.ID, rates, at, tokens, used, now)
	case len(l.settled) < maxSettled:
		l.settled = append(l.settled, &queenv1.Settled{Key: key, AtUnixNano: at.UnixNano(), Tokens: tokens, Used: used})
	}
	l.mu.Unlock()
	select {
	case l.tell <- struct{}{}:
	default:
	}
}

// Run reports ended requests to the leader at once, and running ones periodically, until ctx ends.
func (l *Limiter) Run(ctx context.Context) {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for quiet := true; ; {
		tick := false
		select {
		case <-ctx.Done():
			return
		case <-l.tell:
		case <-t.C:
			tick = true
		}
		r := l.due(tick)
		if len(r.GetSettled()) == 0 && len(r.GetRunning()) == 0 && quiet {
			continue
		}
		quiet = tick && len(r.GetRunning()) == 0
		if err := l.settleAtLeader(ctx, r); err != nil {
			l.log.Debug("failed to report usage of tokens with limits to the leader", "error", err)
			l.mu.Lock()
			l.settled = append(r.GetSettled(), l.settled...)[:min(maxSettled, len(r.GetSettled())+len(l.settled))]
			l.mu.Unlock()
			quiet = false
			continue
		}
		l.mu.Lock()
		l.cut = false
		l.mu.Unlock()
	}
}

// due returns what must be reported. Running requests are included only at intervals: a request
// being admitted may already be counted at the leader but not yet here.
func (l *Limiter) due(running bool) *queenv1.SettleRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &queenv1.SettleRequest{Queen: l.o.ID, Settled: l.settled, HasRunning: running}
	if running {
		r.Running = maps.Clone(l.running)
	}
	l.settled = nil
	return r
}

func (l *Limiter) settleAtLeader(ctx context.Context, r *queenv1.SettleRequest) error {
	if l.o.Registry.Leads() || l.o.Leader == nil {
		return l.ServeSettle(r)
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	_, err := queenv1.NewClusterServiceClient(l.o.Leader).Settle(ctx, r)
	return rpc.FromStatus(err)
}
