package llamacpp

import (
	"errors"
	"net/http"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// engine answers requests with one context of a model. It adapts the scheduler to the HTTP
// handlers: requests and errors of OpenAI's API.
type engine struct {
	*batch.Scheduler

	model    *model
	ctx      *native.Context
	limit    int          // positions per slot
	parallel int          // slots
	work     sampler.Work // shared by the choosers, which the scheduler calls one at a time

	samplesAll bool // sample even without alternatives, for comparison
}

// submit queues requests, all of them or none. Each request's events arrive in its out, up to the
// last one.
func (e *engine) submit(list ...*request) *openai.Error {
	work := make([]*batch.Request, len(list))
	for i, r := range list {
		c, err := e.newChooser(r)
		if err != nil {
			return apiError(err)
		}
		r.work = &batch.Request{Prompt: r.prompt, MaxTokens: r.maxTokens, Stops: r.stops, Adapters: r.adapters, Admitted: r.admitted, Emit: r.emit, Chooser: c, Pieces: r.pieces, AllLogits: c.wantsLogProbs()}
		work[i] = r.work
	}
	return apiError(e.Submit(work...))
}

// speller returns a function that tokenizes text that must follow. With markers, the spellings of
// control tokens become control tokens, as the constraint identifies them by spelling.
func (e *engine) speller(markers bool) func(text []byte) []int {
	if e.samplesAll {
		return nil
	}
	return func(text []byte) []int {
		list := e.model.tokens(string(text), false, markers)
		out := make([]int, len(list))
		for i, t := range list {
			out[i] = int(t)
		}
		return out
	}
}

// cancel ends a submitted request whose answer is no longer wanted. No event follows.
func (e *engine) cancel(r *request) { e.Cancel(r.work) }

// load returns the number of requests in slots and in the queue, and why the engine failed.
func (e *engine) load() (active, queued int, failure string) {
	st := e.Stats()
	return st.Active, st.Queued, st.Failure
}

// apiError converts an error of the scheduler to the API error for the client; nil stays nil.
func apiError(err error) *openai.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return e
	}
	if busy, ok := errors.AsType[*batch.BusyError](err); ok {
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", openai.CodeOverloaded,
			"all %d slots of this worker are busy and %d requests are waiting; try again later", busy.Slots, busy.Waiting)
	}
	if failed, ok := errors.AsType[*batch.FailedError](err); ok {
		return engineFailed(failed.Reason)
	}
	switch {
	case errors.Is(err, batch.ErrStopping):
		return stopping()
	case errors.Is(err, batch.ErrCacheFull):
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", openai.CodeOverloaded, "the context memory of this worker is full; try again later")
	}
	return engineFailed(err.Error())
}

func stopping() *openai.Error {
	return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "stopping", "the worker is stopping; send the request again")
}

func engineFailed(why string) *openai.Error {
	return openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "engine_failed", "the engine of this worker has failed (%s); send the request again, to another worker", why)
}
