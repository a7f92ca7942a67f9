package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/operation"
)

// guarded returns a gateway with tokens: for each scope "only-<scope>" and "all-but-<scope>", and
// "join".
func guarded(log io.Writer) (*Gateway, *fakecluster.Cluster) {
	tokens := map[string]core.Token{"rbee_join_secret": {Kind: core.TokenJoin, Scopes: core.Scopes()}}
	for _, s := range core.Scopes() {
		tokens["rbee_only-"+string(s)+"_secret"] = core.Token{Kind: core.TokenAPI, Scopes: []core.Scope{s}}
		rest := slices.DeleteFunc(core.Scopes(), func(other core.Scope) bool { return other == s })
		tokens["rbee_all-but-"+string(s)+"_secret"] = core.Token{Kind: core.TokenAPI, Scopes: rest}
	}
	jobs, auth := &fakeJobs{}, fakecluster.New(fakecluster.State{Secrets: tokens})
	jobs.add(core.Event{Kind: core.EventEnd})
	return New(Options{
		Inference: inference.New(inference.Options{Router: &fakeRouter{}}), Cluster: newCluster(), Jobs: jobs, Auth: auth, Reader: newCluster(), Admin: newCluster(),
		Logger: hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Trace}),
	}), auth
}

var wildcard = regexp.MustCompile(`\{[^}]*\}`)

// askFrom requests a route from a client address that n determines.
func askFrom(g *Gateway, n int, rt route, header, value string) *httptest.ResponseRecorder {
	path := wildcard.ReplaceAllString(strings.ReplaceAll(rt.pattern, "{pid}", "12"), "h1")
	r := httptest.NewRequest(rt.method, path, strings.NewReader("{}"))
	r.Host = "localhost"
	r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:1", n>>16, n>>8&255, n&255)
	if header != "" {
		r.Header.Set(header, value)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // aborted answers panic
		g.Handler().ServeHTTP(w, r)
	}()
	return w
}

// TestRouteScopes keeps a second copy of the access rules, so that editing the route table alone
// cannot open a route.
func TestRouteScopes(t *testing.T) {
	t.Parallel()
	want := map[core.Scope][]string{
		scopeOpen: {"GET /healthz", "GET /health", "GET /v1/health", "GET /readyz", "GET /version", "GET /api/version", "GET /{$}"},
		core.ScopeInfer: {
			"POST /v1/chat/completions", "POST /chat/completions", "POST /v1/completions", "POST /completions", "POST /v1/embeddings", "POST /embeddings",
			"GET /v1/models", "GET /models", "GET /v1/models/{id...}", "GET /models/{id...}",
			"GET /v1/responses/{id}", "DELETE /v1/responses/{id}", "GET /v1/responses/{id}/input_items", "POST /v1/responses/{id}/cancel",
			"GET /responses/{id}", "DELETE /responses/{id}", "GET /responses/{id}/input_items", "POST /responses/{id}/cancel",
			"POST /v1/audio/transcriptions", "POST /audio/transcriptions", "POST /v1/audio/translations", "POST /audio/translations",
			"POST /v1/audio/speech", "POST /audio/speech", "POST /v1/images/generations", "POST /images/generations",
			"POST /v1/images/edits", "POST /images/edits", "POST /v1/images/variations", "POST /images/variations",
			"POST /v1/moderations", "POST /moderations", "GET /v1/realtime", "POST /v1/realtime", "POST /v1/realtime/{rest...}",
			"POST /v1/rerank", "POST /v2/rerank", "POST /rerank", "POST /v1/reranking", "POST /reranking",
			"POST /v1/chat/completions/input_tokens", "POST /chat/completions/input_tokens", "POST /tokenize", "POST /detokenize", "POST /apply-template",
			"POST /completion", "POST /infill", "GET /props", "GET /slots",
			"POST /v1/responses", "POST /responses", "POST /v1/responses/input_tokens", "POST /responses/input_tokens", "POST /v1/messages", "POST /v1/messages/count_tokens",
			"POST /api/chat", "POST /api/generate", "POST /api/embed", "POST /api/embeddings", "GET /api/tags", "GET /lora-adapters", "POST /api/show", "GET /api/ps",
		},
		core.ScopeRead: {
			"GET /v1/jobs", "GET /v1/jobs/{id}", "GET /v1/jobs/{id}/stream", "GET /v1/operations", "GET /metrics",
			"GET /v1/requests", "GET /v1/requests/{id...}",
			"GET /v1/cluster", "GET /v1/queens", "GET /v1/nodes", "GET /v1/operator/raft",
		},
		core.ScopeOperate: {"POST /v1/jobs", "DELETE /v1/jobs/{id}", "POST /v1/hives/{hive}/drain", "POST /v1/hives/{hive}/refresh", "POST /api/pull", "POST /api/copy", "DELETE /api/delete"},
		core.ScopeAdmin: {
			"DELETE /v1/nodes/{id}", "POST /v1/nodes/{id}/leave", "GET /v1/tokens", "POST /v1/tokens", "POST /v1/tokens/{id}/rotate", "DELETE /v1/tokens/{id}",
			"DELETE /v1/operator/raft/{id}", "POST /v1/operator/raft/transfer", "GET /v1/operator/snapshot", "POST /v1/operator/snapshot",
			"GET /v1/operator/keyring", "POST /v1/operator/keyring",
		},
	}
	for _, o := range operation.All() {
		if o.Get != "" { // read-only
			want[core.ScopeRead] = append(want[core.ScopeRead], "GET "+o.Get)
		}
	}
	got := map[core.Scope][]string{}
	for _, rt := range routes() {
		got[rt.scope] = append(got[rt.scope], rt.method+" "+rt.pattern)
	}
	for _, list := range []map[core.Scope][]string{want, got} {
		for _, routes := range list {
			slices.Sort(routes)
		}
	}
	must.Eq(t, want, got)
}

