package worker

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

func post(ctx context.Context, h http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil))
	return rec
}

func status(g *Gate) Status {
	st := Status{State: StateReady}
	g.Fill(&st)
	return st
}

func TestGateAdmitsAsManyAsThereAreSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2)
		h := g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(time.Second):
				g.AddTokens(3)
			case <-r.Context().Done():
			}
		}))
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { must.Eq(t, http.StatusOK, post(t.Context(), h).Code) })
		}
		synctest.Wait() // the next one comes last
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { must.Eq(t, http.StatusServiceUnavailable, post(ctx, h).Code) }) // gives up in the queue
		synctest.Wait()
		must.Eq(t, Status{State: StateReady, Slots: 2, Active: 2, Queued: 4}, status(g))
		cancel()
		synctest.Wait()
		must.Eq(t, 3, status(g).Queued)

		drained := make(chan error, 1)
		go func() { drained <- g.Drain(t.Context()) }()
		synctest.Wait()
		must.Eq(t, StateDraining, status(g).State)
		rec := post(t.Context(), h)
		must.Eq(t, http.StatusServiceUnavailable, rec.Code)
		must.True(t, json.Valid(rec.Body.Bytes()))
		must.Eq(t, "1", rec.Header().Get("Retry-After"))
		must.NoError(t, <-drained)
		wg.Wait()
		must.Eq(t, Status{State: StateDraining, Slots: 2, TokensTotal: 15}, status(g))
		must.NoError(t, g.Drain(t.Context()))
	})
}

func TestGateCutsWhatIsLeftAfterTheGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		h := g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		var wg sync.WaitGroup
		wg.Go(func() { post(t.Context(), h) })
		wg.Go(func() { post(t.Context(), h) })
		synctest.Wait()
		began := time.Now()
		must.NoError(t, g.Stop(t.Context(), 3*time.Second))
		must.Eq(t, 3*time.Second, time.Since(began))
		wg.Wait()
		must.Eq(t, 0, status(g).Active)
		must.NoError(t, g.Stop(t.Context(), time.Hour))
	})
}

func TestGateLetsOtherMethodsPass(t *testing.T) {
	t.Parallel()
	g := NewGate(1)
	must.NoError(t, g.Stop(t.Context(), 0))
	rec := httptest.NewRecorder()
	g.Handler(http.NotFoundHandler()).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	must.Eq(t, http.StatusNotFound, rec.Code)
}

func TestNoGateBeforeStart(t *testing.T) {
	t.Parallel()
	var g *Gate
	must.NoError(t, g.Drain(t.Context()))
	must.NoError(t, g.Stop(t.Context(), 0))
	must.Eq(t, Status{State: StateReady}, status(g))
}
