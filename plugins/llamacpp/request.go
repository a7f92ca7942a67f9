package llamacpp

import (
	"sync"
	"sync/atomic"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// request is one generation, from the HTTP handler to the engine.
type request struct {
	prompt    []llama.Token
	maxTokens int // 0: as many as fit
	sampling  sampling
	stops     []string

	cancelled atomic.Bool
	out       mailbox
}

func newRequest() *request {
	r := &request{}
	r.out.ready = make(chan struct{}, 1)
	return r
}

// event is what the engine says about a request. The last event has a finish reason or an error.
type event struct {
	text   string
	finish string        // one of openai's finish reasons
	err    *openai.Error // the request failed; nothing follows
	tokens int           // generated so far, the token that ended the generation included
}

func (e event) last() bool { return e.finish != "" || e.err != nil }

// mailbox carries events from the engine to one reader. It never blocks the engine: a slow client
// must not hold up the others. It is bounded by the context's length, because each event is a
// token.
type mailbox struct {
	ready chan struct{} // capacity 1

	mu     sync.Mutex // guards below
	events []event
}

func (m *mailbox) put(e event) {
	m.mu.Lock()
	m.events = append(m.events, e)
	m.mu.Unlock()
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// take returns the events since the last call and keeps spare, which the caller is done with, for
// the next ones.
func (m *mailbox) take(spare []event) []event {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.events
	m.events = spare[:0]
	return out
}
