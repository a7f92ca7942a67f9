package inference

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
)

// errStalled is the cause that ends an attempt at a hung worker.
var errStalled = errors.New("the worker stopped answering")

// watchdog ends an attempt at a hung worker: one that sends nothing while neither its state nor its
// progress shows that it works. Each byte counts as a sign of life, comments included.
type watchdog struct {
	o        *Options
	signs    func() Signs
	cancel   context.CancelCauseFunc
	streamed bool
	start    time.Time
	heard    atomic.Int64 // nanoseconds from start to the last byte
	token    atomic.Bool  // an event arrived

	mu    sync.Mutex // guards below
	timer *time.Timer
	over  bool // the attempt has ended
}

func watch(o *Options, l Lease, streamed bool, cancel context.CancelCauseFunc) *watchdog {
	d := &watchdog{o: o, signs: l.signs, cancel: cancel, streamed: streamed, start: time.Now()}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timer = time.AfterFunc(d.tick(), d.look)
	return d
}

func (d *watchdog) tick() time.Duration {
	return min(d.o.HungTimeout, d.o.TokenTimeout, d.o.FirstTokenTimeout) / 3
}

// fed records that the worker had sent something by now, and whether it included an event.
func (d *watchdog) fed(now time.Time, event bool) {
	d.heard.Store(int64(now.Sub(d.start)))
	if event && !d.token.Load() {
		d.token.Store(true)
	}
}

// stop ends the watch. A check already running may still cancel the attempt, which has ended.
func (d *watchdog) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.timer.Stop()
}

func (d *watchdog) look() {
	quiet := time.Since(d.start) - time.Duration(d.heard.Load())
	if hangs(d.o, d.streamed, d.token.Load(), quiet, d.signs()) {
		d.cancel(errStalled)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over {
		d.timer.Reset(d.tick())
	}
}

// hangs reports whether a worker that has been silent for quiet should be given up.
func hangs(o *Options, streamed, token bool, quiet time.Duration, s Signs) bool {
	switch {
	case quiet >= o.HungTimeout && s.Silence >= o.HungTimeout:
		return true // its process is inactive
	case streamed && token:
		return quiet >= o.TokenTimeout
	case s.Progress: // it evaluates a long prompt or writes a long answer
		return quiet >= o.FirstTokenTimeout && s.Stalled >= o.FirstTokenTimeout
	case streamed:
		return quiet >= o.FirstTokenTimeout
	}
	return false // a whole answer takes time, and its progress is unknown
}

// lostBy returns the error for an answer that broke off with err.
func lostBy(err error) error {
	if errors.Is(err, errStalled) {
		return core.Errorf(core.WorkerLost, "the worker stopped answering").Hint(retryHint)
	}
	return lost()
}
