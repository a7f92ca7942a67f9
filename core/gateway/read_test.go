package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

func TestEveryRouteDeclaresItsScope(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, rt := range routes() {
		name := rt.method + " " + rt.pattern
		switch rt.scope {
		case scopeOpen, core.ScopeInfer, core.ScopeRead, core.ScopeOperate, core.ScopeAdmin:
		default:
			t.Errorf("%s declares the scope %q", name, rt.scope)
		}
		if rt.method != http.MethodGet && (rt.scope == scopeOpen || rt.scope == core.ScopeRead) {
			t.Errorf("%s changes something but needs only the scope %q", name, rt.scope)
		}
		must.NotNil(t, rt.handle)
		must.False(t, seen[name], must.Sprint(name))
		seen[name] = true
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/v1", 404, ""},
		{"GET", "/v1/nothing", 404, ""},
		{"POST", "/v1/files", 404, ""},
		{"GET", "/v1/workers/", 404, ""},
		{"GET", "/v1/../v1/models", 404, ""},
		{"GET", "/v1/hives/h1/%2e%2e/models", 404, ""},
		{"GET", "/v1/chat/completions", 405, "POST"},
		{"OPTIONS", "/v1/chat/completions", 405, "POST"},
		{"PUT", "/v1/jobs", 405, "GET, HEAD, POST"},
		{"PATCH", "/v1/jobs/j1-h1", 405, "DELETE, GET, HEAD"},
		{"DELETE", "/v1/models/tiny", 405, "GET, HEAD"},
		{"BREW", "/healthz", 405, "GET, HEAD"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, r.url+c.path, nil)
		must.NoError(t, err)
		resp, body, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, c.status, resp.StatusCode, must.Sprint(c.path))
		must.Eq(t, "application/json", resp.Header.Get("Content-Type"))
		must.Eq(t, c.allow, resp.Header.Get("Allow"))
		must.NotEq(t, "", errorIn(t, body).Hint)
	}
}

func TestReadRoutes(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "tiny", Aliases: []string{"small"}, CreatedAt: time.Unix(1700000000, 0).UTC()}, {ID: "org/big"}}
	})
	for _, c := range []struct {
		path, want string
		status     int
	}{
		{"/v1/models", `"object":"list"`, 200},
		{"/v1/models", `"object":"model","created":1700000000,"owned_by":"rbee","id":"tiny","aliases":["small"]`, 200},
		{"/models", `"id":"org/big","aliases":[]`, 200},
		{"/v1/models/tiny", `"id":"tiny"`, 200},
		{"/v1/models/small", `"id":"tiny"`, 200},
		{"/v1/models/org/big", `"id":"org/big"`, 200},
		{"/v1/models/org%2Fbig", `"id":"org/big"`, 200},
		{"/v1/models/tinny", `"model_not_found"`, 404},
		{"/v1/models/tinny", `The nearest name is \"tiny\".`, 404},
		{"/v1/status", `"problems":[]`, 200},
		{"/v1/status", `"hives":[{"id":"h1"`, 200},
		{"/v1/status", `"devices":[]`, 200},
		{"/v1/hives", `{"object":"list","data":[{"id":"h1"`, 200},
		{"/v1/hives/localhost", `"name":"desk"`, 200},
		{"/v1/hives/h9", `"hint":"Did you mean desk?"`, 404},
		{"/v1/hives/h1/processes", `"data":[{"pid":12`, 200},
		{"/v1/hives/h1/processes/12", `"pid":12`, 200},
		{"/v1/hives/h1/processes/-1", `"invalid"`, 400},
		{"/v1/hives/h1/processes/x", `"invalid"`, 400},
		{"/v1/hives/h1/binaries", `"in_use_by":[]`, 200},
		{"/v1/hives/h1/binaries/cpu@1", `"id":"cpu@1"`, 200},
		{"/v1/hives/h1/models", `"id":"tiny"`, 200},
		{"/v1/hives/h1/models/hf:org/x", `"id":"hf:org/x"`, 200},
		{"/v1/hives/h1/catalog?q=llama&kind=model&limit=3", `"ref":"builtin:llama","kind":"model"`, 200},
		{"/v1/hives/h1/catalog?limit=0", `"invalid"`, 400},
		{"/v1/workers", `"id":"w1"`, 200},
		{"/v1/workers/w1", `"id":"w1"`, 200},
		{"/healthz", `"ok"`, 200},
		{"/health", `"ok"`, 200},
		{"/readyz", `"ready"`, 200},
		{"/version", `"version":"1.2.3"`, 200},
		{"/metrics", `rbee_gateway_in_flight_requests 1`, 200},
		{"/v1/jobs", `"data":[]`, 200},
	} {
		resp, body := r.get(c.path)
		must.Eq(t, c.status, resp.StatusCode, must.Sprint(c.path))
		must.StrContains(t, body, c.want)
		must.StrNotContains(t, body, "null,\"id\"")
		must.NotEq(t, "", resp.Header.Get("X-Request-Id"))
	}
	resp, err := r.client.Head(r.url + "/healthz")
	must.NoError(t, err)
	resp.Body.Close()
	must.Eq(t, 200, resp.StatusCode)
}

