package gateway

import (
	"context"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// errStopping is why answers are refused and streams are ended while the server stops.
var errStopping = core.WithHint(core.Errorf("", core.Unavailable, "this server is stopping"), "Ask again in a moment, or ask another queen.")

// streams knows what runs, so that a stop can end it with a reason instead of a silent cut. The zero value is ready.
type streams struct {
	mu       sync.Mutex // guards below
	stop     bool       // no new ones
	running  map[*stream]struct{}
	finished chan struct{} // closed when the last one is done after stop; nil before stop
}

// stream is one inference request or one job stream that runs.
type stream struct {
	job    bool
	cancel context.CancelCauseFunc
}

// add registers what is cancelled by cancel; false while the server stops. done must be called at its end.
func (s *streams) add(job bool, cancel context.CancelCauseFunc) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop {
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
		if s.stop && len(s.running) == 0 && s.finished != nil {
			close(s.finished)
			s.finished = nil
		}
	}, true
}

func (s *streams) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop
}

// drain refuses new ones, ends job streams, and returns a channel that is closed when none runs.
func (s *streams) drain() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = true
	finished := make(chan struct{})
	if len(s.running) == 0 {
		close(finished)
	} else {
		s.finished = finished
	}
	for st := range s.running {
		if st.job {
			st.cancel(errStopping)
		}
	}
	return finished
}

// cut ends all that still run.
func (s *streams) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.running {
		st.cancel(errStopping)
	}
}
