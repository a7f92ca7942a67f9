package hive

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	beatTimeout   = 5 * time.Second
	beatRetry     = 25 * time.Millisecond // doubles with every failure
	beatRetryMost = 5 * time.Second
	beatNextLeast = 50 * time.Millisecond
	beatNextMost  = time.Minute
)

// beater sends the state of the hive: at once when it changed, otherwise when the queen said. Changes while a beat is on its way go into the next.
type beater struct {
	// send tells the whole state as it is now and returns when to tell it again at the latest.
	send func(ctx context.Context) (next time.Duration, err error)
	log  hclog.Logger

	wake  chan struct{} // holds one
	ready chan struct{} // closed with the first accepted beat

	mu       sync.Mutex    // guards below
	changed  uint64        // counts changes
	accepted uint64        // the count that the newest accepted beat told
	news     chan struct{} // closed and replaced at every accepted beat
}

func newBeater(log hclog.Logger, send func(context.Context) (time.Duration, error)) *beater {
	return &beater{
		send: send, log: log, wake: make(chan struct{}, 1), ready: make(chan struct{}), news: make(chan struct{}),
		changed: 1, // so that flush before the first beat waits for it
	}
}

// bump says that the state has changed. It never blocks.
func (b *beater) bump() {
	b.mu.Lock()
	b.changed++
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// flush waits until the state as it is now was accepted. The error is ctx's.
func (b *beater) flush(ctx context.Context) error {
	b.mu.Lock()
	want := b.changed
	for b.accepted < want {
		news := b.news
		b.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return core.E("tell the queens", core.KindOf(ctx.Err()), ctx.Err())
		}
		b.mu.Lock()
	}
	b.mu.Unlock()
	return nil
}

// run beats until ctx ends.
func (b *beater) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-b.wake:
			if failures > 0 {
				continue // the retry is due soon and will tell it
			}
		}
		b.mu.Lock()
		telling := b.changed
		b.mu.Unlock()
		next, err := b.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failures++
			if failures == 1 {
				b.log.Debug("heartbeat not accepted, trying again", "error", err)
			}
			if failures == 10 {
				b.log.Warn("heartbeats are not accepted; workers go on and the hive keeps trying", "error", err)
			}
			timer.Reset(retryAfter(failures))
			continue
		case failures >= 10:
			b.log.Info("heartbeats are accepted again")
		}
		failures = 0
		timer.Reset(min(max(next, beatNextLeast), beatNextMost))
		b.mu.Lock()
		first := b.accepted == 0
		b.accepted = telling
		close(b.news)
		b.news = make(chan struct{})
		b.mu.Unlock()
		if first {
			close(b.ready)
		}
	}
}

func (b *beater) beat(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	return b.send(ctx)
}

// retryAfter grows with the failures and is spread by a quarter, so that many hives do not come back at once.
func retryAfter(failures int) time.Duration {
	d := beatRetryMost
	if failures < 9 {
		d = min(beatRetry<<(failures-1), beatRetryMost)
	}
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}
