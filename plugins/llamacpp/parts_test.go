package llamacpp

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g gate
		must.NoError(t, g.wait(t.Context())) // no request inside
		must.True(t, g.enter())
		must.True(t, g.enter())
		g.close()
		must.False(t, g.enter())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.ErrorIs(t, g.wait(ctx), context.DeadlineExceeded)
		var wg sync.WaitGroup
		done := 0
		var mu sync.Mutex
		for range 3 {
			wg.Go(func() {
				must.NoError(t, g.wait(t.Context()))
				mu.Lock()
				defer mu.Unlock()
				done++
			})
		}
		synctest.Wait()
		g.leave()
		synctest.Wait()
		mu.Lock()
		must.Eq(t, 0, done)
		mu.Unlock()
		g.leave()
		wg.Wait()
		must.Eq(t, 3, done)
	})
}

func TestMailbox(t *testing.T) {
	t.Parallel()
	r := newRequest()
	r.out.put(event{text: "a"})
	r.out.put(event{text: "b"})
	<-r.out.ready
	got := r.out.take(nil)
	must.Len(t, 2, got)
	must.Eq(t, "a", got[0].text)
	must.Len(t, 0, r.out.take(got))
	r.out.put(event{finish: "stop"})
	<-r.out.ready
	must.True(t, r.out.take(nil)[0].last())
}
