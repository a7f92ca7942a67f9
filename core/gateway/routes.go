package gateway

import (
	"net/http"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect/anthropic"
	"github.com/rbee-project/rbee/core/gateway/dialect/ollama"
)

// route is one method of one path, for tokens with a scope. An error that handle returns is
// answered in OpenAI's envelope, unless the answer has begun: then the connection is cut.
type route struct {
	method  string
	pattern string // for http.ServeMux, without the method
	scope   core.Scope
	handle  handler
}

// routes returns the whole API. HEAD uses the GET handlers. The GET routes of operations come from
// their registration.
func routes() []route {
	return append(slices.Concat(adminRoutes(), operationRoutes(), mediaRoutes(), llamaServerRoutes()), []route{
		{"POST", "/v1/chat/completions", core.ScopeInfer, local((*Gateway).chat)},
		{"POST", "/chat/completions", core.ScopeInfer, local((*Gateway).chat)},
		{"POST", "/v1/completions", core.ScopeInfer, local((*Gateway).completion)},
		{"POST", "/completions", core.ScopeInfer, local((*Gateway).completion)},
		{"POST", "/v1/embeddings", core.ScopeInfer, local((*Gateway).embeddings)},
		{"POST", "/embeddings", core.ScopeInfer, local((*Gateway).embeddings)},
		{"POST", "/v1/rerank", core.ScopeInfer, local((*Gateway).rerank)},
		{"POST", "/v2/rerank", core.ScopeInfer, local((*Gateway).rerank)},
		{"POST", "/rerank", core.ScopeInfer, local((*Gateway).rerank)},
		{"POST", "/v1/reranking", core.ScopeInfer, local((*Gateway).rerank)},
		{"POST", "/reranking", core.ScopeInfer, local((*Gateway).rerank)},
		{"POST", "/v1/chat/completions/input_tokens", core.ScopeInfer, local((*Gateway).inputTokens)},
		{"POST", "/chat/completions/input_tokens", core.ScopeInfer, local((*Gateway).inputTokens)},
		{"GET", "/v1/models", core.ScopeInfer, local(anthropicOr((*Gateway).anthropicModels, (*Gateway).models))},
		{"GET", "/models", core.ScopeInfer, local((*Gateway).models)},
		{"GET", "/v1/models/{id...}", core.ScopeInfer, local(anthropicOr((*Gateway).anthropicModel, (*Gateway).model))},
		{"GET", "/models/{id...}", core.ScopeInfer, local((*Gateway).model)},

		{"POST", "/v1/responses", core.ScopeInfer, speak(openaiResponses)},
		{"GET", "/v1/responses/{id}", core.ScopeInfer, local((*Gateway).getResponse)},
		{"DELETE", "/v1/responses/{id}", core.ScopeInfer, local((*Gateway).deleteResponse)},
		{"GET", "/v1/responses/{id}/input_items", core.ScopeInfer, local((*Gateway).responseItems)},
		{"POST", "/v1/responses/{id}/cancel", core.ScopeInfer, local((*Gateway).cancelResponse)},
		{"GET", "/responses/{id}", core.ScopeInfer, local((*Gateway).getResponse)},
		{"DELETE", "/responses/{id}", core.ScopeInfer, local((*Gateway).deleteResponse)},
		{"GET", "/responses/{id}/input_items", core.ScopeInfer, local((*Gateway).responseItems)},
		{"POST", "/responses/{id}/cancel", core.ScopeInfer, local((*Gateway).cancelResponse)},
		{"POST", "/responses", core.ScopeInfer, speak(openaiResponses)},
		{"POST", "/v1/responses/input_tokens", core.ScopeInfer, speak(openaiResponsesSize)},
		{"POST", "/responses/input_tokens", core.ScopeInfer, speak(openaiResponsesSize)},
		{"POST", "/v1/messages", core.ScopeInfer, speak(always(anthropic.Messages))},
		{"POST", "/v1/messages/count_tokens", core.ScopeInfer, speak(always(anthropic.CountTokens))},

		{"POST", "/api/chat", core.ScopeInfer, speak(always(ollama.Chat))},
		{"POST", "/api/generate", core.ScopeInfer, speak(always(ollama.Generate))},
		{"POST", "/api/embed", core.ScopeInfer, speak(always(ollama.Embed))},
		{"POST", "/api/embeddings", core.ScopeInfer, speak(always(ollama.Embeddings))},
		{"GET", "/api/tags", core.ScopeInfer, local((*Gateway).ollamaTags)},
		{"POST", "/api/show", core.ScopeInfer, local((*Gateway).ollamaShow)},
		{"GET", "/api/ps", core.ScopeInfer, local((*Gateway).ollamaRunning)},
		{"POST", "/api/pull", core.ScopeOperate, (*Gateway).ollamaPull},
		{"POST", "/api/copy", core.ScopeOperate, (*Gateway).ollamaCopy},
		{"DELETE", "/api/delete", core.ScopeOperate, (*Gateway).ollamaDelete},
		{"GET", "/api/version", scopeOpen, (*Gateway).ollamaVersion},
		{"GET", "/{$}", scopeOpen, (*Gateway).greeting},

		{"POST", "/v1/jobs", core.ScopeOperate, (*Gateway).submit},
		{"GET", "/v1/jobs", core.ScopeRead, (*Gateway).jobs},
		{"GET", "/v1/jobs/{id}", core.ScopeRead, (*Gateway).job},
		{"DELETE", "/v1/jobs/{id}", core.ScopeOperate, (*Gateway).cancelJob},
		{"GET", "/v1/jobs/{id}/stream", core.ScopeRead, (*Gateway).jobStream},

		{"GET", "/v1/operations", core.ScopeRead, (*Gateway).operations},
		{"GET", "/v1/requests", core.ScopeRead, (*Gateway).routesLatest},
		{"GET", "/v1/requests/{id...}", core.ScopeRead, (*Gateway).routeOf},

		{"GET", "/healthz", scopeOpen, (*Gateway).healthy},
		{"GET", "/health", scopeOpen, (*Gateway).healthy},
		{"GET", "/readyz", scopeOpen, (*Gateway).ready},
		{"GET", "/version", scopeOpen, (*Gateway).version},
		{"GET", "/metrics", core.ScopeRead, (*Gateway).metricsPage},
	}...)
}

