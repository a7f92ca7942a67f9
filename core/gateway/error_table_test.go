package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	openaiwire "github.com/rbee-project/rbee/plugins/sdk/openai"
)

// An errorRow is one error of the inference API, as the clients of each dialect see it.
type errorRow struct {
	name       string
	status     int
	typ, code  string // of OpenAI's API
	param      string // of a chat; "-": depends on the dialect
	anthropic  string // Anthropic's error type
	retryAfter string // seconds; empty: none
	retries    bool   // OpenAI's and Anthropic's own clients retry automatically

	options func(*rigOptions)
	prepare func(*rig)
	header  http.Header
	model   string // empty: "tiny"
	body    string // replaces the whole request body
	method  string // empty: POST
	path    string // appended to the dialect's own
}

// leaky is an error text that reveals the machines behind the API; clients must see none of it.
const leaky = "open /var/lib/rbee/run/w1/data.sock: dial tcp 10.9.8.7:7834: connect: refused; lookup hive-7.example.com on 10.9.8.53:53: no such host; [fd00::9]:7834; hive-7.example.com:7834"

// leaks are its revealing parts.
var leaks = []string{"/var/lib", ".sock", "10.9.8", "hive-7", "fd00::9", "7834"}

// routed returns a row for an error of the router: of a cold start, a full device, a queen without
// a leader.
func routed(kind core.Kind, status int, typ, anthropic, retryAfter string, retries bool) errorRow {
	return errorRow{
		name: "router: " + string(kind), status: status, typ: typ, code: string(kind), anthropic: anthropic, retryAfter: retryAfter, retries: retries,
		prepare: func(r *rig) {
			r.router.wait = func(context.Context, func(core.Progress)) error {
				return core.Errorf(kind, "%s", leaky).Hint("%s", leaky)
			}
		},
	}
}

// worked returns a row for a worker's answer.
func worked(name string, answer http.HandlerFunc, row errorRow) errorRow {
	row.name = "worker: " + name
	row.prepare = func(r *rig) { r.serve("w1", answer) }
	return row
}

// refusing answers with an error in OpenAI's envelope.
func refusing(status int, typ, param, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		openaiwire.WriteError(w, status, openaiwire.NewError(status, typ, param, code, "the worker's own words"))
	}
}

