package limits

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// Lead counts for all queens until ctx ends. A new leader starts empty: for each key, each queen
// sends what it admitted before.
func (l *Limiter) Lead(ctx context.Context) error {
	l.mu.Lock()
	l.leads = admission.NewLedger()
	l.mu.Unlock()
	<-ctx.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leads = nil
	return nil
}

// Serve answers a queen, this one or another. Errors: Unavailable if this one does not lead,
// Invalid, NotFound for an unknown token.
func (l *Limiter) Serve(r *queenv1.AdmitRequest) (*queenv1.AdmitResponse, error) {
	if len(r.GetHistory()) > maxHistory || r.GetQueen() == "" || r.GetTokens() < 0 {
		return nil, core.Errorf(core.Invalid, "malformed admit request from queen")
	}
	t, ok := l.o.Registry.View().Token(nil, r.GetKey())
	if !ok {
		return nil, core.Errorf(core.NotFound, "there is no such token")
	}
	rates, now := ratesOf(t), l.o.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leads == nil {
		return nil, l.o.Registry.NotLeader()
	}
	if !l.leads.Told(r.GetKey(), r.GetQueen()) {
		if !r.GetHasHistory() {
			return &queenv1.AdmitResponse{Again: true}, nil
		}
		l.leads.Tell(r.GetKey(), r.GetQueen(), rates, slotsOf(r.GetHistory()), now)
	}
	states, refused := l.leads.Take(r.GetKey(), r.GetQueen(), rates, r.GetTokens(), now)
	resp := &queenv1.AdmitResponse{AtUnixNano: now.UnixNano()}
	for i, s := range states {
		resp.States = append(resp.States, &queenv1.LimitState{Remaining: s.Remaining, ResetNanos: int64(s.Reset)})
		if refused != nil && refused.Rate == rates[i] {
			resp.Refused, resp.RetryNanos = int32(i+1), int64(refused.Retry) //nolint:gosec // a token has few limits
		}
	}
	return resp, nil
}

func slotsOf(history []*queenv1.LimitHistory) [][]admission.Slot {
	out := make([][]admission.Slot, 0, len(history))
	for _, h := range history {
		var slots []admission.Slot
		for _, s := range h.GetSlots() {
			slots = append(slots, admission.Slot{At: s.GetAt(), Count: s.GetCount()})
		}
		out = append(out, slots)
	}
	return out
}

// ServeSettle records how requests of a queen have ended. Errors: as for Serve.
func (l *Limiter) ServeSettle(r *queenv1.SettleRequest) error {
	if len(r.GetSettled()) > maxSettled || len(r.GetRunning()) > maxRunning || r.GetQueen() == "" {
		return core.Errorf(core.Invalid, "malformed settle request from queen")
	}
	view, now := l.o.Registry.View(), l.o.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leads == nil {
		return l.o.Registry.NotLeader()
	}
	for _, s := range r.GetSettled() {
		if t, ok := view.Token(nil, s.GetKey()); ok {
			l.leads.Settle(s.GetKey(), r.GetQueen(), ratesOf(t), time.Unix(0, s.GetAtUnixNano()), s.GetTokens(), s.GetUsed(), now)
		}
	}
	if r.GetHasRunning() {
		l.leads.Running(r.GetQueen(), r.GetRunning(), now)
	}
	return nil
}
