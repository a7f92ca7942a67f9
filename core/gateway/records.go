package gateway

import (
	"cmp"
	"net/http"
	"strconv"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/operation"
)

func (g *Gateway) worker(w *response, r *http.Request) error {
	v, err := operation.ActiveWorkerGet.Ask(r.Context(), g.o.Cluster, core.Request{Worker: r.PathValue("worker")})
	return answerOne(w, core.WorkerDetails{Worker: v, Routes: g.o.Inference.Records().Worker(v.Nonce)}, err)
}

func (g *Gateway) routeOf(w *response, r *http.Request) error {
	id := r.PathValue("id")
	v, ok := g.o.Inference.Records().Find(id)
	if !ok {
		return core.Errorf(core.NotFound, "this queen remembers no request %q", clip(id, 100)).Hint(
			"A queen remembers the latest %d requests that it took itself; ids are in the header x-request-id, GET /v1/requests lists the latest.", inference.MaxRecords)
	}
	return writeJSON(w, http.StatusOK, v)
}

func (g *Gateway) routesLatest(w *response, r *http.Request) error {
	limit := 0
	if s := r.URL.Query().Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > inference.MaxRecords {
			return core.Errorf(core.Invalid, "limit must be a number from 1 to %d", inference.MaxRecords)
		}
	}
	return answerList(w, g.o.Inference.Records().Latest(cmp.Or(limit, 20)), nil)
}