// buildMux turns the table into a handler. Methods are dispatched here and not by http.ServeMux,
// whose own 404 and 405 are plain text.
func (g *Gateway) buildMux(table []route) *http.ServeMux {
	byPath := map[string]map[string]route{}
	for _, rt := range table {
		if byPath[rt.pattern] == nil {
			byPath[rt.pattern] = map[string]route{}
		}
		byPath[rt.pattern][rt.method] = rt
	}
	mux := http.NewServeMux()
	for pattern, methods := range byPath {
		mux.Handle(pattern, dispatch{g, pattern, methods, allowed(methods)})
	}
	mux.Handle("/", dispatch{g: g})
	return mux
}

func allowed(methods map[string]route) string {
	var list []string
	for m := range methods {
		list = append(list, m)
		if m == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// dispatch answers one path. Its writer is always a *response.
type dispatch struct {
	g       *Gateway
	pattern string
	methods map[string]route // empty: an unknown path
	allow   string
}

func (d dispatch) ServeHTTP(hw http.ResponseWriter, r *http.Request) {
	w := hw.(*response)
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	rt, ok := d.methods[method]
	switch {
	case ok:
		w.route = rt.method + " " + rt.pattern
		if err := d.g.authorize(w, r, rt.scope); err != nil {
			fail(w, err)
			return
		}
		d.g.answer(w, r, rt.handle)
		d.g.audit(w, r, rt)
	case d.methods == nil:
		fail(w, noRoute(r))
	default:
		w.Header().Set("Allow", d.allow)
		fail(w, &apiError{status: http.StatusMethodNotAllowed, code: "method_not_allowed", err: core.Errorf(core.Invalid, "%s does not take %s", d.pattern, clip(r.Method, 20)).Hint("It takes %s.", d.allow)})
	}
}

// audit logs who changed something: one line per request that may change state, with the token's
// name and id, never the token.
func (g *Gateway) audit(w *response, r *http.Request, rt route) {
	if rt.method == http.MethodGet || rt.scope != core.ScopeOperate && rt.scope != core.ScopeAdmin {
		return
	}
	by := "anybody on this machine"
	if w.key != "" {
		by = w.key
		if w.by != "" {
			by = w.by + " (" + w.key + ")"
		}
	}
	pairs := []any{"action", rt.method + " " + clip(r.URL.Path, 200), "by", by, "from", clientOf(r).Addr().String(), "status", w.status}
	if w.job.ID != "" {
		pairs = append(pairs, "operation", w.job.Operation, "job", w.job.ID)
	}
	g.log.Info("request to change something", pairs...)
}

// answer runs a handler and writes its error as the answer.
func (g *Gateway) answer(w *response, r *http.Request, handle handler) {
	err := handle(g, w, r)
	if err == nil {
		return
	}
	if w.status != 0 { // the answer has begun: it can only be cut off
		panic(http.ErrAbortHandler)
	}
	fail(w, err)
}

// cleanPath reports whether http.ServeMux accepts the path unchanged. It redirects others, in HTML.
func cleanPath(escaped string) bool {
	if !strings.HasPrefix(escaped, "/") || strings.Contains(escaped, "//") {
		return false
	}
	for segment := range strings.SplitSeq(escaped, "/") {
		if segment == "." || segment == ".." {
			return false
		}
	}
	return true
}