func errorTable() []errorRow {
	auth := func(o *rigOptions) {
		o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{"reader": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeRead}}}})
	}
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	const invalid, server = openaiwire.TypeInvalidRequest, openaiwire.TypeServer
	return []errorRow{
		// Every kind of error, as it may end a request.
		routed(core.Internal, 500, server, "api_error", "", true),
		routed(core.Invalid, 400, invalid, "invalid_request_error", "", false),
		routed(core.Conflict, 409, invalid, "invalid_request_error", "", false),
		routed(core.InUse, 409, invalid, "invalid_request_error", "", false),
		routed(core.Unavailable, 503, openaiwire.TypeUnavailable, "api_error", "1", true),
		routed(core.Overloaded, 429, openaiwire.TypeRateLimit, "rate_limit_error", "1", true),
		routed(core.TooLarge, 507, server, "api_error", "", false),
		routed(core.Integrity, 500, server, "api_error", "", false),
		routed(core.Unsupported, 501, openaiwire.TypeNotSupported, "api_error", "", false),
		routed(core.Unauthenticated, 401, openaiwire.TypeAuthentication, "authentication_error", "", false),
		routed(core.Forbidden, 403, openaiwire.TypePermission, "permission_error", "", false),
		routed(core.DeadlineExceeded, 504, openaiwire.TypeTimeout, "timeout_error", "10", true),
		routed(core.WorkerLost, 502, server, "api_error", "1", true),
		routed(core.Cancelled, 499, server, "api_error", "", false),
		// The router's NotFound always concerns the model.
		{name: "unknown model", model: "nobody", status: 404, typ: openaiwire.TypeNotFound, code: openaiwire.CodeModelNotFound, param: "model", anthropic: "not_found_error"},

		{name: "no token", options: auth, status: 401, typ: openaiwire.TypeAuthentication, code: codeBadToken, anthropic: "authentication_error"},
		{name: "wrong token", options: auth, header: bearer("wrong"), status: 401, typ: openaiwire.TypeAuthentication, code: codeBadToken, anthropic: "authentication_error"},
		{name: "token without the scope", options: auth, header: bearer("reader"), status: 403, typ: openaiwire.TypePermission, code: "forbidden", anthropic: "permission_error"},
		{
			name: "too many wrong tokens", options: auth, header: bearer("wrong"), status: 429, typ: openaiwire.TypeRateLimit, code: codeManyBadTokens, anthropic: "rate_limit_error", retryAfter: "60", retries: true,
			prepare: func(r *rig) {
				from := clientOf(&http.Request{RemoteAddr: "127.0.0.1:1"})
				for range maxWrong {
					r.guesses.wrong(from, time.Now())
				}
			},
		},
		{
			name: "limit of the token", header: bearer("limited"), status: 429, typ: openaiwire.TypeRateLimit, code: "rate_limit_exceeded", anthropic: "rate_limit_error", retryAfter: "7", retries: true,
			options: func(o *rigOptions) {
				o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{"limited": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}}}})
				o.inf.Limiter = &fakeLimiter{refuse: 6500 * time.Millisecond}
			},
		},
		{name: "foreign host", header: http.Header{"Host": {"evil.example"}}, status: 403, typ: openaiwire.TypePermission, code: "forbidden", anthropic: "permission_error"},
		{name: "foreign origin", header: http.Header{"Origin": {"https://evil.example"}}, status: 403, typ: openaiwire.TypePermission, code: "forbidden", anthropic: "permission_error"},
		{name: "wrong method", method: http.MethodPut, status: 405, typ: invalid, code: "method_not_allowed", anthropic: "invalid_request_error"},
		{name: "unknown route", path: "/nothing", status: 404, typ: openaiwire.TypeNotFound, code: "not_found", anthropic: "not_found_error"},

		{name: "body too large", options: func(o *rigOptions) { o.MaxBodyBytes = 1000 }, body: `{"model":"tiny","x":"` + strings.Repeat("a", 1000) + `"}`, status: 413, typ: invalid, code: openaiwire.CodeTooLarge, anthropic: "request_too_large"},
		{name: "body is not JSON", body: `{"model":"tiny",`, status: 400, typ: invalid, code: "invalid", anthropic: "invalid_request_error"},
		{name: "body is empty", body: " ", status: 400, typ: invalid, code: "invalid", anthropic: "invalid_request_error"},
		{name: "field twice", body: `{"model":"tiny","x":1,"x":2}`, status: 400, typ: invalid, code: "invalid", param: "x", anthropic: "invalid_request_error"},
		{name: "model is missing", body: `{"messages":[{"role":"user","content":"hi"}]}`, status: 400, typ: invalid, code: "invalid", param: "model", anthropic: "invalid_request_error"},
		{name: "unknown encoding", header: http.Header{"Content-Encoding": {"br"}}, status: 415, typ: invalid, code: "unsupported_encoding", anthropic: "invalid_request_error"},
		{name: "no room for bodies", options: func(o *rigOptions) { o.BodyMemory, o.BodyWait = 10, time.Millisecond }, status: 503, typ: openaiwire.TypeRateLimit, code: codeOverloaded, anthropic: "overloaded_error", retryAfter: "1", retries: true},
		{name: "server stops", prepare: func(r *rig) { r.streams.cut() }, status: 503, typ: openaiwire.TypeUnavailable, code: codeStopping, anthropic: "api_error", retryAfter: "1", retries: true},

		worked("bad field", refusing(400, invalid, "temperature", ""), errorRow{status: 400, typ: invalid, param: "temperature", anthropic: "invalid_request_error"}),
		worked("context too short", refusing(400, openaiwire.TypeContextExceeded, "messages", openaiwire.CodeContextLength),
			errorRow{status: 400, typ: openaiwire.TypeContextExceeded, code: openaiwire.CodeContextLength, param: "messages", anthropic: "invalid_request_error"}),
		worked("its own failure", refusing(500, server, "", ""), errorRow{status: 500, typ: server, anthropic: "api_error", retries: true}),
		worked("not JSON", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, leaky, http.StatusTeapot)
		}, errorRow{status: 418, typ: invalid, anthropic: "api_error"}),
		worked("bad gateway", refusing(502, server, "", ""), errorRow{status: 503, typ: openaiwire.TypeUnavailable, code: "unavailable", anthropic: "api_error", retryAfter: "1", retries: true}),
		worked("busy", refusing(429, openaiwire.TypeRateLimit, "", "rate_limit_exceeded"), errorRow{status: 429, typ: openaiwire.TypeRateLimit, code: "rate_limit_exceeded", anthropic: "rate_limit_error", retries: true}),
		worked("draining", refusing(503, openaiwire.TypeUnavailable, "", "draining"), errorRow{status: 503, typ: openaiwire.TypeUnavailable, code: "unavailable", anthropic: "api_error", retryAfter: "1", retries: true}),
		{
			name: "worker: full for too long", options: func(o *rigOptions) { o.inf.QueueTimeout = time.Millisecond }, prepare: func(r *rig) { r.serve("w1", refusing(503, openaiwire.TypeUnavailable, "", openaiwire.CodeOverloaded)) },
			status: 504, typ: openaiwire.TypeTimeout, code: "queue_timeout", anthropic: "timeout_error", retryAfter: "1", retries: true,
		},
		{name: "worker: dies", prepare: func(r *rig) { r.raw("w1", func(net.Conn) {}) }, status: 502, typ: server, code: "worker_lost", anthropic: "api_error", retryAfter: "1", retries: true},
		{name: "worker: out of reach", prepare: func(r *rig) {
			r.add(core.Worker{ID: "w1", Hive: "h1", Model: "tiny", State: core.WorkerReady}, "")
		}, status: 503, typ: openaiwire.TypeUnavailable, code: "unavailable", anthropic: "api_error", retryAfter: "1", retries: true},
	}
}

