// Package batch schedules the steps of an engine: which tokens of which requests each step
// evaluates, and what becomes of the tokens that it yields. It knows the engine as a Decoder only,
// so that its tests need none.
package batch

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// Token is a token of the model's vocabulary; negative: none.
type Token = int32

// none is no token.
const none Token = -1

// Entry is a token to evaluate.
type Entry struct {
	Token  Token
	Pos    int  // its position in the sequence, from 0
	Seq    int  // the sequence, from 0
	Logits bool // the logits of the token after it are wanted
}

// Decoder is what the scheduler needs of an engine. Only the goroutine of Run calls it.
type Decoder interface {
	// Decode evaluates the entries, which go on where their sequences end. It returns ErrFull where
	// the cache has no room for them, and then has changed nothing. After any other error the
	// engine is of no more use.
	Decode(entries []Entry) error
	// Logits returns the logits of an entry of the last Decode, in the engine's own memory. They
	// are valid until the next Decode.
	Logits(entry int) []float32
	// Remove drops a sequence's positions from the given one on. It reports false, and changes
	// nothing, where the sequence cannot be cut there; from 0 it always can.
	Remove(seq, from int) bool
	// Floor returns the least position above 0 from which on Remove can cut a sequence.
	Floor(seq int) int
	// Copy replaces a sequence by a copy of the whole of another one. The copy may take place with
	// the next Decode only.
	Copy(from, to int)
	// Save copies a sequence to memory that the decoder keeps. It returns nil where that takes more
	// than limit bytes.
	Save(seq int, limit int64) State
	// Load replaces a sequence by what Save copied. Where it reports false the sequence is empty.
	Load(seq int, state State) bool
	// Adapt has the model think with other adapters from the next Decode on: Request.Adapters.
	Adapt(adapters string) error
}

// State is a saved sequence.
type State interface {
	Bytes() int64
	// Data returns what the state is made of, valid until Free.
	Data() []byte
	// Free gives the memory back. It is called once.
	Free()
}

// ErrFull is returned by a Decoder whose cache has no room for a batch.
var ErrFull = errors.New("no room in the cache")

// Chooser chooses the tokens of one request. Only the goroutine of Run calls it.
type Chooser interface {
	// Choose returns the next token and takes it for said. The logits are valid for the call only
	// and must be as they were when it returns. An error ends the request.
	Choose(logits []float32) (Choice, error)
	// Follow is called when a token of a choice's Ahead is said, in their order. The logits are
	// those in front of it and valid for the call only; they may be nil without Request.AllLogits.
	Follow(t Token, logits []float32) []LogProb
	// Close is called once, when the request has ended.
	Close()
}

// Choice is a chosen token.
type Choice struct {
	Token    Token
	LogProbs []LogProb // of the token itself and then of the likeliest ones, where they were asked for
	Ahead    []Token   // what must follow it: it is evaluated at once, and nothing is chosen
}

// LogProb is the natural logarithm of a token's probability.
type LogProb struct {
	Token   Token
	LogProb float32
}

// Vocab is what the scheduler knows of the model's vocabulary, by token.
type Vocab struct {
	Pieces []string // the text of each token; control tokens have none
	Ends   []bool   // tokens that end a generation
}

// Finish is why a generation ended well.
type Finish string

// The reasons to finish; empty: it has not.
const (
	FinishStop   Finish = "stop"   // a token that ends it, or a stop string
	FinishLength Finish = "length" // Request.MaxTokens, or the end of the slot
)

// Request is one generation. Make it anew for each Submit.
type Request struct {
	Prompt    []Token // not empty, and shorter than the slot's positions
	MaxTokens int     // 0: as many as fit
	Stops     []string
	Adapters  string // what the model has for it, as the decoder spells it; what others read is of no use to it
	Chooser   Chooser
	Pieces    []string // the text of each token, where it is not that of the Vocab
	AllLogits bool     // the chooser wants the logits in front of tokens that it does not choose, too
	// Admitted is called by the goroutine of Run when the request gets a slot; nil: nobody wants to
	// know. It must not block.
	Admitted func()
	// Emit is called for each event, the last one included, by the goroutine of Run. It must not
	// block. A cancelled request gets none.
	Emit func(Event)

	cancelled atomic.Bool
}

// Event is what the scheduler says about a request. The last event has a finish or an error.
type Event struct {
	Text     string    // may be empty: a stop string might begin in it
	Sent     int       // bytes of the pieces of tokens that all Texts so far show
	Tokens   int       // generated so far, the token that ended the generation included
	Reused   int       // tokens of the prompt that were in the cache already
	Drafted  int       // tokens that were drafted for the answer so far
	Accepted int       // of them, those that were chosen
	Chosen   Token     // the token behind the event; negative where there is none
	LogProbs []LogProb // of Chosen, as its Chooser said
	Finish   Finish
	Err      error
}

// Last reports whether no event follows.
func (e Event) Last() bool { return e.Finish != "" || e.Err != nil }

// ErrStopping ends requests when the scheduler stops.
var ErrStopping = errors.New("the engine is stopping")

// ErrCacheFull ends a request for which the cache has no room.
var ErrCacheFull = errors.New("the context memory is full")

// FailedError ends requests when the engine has failed; it takes no more.
type FailedError struct{ Reason string }

func (e *FailedError) Error() string { return "the engine has failed: " + e.Reason }

// BusyError refuses a request because too many wait.
type BusyError struct{ Slots, Waiting int }

func (e *BusyError) Error() string {
	return fmt.Sprintf("all %d slots are busy and %d requests are waiting", e.Slots, e.Waiting)
}
