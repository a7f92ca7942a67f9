package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

// TestPropsOfModel reads a worker's report about its model, which must not reveal file paths.
func TestPropsOfModel(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		switch {
		case q.Method != http.MethodGet || len(body) > 0:
			answerJSON(405, `{"error":{"message":"no"}}`)(w, q)
		case q.URL.String() == "/props":
			answerJSON(200, `{"model_path":"/srv/models/secret.gguf","total_slots":2,"chat_template":"t","slot_save_path":"/srv/slots","default_generation_settings":{"n_ctx":64}}`)(w, q)
		case q.URL.String() == "/lora-adapters":
			answerJSON(200, `[{"id":0,"name":"poet","path":"/srv/poet.gguf","scale":0.5}]`)(w, q)
		case q.URL.String() == "/slots":
			answerJSON(200, `[{"id":0,"is_processing":true}]`)(w, q)
		}
	})
	resp, body := r.get("/props?model=tiny")
	must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
	var got map[string]any
	must.NoError(t, json.Unmarshal([]byte(body), &got))
	must.Eq(t, map[string]any{"model_alias": "tiny", "model_path": "tiny", "total_slots": 2.0, "chat_template": "t", "default_generation_settings": map[string]any{"n_ctx": 64.0}}, got)

	// Clients of llama-server assume a single model: if there is only one, they need not name it.
	resp, body = r.get("/props")
	must.Eq(t, 200, resp.StatusCode)
	must.StrContains(t, body, `"role":"router"`)
	for _, path := range []string{"/slots", "/lora-adapters"} {
		resp, _ = r.get(path)
		must.Eq(t, 400, resp.StatusCode, must.Sprint(path))
	}
	r.cluster.Change(func(s *fakecluster.State) { s.Workers = []core.Worker{{ID: "w1", Model: "tiny"}} })
	_, named := r.get("/props?model=tiny")
	resp, body = r.get("/props")
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, named, body)
	resp, body = r.get("/slots")
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, `[{"id":0,"n_ctx":0,"speculative":false,"is_processing":true}]`, body)
	resp, body = r.get("/lora-adapters")
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, `[{"id":0,"name":"poet","scale":0.5}]`, body)
	resp, body = r.get("/slots?fail_on_no_slot=1")
	must.Eq(t, 503, resp.StatusCode)
	must.StrContains(t, body, "no slot is free")

	resp, body = r.get("/props?model=other")
	must.Eq(t, 404, resp.StatusCode, must.Sprint(body))
	resp, body = r.get("/v1/health")
	must.Eq(t, 200, resp.StatusCode)
	must.StrContains(t, body, `"status":"ok"`)
}

// TestPollsLoadNothing polls a model that no worker has loaded, as programs do every few seconds.
// The answer tells what the registry knows about the model. Nothing is started.
func TestPollsLoadNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "org/cold:Q4", Aliases: []string{"cold"}, ContextTokens: 512, State: core.ModelStored, Hives: []string{"h1"}}}
	})
	r.router.wait = func(context.Context, func(core.Progress)) error {
		t.Error("a worker was started")
		return core.Errorf(core.Unavailable, "no")
	}
	for _, name := range []string{"org/cold:Q4", "cold"} {
		resp, body := r.get("/props?model=" + name)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
		must.StrContains(t, body, `"is_sleeping":true`)
		must.StrContains(t, body, `"model_alias":"org/cold:Q4"`)
		must.StrContains(t, body, `"n_ctx":512`)
		resp, body = r.get("/slots?model=" + name)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "[]", strings.TrimSpace(body))
		resp, _ = r.get("/slots?fail_on_no_slot=1&model=" + name)
		must.Eq(t, 503, resp.StatusCode)
		resp, _ = r.get("/v1/models/" + name)
		must.Eq(t, 200, resp.StatusCode)
		resp, body, err := r.post("/api/show", `{"model":"`+name+`"}`)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
	}
	resp, body := r.get("/api/ps")
	must.Eq(t, 200, resp.StatusCode)
	must.StrContains(t, body, `"models":[]`)
	resp, _ = r.get("/v1/models")
	must.Eq(t, 200, resp.StatusCode)
	for _, path := range []string{"/props?model=nobody", "/slots?model=nobody"} {
		resp, body = r.get(path)
		must.Eq(t, 404, resp.StatusCode)
		must.Eq(t, "model_not_found", code(errorIn(t, body)))
	}
}

// TestNativeRequests passes requests on in llama-server's form: they need not name the only model,
// and their streams have no final mark.
func TestNativeRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) { s.Workers = []core.Worker{{ID: "w1", Model: "tiny"}} })
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		var in struct{ Stream bool }
		_ = json.NewDecoder(q.Body).Decode(&in)
		if !in.Stream {
			answerJSON(200, `{"content":"x","stop":true}`)(w, q)
			return
		}
		streamOf(`data: {"content":"a","stop":false}`+"\n\n", `data: {"content":"","stop":true}`+"\n\n", "data: [DONE]\n\n")(w, q)
	})
	for _, path := range []string{"/completion", "/infill"} {
		for _, model := range []string{``, `"model":"tiny",`} {
			resp, body, err := r.post(path, `{`+model+`"prompt":"x"}`)
			must.NoError(t, err)
			must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
			must.Eq(t, `{"content":"x","stop":true}`, body)
			resp, body, err = r.post(path, `{`+model+`"prompt":"x","stream":true}`)
			must.NoError(t, err)
			must.Eq(t, 200, resp.StatusCode)
			must.Eq(t, `data: {"content":"a","stop":false}`+"\n\n"+`data: {"content":"","stop":true}`+"\n\n", body)
		}
	}
	// A name in the request is not replaced.
	resp, _, err := r.post("/completion", `{"model":"other","prompt":"x"}`)
	must.NoError(t, err)
	must.Eq(t, 404, resp.StatusCode)
}
