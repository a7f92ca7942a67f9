package gateway

import (
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// modelsFor lists the models that the token of a request may use.
func (g *Gateway) modelsFor(ctx context.Context, w *response) ([]core.Model, error) {
	models, err := g.o.Cluster.Models(ctx)
	if err != nil || len(w.token.Models) == 0 {
		return models, err
	}
	return slices.DeleteFunc(slices.Clone(models), func(m core.Model) bool { return !w.token.MayAsk(m.ID) }), nil
}

// findModel finds a model by any of its names, among those that the token of a request may use. It
// does not reveal whether other models exist.
func (g *Gateway) findModel(ctx context.Context, w *response, name string) (core.Model, error) {
	m, err := operation.ModelGet.Ask(ctx, g.o.Cluster, core.Request{Model: name})
	kind := core.KindOf(err)
	if few := len(w.token.Models) > 0; few && (err == nil && !w.token.MayAsk(m.ID) || kind == core.NotFound || kind == core.Invalid) {
		return core.Model{}, &apiError{code: openai.CodeModelNotFound, param: "model", err: core.Errorf(core.NotFound, "there is no model %q that this token may use", clip(name, 100)).Hint(
			"GET /v1/models lists those that it may.")}
	}
	switch kind {
	case core.NotFound:
		return core.Model{}, &apiError{err: err, code: openai.CodeModelNotFound, param: "model"}
	case core.Invalid:
		return core.Model{}, &apiError{err: err, param: "model"}
	}
	return m, err
}