// asSDK makes the row's request for a client library and counts its attempts. Its waits are cut
// short.
type asSDK struct {
	row   errorRow
	base  http.RoundTripper
	asked atomic.Int32
}

func (s *asSDK) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	r = s.row.change(r)
	resp, err := s.base.RoundTrip(r)
	if err == nil && resp.Header.Get("Retry-After") != "" {
		resp.Header.Set("Retry-After", "0")
	}
	if err == nil {
		resp.Header.Set("Retry-After-Ms", "1")
	}
	return resp, err
}

// change turns a good request into the row's.
func (row errorRow) change(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Authorization")
	r.Header.Del("X-Api-Key")
	for k, v := range row.header {
		if k == "Host" {
			r.Host = v[0]
			continue
		}
		r.Header[k] = v
	}
	r.Method = cmp.Or(row.method, r.Method)
	r.URL.Path += row.path
	if row.body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(row.body)), int64(len(row.body))
	}
	return r
}

// TestErrorTable checks how the clients of each dialect see each error: its status, type, code and
// field, the retry delay, whether their own libraries retry, and that it reveals nothing about the
// machines behind the API.
func TestErrorTable(t *testing.T) {
	t.Parallel()
	kinds := map[string]bool{}
	for _, row := range errorTable() {
		kinds[strings.TrimPrefix(row.name, "router: ")] = true
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for name, d := range map[string]struct{ path, body string }{
				"chat":      {"/v1/chat/completions", `{"model":"MODEL","messages":[{"role":"user","content":"hi"}]}`},
				"responses": {"/v1/responses", `{"model":"MODEL","input":"hi"}`},
				"anthropic": {"/v1/messages", `{"model":"MODEL","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}`},
				"ollama":    {"/api/chat", `{"model":"MODEL","stream":false,"messages":[{"role":"user","content":"hi"}]}`},
			} {
				r := newRig(t, row.options)
				if row.prepare != nil {
					row.prepare(r)
				}
				if row.path != "" && name == "responses" {
					continue // it sets its own paths below
				}
				body := strings.ReplaceAll(d.body, "MODEL", cmp.Or(row.model, "tiny"))
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+d.path, strings.NewReader(body))
				must.NoError(t, err)
				resp, answer, err := r.do(row.change(req))
				must.NoError(t, err)
				row.check(t, name, resp, answer)
				r.stop()
			}
			row.checkRetries(t)
		})
	}
	for kind := range answers {
		must.True(t, kinds[string(kind)] || kind == core.NotFound, must.Sprintf("the table has no row for %s", kind))
	}
}

