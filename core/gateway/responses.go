package gateway

import (
	"context"
	"net/http"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect/responses"
)

// errCancelled ends a response that its client cancels by its id.
var errCancelled = &apiError{code: "response_cancelled", err: core.Errorf(core.Conflict, "the response was cancelled")}

// running tracks the answers in progress, by the ids under which clients can cancel them. The zero
// value is ready. It is safe for concurrent use.
type running struct {
	mu      sync.Mutex // guards below
	answers map[string]runningAnswer
}

type runningAnswer struct {
	key    string // token id of its client
	cancel context.CancelCauseFunc
}

// add registers an answer; the caller calls done when it has ended.
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

// cancel ends an answer and reports whether the key had one with this id.
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

// kept stores answers of the Responses API, and finds those that other queens store.
type kept struct {
	answers responses.Store
	running running
	// others is Options.Elsewhere.
	others func(ctx context.Context, act core.KeptAct, id, key string) (answer []byte, found bool, err error)
}

// Kept performs another queen's action on an answer that this queen stores or is generating.
func (g *kept) Kept(act core.KeptAct, id, key string) (answer []byte, found bool) {
	switch act {
	case core.KeptGet:
		return g.answers.Export(id, key)
	case core.KeptDelete:
		return nil, g.answers.Delete(id, key)
	case core.KeptCancel:
		return nil, g.running.cancel(id, key)
	}
	return nil, false
}

// elsewhere asks the other queens to act on a stored response. Errors: Unavailable if no queen that
// answered has it and others did not answer.
func (g *kept) elsewhere(ctx context.Context, act core.KeptAct, id, key string) (answer []byte, found bool, err error) {
	if g.others == nil || !strings.HasPrefix(id, "resp_") || len(id) > maxAnswerID {
		return nil, false, nil
	}
	return g.others(ctx, act, id, key)
}

// maxAnswerID bounds the answer ids that other queens are asked about, in bytes.
const maxAnswerID = 64

// fetchKept copies an answer stored at another queen to this one, so that a request can continue
// it. If no queen has it, the request is refused later.
func (g *kept) fetchKept(ctx context.Context, w *response, id string) error {
	if id == "" || g.answers.Has(id, w.key) {
		return nil
	}
	answer, found, err := g.elsewhere(ctx, core.KeptGet, id, w.key)
	if err != nil || !found {
		return err
	}
	if err := g.answers.Import(id, w.key, answer); err != nil {
		return core.Wrap(err, core.Internal, "take an answer over from another queen")
	}
	return nil
}

// getResponse answers with a stored response, as sent to its client.
func (g *kept) getResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	if err := g.fetchKept(r.Context(), w, id); err != nil {
		return err
	}
	body, ok := g.answers.Response(id, w.key)
	if !ok {
		return responses.NotKept(id)
	}
	writeBody(w, http.StatusOK, body)
	return nil
}

// responseItems lists the input items of a response.
func (g *kept) responseItems(w *response, r *http.Request) error {
	id := r.PathValue("id")
	if err := g.fetchKept(r.Context(), w, id); err != nil {
		return err
	}
	list, err := g.answers.Inputs(id, w.key, r.URL.Query())
	return answerOne(w, list, err)
}

// deleteResponse deletes a response from every queen that stores it.
func (g *kept) deleteResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	here := g.answers.Delete(id, w.key)
	_, there, err := g.elsewhere(r.Context(), core.KeptDelete, id, w.key)
	switch {
	case err != nil:
		return err
	case !here && !there:
		return responses.NotKept(id)
	}
	return writeJSON(w, http.StatusOK, responses.Deleted{ID: id, Object: "response", Deleted: true})
}

// cancelResponse ends a response in progress: its client gets an error event with that reason.
func (g *kept) cancelResponse(w *response, r *http.Request) error {
	id := r.PathValue("id")
	cancelled := g.running.cancel(id, w.key)
	if !cancelled && !g.answers.Has(id, w.key) {
		var err error
		if _, cancelled, err = g.elsewhere(r.Context(), core.KeptCancel, id, w.key); err != nil {
			return err
		}
	}
	if cancelled {
		return writeJSON(w, http.StatusOK, responses.Cancelled{ID: id, Object: "response", Status: "cancelled", Output: []any{}})
	}
	if err := g.fetchKept(r.Context(), w, id); err != nil {
		return err
	}
	if g.answers.Has(id, w.key) {
		return responses.NotRunning(id)
	}
	return responses.NotKept(id)
}
