package tokens

import (
	"context"
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
	usedTokenStays  = 24 * time.Hour // how long a used join token is kept, to show which node used it
	maxTokenTimeout = 365 * 24 * time.Hour
)

// Tokens lists the tokens of the registry, without their secrets.
func (k *Keeper) Tokens(context.Context) ([]core.Token, error) {
	if k.registry.Alone() {
		return nil, registry.ErrAlone()
	}
	return k.registry.View().Tokens(nil), nil
}

// CreateToken creates a token. Its secret is in the answer and nowhere else. Errors: Invalid,
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
		Limits: r.Limits, Priority: r.Priority,
	}
	if t.Models, err = k.targets(ctx, r.Models); err != nil {
		return core.NewToken{}, err
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

// targets returns the ids of the models that a token request names. Changing an alias later does
// not change which models the token may use. Errors: NotFound for an unknown model.
func (k *Keeper) targets(ctx context.Context, names []string) ([]string, error) {
	var ids []string
	for _, name := range names {
		id := name
		if k.opts.Target != nil {
			var err error
			if id, err = k.opts.Target(ctx, name); err != nil {
				return nil, err
			}
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// RotateToken replaces the secret of an API token, named by its id, a unique prefix of it or its
// name. The new secret is in the answer and nowhere else. Errors: NotFound, Invalid, Conflict,
// Unavailable.
func (k *Keeper) RotateToken(ctx context.Context, id string, r core.RotateRequest) (core.NewToken, error) {
	if k.registry.Alone() {
		return core.NewToken{}, registry.ErrAlone()
	}
	overlap := core.DefaultTokenOverlap
	if r.Overlap != nil {
		overlap = time.Duration(*r.Overlap)
	}
	if overlap < 0 || overlap > core.MaxTokenOverlap || overlap%time.Second != 0 {
		return core.NewToken{}, core.Errorf(core.Invalid, "a former secret cannot be accepted for %s", overlap).Hint(
			"Write whole seconds, up to 720h; with 0 it is refused at once.")
	}
	if err := k.registry.CatchUp(ctx); err != nil {
		return core.NewToken{}, err
	}
	t, err := tokenNamed(k.registry.View(), id)
	if err != nil {
		return core.NewToken{}, err
	}
	if t.Kind != core.TokenAPI {
		return core.NewToken{}, core.Errorf(core.Conflict, "%s is a join token, which is used once", t.ID).Hint("Make a new one: `rbee token create --type join`.")
	}
	hash, text := token.Renew(t.ID)
	if err := k.registry.Write(ctx, "rotate token "+t.ID, fsm.RotateToken(t.ID, hash, overlap)); err != nil {
		return core.NewToken{}, err
	}
	if now, ok := k.registry.View().Token(nil, t.ID); ok {
		t = now
	}
	k.log.Info("token has a new secret", "token", t.ID, "name", t.Name, "overlap", overlap)
	return core.NewToken{Token: t, Secret: text}, nil
}

// checkTokenRequest validates a token request and fills in the defaults.
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
		return checkBounds(r)
	case core.TokenJoin:
		if len(r.Models) > 0 || len(r.Limits) > 0 || r.Priority != core.PriorityNormal {
			return invalid("They are for API tokens.", "a join token has no models, limits or priority")
		}
		if len(r.Scopes) > 0 {
			return invalid("Scopes are for API tokens.", "a join token has no scopes")
		}
		switch {
		case len(r.Roles) == 0:
			r.Roles = []core.Role{core.RoleHive}
		case slices.Contains(r.Roles, core.RoleQueen):
			// A queen can sign any certificate: denying it the role of a hive would protect
			// nothing.
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

// checkBounds validates the limits of an API token.
func checkBounds(r *core.TokenRequest) error {
	var err error
	if r.Priority, err = core.ParsePriority(string(r.Priority)); err != nil {
		return err
	}
	if err := core.CheckLimits(r.Limits); err != nil {
		return err
	}
	if len(r.Models) > core.MaxTokenModels {
		return core.Errorf(core.Invalid, "a token names at most %d models, not %d", core.MaxTokenModels, len(r.Models)).Hint("Leave them out: then it may ask all.")
	}
	if len(r.Models) == 0 && len(r.Limits) == 0 {
		return nil
	}
	// A token with scope operate can use models through jobs, and an administrator can create
	// tokens.
	if slices.Contains(r.Scopes, core.ScopeOperate) || slices.Contains(r.Scopes, core.ScopeAdmin) || !slices.Contains(r.Scopes, core.ScopeInfer) {
		return core.Errorf(core.Invalid, "models and limits are for tokens with the scope infer, alone or with read").Hint(
			"A token with operate or admin could lift its own limits: make two tokens.")
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
	return core.Token{}, core.Errorf(core.Conflict, "%d tokens match that name or id prefix", len(found)).Hint("Write the whole id: `rbee token list`.")
}
