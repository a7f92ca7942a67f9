package tokens

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	defaultJoinTTL  = time.Hour
	maxJoinTTL      = 24 * time.Hour
	maxTokenTTL     = 10 * 365 * 24 * time.Hour
	maxTokens       = 10000
	maxTokenName    = 100
	tokenRetry      = time.Second
	usedTokenStays  = 24 * time.Hour // a used join token is kept so long, to say by whom it was used
	maxTokenTimeout = 365 * 24 * time.Hour
)

// Tokens lists the tokens of the registry, without their secrets.
func (k *Keeper) Tokens(context.Context) ([]core.Token, error) {
	if k.registry.Alone() {
		return nil, registry.ErrAlone()
	}
	return k.registry.View().Tokens(nil), nil
}

// CreateToken makes a token. Its secret is in the answer and nowhere else. Errors: Invalid,
// TooLarge, Unsupported, Unavailable.
func (k *Keeper) CreateToken(ctx context.Context, r core.TokenRequest) (core.NewToken, error) {
	if k.registry.Alone() {
		return core.NewToken{}, registry.ErrAlone()
	}
	s := k.registry.View()
	c, err := k.registry.Cluster()
	if err != nil {
		return core.NewToken{}, err
	}
	if err := checkTokenRequest(&r); err != nil {
		return core.NewToken{}, err
	}
	if len(s.Tokens(nil)) >= maxTokens {
		return core.NewToken{}, core.Errorf(core.TooLarge, "there are %d tokens already", maxTokens).Hint("Revoke those that nobody uses: `rbee token list`, `rbee token revoke`.")
	}
	t := core.Token{
		Name: r.Name, Kind: r.Kind, Scopes: r.Scopes, Roles: r.Roles, CreatedAt: k.opts.Now().UTC().Truncate(time.Second), TTL: r.TTL,
	}
	var text string
	if r.Kind == core.TokenJoin {
		if len(c.SealedCAKey) == 0 {
			return core.NewToken{}, registry.ErrNoCAKey()
		}
		fingerprint, err := pki.Fingerprint(c.CACertificates)
		if err != nil {
			return core.NewToken{}, err
		}
		t.ID, t.SecretHash, text = token.NewJoin(fingerprint)
	} else {
		t.ID, t.SecretHash, text = token.New()
	}
	if err := k.registry.Write(ctx, "token "+t.ID, fsm.PutToken(t)); err != nil {
		return core.NewToken{}, err
	}
	k.log.Info("token created", "token", t.ID, "kind", t.Kind, "name", t.Name)
	return core.NewToken{Token: t, Secret: text}, nil
}

// checkTokenRequest also fills in the defaults.
func checkTokenRequest(r *core.TokenRequest) error {
	invalid := func(hint, format string, args ...any) error {
		return core.Errorf(core.Invalid, format, args...).Hint("%s", hint)
	}
	if len(r.Name) > maxTokenName || !utf8.ValidString(r.Name) || strings.ContainsFunc(r.Name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return invalid("Use up to 100 printable characters.", "the name of a token is too long or not printable")
	}
	if r.TTL < 0 || time.Duration(r.TTL) > maxTokenTTL || time.Duration(r.TTL)%time.Second != 0 {
		return invalid("Write whole seconds, such as 1h, up to ten years; an API token with 0 is for ever.", "a token cannot live %s", time.Duration(r.TTL))
	}
	switch r.Kind {
	case core.TokenAPI:
		if len(r.Scopes) == 0 {
			return invalid("Give one or more of infer, read, operate, admin.", "an API token without a scope allows nothing")
		}
		if len(r.Roles) > 0 {
			return invalid("Roles are for join tokens.", "an API token has no roles")
		}
		for _, s := range r.Scopes {
			if !slices.Contains(core.Scopes(), s) {
				return invalid("The scopes are infer, read, operate and admin.", "there is no scope %q", s)
			}
		}
		slices.SortFunc(r.Scopes, func(a, b core.Scope) int { return slices.Index(core.Scopes(), a) - slices.Index(core.Scopes(), b) })
		r.Scopes = slices.Compact(r.Scopes)
	case core.TokenJoin:
		if len(r.Scopes) > 0 {
			return invalid("Scopes are for API tokens.", "a join token has no scopes")
		}
		switch {
		case len(r.Roles) == 0:
			r.Roles = []core.Role{core.RoleHive}
		case slices.Contains(r.Roles, core.RoleQueen):
			// A queen can sign whatever certificate it likes: to keep it from running workers would
			// keep nothing.
			r.Roles = append(r.Roles, core.RoleHive)
		}
		for _, role := range r.Roles {
			if role != core.RoleQueen && role != core.RoleHive {
				return invalid("The roles are queen and hive.", "there is no role %q", role)
			}
		}
		slices.Sort(r.Roles)
		r.Roles = slices.Compact(r.Roles)
		if r.TTL == 0 {
			r.TTL = core.Duration(defaultJoinTTL)
		}
		if time.Duration(r.TTL) > maxJoinTTL {
			return invalid("At most 24h; it is used within minutes, as a rule.", "a join token cannot live %s", time.Duration(r.TTL))
		}
	default:
		return invalid(`It is "api" or "join".`, "there is no kind of token %q", r.Kind)
	}
	return nil
}

