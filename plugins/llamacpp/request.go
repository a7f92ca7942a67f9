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

// request is one generation, from the HTTP handler to the engine. A copy of one that was not
// submitted is another answer of the same HTTP request: their events come to the same mailbox.
type request struct {
	number    int // tells the events of the HTTP request's generations apart
	prompt    []token
	maxTokens int  // 0: as many as fit
	noOutput  bool // the prompt is evaluated, and nothing is said
	sampling  sampler.Params
	logprobs  int  // the likeliest tokens that are wanted with each; negative: no log probabilities
	ranked    bool // the log probabilities of the tokens themselves are wanted all the same
	shape     openai.Shape
	rule      *rule // the compiled shape: what the answer must look like; nil: anything
	stops     []string
	adapters  string // see native.Scales

	pieces   []string            // the texts of tokens in the answer; nil: the model's
	thinking constraint.Thinking // where the answer's form does not apply

	// guard makes what keeps the answer within tools and a budget of thinking; nil: nothing does.
	guard func() *dialogue.Guard

	work *batch.Request // what the scheduler has of it, from submit on
	pace pace           // the scheduler's, from submit on
	out  *mailbox

	tokens tokenQueue // the reader's of out
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

// event is what the engine says about a request. The last event has a finish reason or an error.
type event struct {
	number   int // of the request
	text     string
	sent     int           // bytes of the pieces of tokens that all texts so far show
	finish   string        // one of openai's finish reasons
	err      *openai.Error // the request failed; nothing follows
	tokens   int           // generated so far, the token that ended the generation included
	reused   int           // tokens of the prompt that were in the cache already
	drafted  int           // tokens that were drafted for the answer so far
	right    int           // of them, those that were chosen
	read     time.Duration // from the slot to the first token
	said     time.Duration // from the first token to this one
	chosen   token         // negative: there is none
	logprobs []batch.LogProb
}

func (e event) last() bool { return e.finish != "" || e.err != nil }

// pace is when a request came to what it waits for.
type pace struct{ admitted, first time.Time }

// admitted is told by the scheduler that the request has a slot.
func (r *request) admitted() { r.pace.admitted = time.Now() }

// emit takes an event from the scheduler.
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

// mailbox carries events from the engine to one reader. It never blocks the engine: a slow client
// must not hold up the others. The contexts' length bounds it, because each event is a token.
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
