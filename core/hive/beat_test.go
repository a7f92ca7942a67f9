package hive

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// recorder is a queen's end of heartbeats that notes when they come.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	at    []time.Duration
	next  time.Duration
	err   error
	delay time.Duration
}

func (r *recorder) send(ctx context.Context) (time.Duration, error) {
	r.mu.Lock()
	r.at = append(r.at, time.Since(r.start))
	next, err, delay := r.next, r.err, r.delay
	r.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return next, err
}

func (r *recorder) set(f func(*recorder)) { r.mu.Lock(); defer r.mu.Unlock(); f(r) }

func (r *recorder) beats() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Duration(nil), r.at...)
}

func beating(t *testing.T, r *recorder, test func(t *testing.T, b *beater)) {
	synctest.Test(t, func(t *testing.T) {
		r.start = time.Now()
		b := newBeater(hclog.NewNullLogger(), r.send)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.run(ctx) })
		test(t, b)
		cancel()
		wg.Wait()
	})
}

func TestBeatKeepsTheQueensPace(t *testing.T) {
	t.Parallel()
	r := &recorder{next: 10 * time.Second}
	beating(t, r, func(t *testing.T, _ *beater) {
		time.Sleep(25 * time.Second)
		must.Eq(t, []time.Duration{0, 10 * time.Second, 20 * time.Second}, r.beats())
	})
}

func TestChangesAreToldAtOnceAndTogether(t *testing.T) {
	t.Parallel()
	r := &recorder{next: time.Minute, delay: time.Second}
	beating(t, r, func(t *testing.T, b *beater) {
		time.Sleep(5 * time.Second)
		for range 100 {
			b.bump()
		}
		time.Sleep(500 * time.Millisecond) // one is on its way: these go into the next
		for range 100 {
			b.bump()
		}
		must.NoError(t, b.flush(t.Context()))
		must.Eq(t, []time.Duration{0, 5 * time.Second, 6 * time.Second}, r.beats())
		must.Eq(t, 7*time.Second, time.Since(r.start))
		time.Sleep(30 * time.Second)
		must.Len(t, 3, r.beats())
	})
}

func TestReadyWithTheFirstAcceptedBeat(t *testing.T) {
	t.Parallel()
	r := &recorder{next: time.Minute, err: errors.New("no leader")}
	beating(t, r, func(t *testing.T, b *beater) {
		time.Sleep(10 * time.Second)
		select {
		case <-b.ready:
			t.Fatal("ready though nothing was accepted")
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(b.flush(ctx)))
		r.set(func(r *recorder) { r.err = nil })
		<-b.ready
		must.NoError(t, b.flush(t.Context()))
	})
}

func TestRetriesGrowAndAreNotHurriedByChanges(t *testing.T) {
	t.Parallel()
	r := &recorder{err: errors.New("no leader")}
	beating(t, r, func(t *testing.T, b *beater) {
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			b.bump()
		}
		beats := r.beats()
		must.Between(t, 12, len(beats), 30) // one minute
		must.Less(t, 50*time.Millisecond, beats[1])
		for i := len(beats) - 3; i < len(beats); i++ {
			must.Between(t, 3700*time.Millisecond, beats[i]-beats[i-1], 6300*time.Millisecond)
		}
	})
}

func TestASilentQueenDoesNotStopTheBeat(t *testing.T) {
	t.Parallel()
	r := &recorder{next: time.Minute, delay: time.Hour}
	beating(t, r, func(t *testing.T, b *beater) {
		time.Sleep(beatTimeout + time.Second)
		must.GreaterEq(t, 2, len(r.beats()))
		r.set(func(r *recorder) { r.delay = 0 })
		<-b.ready
	})
}
