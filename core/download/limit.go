package download

import (
	"context"
	"io"
	"sync"
	"time"
)

// Limiter bounds the rate of all transfers together. A nil Limiter limits nothing. It is safe for
// concurrent use.
type Limiter struct {
	mu   sync.Mutex // guards below
	rate int64      // bytes per second; 0: no limit
	next time.Time  // when the next byte may pass
}

// NewLimiter returns a limiter of rate bytes per second; 0 or less: no limit.
func NewLimiter(rate int64) *Limiter {
	l := &Limiter{}
	l.SetRate(rate)
	return l
}

// SetRate changes the bytes per second, also for running transfers; 0 or less: no limit.
func (l *Limiter) SetRate(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = max(rate, 0)
	l.next = time.Time{}
}

// wait waits until n bytes may pass. Later callers queue behind it.
func (l *Limiter) wait(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if l.rate == 0 {
		l.mu.Unlock()
		return nil
	}
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	// Divide first where one second is enough, so that no product overflows.
	whole, rest := int64(n)/l.rate, int64(n)%l.rate
	l.next = l.next.Add(time.Duration(whole)*time.Second + time.Duration(float64(rest)/float64(l.rate)*float64(time.Second)))
	until := l.next
	l.mu.Unlock()
	return sleep(ctx, until.Sub(now))
}

// piece returns how many bytes to read at once: a tenth of a second's worth, at most most.
func (l *Limiter) piece(most int) int {
	if l == nil {
		return most
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return most
	}
	return int(min(max(l.rate/10, 1<<10), int64(most)))
}

// Writer returns w behind the limiter, until ctx ends.
func (l *Limiter) Writer(ctx context.Context, w io.Writer) io.Writer {
	if l == nil {
		return w
	}
	return &limited{ctx, l, w}
}

type limited struct {
	ctx context.Context // context of the transfer that this writer serves
	l   *Limiter
	w   io.Writer
}

func (w *limited) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		part := b[:min(len(b), w.l.piece(len(b)))]
		if err := w.l.wait(w.ctx, len(part)); err != nil {
			return n, err
		}
		m, err := w.w.Write(part)
		n += m
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}
