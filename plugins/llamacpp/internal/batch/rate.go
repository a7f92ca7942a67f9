package batch

import (
	"sync"
	"sync/atomic"
	"time"
)

// rate counts tokens over the last seconds.
type rate struct {
	total atomic.Int64

	mu      sync.Mutex // guards below
	buckets [rateBuckets]struct {
		slice  int64 // since 1970, in units of rateSlice
		tokens int
	}
	began int64 // the slice of the first token after a pause
}

const (
	rateSlice   = 250 * time.Millisecond
	rateBuckets = 20 // 5 s
)

func (r *rate) add(n int, now time.Time) {
	r.total.Add(int64(n))
	r.mu.Lock()
	defer r.mu.Unlock()
	at := now.UnixNano() / int64(rateSlice)
	if r.sumLocked(at) == 0 {
		r.began = at
	}
	b := &r.buckets[at%rateBuckets]
	if b.slice != at {
		b.slice, b.tokens = at, 0
	}
	b.tokens += n
}

func (r *rate) sumLocked(at int64) int {
	sum := 0
	for _, b := range r.buckets {
		if b.slice > at-rateBuckets && b.slice <= at {
			sum += b.tokens
		}
	}
	return sum
}

// perSecond returns the rate over the last 5 seconds, or since the first token after a pause if
// that is more recent, but over at least a second.
func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := now.UnixNano() / int64(rateSlice)
	span := min(max(at-r.began+1, int64(time.Second/rateSlice)), rateBuckets)
	return float64(r.sumLocked(at)) / (time.Duration(span) * rateSlice).Seconds()
}
