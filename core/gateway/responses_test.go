package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

// ask sends a request without a body.
func (r *rig) ask(t *testing.T, method, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, nil)
	must.NoError(t, err)
	resp, body, err := r.do(req)
	must.NoError(t, err)
	return resp.StatusCode, body
}

// A stored response can be read, listed and deleted by its id.
func TestKeptResponses(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", wholeOrStream(&asked))
	create := func(more string) (id, body string) {
		_, body, err := r.post("/v1/responses", `{"model":"tiny",`+more+`}`)
		must.NoError(t, err)
		var v struct{ ID string }
		must.NoError(t, json.Unmarshal([]byte(body), &v))
		return v.ID, body
	}
	first, body := create(`"input":"a"`)
	status, again := r.ask(t, http.MethodGet, "/v1/responses/"+first)
	must.Eq(t, 200, status)
	must.Eq(t, strings.TrimSpace(body), strings.TrimSpace(again))

	second, _ := create(`"previous_response_id":"` + first + `","input":[{"type":"function_call_output","call_id":"call_a","output":"12"},{"role":"user","content":"b"}]`)
	var list struct {
		Data []struct {
			ID, Type, Role string
			Content        []struct{ Type, Text string }
		}
		FirstID string `json:"first_id"`
		LastID  string `json:"last_id"`
		HasMore bool   `json:"has_more"`
	}
	types := func(query string) (out []string) {
		status, body := r.ask(t, http.MethodGet, "/v1/responses/"+second+"/input_items"+query)
		must.Eq(t, 200, status, must.Sprint(body))
		list.Data = nil
		must.NoError(t, json.Unmarshal([]byte(body), &list))
		for _, i := range list.Data {
			out = append(out, strings.TrimSpace(i.Type+" "+i.Role))
		}
		return out
	}
	all := []string{"message user", "reasoning", "message assistant", "function_call", "function_call_output", "message user"}
	must.Eq(t, all, types("?order=asc"))
	must.Eq(t, "input_text", list.Data[0].Content[0].Type)
	must.Eq(t, "a", list.Data[0].Content[0].Text)
	must.Eq(t, []string{"message user"}, types("?limit=1"))
	must.True(t, list.HasMore)
	must.Eq(t, []string{"function_call_output", "function_call"}, types("?limit=2&after="+list.LastID))
	status, body = r.ask(t, http.MethodGet, "/v1/responses/"+second+"/input_items?limit=0")
	must.Eq(t, 400, status)
	must.StrContains(t, body, `"param":"limit"`)

	status, body = r.ask(t, http.MethodPost, "/v1/responses/"+first+"/cancel")
	must.Eq(t, 400, status, must.Sprint(body))
	status, body = r.ask(t, http.MethodDelete, "/v1/responses/"+first)
	must.Eq(t, 200, status)
	must.Eq(t, `{"id":"`+first+`","object":"response","deleted":true}`, strings.TrimSpace(body))
	for method, path := range map[string]string{"GET": "", "DELETE": "", "POST": "/cancel"} {
		status, body = r.ask(t, method, "/v1/responses/"+first+path)
		must.Eq(t, 404, status)
		must.StrContains(t, body, `"code":"response_not_found"`)
	}
	status, _ = r.ask(t, http.MethodGet, "/v1/responses/"+second)
	must.Eq(t, 200, status) // its conversation is stored separately
}

// A response in progress that is cancelled by its id ends with an event that gives the reason.
func TestCancelResponse(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	gone := make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		streamOf(tokenEvent(1))(w, q)
		<-q.Context().Done()
		close(gone)
	})
	resp, err := r.client.Post(r.url+"/v1/responses", "application/json", strings.NewReader(`{"model":"tiny","input":"a","stream":true}`))
	must.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	_, err = lines.ReadString('\n')
	must.NoError(t, err)
	line, err := lines.ReadString('\n')
	must.NoError(t, err)
	var created struct{ Response struct{ ID string } }
	must.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &created))
	status, body := r.ask(t, http.MethodPost, "/v1/responses/"+created.Response.ID+"/cancel")
	must.Eq(t, 200, status)
	must.StrContains(t, body, `"status":"cancelled"`)
	<-gone
	rest, _ := io.ReadAll(lines)
	must.StrContains(t, string(rest), "event: response.failed")
	must.StrContains(t, string(rest), `"code":"response_cancelled"`)
}

