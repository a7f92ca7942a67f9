package gateway

import (
	"cmp"
	"net/http"
	"runtime"
	"slices"
	"strconv"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// maxCatalogItems bounds one answer of a catalog search.
const maxCatalogItems = 1000

// modelObject is OpenAI's model with what rbee knows of it beside.
type modelObject struct {
	Object  string `json:"object"`
	Created int64  `json:"created"` // seconds since 1970
	OwnedBy string `json:"owned_by"`
	core.Model
}

func modelObjectOf(m core.Model) modelObject {
	return modelObject{Object: openai.ObjectModel, Created: max(0, m.CreatedAt.Unix()), OwnedBy: "rbee", Model: m}
}

func (g *Gateway) models(w *response, r *http.Request) error {
	models, err := g.o.Cluster.Models(r.Context())
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
	m, err := g.findModel(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, modelObjectOf(m))
}

// nearest are at most three names of models that are like name.
func nearest(name string, models []core.Model) []string {
	var names []string
	for _, m := range models {
		names = append(append(names, m.ID), m.Aliases...)
	}
	return core.Nearest(name, names)
}

// answerOne answers with what a question about the cluster gives, answerList with a list of it.
func answerOne[T any](w *response, v T, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func answerList[T any](w *response, items []T, err error) error {
	return answerOne(w, listOf(items), err)
}

func (g *Gateway) hiveList(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Hives(r.Context())
	return answerList(w, v, err)
}

func (g *Gateway) hive(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Hive(r.Context(), r.PathValue("hive"))
	return answerOne(w, v, err)
}

func (g *Gateway) workers(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Workers(r.Context())
	return answerList(w, v, err)
}

func (g *Gateway) processes(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Processes(r.Context(), r.PathValue("hive"))
	return answerList(w, v, err)
}

func (g *Gateway) process(w *response, r *http.Request) error {
	pid, err := strconv.Atoi(r.PathValue("pid"))
	if err != nil || pid < 1 {
		return core.Errorf(core.Invalid, "%q is no process id", clip(r.PathValue("pid"), 40))
	}
	v, err := g.o.Cluster.Process(r.Context(), r.PathValue("hive"), pid)
	return answerOne(w, v, err)
}

func (g *Gateway) binaries(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Binaries(r.Context(), r.PathValue("hive"))
	return answerList(w, v, err)
}

func (g *Gateway) binary(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Binary(r.Context(), r.PathValue("hive"), r.PathValue("id"))
	return answerOne(w, v, err)
}

func (g *Gateway) hiveModels(w *response, r *http.Request) error {
	v, err := g.o.Cluster.HiveModels(r.Context(), r.PathValue("hive"))
	return answerList(w, v, err)
}

func (g *Gateway) hiveModel(w *response, r *http.Request) error {
	v, err := g.o.Cluster.HiveModel(r.Context(), r.PathValue("hive"), r.PathValue("id"))
	return answerOne(w, v, err)
}

func (g *Gateway) catalog(w *response, r *http.Request) error {
	q := r.URL.Query()
	limit := 0
	if s := q.Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxCatalogItems {
			return core.Errorf(core.Invalid, "limit must be a number from 1 to %d", maxCatalogItems)
		}
	}
	v, err := g.o.Cluster.Catalog(r.Context(), r.PathValue("hive"), q.Get("q"), q.Get("kind"), limit)
	return answerList(w, v, err)
}

func (g *Gateway) healthy(w *response, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (g *Gateway) ready(w *response, r *http.Request) error {
	if g.streams.stopping() {
		return errStopping
	}
	if err := g.o.Cluster.Ready(r.Context()); err != nil {
		return &apiError{err: err, status: http.StatusServiceUnavailable} // whatever is missing, it is not ready
	}
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (g *Gateway) version(w *response, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"version": g.o.Version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
}
