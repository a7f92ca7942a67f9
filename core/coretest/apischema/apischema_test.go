package apischema

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

type answers func(r *http.Request) *http.Response

func (f answers) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// TestWrongAnswers checks that wrong answers are reported, whole ones and those in streams.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	schemas, err := New()
	must.NoError(t, err)
	const chunk = `{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}`
	sse := func(events ...string) string { return "data: " + strings.Join(events, "\n\ndata: ") + "\n\n" }
	for name, c := range map[string]struct {
		route, typ, body string
		status           int
		says             string // empty: the answer is valid
	}{
		"a stream":                {"POST /v1/chat/completions", "text/event-stream", ": alive\n" + sse(chunk, `[DONE]`), 200, ""},
		"an error in it":          {"POST /v1/chat/completions", "text/event-stream", sse(chunk, `{"error":{"message":"x","type":"server_error"}}`), 200, ""},
		"a chunk without choices": {"POST /v1/chat/completions", "text/event-stream", sse(chunk, `{"id":"c","object":"chat.completion.chunk","created":1,"model":"m"}`), 200, "choices"},
		"a number as text":        {"POST /chat/completions", "text/event-stream", sse(strings.Replace(chunk, `"x"`, `5`, 1)), 200, "content"},
		"no JSON":                 {"POST /chat/completions", "text/event-stream", sse(`{`), 200, "not JSON"},
		"a whole answer":          {"POST /v1/chat/completions", "application/json", `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[]}`, 200, "choices"},
		"an error":                {"POST /v1/chat/completions", "application/json", `{"error":"x"}`, 400, "error"},
		"Ollama's error":          {"POST /api/chat", "application/json", `{"error":{"message":"x"}}`, 400, "error"},
		"Ollama's line":           {"POST /api/chat", "application/x-ndjson", `{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"x"},"done":true}` + "\n", 200, "done_reason"},
		"an unknown event":        {"POST /v1/messages", "text/event-stream", "event: progress\ndata: {\"type\":\"progress\"}\n\n", 200, "oneOf"},
		"another name":            {"POST /v1/messages", "text/event-stream", "event: ping\ndata: {\"type\":\"message_stop\"}\n\n", 200, `"ping" has the type "message_stop"`},
		"a number left out": {
			"POST /v1/responses", "text/event-stream",
			"data: {\"type\":\"error\",\"code\":null,\"message\":\"x\",\"sequence_number\":0}\n\ndata: {\"type\":\"error\",\"code\":null,\"message\":\"x\",\"sequence_number\":2}\n\n", 200, "number 2, not 1",
		},
		"Anthropic's models": {"GET /v1/models", "application/json", `{"object":"list","data":[]}`, 200, ""},
		"another route":      {"GET /v1/jobs", "application/json", `[]`, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var reports []string
			method, path, _ := strings.Cut(c.route, " ")
			client := &http.Client{Transport: &Transport{Schemas: schemas, Report: func(err error) { reports = append(reports, err.Error()) }, Base: answers(func(*http.Request) *http.Response {
				return &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {c.typ}}, Body: io.NopCloser(bytes.NewBufferString(c.body))}
			})}}
			req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, nil)
			must.NoError(t, err)
			resp, err := client.Do(req)
			must.NoError(t, err)
			got, err := io.ReadAll(resp.Body)
			must.NoError(t, err)
			must.NoError(t, resp.Body.Close())
			must.Eq(t, c.body, string(got))
			if c.says == "" {
				must.SliceEmpty(t, reports)
				return
			}
			must.Len(t, 1, reports)
			must.StrContains(t, reports[0], c.says)
		})
	}
}
