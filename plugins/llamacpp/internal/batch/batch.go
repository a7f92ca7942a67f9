// Package batch schedules the steps of an engine: which tokens of which requests each step
// evaluates, and what happens with the tokens that it yields. It sees the engine only as a Decoder,
// so its tests need no engine.
package batch

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// Token is a token of the model's vocabulary; negative: none.
type Token = int32

// none stands for the absence of a token.
const none Token = -1

// Entry is a token to evaluate.
type Entry struct {
	Token  Token
	Pos    int  // its position in the sequence, from 0
	Seq    int  // the sequence, from 0
	Logits bool // compute the logits of the next token
}

// Decoder is the part of an engine that the scheduler needs. Only the goroutine of Run calls it.
type Decoder interface {
	// Decode evaluates the entries, which continue their sequences. It returns ErrFull, without
	// changing anything, when the cache has no room for them. After any other error the engine is
	// unusable.
	Decode(entries []Entry) error
	// Logits returns the logits of an entry of the last Decode, in memory owned by the engine. They
	// are valid until the next Decode.
	Logits(entry int) []float32
	// Remove drops the positions of a sequence from the given one on. It reports false, and changes
	// nothing, when the sequence cannot be cut there. Cutting at 0 always works.
	Remove(seq, from int) bool
	// Floor returns the lowest position above 0 at which Remove can cut a sequence.
	Floor(seq int) int
	// Copy replaces a sequence by a copy of another whole one. The copy may be deferred to the next
	// Decode.
	Copy(from, to int)
	// Save copies a sequence to memory owned by the decoder. It returns nil when the copy would
	// exceed limit bytes.
	Save(seq int, limit int64) State
	// Load replaces a sequence by a saved one. When it reports false, the sequence is empty.
	Load(seq int, state State) bool
	// Adapt selects the adapters to use from the next Decode on; see Request.Adapters.
	Adapt(adapters string) error
}

// State is a saved sequence.
type State interface {
	Bytes() int64
	// Data returns the content of the state, valid until Free.
	Data() []byte
	// Free releases the memory. It is called once.
	Free()
}

// ErrFull is returned by Decode when the cache has no room for a batch.
var ErrFull = errors.New("no room in the cache")

// Chooser chooses the tokens of one request. Only the goroutine of Run calls it.
type Chooser interface {
	// Choose returns the next token and advances past it. The logits are valid during the call
	// only; Choose must leave them as they were. An error ends the request.
	Choose(logits []float32) (Choice, error)
	// Follow advances past a token of a choice's Ahead, in order. The logits are those before the
	// token, valid during the call only; they may be nil without Request.AllLogits.
	Follow(t Token, logits []float32) []LogProb
	// Close is called once, when the request has ended.
	Close()
}

// Choice is a chosen token.
type Choice struct {
	Token    Token
	LogProbs []LogProb // of the token itself, then of the likeliest ones, if requested
	Ahead    []Token   // forced tokens, evaluated at once without a choice
}

// LogProb is the natural logarithm of a token's probability.
type LogProb struct {
	Token   Token
	LogProb float32
}

// Vocab describes the model's vocabulary, indexed by token.
type Vocab struct {
	Pieces []string // the text of each token; empty for control tokens
	Ends   []bool   // tokens that end a generation
}

// Finish is the reason why a generation ended without an error.
type Finish string

// The reasons to finish. Empty: not finished.
const (
	FinishStop   Finish = "stop"   // an end token or a stop string
	FinishLength Finish = "length" // Request.MaxTokens, or the end of the slot
)

// Request is one generation. Create a new one for each Submit.
type Request struct {
	Prompt    []Token // not empty, and shorter than the slot's positions
	MaxTokens int     // 0: as many as fit
	Stops     []string
	Adapters  string // encoded for the decoder; requests never share prefixes across adapters
	Chooser   Chooser
	Pieces    []string // the text of each token, if it differs from the Vocab's
	AllLogits bool     // the chooser needs the logits before forced tokens as well
	// Admitted is called by the goroutine of Run when the request gets a slot; may be nil. It must
	// not block.
	Admitted func()
	// Emit is called for each event, including the last one, by the goroutine of Run. It must not
	// block. A cancelled request gets no more events.
	Emit func(Event)

	cancelled atomic.Bool
}

// Event is the progress of a request. The last event has a finish or an error.
type Event struct {
	Text     string    // may be empty while a stop string might have begun
	Sent     int       // bytes of token pieces covered by all Texts so far
	Tokens   int       // generated so far, including the token that ended the generation
	Reused   int       // prompt tokens that were already in the cache
	Drafted  int       // tokens drafted for the answer so far
	Accepted int       // drafted tokens that were then chosen
	Chosen   Token     // the token behind the event; negative: none
	LogProbs []LogProb // of Chosen, from its Chooser
	Finish   Finish
	Err      error
}

// Last reports whether no event follows.
func (e Event) Last() bool { return e.Finish != "" || e.Err != nil }

// ErrStopping ends requests when the scheduler stops.
var ErrStopping = errors.New("the engine is stopping")

// ErrCacheFull ends a request for which the cache has no room.
var ErrCacheFull = errors.New("the context memory is full")

// FailedError ends requests after the engine has failed; it accepts no more.
type FailedError struct{ Reason string }

func (e *FailedError) Error() string { return "the engine has failed: " + e.Reason }

// BusyError rejects a request because the queue is full.
type BusyError struct{ Slots, Waiting int }

func (e *BusyError) Error() string {
	return fmt.Sprintf("all %d slots are busy and %d requests are waiting", e.Slots, e.Waiting)
}
