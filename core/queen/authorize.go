package queen

import (
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/token"
)

// Authorize says whose an API token is, from this queen's replica alone. Errors: Unauthenticated for a token that is unknown, revoked or for
// something else; Forbidden when it lacks the scope; Unavailable while this queen has no registry yet. No error tells anything of the token.
func (q *Queen) Authorize(_ context.Context, text string, scope core.Scope) (core.Token, error) {
	p, err := token.Parse(text)
	if err != nil || p.Kind != core.TokenAPI {
		return core.Token{}, core.WithHint(core.Errorf("", core.Unauthenticated, "this is not an API token"),
			"Send one that `rbee token create` made; a join token only takes a machine into the cluster.")
	}
	registry := q.registry()
	if _, err := clusterOf(registry); err != nil {
		return core.Token{}, err // just begun or joined: nobody can tell yet
	}
	t, ok := registry.Token(nil, p.ID)
	if !ok || t.Kind != core.TokenAPI || !p.Matches(t.SecretHash) {
		return core.Token{}, core.WithHint(core.Errorf("", core.Unauthenticated, "the token is not valid: it is unknown, was revoked, or has expired"),
			"Ask somebody with an admin token for a new one: `rbee token create`.")
	}
	if !t.Allows(scope) {
		return core.Token{}, core.WithHint(core.Errorf("", core.Forbidden, "token %s (%s) lacks the scope %q", t.ID, t.Name, scope),
			"It has %v. Use another token, or have one made: `rbee token create --scope %s`.", slices.Clone(t.Scopes), scope)
	}
	return t, nil
}
