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
	maxToken = 512 // bytes of a token that is worth a look

	// codeBadToken is OpenAI's code of a key that is missing or wrong.
	codeBadToken = "invalid_api_key"
	// codeManyBadTokens is the code of an answer to one who has sent too many of them.
	codeManyBadTokens = "too_many_bad_tokens"

	tokenHint = "Send one as `Authorization: Bearer …`; the CLI takes it from RBEE_TOKEN. `rbee token create` makes one."
)

// The reasons of refusals, as metrics tell them.
const (
	refusedHost    = "host"
	refusedOrigin  = "origin"
	refusedNoToken = "no_token"
	refusedToken   = "bad_token"
	refusedScope   = "missing_scope"
	refusedGuesses = "too_many_bad_tokens"
)

// authorize reports why a request may not go to a route that needs a scope; nil where it may. No
// part of a token, and nothing that the Authorizer says of a token, is in the error: both end in
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
		// Only now: a right token is let in whoever shares its address. Nobody guesses one of 160
		// random bits.
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

// authority asks the Authorizer, unless the token is none on sight.
func (g *Gateway) authority(ctx context.Context, token string, need core.Scope) (core.Token, error) {
	if len(token) > maxToken {
		return core.Token{}, core.Errorf(core.Unauthenticated, "the token is too long").Hint("%s", tokenHint)
	}
	return g.o.Auth.Authorize(ctx, token, need)
}

// tokenOf is the token of a request, from its headers alone: addresses end in logs and histories.
// Some clients of other APIs send x-api-key. What cannot be a token gives one that nobody has.
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