// Every route is called with every kind of token.
func TestScopesOfEveryRoute(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	g, auth := guarded(&log)
	n, answers := 0, &bytes.Buffer{}
	for _, rt := range routes() {
		open := rt.scope == scopeOpen
		type ask struct {
			name, header, value string
			status              int // 0: anything but a refusal
			code                string
		}
		asks := []ask{
			{"no token", "", "", 401, "invalid_api_key"},
			{"empty token", "Authorization", "Bearer ", 401, "invalid_api_key"},
			{"another scheme", "Authorization", "Basic cmJlZTpyYmVl", 401, "invalid_api_key"},
			{"unknown token", "Authorization", "Bearer rbee_who_secret", 401, "invalid_api_key"},
			{"very long token", "Authorization", "Bearer rbee_only-" + string(rt.scope) + "_secret" + strings.Repeat("a", 5000), 401, "invalid_api_key"},
			{"wrong kind", "Authorization", "Bearer rbee_join_secret", 401, "invalid_api_key"},
			{"wrong scopes", "Authorization", "Bearer rbee_all-but-" + string(rt.scope) + "_secret", 403, "forbidden"},
			{"wrong scopes as a key", "X-Api-Key", "rbee_all-but-" + string(rt.scope) + "_secret", 403, "forbidden"},
			{"right scope", "Authorization", "Bearer rbee_only-" + string(rt.scope) + "_secret", 0, ""},
			{"right scope, lower case", "Authorization", "bearer  rbee_only-" + string(rt.scope) + "_secret ", 0, ""},
			{"right scope as a key", "X-Api-Key", "rbee_only-" + string(rt.scope) + "_secret", 0, ""},
		}
		for _, a := range asks {
			n++
			what := must.Sprintf("%s %s, %s", rt.method, rt.pattern, a.name)
			looks := auth.State().Lookups
			w := askFrom(g, n, rt, a.header, a.value)
			if a.name == "very long token" {
				must.Eq(t, looks, auth.State().Lookups, what) // an impossible token is neither hashed nor looked up
			}
			refused := w.Code == 401 || w.Code == 403 || w.Code == 429
			if open || a.status == 0 {
				must.False(t, refused, what)
				continue
			}
			must.Eq(t, a.status, w.Code, what)
			message := w.Body.String()
			if failer(&http.Request{URL: &url.URL{Path: rt.pattern}}) == nil {
				e := errorIn(t, message)
				must.Eq(t, a.code, code(e), what)
				must.NotEq(t, "", e.Hint)
				message = e.Message
			}
			challenge := w.Header().Get("WWW-Authenticate")
			must.StrHasPrefix(t, "Bearer ", challenge, what)
			if a.status == 403 {
				must.StrContains(t, strings.ReplaceAll(message, `\"`, `"`), strconv.Quote(string(rt.scope)))
				must.StrContains(t, challenge, `scope="`+string(rt.scope)+`"`)
			}
			_ = w.Header().Write(answers)
			answers.Write(w.Body.Bytes())
		}
	}
	must.StrNotContains(t, answers.String(), "secret")
	must.StrNotContains(t, log.String(), "secret")
	refused := func(reason string) int { return refusals(t, g, reason) }
	closed := 0
	for _, rt := range routes() {
		if rt.scope != scopeOpen {
			closed++
		}
	}
	must.Eq(t, 2*closed, refused(refusedNoToken))
	must.Eq(t, 4*closed, refused(refusedToken))
	must.Eq(t, 2*closed, refused(refusedScope))
}

