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

// ErrTold is the error of a stream that ended with the worker's own error event. The client has
// seen that event, so the answer ends without another one.
var ErrTold = core.Errorf(core.Internal, "the worker ended its stream with an error")

// Refusal is a worker's refusal of a request whose stream has already begun. Other refusals are
// passed on as answers.
type Refusal struct{ Err *openai.Error }

func (e *Refusal) Error() string { return e.Err.Message }

// Unwrap returns the refusal as a classified error.
func (e *Refusal) Unwrap() error { return core.Errorf(core.Kind(e.Err.Kind), "%s", e.Err.Message) }

// OverloadError reports that all workers of a model are busy: the queue is full (kind Overloaded),
// or the request waited too long (kind DeadlineExceeded).
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

// unanswered is why a worker gave no usable answer, so that another one may be asked.
type unanswered struct {
	err  error
	sent bool // the worker may have begun to process the request
	lost bool // the worker was lost while it had the request
}

func (e *unanswered) Error() string { return e.err.Error() }
func (e *unanswered) Unwrap() error { return e.err }

// busy is the answer of a live worker that does not accept the request, while another may.
type busy struct {
	err   error
	full  bool          // its own queue is full: it is asked again as soon as it may have room
	after time.Duration // its requested retry delay
	short bool          // its context is too short for this request
	// leaving reports that it accepts no more requests.
	leaving bool
	// answer is passed on if no other worker helps; nil: err is.
	answer *Answer
}

func (e *busy) Error() string { return e.err.Error() }
func (e *busy) Unwrap() error { return e.err }

// KindOfStatus returns the kind that best fits the status of a worker's answer. Workers have no
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

// ended returns why ctx, a request's, has ended: a classified cause from its owner, or that the
// client disconnected.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if kind := core.KindOf(err); kind == core.Unavailable || kind == core.Conflict { // the server stops, or the client cancelled by other means
		return err
	}
	return core.Errorf(core.Cancelled, "the client is gone")
}

func lost() error {
	return core.Errorf(core.WorkerLost, "the worker was lost before its answer was complete").Hint(retryHint)
}

// clip truncates client text for use in an error.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