// RevokeToken deletes a token, named by its id or a unique prefix of it. Errors: NotFound,
// Conflict, Unavailable.
func (k *Keeper) RevokeToken(ctx context.Context, id string) (core.Token, error) {
	if k.registry.Alone() {
		return core.Token{}, registry.ErrAlone()
	}
	if err := k.registry.CatchUp(ctx); err != nil {
		return core.Token{}, err
	}
	t, err := tokenNamed(k.registry.View(), id)
	if err != nil {
		return core.Token{}, err
	}
	if err := k.registry.Write(ctx, "revoke token "+t.ID, fsm.RevokeToken(t.ID)); err != nil {
		return core.Token{}, err
	}
	k.log.Info("token revoked", "token", t.ID, "name", t.Name)
	return t, nil
}

func tokenNamed(s *state.Snapshot, id string) (core.Token, error) {
	if t, ok := s.Token(nil, id); ok && id != "" {
		return t, nil
	}
	var found []core.Token
	var ids []string
	for _, t := range s.Tokens(nil) {
		ids = append(ids, t.ID)
		if id != "" && (strings.HasPrefix(t.ID, id) || t.Name == id) {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return core.Token{}, core.Errorf(core.NotFound, "there is no token %q", token.Clip(id)).Hint("%sSee all with `rbee token list`.", core.NearestHint(id, ids))
	}
	return core.Token{}, core.Errorf(core.Conflict, "%d tokens are named so, or have an id that begins so", len(found)).Hint("Write the whole id: `rbee token list`.")
}

// Expire deletes tokens when their time is over. Only the leader looks at a clock, and at the
// wall's only once, when it takes over: from then on a token lives by the monotonic clock, so that
// a wall clock that jumps expires nothing.
func (k *Keeper) Expire(ctx context.Context) error {
	deadlines := map[string]time.Time{}
	before := k.registry.View().AppliedIndex()
	timer := time.NewTimer(maxTokenTimeout)
	defer timer.Stop()
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		next := maxTokenTimeout
		there := map[string]bool{}
		for _, t := range k.registry.View().Tokens(ws) {
			ttl := time.Duration(t.TTL)
			if t.UsedBy != "" {
				ttl += usedTokenStays
			}
			if ttl == 0 {
				continue
			}
			key := t.ID + "/" + t.UsedBy // its use gives a join token another end
			there[key] = true
			at, ok := deadlines[key]
			if !ok {
				left := ttl
				if t.CreateIndex <= before { // it was there before this queen led: nothing but the wall clock tells for how long
					left = min(max(ttl-k.opts.Now().Sub(t.CreatedAt), 0), ttl)
				}
				at = time.Now().Add(left)
				deadlines[key] = at
			}
			if wait := time.Until(at); wait > 0 {
				next = min(next, wait)
				continue
			}
			if err := k.registry.Write(ctx, "expire token "+t.ID, fsm.DeleteToken(t.ID)); err != nil {
				if ctx.Err() == nil {
					k.log.Error("cannot delete a token whose time is over, trying again", "token", t.ID, "error", err)
				}
				next = min(next, tokenRetry)
				continue
			}
			k.log.Info("token expired", "token", t.ID, "name", t.Name)
		}
		maps.DeleteFunc(deadlines, func(key string, _ time.Time) bool { return !there[key] })
		_ = registry.WaitUntil(ctx, ws, time.Now().Add(next))
	}
	return nil
}