// refusals returns the metric's count for a reason.
func refusals(t *testing.T, g *Gateway, reason string) int {
	t.Helper()
	families, err := g.Registry().Gather()
	must.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "rbee_gateway_refused_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == reason {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

// A token in the URL, or two tokens at once, do not authenticate.
func TestTokensElsewhere(t *testing.T) {
	t.Parallel()
	g, auth := guarded(io.Discard)
	for name, change := range map[string]func(r *http.Request){
		"query": func(r *http.Request) {
			r.URL.RawQuery = "token=rbee_only-read_secret&api_key=rbee_only-read_secret&access_token=rbee_only-read_secret"
		},
		"user":   func(r *http.Request) { r.SetBasicAuth("rbee_only-read_secret", "rbee_only-read_secret") },
		"cookie": func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "token", Value: "rbee_only-read_secret"}) },
		"twice": func(r *http.Request) {
			r.Header["Authorization"] = []string{"Bearer rbee_only-read_secret", "Bearer x"}
		},
		"key twice": func(r *http.Request) { r.Header["X-Api-Key"] = []string{"rbee_only-read_secret", "x"} },
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/hives", nil)
		r.Host = "localhost"
		change(r)
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		must.Eq(t, 401, w.Code, must.Sprint(name))
	}
	must.LessEq(t, 3, auth.State().Lookups)
}

// A client that sends many wrong tokens is soon told to wait. A valid token from the same address
// is still admitted, even one never seen before: behind a proxy all clients share an address.
func TestWrongTokensAreBounded(t *testing.T) {
	t.Parallel()
	g, auth := guarded(io.Discard)
	rt := route{method: "GET", pattern: "/v1/hives", scope: core.ScopeRead}
	ask := func(address int, token string) *httptest.ResponseRecorder {
		return askFrom(g, address, rt, "Authorization", "Bearer "+token)
	}
	for i := range maxWrong {
		must.Eq(t, 401, ask(1, fmt.Sprint("rbee_guess_", i)).Code)
	}
	for range 100 {
		w := ask(1, "rbee_guess_x")
		must.Eq(t, 429, w.Code)
		wait, err := strconv.Atoi(w.Header().Get("Retry-After"))
		must.NoError(t, err)
		must.Between(t, 50, wait, 61)
		must.Eq(t, "too_many_bad_tokens", code(errorIn(t, w.Body.String())))
	}
	must.Eq(t, 200, ask(1, "rbee_only-read_secret").Code)
	must.Eq(t, 200, ask(1, "rbee_all-but-infer_secret").Code)
	must.Eq(t, 403, ask(1, "rbee_only-infer_secret").Code)
	must.Eq(t, 401, ask(2, "rbee_guess_x").Code)
	must.Eq(t, 401, askFrom(g, 1, rt, "", "").Code)
	must.Eq(t, 100, refusals(t, g, refusedGuesses))
	auth.Change(func(s *fakecluster.State) { delete(s.Secrets, "rbee_only-read_secret") })
	must.Eq(t, 429, ask(1, "rbee_only-read_secret").Code) // once revoked, it counts as wrong
}

func TestGuesses(t *testing.T) {
	t.Parallel()
	g, start := newGuesses(), time.Unix(1000, 0)
	from := func(a string) (r *http.Request) { return &http.Request{RemoteAddr: a} }
	one := clientOf(from("[2001:db8::1]:5"))
	for i := range maxWrong {
		must.Eq(t, 0, g.wrong(one, start.Add(time.Duration(i)*time.Second)))
	}
	must.Eq(t, wrongWindow-30*time.Second, g.wrong(one, start.Add(30*time.Second)))
	must.Eq(t, one, clientOf(from("[2001:db8::ffff:1:2]:6"))) // one customer owns the whole prefix
	must.NotEq(t, one, clientOf(from("[2001:db8:0:1::1]:5")))
	must.Eq(t, clientOf(from("10.0.0.1:1")), clientOf(from("[::ffff:10.0.0.1]:2")))
	must.NotEq(t, clientOf(from("10.0.0.1:1")), clientOf(from("10.0.0.2:1")))
	must.Eq(t, clientOf(from("@")), clientOf(from("")))
	must.Eq(t, 0, g.wrong(one, start.Add(wrongWindow)))

	for i := range 3 * maxGuessers {
		g.wrong(clientOf(from(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))), start)
	}
	must.Eq(t, maxGuessers, len(g.wrongs))
	g.wrong(clientOf(from("[2001:db8:9::1]:1")), start.Add(2*wrongWindow)) // the windows of the others have ended
	must.Less(t, maxGuessers, len(g.wrongs))
}

