package inference

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const retryHint = "Ask again; GET /v1/workers shows which workers there are."

// ErrTold is the error of a stream that ended with the worker's own error event, which the client
// has seen: the answer is to be cut without another one.
var ErrTold = core.Errorf(core.Internal, "the worker ended its stream with an error")

// Refusal is a worker's refusal of a request whose stream has begun already. Other refusals are
// answers.
type Refusal struct{ Err *openai.Error }

func (e *Refusal) Error() string { return e.Err.Message }

// Unwrap returns the refusal as a classified error.
func (e *Refusal) Unwrap() error { return core.Errorf(core.Kind(e.Err.Kind), "%s", e.Err.Message) }

// OverloadError says that all workers of a model are busy: too many requests wait already (kind
// Overloaded), or this one waited too long (kind DeadlineExceeded).
type OverloadError struct {
	Err        error // classified
	Code       string
	RetryAfter time.Duration
}

func (e *OverloadError) Error() string { return e.Err.Error() }

// Unwrap returns the classified error.
func (e *OverloadError) Unwrap() error { return e.Err }

func isOverload(err error) bool {
	_, ok := errors.AsType[*OverloadError](err)
	return ok
}

// unanswered is why a worker gave no answer that counts, so that another one may be asked.
type unanswered struct {
	err  error
	sent bool // the worker may have begun to work on the request
	lost bool // it was lost with the request in its hands
}

func (e *unanswered) Error() string { return e.err.Error() }
func (e *unanswered) Unwrap() error { return e.err }

// busy is the answer of a worker that lives and does not take the request, while another may.
type busy struct {
	err   error
	full  bool          // its own queue is full: it is asked again as soon as it may have room
	after time.Duration // when it wants to be asked again
	short bool          // it takes requests, but none of this length
	// leaving says that it takes no request any more.
	leaving bool
	// answer is passed on where no other worker helps; nil: err is.
	answer *Answer
}

func (e *busy) Error() string { return e.err.Error() }
func (e *busy) Unwrap() error { return e.err }

// KindOfStatus returns the kind that fits the status of a worker's answer best. Workers know no
// kinds.
func KindOfStatus(status int) core.Kind {
	switch status {
	case http.StatusNotFound:
		return core.NotFound
	case http.StatusTooManyRequests:
		return core.Overloaded
	case http.StatusNotImplemented:
		return core.Unsupported
	}
	if status < 500 {
		return core.Invalid
	}
	return core.Internal
}

// ended returns why ctx, that of a request, has ended: a classified cause that its owner gave, or
// the client left.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if kind := core.KindOf(err); kind == core.Unavailable || kind == core.Conflict { // the server stops, or the client said so elsewhere
		return err
	}
	return core.Errorf(core.Cancelled, "the client is gone")
}

func lost() error {
	return core.Errorf(core.WorkerLost, "the worker was lost before its answer was whole").Hint(retryHint)
}

// clip bounds text of a client that an error repeats.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
