package store_test

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

// gate is an origin that stops in the middle until it is released.
type gate struct {
	origin
	reached chan struct{}
	let     chan struct{}
}

func newGate(body []byte) *gate {
	return &gate{origin: origin{body: body}, reached: make(chan struct{}, 10), let: make(chan struct{})}
}

func (g *gate) fetch(ctx context.Context, _ store.FileSpec, offset int64, w io.Writer) error {
	g.fetches.Add(1)
	half := max(offset, int64(len(g.body)/2))
	if _, err := w.Write(g.body[offset:half]); err != nil {
		return err
	}
	g.reached <- struct{}{}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-g.let:
	}
	n, err := w.Write(g.body[half:])
	g.bytes.Add(half - offset + int64(n))
	return err
}

func TestOneFetchForAll(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	g := newGate(body)
	in := spec("m", body, sha256Of(body))
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[int]int64{} // guarded by mu
	for i := range 8 {
		wg.Go(func() {
			_, err := s.PutModel(t.Context(), in, store.Fetch(g.fetch), func(p core.Progress) {
				mu.Lock()
				defer mu.Unlock()
				told[i] = p.Done
			})
			must.NoError(t, err)
		})
	}
	<-g.reached
	close(g.let)
	wg.Wait()
	must.Eq(t, 1, g.fetches.Load())
	must.MapNotEmpty(t, told)
}

// Whoever waits for a fetch from a bad origin then fetches from its own.
func TestBadOriginBesideGoodOne(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	wrong := bytes.Clone(body)
	wrong[len(wrong)-1] ^= 1
	bad, good := newGate(wrong), &origin{body: body}
	first := make(chan error, 1)
	go func() {
		_, err := s.PutModel(t.Context(), spec("bad", body, sha256Of(body)), store.Fetch(bad.fetch), nil)
		first <- err
	}()
	<-bad.reached
	ids := []string{"good", "better", "bad"} // the last one from the bad origin, too
	others, waiting := make([]chan error, len(ids)), make(chan struct{}, len(ids))
	for i, id := range ids {
		from := store.Fetch(good.fetch)
		if id == "bad" {
			from = bad.fetch
		}
		others[i] = make(chan error, 1)
		waits := sync.OnceFunc(func() { waiting <- struct{}{} })
		go func() {
			_, err := s.PutModel(t.Context(), spec(id, body, sha256Of(body)), from, func(core.Progress) { waits() })
			others[i] <- err
		}()
	}
	for range ids {
		<-waiting
	}
	close(bad.let)
	must.Eq(t, core.Integrity, core.KindOf(<-first))
	must.NoError(t, <-others[0])
	must.NoError(t, <-others[1])
	must.Eq(t, core.Integrity, core.KindOf(<-others[2]))
	must.Eq(t, 1, bad.fetches.Load())
	for _, id := range []string{"good", "better"} {
		must.NoError(t, s.VerifyModel(t.Context(), id))
	}
	must.Eq(t, 1, good.fetches.Load())
}

func TestCancelOfOneKeepsTheOther(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	g := newGate(body)
	in := spec("m", body, sha256Of(body))

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.PutModel(ctx, in, store.Fetch(g.fetch), nil)
		first <- err
	}()
	<-g.reached
	second := make(chan error, 1)
	waiting := make(chan struct{}, 1)
	go func() {
		_, err := s.PutModel(t.Context(), in, store.Fetch(g.fetch), func(core.Progress) {
			select {
			case waiting <- struct{}{}:
			default:
			}
		})
		second <- err
	}()
	cancel()
	err := <-first
	must.Eq(t, core.Cancelled, core.KindOf(err))
	<-g.reached // the other one continues
	<-waiting
	close(g.let)
	must.NoError(t, <-second)
	must.Eq(t, 2, g.fetches.Load())
	must.Less(t, int64(len(body))+1, g.bytes.Load(), must.Sprint("what was there is not fetched again"))
	must.NoError(t, s.VerifyModel(t.Context(), "m"))
}

func TestWaiterMayLeave(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	g := newGate(body)
	in := spec("m", body, sha256Of(body))
	first := make(chan error, 1)
	go func() {
		_, err := s.PutModel(t.Context(), in, store.Fetch(g.fetch), nil)
		first <- err
	}()
	<-g.reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.PutModel(ctx, in, store.Fetch(g.fetch), nil)
	must.Eq(t, core.Cancelled, core.KindOf(err))
	close(g.let)
	must.NoError(t, <-first)
	must.Eq(t, 1, g.fetches.Load())
}

// Two stores in one folder stand for two processes: the second waits for the first's lock, then
// finds the blob.
func TestTwoProcessesOneFetch(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	g := newGate(body)
	in := spec("m", body, sha256Of(body))
	results := make(chan error, 2)
	go func() {
		_, err := a.PutModel(t.Context(), in, store.Fetch(g.fetch), nil)
		results <- err
	}()
	<-g.reached
	go func() {
		_, err := b.PutModel(t.Context(), in, store.Fetch(g.fetch), nil)
		results <- err
	}()
	must.NoError(t, b.Clean(time.Now().Add(1000*time.Hour)), must.Sprint("what is locked is not removed"))
	close(g.let)
	must.NoError(t, <-results)
	must.NoError(t, <-results)
	must.Eq(t, 1, g.fetches.Load())
}