func (row errorRow) check(t *testing.T, dialect string, resp *http.Response, answer string) {
	t.Helper()
	what := must.Sprintf("%s: %d %s", dialect, resp.StatusCode, answer)
	status := row.status
	if dialect == "anthropic" && row.anthropic == "overloaded_error" {
		status = 529
	}
	must.Eq(t, status, resp.StatusCode, what)
	must.Eq(t, "application/json", resp.Header.Get("Content-Type"), what)
	must.Eq(t, row.retryAfter, resp.Header.Get("Retry-After"), what)
	must.NotEq(t, "", resp.Header.Get("X-Request-Id"), what)
	for _, secret := range leaks {
		must.StrNotContains(t, answer, secret, what)
	}
	switch dialect {
	case "anthropic":
		var v struct {
			Type  string
			Error struct{ Type, Message string }
			ID    string `json:"request_id"`
		}
		must.NoError(t, json.Unmarshal([]byte(answer), &v), what)
		must.Eq(t, "error", v.Type)
		must.Eq(t, row.anthropic, v.Error.Type, what)
		must.NotEq(t, "", v.Error.Message, what)
		must.Eq(t, resp.Header.Get("X-Request-Id"), v.ID, what)
	case "ollama":
		var v map[string]string
		must.NoError(t, json.Unmarshal([]byte(answer), &v), what)
		must.NotEq(t, "", v["error"], what)
		must.MapLen(t, 1, v)
	default:
		e := errorIn(t, answer)
		must.Eq(t, row.typ, e.Type, what)
		must.Eq(t, row.code, code(e), what)
		param := ""
		if e.Param != nil {
			param = *e.Param
		}
		must.Eq(t, row.param, param, what)
	}
}

// checkRetries asks as the clients' libraries do.
func (row errorRow) checkRetries(t *testing.T) {
	t.Helper()
	want := int32(1)
	if row.retries {
		want = 2
	}
	for _, library := range []string{"openai", "anthropic"} {
		r := newRig(t, row.options)
		if row.prepare != nil {
			row.prepare(r)
		}
		transport := &asSDK{row: row, base: r.client.Transport}
		client := &http.Client{Transport: transport}
		model := cmp.Or(row.model, "tiny")
		var err error
		if library == "openai" {
			c := openai.NewClient(option.WithBaseURL(r.url+"/v1"), option.WithAPIKey("any"), option.WithHTTPClient(client), option.WithMaxRetries(1))
			_, err = c.Chat.Completions.New(t.Context(), openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hi")}})
		} else {
			c := anthropic.NewClient(anthropicoption.WithBaseURL(r.url), anthropicoption.WithAPIKey("any"), anthropicoption.WithHTTPClient(client), anthropicoption.WithMaxRetries(1))
			_, err = c.Messages.New(t.Context(), anthropic.MessageNewParams{Model: model, MaxTokens: 9, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hi"))}})
		}
		must.Error(t, err)
		must.Eq(t, want, transport.asked.Load(), must.Sprintf("%s: %v", library, err))
		r.stop()
	}
}

// An error after the stream has begun has the same content, in an event of the dialect.
func TestErrorsInStreams(t *testing.T) {
	t.Parallel()
	for path, c := range map[string]struct{ body, want string }{
		"/v1/chat/completions": {streamAsk, `data: {"error":{"message":"`},
		"/v1/responses":        {`{"model":"tiny","input":"hi","stream":true}`, "event: response.failed\n"},
		"/v1/messages":         {`{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}`, "event: error\n"},
		"/api/chat":            {`{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`, `{"error":"`},
	} {
		for name, end := range map[string]string{"cut": "", "told": `data: {"error":{"message":"no memory","type":"server_error","param":null,"code":null}}` + "\n\n"} {
			t.Run(path+" "+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, nil)
				r.serve("w1", streamOf(slices.DeleteFunc([]string{roleEvent, tokenEvent(1), end}, func(s string) bool { return s == "" })...))
				resp, body, err := r.post(path, c.body)
				must.Error(t, err) // cut off, so that it cannot be mistaken for complete
				must.Eq(t, 200, resp.StatusCode)
				must.StrContains(t, body, c.want)
				for _, secret := range []string{r.dir, r.addr} {
					must.StrNotContains(t, body, secret)
				}
			})
		}
	}
}
