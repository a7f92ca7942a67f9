package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// scopeOpen is the scope of routes that need no token: probes of load balancers have none.
const scopeOpen core.Scope = "open"

const (
	maxToken = 512 // bytes; longer tokens are refused unchecked

	// codeBadToken is OpenAI's error code for a missing or wrong key.
	codeBadToken = "invalid_api_key"
	// codeManyBadTokens is the error code for a client that sent too many wrong tokens.
	codeManyBadTokens = "too_many_bad_tokens"

	tokenHint = "Send one as `Authorization: Bearer …`; the CLI takes it from RBEE_TOKEN. `rbee token create` makes one."
)

// The reasons for refusals, as metric labels.
const (
	refusedHost    = "host"
	refusedOrigin  = "origin"
	refusedNoToken = "no_token"
	refusedToken   = "bad_token"
	refusedScope   = "missing_scope"
	refusedGuesses = "too_many_bad_tokens"
)

// authorize returns an error unless the request may use a route that requires the scope. The error
// contains no part of the token, and nothing that the Authorizer reports about it: errors end up in
// logs of clients.
func (g *Gateway) authorize(w *response, r *http.Request, need core.Scope) error {
	if g.o.Auth == nil || need == scopeOpen {
		return nil
	}
	token := tokenOf(r.Header)
	if token == "" {
		g.metrics.refused.WithLabelValues(refusedNoToken).Inc()
		w.Header().Set("WWW-Authenticate", `Bearer realm="rbee"`)
		return &apiError{code: codeBadToken, err: core.Errorf(core.Unauthenticated, "a token is needed").Hint(tokenHint)}
	}
	known, err := g.authority(r.Context(), token, need)
	switch kind := core.KindOf(err); kind {
	case "":
		w.key, w.by, w.token = known.ID, known.Name, known
		return nil
	case core.Unauthenticated:
		// Only after the check: a valid token is admitted even if it shares its address with an
		// attacker. Guessing one of 160 random bits is infeasible.
		if wait := g.guesses.wrong(clientOf(r), time.Now()); wait > 0 {
			g.metrics.refused.WithLabelValues(refusedGuesses).Inc()
			return &apiError{code: codeManyBadTokens, retryAfter: int(wait/time.Second) + 1, err: core.Errorf(core.Overloaded, "too many wrong tokens came from this address").Hint("Wait before you try another one.")}
		}
		g.metrics.refused.WithLabelValues(refusedToken).Inc()
		w.Header().Set("WWW-Authenticate", `Bearer realm="rbee", error="invalid_token"`)
		problem, hint := "the token is not known: it is wrong, has expired, or was revoked", tokenHint
		if strings.HasPrefix(token, "rbeejoin_") {
			problem, hint = "the token takes machines into the cluster and opens no API", "Use one of `rbee token create --type api`."
		}
		return &apiError{code: codeBadToken, err: core.Errorf(core.Unauthenticated, "%s", problem).Hint("%s", hint)}
	case core.Forbidden:
		g.metrics.refused.WithLabelValues(refusedScope).Inc()
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="rbee", error="insufficient_scope", scope="%s"`, need))
		return core.Errorf(core.Forbidden, "the token does not have the scope %q", need).Hint("Use a token that has it: `rbee token create` makes one.")
	default:
		problem := "the token could not be checked"
		if kind == core.Unavailable {
			problem += ": this queen has just started, or has no contact with a leader"
		}
		return core.Errorf(kind, "%s", problem).Hint("Ask again in a moment, or ask another queen.")
	}
}

// authority asks the Authorizer, unless the token is evidently invalid.
func (g *Gateway) authority(ctx context.Context, token string, need core.Scope) (core.Token, error) {
	if len(token) > maxToken {
		return core.Token{}, core.Errorf(core.Unauthenticated, "the token is too long").Hint("%s", tokenHint)
	}
	return g.o.Auth.Authorize(ctx, token, need)
}

// tokenOf returns the token of a request, from its headers only: URLs end up in logs and histories.
// Some clients of other APIs send x-api-key. Malformed headers yield a token that never exists.
func tokenOf(h http.Header) string {
	const nobodys = "?"
	values, keys := h["Authorization"], h["X-Api-Key"]
	switch {
	case len(values) > 1 || len(keys) > 1:
		return nobodys
	case len(values) == 1 && values[0] != "":
		scheme, token, _ := strings.Cut(values[0], " ")
		if token = strings.TrimSpace(token); strings.EqualFold(scheme, "Bearer") {
			return token
		}
		return nobodys
	case len(keys) == 1:
		return strings.TrimSpace(keys[0])
	}
	return ""
}
