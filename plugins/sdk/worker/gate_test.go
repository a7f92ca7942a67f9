package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
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

func TestGateSlots(t *testing.T) {
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
		synctest.Wait() // so that the next one is last in the queue
		ctx, cancel := context.WithCancel(t.Context())
		// cancelled while it is queued
		wg.Go(func() { must.Eq(t, http.StatusServiceUnavailable, post(ctx, h).Code) })
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
		must.Eq(t, "application/json", rec.Header().Get("Content-Type"))
		must.NoError(t, <-drained)
		wg.Wait()
		must.Eq(t, Status{State: StateDraining, Slots: 2, TokensTotal: 15}, status(g))
		must.NoError(t, g.Drain(t.Context()))
	})
}

// Drain waits for the last request, not the first.
func TestGateDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2)
		took := make(chan time.Duration, 2)
		took <- time.Second
		took <- time.Minute
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(<-took) }))
		for range 2 {
			go post(t.Context(), h)
		}
		synctest.Wait()
		began := time.Now()
		must.NoError(t, g.Drain(t.Context()))
		must.Eq(t, time.Minute, time.Since(began))
	})
}

// A queued request that gives up does not affect the others: the gate still waits for them.
func TestGateDrainQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }))
		for range 2 {
			go post(t.Context(), h)
		}
		synctest.Wait()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go post(ctx, h)
		synctest.Wait()
		must.Eq(t, Status{State: StateReady, Slots: 1, Active: 1, Queued: 2}, status(g))
		must.NoError(t, g.Drain(t.Context()))
		must.Eq(t, 2*time.Minute, time.Since(began))
	})
}

func TestGateStopAfterGrace(t *testing.T) {
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

// Stop also ends queued requests, and a stopped gate admits nothing, whatever its state was before.
func TestGateStop(t *testing.T) {
	t.Parallel()
	for name, busy := range map[string]int{"idle": 0, "full": 1, "with a line": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := NewGate(0) // at least one slot
				served := 0
				h := g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					served++
					<-r.Context().Done()
				}))
				var wg sync.WaitGroup
				for range busy {
					wg.Go(func() { post(t.Context(), h) })
				}
				synctest.Wait()
				must.Eq(t, Status{State: StateReady, Slots: 1, Active: min(busy, 1), Queued: max(busy-1, 0)}, status(g))
				must.NoError(t, g.Stop(t.Context(), 0))
				wg.Wait()
				must.Eq(t, Status{State: StateDraining, Slots: 1}, status(g))
				must.Eq(t, http.StatusServiceUnavailable, post(t.Context(), h).Code)
				must.Eq(t, min(busy, 1), served, must.Sprint("those that waited are not begun"))
				must.Error(t, g.open.Err())
			})
		})
	}
}

// Stop waits for a request that does not end only as long as its context allows.
func TestGateStopGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		end := make(chan struct{})
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
		go post(t.Context(), h)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		must.ErrorIs(t, g.Stop(ctx, time.Second), context.DeadlineExceeded)
		must.Eq(t, 5*time.Second, time.Since(began))
		close(end)
		synctest.Wait()
		must.NoError(t, g.Stop(t.Context(), time.Second))
	})
}

// endless is a body that never ends.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	e.read += len(p)
	return len(p), nil
}

// At most the bound is read of a queued request's body.
func TestGateQueuedBodyBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		end := make(chan struct{})
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
		var wg sync.WaitGroup
		wg.Go(func() { post(t.Context(), h) })
		synctest.Wait()
		body := &endless{}
		wg.Go(func() {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", body))
		})
		synctest.Wait()
		must.Eq(t, 1, status(g).Queued)
		must.Eq(t, MaxQueuedBody, body.read)
		close(end)
		wg.Wait()
	})
}

