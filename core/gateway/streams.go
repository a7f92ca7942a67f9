package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
)

// codeStopping is the error code for a request refused before it had any effect: it can be sent
// elsewhere, whatever it is.
const codeStopping = "stopping"

var (
	// errStopping is the cause that ends running requests when the server stops.
	errStopping = core.Errorf(core.Unavailable, "this server is stopping").Hint("Ask again in a moment, or ask another queen.")
	// errRefused is errStopping for requests that have not begun.
	errRefused = &apiError{err: errStopping, code: codeStopping}
)

// streams tracks running requests, so that a stop can wait for them, and end them with a reason
// instead of a silent cut. The zero value is ready.
type streams struct {
	lame   atomic.Bool  // the server is stopping: answers tell clients to connect elsewhere
	active atomic.Int64 // requests of all kinds in progress
	last   atomic.Int64 // time of the last start or end of a request, in nanoseconds since 1970; updated only while lame

	mu      sync.Mutex // guards below
	stop    bool       // accepts no new ones
	running map[*stream]struct{}
}

// stream is one running inference request or job stream.
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

// quiet returns how long there has been no request; 0 while there is one.
func (s *streams) quiet(now time.Time) time.Duration {
	if s.active.Load() > 0 {
		return 0
	}
	return now.Sub(time.Unix(0, s.last.Load()))
}

// add registers a stream that cancel cancels; it returns false if no more streams may begin. done
// must be called at its end.
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

// drain ends job streams, which can be resumed elsewhere, and refuses new ones. Everything else is
// answered as before.
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

// cut refuses new streams and ends all that still run.
func (s *streams) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = true
	for st := range s.running {
		st.cancel(errStopping)
	}
}