func TestReadyReason(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) { s.NotReady = errors.New("no leader is known") })
	resp, body := r.get("/readyz")
	must.Eq(t, 503, resp.StatusCode)
	must.StrContains(t, errorIn(t, body).Message, "no leader")
}

func TestListsNotNilNotShared(t *testing.T) {
	t.Parallel()
	shared := []core.Hive{{ID: "h1", Devices: nil}}
	w := httptest.NewRecorder()
	must.NoError(t, writeJSON(w, 200, listOf(shared)))
	must.StrContains(t, w.Body.String(), `"devices":[],"worker_types":[]`)
	must.Nil(t, shared[0].Devices)
	w = httptest.NewRecorder()
	must.NoError(t, writeJSON(w, 200, core.Job{Result: json.RawMessage(`{"a":null}`), Error: &core.Failure{Kind: core.Invalid}}))
	must.StrContains(t, w.Body.String(), `"result":{"a":null},"error":{"kind":"invalid"`)
}

func TestHandlerPanic(t *testing.T) {
	t.Parallel()
	for begun, want := range map[bool]int{false: 500, true: 200} {
		var log bytes.Buffer
		g := New(Options{Logger: hclog.New(&hclog.LoggerOptions{Output: &log})})
		g.mux = g.buildMux([]route{{"GET", "/boom", core.ScopeRead, func(_ *Gateway, w *response, _ *http.Request) error {
			if begun {
				w.WriteHeader(http.StatusOK)
			}
			panic("boom")
		}}})
		srv := httptest.NewServer(g.Handler())
		resp, err := srv.Client().Get(srv.URL + "/boom")
		if begun {
			must.ErrorIs(t, err, io.EOF) // nothing was flushed: the connection is cut
		} else {
			must.NoError(t, err)
			must.Eq(t, want, resp.StatusCode)
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			must.Eq(t, "internal", code(errorIn(t, string(body))))
			must.StrNotContains(t, string(body), "boom")
		}
		srv.Close()
		must.StrContains(t, log.String(), "boom")
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for id, kept := range map[string]bool{
		"abc-123_./:":            true,
		strings.Repeat("a", 128): true,
		strings.Repeat("a", 129): false,
		"a b":                    false,
		"a\tb":                   false,
		"<script>":               false,
		"é":                      false,
		"":                       false,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/nothing", nil)
		must.NoError(t, err)
		req.Header.Set("X-Request-Id", id)
		resp, _, err := r.do(req)
		must.NoError(t, err)
		got := resp.Header.Get("X-Request-Id")
		must.Eq(t, kept, got == id)
		must.Greater(t, 0, len(got))
		must.LessEq(t, maxRequestID, len(got))
	}
}

// What clients write, and what models answer, appears in no log and no metric.
func TestPromptsNotLogged(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-7f3a"
	var log syncBuffer
	r := newRig(t, func(o *rigOptions) { o.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &log}) })
	answer := `data: {"choices":[{"delta":{"content":"` + canary + `"}}]}` + "\n\n"
	n := 0
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		n++
		switch n {
		case 1:
			streamOf(answer, doneEvent)(w, req)
		case 2:
			streamOf(answer)(w, req) // the stream is cut
		case 3:
			answerJSON(400, `{"error":{"message":"cannot read `+canary+`","type":"x"}}`)(w, req)
		case 4:
			answerJSON(503, `{"error":{"message":"cannot read `+canary+`","type":"x"}}`)(w, req)
		case 5:
			streamOf(answer, `data: {"error":{"message":"`+canary+`","type":"x"}}`+"\n\n")(w, req)
		}
	})
	prompt := `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"` + canary + `"}]}`
	for range 5 {
		_, body, _ := r.post("/v1/chat/completions", prompt)
		must.StrContains(t, body, canary)
	}
	for _, bad := range []string{
		`{"model":"` + canary + `"}`,
		`{"model":"tiny","` + canary + `":1,"` + canary + `":1}`,
		`{"model":"tiny","x":` + canary + `}`,
		canary,
	} {
		_, _, _ = r.post("/v1/chat/completions", bad)
		_, _, _ = r.post("/v1/"+canary, bad)
		_, _, _ = r.post("/v1/jobs?x="+canary, bad)
		_, _ = r.get("/v1/models/" + canary)
	}
	_, metrics := r.get("/metrics")
	must.StrContains(t, metrics, "rbee_gateway_requests_total")
	must.StrNotContains(t, metrics, canary)
	r.stop()
	must.StrContains(t, log.String(), "worker lost under a stream")
	must.StrContains(t, log.String(), "POST /v1/chat/completions")
	must.StrNotContains(t, log.String(), canary)
}

func TestServeEndsWithoutRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	start := time.Now()
	r.stop()
	must.Less(t, 900*time.Millisecond, time.Since(start))
	_, err := r.client.Get(r.url + "/healthz")
	must.Error(t, err)
	must.False(t, errors.Is(err, context.DeadlineExceeded))
}
