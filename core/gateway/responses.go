package gateway

import (
	"context"
	"net/http"
	"sync"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect/responses"
)

// errCancelled ends a response that its client cancels by its id.
var errCancelled = &apiError{code: "response_cancelled", err: core.Errorf(core.Conflict, "the response was cancelled")}

// running knows the answers that are being made, by the ids that clients can cancel them by. The
// zero value is ready. It is safe for concurrent use.
type running struct {
	mu      sync.Mutex // guards below
	answers map[string]runningAnswer
}

type runningAnswer struct {
	key    string // of who asked for it
	cancel context.CancelCauseFunc
}

// add adds an answer; the caller calls done when it has ended.
func (r *running) add(id, key string, cancel context.CancelCauseFunc) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answers == nil {
		r.answers = map[string]runningAnswer{}
	}
	r.answers[id] = runningAnswer{key, cancel}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.answers, id)
	}
}

// cancel ends an answer and reports whether the key had one of this id.
func (r *running) cancel(id, key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.answers[id]
	if !ok || a.key != key {
		return false
	}
	a.cancel(errCancelled)
	return true
}

// getResponse answers with a response that is kept, as its client got it.
func (g *Gateway) getResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	body, ok := g.answers.Response(id, w.key)
	if !ok {
		return responses.NotKept(id)
	}
	writeBody(w, http.StatusOK, body)
	return nil
}

// responseItems lists what a response was made from.
func (g *Gateway) responseItems(w *response, r *http.Request) error {
	list, err := g.answers.Inputs(r.PathValue("id"), w.key, r.URL.Query())
	return answerOne(w, list, err)
}

// deleteResponse forgets a response.
func (g *Gateway) deleteResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	if !g.answers.Delete(id, w.key) {
		return responses.NotKept(id)
	}
	return writeJSON(w, http.StatusOK, responses.Deleted{ID: id, Object: "response", Deleted: true})
}

// cancelResponse ends a response that is being made: its client gets an error that says so.
func (g *Gateway) cancelResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	switch {
	case g.running.cancel(id, w.key):
		return writeJSON(w, http.StatusOK, responses.Cancelled{ID: id, Object: "response", Status: "cancelled", Output: []any{}})
	case g.answers.Has(id, w.key):
		return responses.NotRunning(id)
	}
	return responses.NotKept(id)
}