// Without an Authorizer everything is allowed, whatever token is sent. For every route that changes
// something the log records who changed it and from where; it never contains the token, and has no
// entries for reads and inference.
func TestAudit(t *testing.T) {
	t.Parallel()
	for _, rt := range routes() {
		var log bytes.Buffer
		g, auth := guarded(&log)
		auth.Change(func(s *fakecluster.State) {
			s.Secrets["rbee_anna_secret"] = core.Token{ID: "anna1", Name: "anna", Kind: core.TokenAPI, Scopes: core.Scopes()}
		})
		askFrom(g, 7, rt, "Authorization", "Bearer rbee_anna_secret")
		changes := rt.method != http.MethodGet && (rt.scope == core.ScopeOperate || rt.scope == core.ScopeAdmin)
		want := 0
		if changes {
			want = 1
		}
		must.Eq(t, want, strings.Count(log.String(), `by="anna (anna1)" from=10.0.0.7`), must.Sprint(rt.method, rt.pattern, log.String()))
		must.StrNotContains(t, log.String(), "rbee_anna_secret")
	}
}

func TestNoTokensWithoutAuthorizer(t *testing.T) {
	t.Parallel()
	g := New(Options{Cluster: newCluster()})
	for _, value := range []string{"", "Bearer any", "Basic x"} {
		must.Eq(t, 200, askFrom(g, 1, route{method: "GET", pattern: "/v1/hives"}, "Authorization", value).Code)
	}
}

// An Authorizer that fails neither refuses the token nor leaks details.
func TestAuthorizerFails(t *testing.T) {
	t.Parallel()
	g := New(Options{Cluster: newCluster(), Auth: fakecluster.New(fakecluster.State{NoTokens: core.Errorf(core.Unavailable, "no answer about rbee_a_secret")})})
	w := askFrom(g, 1, route{method: "GET", pattern: "/v1/hives"}, "Authorization", "Bearer rbee_a_secret")
	must.Eq(t, 503, w.Code)
	must.StrNotContains(t, w.Body.String(), "secret")
}

func TestOpenAISDKWithToken(t *testing.T) {
	t.Parallel()
	_, auth := guarded(io.Discard)
	r := newRig(t, func(o *rigOptions) { o.Auth = auth })
	r.cluster.Change(func(s *fakecluster.State) { s.Models = []core.Model{{ID: "tiny"}} })
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "" || q.Header.Get("X-Api-Key") != "" {
			t.Error("the worker was shown the token")
		}
		streamOf(roleEvent, tokenEvent(1), doneEvent)(w, q)
	})
	as := func(key string) openai.Client {
		return openai.NewClient(option.WithBaseURL(r.url+"/v1"), option.WithAPIKey(key), option.WithHTTPClient(r.client), option.WithMaxRetries(0))
	}
	c := as("rbee_only-infer_secret")
	page, err := c.Models.List(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, page.Data)
	stream := c.Chat.Completions.NewStreaming(t.Context(), chatParams())
	defer stream.Close()
	text := ""
	for stream.Next() {
		text += stream.Current().Choices[0].Delta.Content
	}
	must.NoError(t, stream.Err())
	must.Eq(t, "t1", text)
	for key, want := range map[string]int{"rbee_who_secret": 401, "rbee_all-but-infer_secret": 403, "rbee_join_secret": 401} {
		c := as(key)
		_, err := c.Chat.Completions.New(t.Context(), chatParams())
		var api *openai.Error
		must.True(t, errors.As(err, &api))
		must.Eq(t, want, api.StatusCode)
		must.NotEq(t, "", api.Code)
		failed := c.Chat.Completions.NewStreaming(t.Context(), chatParams())
		must.False(t, failed.Next())
		must.True(t, errors.As(failed.Err(), &api))
		must.Eq(t, want, api.StatusCode)
	}
}
