package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
)

// codeStopping is the code of an answer that refuses a request before anything was done for it: it
// can be sent elsewhere, whatever it asks.
const codeStopping = "stopping"

var (
	// errStopping is why what runs is ended when the server stops.
	errStopping = core.Errorf(core.Unavailable, "this server is stopping").Hint("Ask again in a moment, or ask another queen.")
	// errRefused is errStopping for what has not begun.
	errRefused = &apiError{err: errStopping, code: codeStopping}
)

// streams knows what runs, so that a stop can wait for it, and end it with a reason instead of a
// silent cut. The zero value is ready.
type streams struct {
	lame   atomic.Bool  // the server stops: clients that get an answer are told to connect to another one
	active atomic.Int64 // requests of all kinds that are being answered
	last   atomic.Int64 // when the last request began or ended, in nanoseconds since 1970; kept only while lame

	mu      sync.Mutex // guards below
	stop    bool       // no new ones
	running map[*stream]struct{}
}

// stream is one inference request or one job stream that runs.
type stream struct {
	job    bool
	cancel context.CancelCauseFunc
}

// enter and leave are called around every request.
func (s *streams) enter() {
	s.active.Add(1)
	s.touch()
}

func (s *streams) leave() {
	s.touch()
	s.active.Add(-1)
}

func (s *streams) touch() {
	if s.lame.Load() {
		s.last.Store(time.Now().UnixNano())
	}
}

// quiet says for how long there has been no request; 0 while there is one.
func (s *streams) quiet(now time.Time) time.Duration {
	if s.active.Load() > 0 {
		return 0
	}
	return now.Sub(time.Unix(0, s.last.Load()))
}

// add registers what is cancelled by cancel; false where it must not begin any more. done must be
// called at its end.
func (s *streams) add(job bool, cancel context.CancelCauseFunc) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop || job && s.lame.Load() {
		return nil, false
	}
	if s.running == nil {
		s.running = map[*stream]struct{}{}
	}
	st := &stream{job: job, cancel: cancel}
	s.running[st] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, st)
	}, true
}

func (s *streams) stopping() bool { return s.lame.Load() }

// drain ends job streams, which go on elsewhere, and refuses new ones. Everything else is answered
// as before.
func (s *streams) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.Store(time.Now().UnixNano())
	s.lame.Store(true)
	for st := range s.running {
		if st.job {
			st.cancel(errStopping)
		}
	}
}

// cut refuses new ones and ends all that still run.
func (s *streams) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = true
	for st := range s.running {
		st.cancel(errStopping)
	}
}