// Clients of Anthropic's API get model lists and errors in its form.
func TestAnthropicModels(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) { s.Models = []core.Model{{ID: "tiny", CreatedAt: time.Unix(5, 0)}} })
	get := func(path string, version string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
		must.NoError(t, err)
		if version != "" {
			req.Header.Set("Anthropic-Version", version)
		}
		resp, body, err := r.do(req)
		must.NoError(t, err)
		return resp.StatusCode, body
	}
	_, body := get("/v1/models", "2023-06-01")
	must.StrContains(t, body, `{"type":"model","id":"tiny","display_name":"tiny","created_at":"`)
	must.StrContains(t, body, `"has_more":false`)
	_, body = get("/v1/models?after_id=tiny", "2023-06-01")
	must.Eq(t, `{"data":[],"first_id":null,"last_id":null,"has_more":false}`, strings.TrimSpace(body))
	_, body = get("/v1/models/tiny", "2023-06-01")
	must.StrHasPrefix(t, `{"type":"model","id":"tiny"`, body)
	status, body := get("/v1/models/nobody", "2023-06-01")
	must.Eq(t, 404, status)
	must.StrHasPrefix(t, `{"type":"error","error":{"type":"not_found_error"`, body)
	_, body = get("/v1/models/tiny", "")
	must.StrContains(t, body, `"object":"model"`)
}

// The required answer format is a JSON schema, in both places where clients put it.
func TestAnthropicStructuredOutput(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	asked := map[string]any{}
	r.serve("w1", wholeOrStream(&asked))
	const form = `{"type":"json_schema","schema":{"type":"object"}}`
	for _, field := range []string{`"output_config":{"effort":"high","format":` + form + `}`, `"output_format":` + form} {
		resp, body, err := r.post("/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":"a"}],`+field+`}`)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
		b, err := json.Marshal(asked["response_format"])
		must.NoError(t, err)
		must.Eq(t, `{"json_schema":{"name":"answer","schema":{"type":"object"},"strict":true},"type":"json_schema"}`, string(b))
	}
	resp, body, err := r.post("/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":"a"}],"output_config":{"format":{"type":"xml"}}}`)
	must.NoError(t, err)
	must.Eq(t, 400, resp.StatusCode, must.Sprint(body))
}

// A response stored at one queen is found from another by its id: to continue it with
// previous_response_id, read it, cancel it and delete it. Another token does not find it, and an
// unreachable queen is reported.
func TestResponsesOfAnotherQueen(t *testing.T) {
	t.Parallel()
	first := newRig(t, nil)
	unreachable := false
	second := newRig(t, func(o *rigOptions) {
		o.Elsewhere = func(_ context.Context, act core.KeptAct, id, key string) ([]byte, bool, error) {
			if unreachable {
				return nil, false, core.Errorf(core.Unavailable, "a queen cannot be asked")
			}
			answer, found := first.Kept(act, id, key)
			return answer, found, nil
		}
	})
	asked := map[string]any{}
	first.serve("w1", wholeOrStream(&asked))
	second.serve("w2", wholeOrStream(&asked))
	_, body, err := first.post("/v1/responses", `{"model":"tiny","input":"a"}`)
	must.NoError(t, err)
	var v struct{ ID string }
	must.NoError(t, json.Unmarshal([]byte(body), &v))

	status, again := second.ask(t, http.MethodGet, "/v1/responses/"+v.ID)
	must.Eq(t, 200, status)
	must.Eq(t, strings.TrimSpace(body), strings.TrimSpace(again))
	second.answers.Spare(1 << 30) // it stores a copy
	resp, body, err := second.post("/v1/responses", `{"model":"tiny","previous_response_id":"`+v.ID+`","input":"b"}`)
	must.NoError(t, err)
	must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
	must.Len(t, 3, asked["messages"].([]any))
	_, found := first.Kept(core.KeptGet, v.ID, "another key")
	must.False(t, found)
	status, _ = second.ask(t, http.MethodPost, "/v1/responses/"+v.ID+"/cancel")
	must.Eq(t, 400, status)
	status, _ = second.ask(t, http.MethodDelete, "/v1/responses/"+v.ID)
	must.Eq(t, 200, status)
	status, _ = first.ask(t, http.MethodGet, "/v1/responses/"+v.ID)
	must.Eq(t, 404, status)
	status, _ = second.ask(t, http.MethodGet, "/v1/responses/"+v.ID)
	must.Eq(t, 404, status)

	unreachable = true
	resp, body, err = second.post("/v1/responses", `{"model":"tiny","previous_response_id":"`+v.ID+`","input":"b"}`)
	must.NoError(t, err)
	must.Eq(t, 503, resp.StatusCode, must.Sprint(body))
}