// A request whose body fails while it is queued is not admitted, and a finished request releases
// its context.
func TestGateBrokenBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		end := make(chan struct{})
		var admitted *http.Request
		h := g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { admitted = r; <-end }))
		go post(t.Context(), h)
		synctest.Wait()
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", iotest.ErrReader(io.ErrUnexpectedEOF)))
		must.Eq(t, http.StatusServiceUnavailable, rec.Code)
		must.Eq(t, Status{State: StateReady, Slots: 1, Active: 1}, status(g))
		must.NoError(t, admitted.Context().Err())
		close(end)
		synctest.Wait()
		must.Error(t, admitted.Context().Err())
		must.Eq(t, Status{State: StateReady, Slots: 1}, status(g))
	})
}

func TestGateOtherMethods(t *testing.T) {
	t.Parallel()
	g := NewGate(1)
	must.NoError(t, g.Stop(t.Context(), 0))
	rec := httptest.NewRecorder()
	g.Handler(http.NotFoundHandler()).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	must.Eq(t, http.StatusNotFound, rec.Code)
}

// A client that disconnects while it is queued leaves the queue, even if its body is unread; the
// other clients' bodies remain complete.
func TestGateQueuedClientGone(t *testing.T) {
	t.Parallel()
	g := NewGate(1)
	release := make(chan struct{})
	server := httptest.NewServer(g.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		<-release
		_, _ = fmt.Fprint(w, n)
	})))
	t.Cleanup(server.Close)
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free) // before the server closes, which waits for its requests
	send := func(ctx context.Context, body string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, strings.NewReader(body))
		must.NoError(t, err)
		resp, err := server.Client().Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	load := func(active, queued int) {
		t.Helper()
		coretest.Eventually(t, 10*time.Second, func() error {
			if st := status(g); st.Active != active || st.Queued != queued {
				return fmt.Errorf("%d active, %d queued", st.Active, st.Queued)
			}
			return nil
		})
	}
	var wg sync.WaitGroup
	answers := make(chan string, 2)
	serve := func(body string) {
		wg.Go(func() {
			text, err := send(t.Context(), body)
			must.NoError(t, err)
			answers <- text
		})
	}
	serve("x")
	load(1, 0)
	serve(strings.Repeat("x", 1<<20))
	load(1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		_, err := send(ctx, strings.Repeat("x", 1<<20))
		must.Error(t, err)
	})
	load(1, 2)
	cancel()
	load(1, 1)
	free()
	wg.Wait()
	must.SliceContainsAll(t, []string{"1", "1048576"}, []string{<-answers, <-answers}) // in any order
}

func TestNoGateBeforeStart(t *testing.T) {
	t.Parallel()
	var g *Gate
	must.NoError(t, g.Drain(t.Context()))
	must.NoError(t, g.Stop(t.Context(), 0))
	must.Eq(t, Status{State: StateReady}, status(g))
}

// A full queue refuses requests, and admits the next one when a place is free.
func TestGateQueueBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }))
		var wg sync.WaitGroup
		for range 1 + MaxQueued {
			wg.Go(func() { must.Eq(t, http.StatusOK, post(t.Context(), h).Code) })
		}
		synctest.Wait()
		refused := post(t.Context(), h)
		must.Eq(t, http.StatusTooManyRequests, refused.Code)
		must.Eq(t, "1", refused.Header().Get("Retry-After"))
		must.StrContains(t, refused.Body.String(), `"code":"overloaded"`)
		must.Eq(t, Status{State: StateReady, Slots: 1, Active: 1, Queued: MaxQueued}, status(g))
		time.Sleep(time.Second)
		synctest.Wait()
		wg.Go(func() { must.Eq(t, http.StatusOK, post(t.Context(), h).Code) })
		wg.Wait()
		must.Zero(t, status(g).Queued)
	})
}

// A client that does not read blocks its request's write, but must not block Stop.
func TestGateStopBlockedWrite(t *testing.T) {
	t.Parallel()
	g := NewGate(1)
	ended := make(chan error, 1)
	srv := httptest.NewServer(g.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				return
			}
		}
	})))
	t.Cleanup(srv.Close)
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 0\r\n\r\n")
	must.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1)) // and nothing more
	must.NoError(t, err)
	must.Eq(t, 1, status(g).Active)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, g.Stop(ctx, 0))
	must.ErrorIs(t, <-ended, os.ErrDeadlineExceeded)
}
