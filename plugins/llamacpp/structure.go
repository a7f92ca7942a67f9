package llamacpp

import (
	"context"
	"errors"
	"net/http"

	"github.com/rbee-project/rbee/plugins/grammar"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// rule is what an answer must look like.
type rule struct {
	grammar  *grammar.Grammar
	thinking constraint.Thinking // where it does not apply yet
	param    string              // the request's field that says so
}

// maxReason bounds what a client is told of a schema, which holds parts of it.
const maxReason = 500

// rule compiles the form that a request wants its answer to have; nil: any. It runs in the
// request's own goroutine, so that it holds up nobody's tokens.
func (s *server) rule(ctx context.Context, shape openai.Shape) (*rule, error) {
	if shape.Kind == "" {
		return nil, nil //nolint:nilnil // no rule is a rule
	}
	spec := constraint.Spec{Kind: constraint.Kind(shape.Kind), Text: shape.Text, Choices: shape.Choices, Whitespace: shape.Whitespace}
	g, err := s.grammars.Compile(ctx, spec)
	if err == nil {
		r := &rule{grammar: g, param: shape.Param}
		// The first mask is found out here as well, and kept with the grammar.
		first := constraint.New(g, s.model.vocabulary, constraint.Thinking{})
		if e := r.failed(first.Mask(make([]uint64, s.model.vocabulary.MaskLen()))); e != nil {
			return nil, e
		}
		return r, nil
	}
	refused, ok := errors.AsType[*grammar.Error](err)
	if !ok {
		return nil, openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, shape.Param, "", "%s was not compiled: %v", shape.Path, err)
	}
	where := ""
	if shape.Kind == openai.ShapeSchema {
		where = " at #" + refused.Pointer
	}
	if refused.Keyword != "" {
		where += ", " + refused.Keyword
	}
	reason := []rune(refused.Reason)
	if len(reason) > maxReason {
		reason = append(reason[:maxReason], '…')
	}
	return nil, openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, shape.Param, "invalid_schema",
		"%s cannot be guaranteed%s: %s; change it or leave it out", shape.Path, where, string(reason))
}

// failed returns what a client is told when a rule ends its answer; nil: it has nothing to do
// with the rule.
func (r *rule) failed(err error) *openai.Error {
	switch {
	case r == nil:
		return nil
	case errors.Is(err, grammar.ErrExhausted):
		return openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, r.param, "schema_too_complex",
			"following %s takes more work or memory than this worker gives a request; simplify it", r.param)
	case errors.Is(err, sampler.ErrNone):
		return openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, r.param, "schema_dead_end",
			"no token can come next under %s and logit_bias: the tokens of this model cannot write what they demand", r.param)
	}
	return nil
}
