package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// llamaServerRoutes returns llama-server's routes that tools rely on. Its clients assume a single
// model, so they may omit its name.
func llamaServerRoutes() []route {
	out := []route{
		{"GET", "/props", core.ScopeInfer, local((*Gateway).props)},
		{"GET", "/slots", core.ScopeInfer, local((*Gateway).slots)},
		{"GET", "/lora-adapters", core.ScopeInfer, local((*Gateway).loraAdapters)},
		{"GET", "/v1/health", scopeOpen, (*Gateway).healthy},
	}
	for _, path := range []string{"/tokenize", "/detokenize", "/apply-template", "/completion", "/infill"} {
		out = append(out, route{"POST", path, core.ScopeInfer, local(func(g *Gateway, w *response, r *http.Request) error { return g.native(w, r, path) })})
	}
	return out
}

// native passes a request on in llama-server's own form.
func (g *Gateway) native(w *response, r *http.Request, path string) error {
	start := time.Now()
	body, err := g.readBody(w, r, g.o.MaxBodyBytes)
	if err != nil {
		return err
	}
	model, err := g.onlyModel(r.Context())
	if err != nil {
		return err
	}
	r, _, end, err := g.begin(r)
	if err != nil {
		return err
	}
	defer end()
	c := &nativeClient{openaiClient{w: w}}
	g.relay(w, r, inference.Request{Path: path, Body: body, Otherwise: model, At: start, Release: w.body.release}, c)
	return c.err
}

// onlyModel returns the id of the only served model, or else of the only existing one; empty: there
// are several, or none.
func (g *Gateway) onlyModel(ctx context.Context) (string, error) {
	workers, err := g.o.Cluster.Workers(ctx)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, w := range workers {
		ids = append(ids, w.Model)
	}
	if len(ids) == 0 {
		models, err := g.o.Cluster.Models(ctx)
		if err != nil {
			return "", err
		}
		for _, m := range models {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) == 1 { // a worker of an unknown model has an empty model id
		return ids[0], nil
	}
	return "", nil
}

// nativeClient passes on the answer to a request in llama-server's own form, whose streams have no
// final [DONE].
type nativeClient struct{ openaiClient }

// Send implements inference.Client.
func (c *nativeClient) Send(block []byte) error {
	if block = bytes.ReplaceAll(block, []byte("data: [DONE]\n\n"), nil); len(block) == 0 {
		return nil
	}
	return c.openaiClient.Send(block)
}

// props answers like llama-server about its model or, if several models exist and none is named,
// like its router.
func (g *Gateway) props(w *response, r *http.Request) error {
	model, err := g.asked(r)
	if err != nil {
		return err
	}
	if model == "" {
		return writeJSON(w, http.StatusOK, map[string]any{
			"role": "router", "model_alias": "rbee", "model_path": "", "total_slots": 0, "chat_template": "",
			"default_generation_settings": map[string]any{"params": nil, "n_ctx": 0}, "build_info": "rbee " + g.o.Version,
		})
	}
	return g.look(w, r, "/props", model, func(model string, body []byte) ([]byte, error) {
		all, told := map[string]json.RawMessage{}, map[string]any{"model_alias": model, "model_path": model}
		if err := json.Unmarshal(body, &all); err != nil {
			return nil, core.Wrap(err, core.Internal, "read the worker's answer")
		}
		for _, key := range []string{ // only these, so that no file path is revealed
			"default_generation_settings", "total_slots", "modalities", "chat_template", "chat_template_caps", "bos_token", "eos_token", "build_info", "is_sleeping",
			"endpoint_slots",
		} {
			if v, ok := all[key]; ok {
				told[key] = v
			}
		}
		return json.Marshal(told)
	}, func(m core.Model) (any, error) {
		return map[string]any{
			"model_alias": m.ID, "model_path": m.ID, "total_slots": 0, "chat_template": "", "is_sleeping": true,
			"default_generation_settings": map[string]any{"params": nil, "n_ctx": m.ContextTokens}, "build_info": "rbee " + g.o.Version,
		}, nil
	})
}

// slots answers which slots of a model's worker are busy.
func (g *Gateway) slots(w *response, r *http.Request) error {
	model, err := g.asked(r)
	if err != nil {
		return err
	}
	if model == "" {
		return badBody("model", "model is missing: there are several; ask for /slots?model=NAME")
	}
	noSlot := &apiError{status: http.StatusServiceUnavailable, code: codeOverloaded, err: core.Errorf(core.Overloaded, "no slot is free")}
	needed := r.URL.Query().Get("fail_on_no_slot") != ""
	return g.look(w, r, "/slots", model, func(_ string, body []byte) ([]byte, error) {
		var list []openai.Slot
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, core.Wrap(err, core.Internal, "read the worker's answer")
		}
		if needed && !slices.ContainsFunc(list, func(s openai.Slot) bool { return !s.IsProcessing }) {
			return nil, noSlot
		}
		return json.Marshal(list)
	}, func(core.Model) (any, error) {
		if needed {
			return nil, noSlot
		}
		return []openai.Slot{}, nil
	})
}

