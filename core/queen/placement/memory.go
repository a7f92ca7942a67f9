package placement

import (
	"sync"
	"time"
)

const (
	// hiveRest is how long a hive that failed to start a model is not asked again while another
	// hive can.
	hiveRest = time.Minute
	// maxStartMemory bounds the models remembered.
	maxStartMemory = 1024
)

// startMemory remembers the starts of models that this queen has seen, timed by its own clock:
// neither a hive's clock nor its retry delays may keep a model from starting elsewhere. The zero
// value is empty. It is safe for concurrent use.
type startMemory struct {
	mu     sync.Mutex // guards below
	models map[string]*modelStarts
}

type modelStarts struct {
	ended   string               // request of the last decision whose job was seen to have ended
	since   time.Time            // when that was first seen
	failed  map[string]time.Time // hives that failed to start it, and when
	touched time.Time
}

func (m *startMemory) ofLocked(model string) *modelStarts {
	s := m.models[model]
	if s == nil {
		if m.models == nil {
			m.models = map[string]*modelStarts{}
		}
		if len(m.models) >= maxStartMemory {
			m.dropOldestLocked()
		}
		s = &modelStarts{failed: map[string]time.Time{}}
		m.models[model] = s
	}
	s.touched = time.Now()
	return s
}

func (m *startMemory) dropOldestLocked() {
	var oldest string
	for model, s := range m.models {
		if oldest == "" || s.touched.Before(m.models[oldest].touched) {
			oldest = model
		}
	}
	delete(m.models, oldest)
}

// endedFor returns how long the job of a decision is known to have ended.
func (m *startMemory) endedFor(model, request string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.ofLocked(model)
	if s.ended != request {
		s.ended, s.since = request, s.touched
	}
	return s.touched.Sub(s.since)
}

// fail records that a hive failed to start the model.
func (m *startMemory) fail(model, hive string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.ofLocked(model)
	s.failed[hive] = s.touched
}

// rests reports whether a hive recently failed to start the model.
func (m *startMemory) rests(model, hive string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.models[model]
	if s == nil {
		return false
	}
	at, ok := s.failed[hive]
	if ok && time.Since(at) >= hiveRest {
		delete(s.failed, hive)
		return false
	}
	return ok
}
