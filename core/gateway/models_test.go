package gateway

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

// as makes a request with a token.
func (r *rig) as(token, method, path, body string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, r.url+path, strings.NewReader(body))
	must.NoError(r.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, text, err := r.do(req)
	must.NoError(r.t, err)
	return resp, text
}

// A token limited to one model sees only that one, in every API, and cannot start another. A model
// outside the token looks like one that does not exist.
func TestTokenOfOneModel(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) {
		o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{
			"few": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, Models: []string{"tiny"}},
			"all": {ID: "t2", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}},
		}})
	})
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "tiny", Hives: []string{"h1"}}, {ID: "secret-model", Hives: []string{"h1"}}}
		s.Aliases = []core.Alias{{Name: "gpt", Model: "tiny"}, {Name: "hidden", Model: "secret-model"}}
		s.Workers = []core.Worker{{ID: "w1", Model: "tiny", State: core.WorkerReady}, {ID: "w2", Model: "secret-model", State: core.WorkerReady}}
	})
	r.serve("w1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"object":"chat.completion","model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`))
	})
	r.add(core.Worker{ID: "w2", Model: "secret-model", State: core.WorkerReady}, "nowhere")

	for _, path := range []string{"/v1/models", "/api/tags", "/api/ps"} {
		_, text := r.as("all", http.MethodGet, path, "")
		must.StrContains(t, text, "secret-model", must.Sprint(path))
		resp, text := r.as("few", http.MethodGet, path, "")
		must.Eq(t, http.StatusOK, resp.StatusCode)
		must.StrContains(t, text, "tiny", must.Sprint(path))
		must.StrNotContains(t, text, "secret-model", must.Sprint(path))
		must.StrNotContains(t, text, "hidden", must.Sprint(path))
	}
	body := func(model string) string {
		return `{"model":"` + model + `","max_tokens":4,"messages":[{"role":"user","content":"hi"}]}`
	}
	for _, path := range []string{"/v1/chat/completions", "/v1/messages", "/api/chat"} {
		for _, name := range []string{"tiny", "gpt"} {
			resp, text := r.as("few", http.MethodPost, path, strings.Replace(body(name), "{", `{"stream":false,`, 1))
			must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprint(path, name, text))
		}
		_, unknown := r.as("few", http.MethodPost, path, body("nothing-there"))
		for _, name := range []string{"secret-model", "hidden"} {
			resp, text := r.as("few", http.MethodPost, path, body(name))
			must.Eq(t, http.StatusNotFound, resp.StatusCode, must.Sprint(path, text))
			must.Eq(t, withoutID(strings.ReplaceAll(unknown, "nothing-there", name)), withoutID(text))
		}
	}
	resp, text := r.as("few", http.MethodPost, "/v1/chat/completions", body("hidden"))
	must.Eq(t, "model_not_found", code(errorIn(t, text)))
	must.Eq(t, http.StatusNotFound, resp.StatusCode)
	for _, path := range []string{"/v1/models/secret-model", "/v1/models/hidden", "/v1/models/nothing"} {
		resp, _ := r.as("few", http.MethodGet, path, "")
		must.Eq(t, http.StatusNotFound, resp.StatusCode)
	}
	resp, _ = r.as("few", http.MethodGet, "/v1/models/gpt", "")
	must.Eq(t, http.StatusOK, resp.StatusCode)
	resp, _ = r.as("few", http.MethodPost, "/api/show", `{"model":"secret-model"}`)
	must.Eq(t, http.StatusNotFound, resp.StatusCode)
}

// withoutID removes the request id from an error.
func withoutID(text string) string {
	before, _, _ := strings.Cut(text, `"request_id"`)
	return before
}