// loraAdapters lists the adapters of a model's worker, without their paths.
func (g *Gateway) loraAdapters(w *response, r *http.Request) error {
	model, err := g.asked(r)
	if err != nil {
		return err
	}
	if model == "" {
		return badBody("model", "model is missing: there are several; ask for /lora-adapters?model=NAME")
	}
	return g.look(w, r, "/lora-adapters", model, func(_ string, body []byte) ([]byte, error) {
		list := []openai.LoRAAdapter{}
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, core.Wrap(err, core.Internal, "read the worker's answer")
		}
		return json.Marshal(list)
	}, func(core.Model) (any, error) { return []openai.LoRAAdapter{}, nil })
}

// asked returns the model named in a GET, or else the only one.
func (g *Gateway) asked(r *http.Request) (string, error) {
	if name := r.URL.Query().Get("model"); name != "" {
		return name, nil
	}
	return g.onlyModel(r.Context())
}

// look answers with a worker's own report or, if no worker has loaded the model, with unloaded, as
// llama-server does for a sleeping model. It neither loads a model nor keeps one loaded: programs
// poll every few seconds.
func (g *Gateway) look(w *response, r *http.Request, path, model string, shown func(model string, body []byte) ([]byte, error), unloaded func(m core.Model) (any, error)) error {
	r, _, end, err := g.begin(r)
	if err != nil {
		return err
	}
	defer end()
	model = strings.TrimSpace(model)
	m, notFound := g.findModel(r.Context(), w, model)
	if notFound == nil {
		model = m.ID
	}
	c := &lookClient{openaiClient: openaiClient{w: w}, shown: shown}
	g.relay(w, r, inference.Request{Path: path, Method: http.MethodGet, Model: model, At: time.Now()}, c)
	if !c.unloaded {
		return c.err
	}
	if notFound != nil {
		return notFound
	}
	v, err := unloaded(m)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

// lookClient answers with the visible part of a worker's answer.
type lookClient struct {
	openaiClient
	shown    func(model string, body []byte) ([]byte, error)
	unloaded bool // no worker has loaded the model
}

// Fail implements inference.Client.
func (c *lookClient) Fail(err error) (status int) {
	if _, ok := errors.AsType[*inference.NotLoaded](err); ok && c.w.status == 0 {
		c.unloaded = true
		return http.StatusOK
	}
	return c.openaiClient.Fail(err)
}

// Answer implements inference.Client.
func (c *lookClient) Answer(a inference.Answer) {
	if a.Error == nil && a.Status == http.StatusOK {
		body, err := c.shown(c.w.model, a.Body)
		if err != nil {
			c.err = &concealed{err}
			return
		}
		a.Body = body
	}
	c.openaiClient.Answer(a)
}
