package gateway

import (
	"net/http"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// scope is what a token must allow for a route. Nothing enforces it before there are tokens; the table below is where that will look.
type scope string

// The scopes. The empty one is a mistake that a test finds.
const (
	scopeOpen    scope = "open"    // nothing: probes of load balancers have no token
	scopeInfer   scope = "infer"   // ask models
	scopeRead    scope = "read"    // look
	scopeOperate scope = "operate" // change what runs and what is stored
	scopeAdmin   scope = "admin"   // change who may do what
)

// route is one method of one path. An error that handle returns is answered in OpenAI's envelope, unless the answer has begun: then it is cut.
type route struct {
	method  string
	pattern string // of http.ServeMux, without method
	scope   scope
	handle  func(*Gateway, *response, *http.Request) error
}

// routes is the whole API. HEAD goes where GET goes.
func routes() []route {
	return []route{
		{"POST", "/v1/chat/completions", scopeInfer, (*Gateway).chat},
		{"POST", "/chat/completions", scopeInfer, (*Gateway).chat},
		{"POST", "/v1/completions", scopeInfer, (*Gateway).completion},
		{"POST", "/completions", scopeInfer, (*Gateway).completion},
		{"POST", "/v1/embeddings", scopeInfer, (*Gateway).embeddings},
		{"POST", "/embeddings", scopeInfer, (*Gateway).embeddings},
		{"GET", "/v1/models", scopeInfer, (*Gateway).models},
		{"GET", "/models", scopeInfer, (*Gateway).models},
		{"GET", "/v1/models/{id...}", scopeInfer, (*Gateway).model},
		{"GET", "/models/{id...}", scopeInfer, (*Gateway).model},

		{"POST", "/v1/jobs", scopeOperate, (*Gateway).submit},
		{"GET", "/v1/jobs", scopeRead, (*Gateway).jobs},
		{"GET", "/v1/jobs/{id}", scopeRead, (*Gateway).job},
		{"DELETE", "/v1/jobs/{id}", scopeOperate, (*Gateway).cancelJob},
		{"GET", "/v1/jobs/{id}/stream", scopeRead, (*Gateway).jobStream},

		{"GET", "/v1/status", scopeRead, (*Gateway).status},
		{"GET", "/v1/hives", scopeRead, (*Gateway).hiveList},
		{"GET", "/v1/hives/{hive}", scopeRead, (*Gateway).hive},
		{"GET", "/v1/hives/{hive}/processes", scopeRead, (*Gateway).processes},
		{"GET", "/v1/hives/{hive}/processes/{pid}", scopeRead, (*Gateway).process},
		{"GET", "/v1/hives/{hive}/binaries", scopeRead, (*Gateway).binaries},
		{"GET", "/v1/hives/{hive}/binaries/{id...}", scopeRead, (*Gateway).binary},
		{"GET", "/v1/hives/{hive}/models", scopeRead, (*Gateway).hiveModels},
		{"GET", "/v1/hives/{hive}/models/{id...}", scopeRead, (*Gateway).hiveModel},
		{"GET", "/v1/hives/{hive}/catalog", scopeRead, (*Gateway).catalog},
		{"GET", "/v1/workers", scopeRead, (*Gateway).workers},
		{"GET", "/v1/workers/{id}", scopeRead, (*Gateway).worker},

		{"GET", "/healthz", scopeOpen, (*Gateway).healthy},
		{"GET", "/health", scopeOpen, (*Gateway).healthy},
		{"GET", "/readyz", scopeOpen, (*Gateway).ready},
		{"GET", "/version", scopeOpen, (*Gateway).version},
		{"GET", "/metrics", scopeRead, (*Gateway).metricsPage},
	}
}

// buildMux turns the table into a handler. Methods are told apart here and not by http.ServeMux, whose own 404 and 405 are plain text.
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

// dispatch answers one path. It is only ever called with a *response.
type dispatch struct {
	g       *Gateway
	pattern string
	methods map[string]route // none: an unknown path
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
		d.g.answer(w, r, rt.handle)
	case d.methods == nil:
		fail(w, noRoute(r))
	default:
		w.Header().Set("Allow", d.allow)
		fail(w, &apiError{status: http.StatusMethodNotAllowed, code: "method_not_allowed", err: core.WithHint(
			core.Errorf("", core.Invalid, "%s does not take %s", d.pattern, clip(r.Method, 20)), "It takes %s.", d.allow)})
	}
}

// answer runs a handler and answers with its error.
func (g *Gateway) answer(w *response, r *http.Request, handle func(*Gateway, *response, *http.Request) error) {
	err := handle(g, w, r)
	if err == nil {
		return
	}
	if w.status != 0 { // the answer has begun: a cut is the only honest end
		panic(http.ErrAbortHandler)
	}
	fail(w, err)
}

// cleanPath says whether http.ServeMux takes the path as it is. Others it answers with a redirect in HTML.
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
