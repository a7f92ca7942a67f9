package gateway

import (
	"cmp"
	"net/http"
	"runtime"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// modelObject is OpenAI's model object with additional fields of rbee.
type modelObject struct {
	Object  string `json:"object"`
	Created int64  `json:"created"` // seconds since 1970
	OwnedBy string `json:"owned_by"`
	// ContextLength and MaxModelLen are fields that clients of other servers read: the context of a
	// request where the model is loaded, otherwise the context that the model was trained for.
	ContextLength int `json:"context_length,omitempty"`
	MaxModelLen   int `json:"max_model_len,omitempty"`
	core.Model
}

func modelObjectOf(m core.Model) modelObject {
	context := cmp.Or(m.LoadedContextTokens, m.ContextTokens)
	return modelObject{Object: openai.ObjectModel, Created: max(0, m.CreatedAt.Unix()), OwnedBy: "rbee", ContextLength: context, MaxModelLen: context, Model: m}
}

func (g *Gateway) models(w *response, r *http.Request) error {
	models, err := g.modelsFor(r.Context(), w)
	if err != nil {
		return err
	}
	objects := make([]modelObject, 0, len(models))
	for _, m := range models {
		objects = append(objects, modelObjectOf(m))
	}
	slices.SortStableFunc(objects, func(a, b modelObject) int { return cmp.Compare(a.ID, b.ID) })
	return writeJSON(w, http.StatusOK, listOf(objects))
}

func (g *Gateway) model(w *response, r *http.Request) error {
	m, err := g.findModel(r.Context(), w, r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, modelObjectOf(m))
}

// answerOne answers with the result of a cluster query, answerList with a list.
func answerOne[T any](w *response, v T, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func answerList[T any](w *response, items []T, err error) error {
	return answerOne(w, listOf(items), err)
}

// answering returns the handler of a read-only operation.
func answering(s operation.Spec) handler {
	return func(g *Gateway, w *response, r *http.Request) error {
		request, err := s.RequestOf(r)
		if err != nil {
			return err
		}
		v, err := g.o.Cluster.Answer(r.Context(), request)
		return answerOf(w, s, v, err)
	}
}

// answerOf answers with the result of an operation.
func answerOf(w http.ResponseWriter, s operation.Spec, v any, err error) error {
	if err != nil {
		return err
	}
	if s.IsList() {
		v = struct {
			Object string `json:"object"`
			Data   any    `json:"data"`
		}{openai.ObjectList, v}
	}
	return writeJSON(w, http.StatusOK, v)
}

// operationRoutes returns the GET routes of the operations.
func operationRoutes() []route {
	own := map[core.Operation]handler{
		core.OpStatus:          (*Gateway).status,
		core.OpActiveWorkerGet: (*Gateway).worker, // adds the requests that this queen sent to it
	}
	var out []route
	for _, s := range operation.All() {
		if s.Get == "" {
			continue
		}
		h := own[s.Name]
		if h == nil {
			h = answering(s)
		}
		if s.Registry {
			h = fresh(h)
		}
		out = append(out, route{"GET", s.Get, core.ScopeRead, h})
	}
	return out
}

func (g *Gateway) healthy(w *response, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (g *Gateway) ready(w *response, r *http.Request) error {
	if g.streams.stopping() {
		return errStopping
	}
	if err := g.o.Cluster.Ready(r.Context()); err != nil {
		return &apiError{err: err, status: http.StatusServiceUnavailable} // not ready, for any cause
	}
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (g *Gateway) version(w *response, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"version": g.o.Version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
}
