package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	maxFormParts = 64
	maxModelPart = 512 // bytes
)

// mediaRoutes are the routes beside text, which workers have that say so.
func mediaRoutes() []route {
	var out []route
	for _, path := range inference.MediaPaths() {
		h := local(func(g *Gateway, w *response, r *http.Request) error { return g.media(w, r, path) })
		out = append(out, route{"POST", path, core.ScopeInfer, h}, route{"POST", strings.TrimPrefix(path, "/v1"), core.ScopeInfer, h})
	}
	refuse := local((*Gateway).realtime)
	return append(out, route{"GET", "/v1/realtime", core.ScopeInfer, refuse}, route{"POST", "/v1/realtime", core.ScopeInfer, refuse}, route{"POST", "/v1/realtime/{rest...}", core.ScopeInfer, refuse})
}

// realtime refuses a session of sound in both directions.
func (g *Gateway) realtime(*response, *http.Request) error {
	return core.Errorf(core.Unsupported, "realtime sessions are not supported").Hint(
		"Use POST /v1/audio/transcriptions, /v1/chat/completions with stream, and /v1/audio/speech, with models that can.")
}

// media passes a request on whose body is a form, or JSON, and whose answer may be anything.
func (g *Gateway) media(w *response, r *http.Request, path string) error {
	if m, _ := inference.MediaOf(path); !m.Form {
		return g.infer(w, r, path)
	}
	start := time.Now()
	typ, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/form-data" || params["boundary"] == "" {
		return &apiError{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", err: core.Errorf(core.Invalid, "the body must be a form: multipart/form-data")}
	}
	body, err := g.readBody(w, r, g.o.MaxBodyBytes)
	if err != nil {
		return err
	}
	model, err := formModel(body, params["boundary"])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done, ok := g.streams.add(false, cancel)
	if !ok {
		return errRefused
	}
	defer done()
	c := &openaiClient{w: w}
	_ = g.o.Inference.Serve(ctx, inference.Request{
		ID: w.id, Key: w.key, Path: path, Body: body, At: start, Release: w.body.release, Model: model,
		ContentType: mime.FormatMediaType(typ, map[string]string{"boundary": params["boundary"]}), // what it says, and no more
	}, c) // c was told
	return c.err
}

// formModel returns the model that a form names. Its files are not looked at. A form that names
// it twice, or wants a stream, is refused.
func formModel(body []byte, boundary string) (string, error) {
	form, model := multipart.NewReader(bytes.NewReader(body), boundary), ""
	for n := 0; ; n++ {
		part, err := form.NextRawPart()
		switch {
		case errors.Is(err, io.EOF) && model == "":
			return "", badBody("model", "model is missing")
		case errors.Is(err, io.EOF):
			return model, nil
		case err != nil:
			return "", badBody("", "the request's body is not a whole form")
		case n == maxFormParts:
			return "", badBody("", "the form has more than %d parts", maxFormParts)
		}
		name := part.FormName()
		if name != "model" && name != "stream" {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(part, maxModelPart+1))
		switch {
		case err != nil:
			return "", badBody("", "the request's body is not a whole form")
		case name == "stream" && string(text) == "true":
			return "", openai.NotSupported("stream", "this cannot be streamed here; leave out stream")
		case name == "stream":
		case model != "":
			return "", badBody("model", "the form has a model twice")
		case len(text) == 0 || len(text) > maxModelPart || bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return "", badBody("model", "model is not a name")
		default:
			model = string(text)
		}
	}
}
