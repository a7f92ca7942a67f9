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

// rule is the required form of an answer.
type rule struct {
	grammar  *grammar.Grammar
	thinking constraint.Thinking // where it does not yet apply
	param    string              // the request's field that sets it
}

// maxReason bounds, in bytes, an error message about a schema, which quotes parts of it.
const maxReason = 500

// rule compiles the form that a request requires of its answer; nil: any. It runs in the request's
// own goroutine, so it delays no other request's tokens.
func (s *server) rule(ctx context.Context, shape openai.Shape) (*rule, error) {
	if shape.Kind == "" {
		return nil, nil //nolint:nilnil // no rule is a rule
	}
	spec := constraint.Spec{Kind: constraint.Kind(shape.Kind), Text: shape.Text, Choices: shape.Choices, Whitespace: shape.Whitespace}
	g, err := s.grammars.Compile(ctx, spec)
	if err == nil {
		r := &rule{grammar: g, param: shape.Param}
		// Also compute the first mask here; it is cached with the grammar.
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

// failed returns the error for the client when a rule has ended its answer; nil if the error has
// another cause.
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
