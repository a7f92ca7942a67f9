package gateway

import (
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
)

// mediaRoutes returns the non-text routes, for workers with the matching capability.
func mediaRoutes() []route {
	var out []route
	for _, path := range inference.MediaPaths() {
		h := local(func(g *Gateway, w *response, r *http.Request) error { return g.media(w, r, path) })
		out = append(out, route{"POST", path, core.ScopeInfer, h}, route{"POST", strings.TrimPrefix(path, "/v1"), core.ScopeInfer, h})
	}
	refuse := local((*Gateway).realtime)
	return append(out, route{"GET", "/v1/realtime", core.ScopeInfer, refuse}, route{"POST", "/v1/realtime", core.ScopeInfer, refuse}, route{"POST", "/v1/realtime/{rest...}", core.ScopeInfer, refuse})
}

// realtime refuses realtime sessions, with audio in both directions.
func (g *Gateway) realtime(*response, *http.Request) error {
	return core.Errorf(core.Unsupported, "realtime sessions are not supported").Hint(
		"Use POST /v1/audio/transcriptions, /v1/chat/completions with stream, and /v1/audio/speech, with models that can.")
}

// media passes on a request whose body is a form or JSON, and whose answer may have any type.
func (g *Gateway) media(w *response, r *http.Request, path string) error {
	if m, _ := inference.MediaOf(path); !m.Form {
		return g.infer(w, r, path)
	}
	start := time.Now()
	typ, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/form-data" || params["boundary"] == "" {
		return &apiError{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", err: core.Errorf(core.Invalid, "the body must be a form: multipart/form-data")}
	}
	f, err := g.openForm(w, r, params["boundary"])
	if err != nil {
		return err
	}
	defer f.close()
	if err := f.find(); err != nil {
		return err
	}
	r, _, end, err := g.begin(r)
	if err != nil {
		return g.closeAfter(w, err)
	}
	defer end()
	c := &openaiClient{w: w}
	g.relay(w, r, inference.Request{
		Path: path, Form: f, At: start, Model: f.model,
		ContentType: mime.FormatMediaType(typ, map[string]string{"boundary": params["boundary"]}), // only the known parameters
	}, c)
	return c.err
}
