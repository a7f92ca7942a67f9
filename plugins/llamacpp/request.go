package llamacpp

import (
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// token is a token of the model's vocabulary.
type token = native.Token

// request is one generation, from the HTTP handler to the engine. A copy made before submission is
// another answer of the same HTTP request: the events of both arrive in the same mailbox.
type request struct {
	number    int // distinguishes the generations of an HTTP request in their events
	prompt    []token
	maxTokens int  // 0: as many as fit
	noOutput  bool // evaluate the prompt without generating
	sampling  sampler.Params
	logprobs  int  // number of likeliest tokens wanted with each token; negative: no log probabilities
	ranked    bool // log probabilities of the tokens themselves are needed in any case
	shape     openai.Shape
	rule      *rule // the compiled form of the answer; nil: any
	stops     []string
	adapters  string // see native.Scales

	pieces   []string            // the texts of tokens in the answer; nil: the model's
	thinking constraint.Thinking // where the form of the answer does not apply

	// guard returns a new guard that enforces tools and a thinking budget; nil: not needed.
	guard func() *dialogue.Guard

	work *batch.Request // the scheduler's request, from submit on
	pace pace           // owned by the scheduler, from submit on
	out  *mailbox

	tokens tokenQueue // owned by the reader of out
}

// shownPieces returns the texts of tokens in the answer.
func (r *request) shownPieces(m *model) []string {
	if r.pieces != nil {
		return r.pieces
	}
	return m.pieces
}

func newRequest() *request {
	return &request{logprobs: -1, out: &mailbox{ready: make(chan struct{}, 1)}}
}

// event is the progress of a request. The last event has a finish reason or an error.
type event struct {
	number   int // of the request
	text     string
	sent     int           // bytes of token pieces covered by all texts so far
	finish   string        // one of openai's finish reasons
	err      *openai.Error // the request failed; nothing follows
	tokens   int           // generated so far, including the token that ended the generation
	reused   int           // prompt tokens that were already in the cache
	drafted  int           // tokens drafted for the answer so far
	right    int           // drafted tokens that were then chosen
	read     time.Duration // from the slot to the first token
	said     time.Duration // from the first token to this one
	chosen   token         // negative: none
	logprobs []batch.LogProb
}

func (e event) last() bool { return e.finish != "" || e.err != nil }

// pace records when a request was admitted and when its first token arrived.
type pace struct{ admitted, first time.Time }

// admitted is called by the scheduler when the request gets a slot.
func (r *request) admitted() { r.pace.admitted = time.Now() }

// emit receives an event from the scheduler.
func (r *request) emit(e batch.Event) {
	now := time.Now()
	if r.pace.first.IsZero() {
		r.pace.first = now
	}
	if r.noOutput {
		if !e.Last() {
			return
		}
		e = batch.Event{Err: e.Err, Reused: e.Reused, Chosen: -1}
		if e.Err == nil {
			e.Finish = batch.FinishLength
		}
	}
	r.out.put(event{
		number: r.number, text: e.Text, sent: e.Sent, finish: string(e.Finish), err: apiError(e.Err), tokens: e.Tokens, reused: e.Reused,
		drafted: e.Drafted, right: e.Accepted, read: r.pace.first.Sub(r.pace.admitted), said: now.Sub(r.pace.first), chosen: e.Chosen, logprobs: e.LogProbs,
	})
}

// mailbox carries events from the engine to one reader. It never blocks the engine, as a slow
// client must not hold up the others. The context length bounds it, because each event is a token.
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

// take returns the events since the last call. It reuses spare, which the caller no longer needs,
// for the next ones.
func (m *mailbox) take(spare []event) []event {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.events
	m.events = spare[:0]
	return out
}
