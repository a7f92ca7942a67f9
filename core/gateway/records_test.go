package gateway

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// askAs sends a request with an id and returns the queen's record of it.
func (r *rig) askAs(id, body string) core.RouteRecord {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(body))
	must.NoError(r.t, err)
	req.Header.Set("X-Request-Id", id)
	_, _, _ = r.do(req)
	resp, text := r.get("/v1/requests/" + id)
	must.Eq(r.t, http.StatusOK, resp.StatusCode, must.Sprint(text))
	var v core.RouteRecord
	must.NoError(r.t, json.Unmarshal([]byte(text), &v))
	must.Eq(r.t, id, v.RequestID)
	must.StrNotContains(r.t, text, "secret", must.Sprint("what was asked is not remembered"))
	must.StrNotContains(r.t, text, "null", must.Sprint("a list is never null"))
	return v
}

const (
	secretAsk    = `{"model":"tiny","messages":[{"role":"user","content":"secret"}]}`
	secretStream = `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"secret"}]}`
)

func TestRouteIsRemembered(t *testing.T) {
	t.Parallel()
	t.Run("failover", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.raw("w1", func(net.Conn) {}) // accepts the request, then disconnects
		r.serve("w2", streamOf(roleEvent, tokenEvent(1), tokenEvent(2), doneEvent))
		v := r.askAs("a/b:1", secretStream)
		must.Eq(t, "tiny", v.Model)
		must.True(t, v.Stream)
		must.Eq(t, core.RouteAnswered, v.State)
		must.Eq(t, 200, v.Status)
		must.Len(t, 2, v.Candidates)
		must.Eq(t, "w1", v.Candidates[0].Worker)
		must.Eq(t, "test", v.Candidates[0].Reason)
		must.Len(t, 2, v.Attempts)
		must.Eq(t, "w1", v.Attempts[0].Worker)
		must.Eq(t, core.WorkerLost, v.Attempts[0].Problem)
		must.Eq(t, "w2", v.Attempts[1].Worker)
		must.Eq(t, core.Kind(""), v.Attempts[1].Problem)
		must.Positive(t, v.Took)
		must.Positive(t, v.FirstToken)
		must.Positive(t, v.Events)
		must.Eq(t, int64(2), v.Tokens)

		// The counts of the failed worker name the request.
		var d core.WorkerDetails
		_, text := r.get("/v1/workers/w1")
		must.NoError(t, json.Unmarshal([]byte(text), &d))
		must.Eq(t, "w1", d.ID)
		must.Eq(t, 1, d.Routes.Requests)
		must.Eq(t, 1, d.Routes.Failures)
		must.Eq(t, "a/b:1", d.Routes.Recent[0].RequestID)
		must.Eq(t, core.WorkerLost, d.Routes.Recent[0].Problem)
	})
	t.Run("refused by the worker", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", answerJSON(400, `{"error":{"message":"your secret is too long","type":"x"}}`))
		v := r.askAs("b", secretAsk)
		must.Eq(t, core.RouteFailed, v.State)
		must.Eq(t, 400, v.Status)
		must.Eq(t, core.Invalid, v.Problem)
		must.Eq(t, core.Kind(""), v.Attempts[0].Problem, must.Sprint("it did answer"))
	})
	t.Run("cut in the middle", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = w.Write([]byte(roleEvent + tokenEvent(1)))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		v := r.askAs("c", secretStream)
		must.Eq(t, core.RouteFailed, v.State)
		must.Eq(t, core.WorkerLost, v.Problem)
		must.Eq(t, core.WorkerLost, v.Attempts[0].Problem)
		must.Eq(t, 200, v.Status)
	})
	t.Run("no worker", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		v := r.askAs("d", `{"model":"nosuch","messages":[]}`)
		must.Eq(t, core.RouteFailed, v.State)
		must.Eq(t, core.NotFound, v.Problem)
		must.Eq(t, 404, v.Status)
		must.Eq(t, "nosuch", v.Model)
		must.Len(t, 0, v.Attempts)
	})
	t.Run("unknown and latest", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", answerJSON(200, wholeAnswer))
		resp, text := r.get("/v1/requests/nosuch")
		must.Eq(t, http.StatusNotFound, resp.StatusCode)
		must.StrContains(t, errorIn(t, text).Hint, "/v1/requests")
		r.askAs("e1", secretAsk)
		r.askAs("e2", secretAsk)
		_, text = r.get("/v1/requests?limit=1")
		must.StrContains(t, text, `"e2"`)
		must.StrNotContains(t, text, `"e1"`)
		for _, bad := range []string{"0", "-1", "x", "1025"} {
			resp, _ := r.get("/v1/requests?limit=" + bad)
			must.Eq(t, http.StatusBadRequest, resp.StatusCode)
		}
	})
}
