package tokens

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/setting"
	"github.com/rbee-project/rbee/core/token"
)

const (
	// ContactLost is how long a queen without contact to a leader still relies on its replica of
	// the tokens. An election takes far less.
	ContactLost = 10 * time.Second
)

// Authorize returns the API token that a text belongs to. A token in this queen's replica is looked
// up only there. One that is missing may just have been created at another queen: the queen catches
// up with the leader before it refuses it. A queen out of contact with any leader for ContactLost
// would not learn of a revocation either: it accepts a token only for Options.Grace after its last
// verification. Errors: Unauthenticated for a token that is unknown, revoked or of another kind;
// Forbidden if it lacks the scope; Unavailable if this queen cannot decide. No error reveals
// anything about the token.
func (k *Keeper) Authorize(ctx context.Context, text string, scope core.Scope) (core.Token, error) {
	p, err := token.Parse(text)
	if err != nil || p.Kind != core.TokenAPI {
		return core.Token{}, core.Errorf(core.Unauthenticated, "this is not an API token").Hint(
			"Send one that `rbee token create` made; a join token only takes a machine into the cluster.")
	}
	if _, err := k.registry.Cluster(); err != nil {
		return core.Token{}, err // just started or joined: it cannot decide yet
	}
	t, ok := k.known(p)
	if !ok { // the token, or its new secret, may just have been created at another queen
		if err := k.catchUpTogether(ctx); err != nil {
			return core.Token{}, core.Errorf(core.Unavailable, "this queen does not know the token, and no leader can confirm it").Hint(
				"Ask again in a moment, or ask another queen.")
		}
		t, ok = k.known(p)
	}
	if !ok {
		return core.Token{}, core.Errorf(core.Unauthenticated, "the token is not valid: it is unknown, was revoked, or has expired").Hint(
			"Ask somebody with an admin token for a new one: `rbee token create`.")
	}
	if err := k.proved(t.ID); err != nil {
		return core.Token{}, err
	}
	k.uses.note(t.ID, k.opts.Now())
	if scope != core.ScopeAny && !t.Allows(scope) {
		return core.Token{}, core.Errorf(core.Forbidden, "token %s (%s) lacks the scope %q", t.ID, t.Name, scope).Hint(
			"It has %v. Use another token, or have one made: `rbee token create --scope %s`.", slices.Clone(t.Scopes), scope)
	}
	return t, nil
}

// known returns the replica's API token if the secret matches its current or previous one.
func (k *Keeper) known(p token.Parsed) (core.Token, bool) {
	t, ok := k.registry.View().Token(nil, p.ID)
	return t, ok && t.Kind == core.TokenAPI && (p.Matches(t.SecretHash) || p.Matches(t.PreviousSecretHash))
}

// proofs records when a queen last verified each token while in contact with a leader.
type proofs struct {
	mu     sync.Mutex // guards below
	at     map[string]time.Time
	warned bool // logged that it is out of contact
}

// proved returns an error if a registered token may not be accepted: out of contact it must have
// been verified recently. Tokens in the registry when this queen started count as verified then.
// Errors: Unavailable.
func (k *Keeper) proved(id string) error {
	now := time.Now()
	cut, silence := k.outOfContact()
	p := &k.proofs
	p.mu.Lock()
	if p.at == nil || !cut && len(p.at) > 2*maxTokens { // most entries belong to deleted tokens
		p.at = map[string]time.Time{}
	}
	last, ok := p.at[id]
	if !cut {
		p.at[id] = now
	}
	news := p.warned != cut
	p.warned = cut
	p.mu.Unlock()
	switch {
	case news && cut:
		k.log.Warn("no contact with a leader: tokens are accepted only if verified recently", "silence", silence.Round(time.Second), "grace", k.grace())
	case news:
		k.log.Info("in contact with a leader again: all tokens of the registry are accepted")
	}
	if !ok {
		last = k.since
	}
	if cut && now.Sub(last) > k.grace() {
		return core.Errorf(core.Unavailable, "this queen has been without a leader for %s and no longer accepts tokens that it has not verified for %s",
			silence.Round(time.Second), k.grace()).Hint("Ask another queen. `rbee status` there says what is missing; `rbee operator setting set token_grace` is for how long.")
	}
	return nil
}

// grace returns how long this queen accepts a token after its last verification while out of
// contact: the cluster's setting as in its replica, or else the queen's own option.
func (k *Keeper) grace() time.Duration {
	if grace, set := registry.Setting(k.registry, setting.TokenGrace); set {
		return grace
	}
	return k.opts.Grace
}

// outOfContact reports whether this queen would miss a revocation, and how long it has heard from
// no leader.
func (k *Keeper) outOfContact() (bool, time.Duration) {
	silence := k.registry.Silence()
	return silence > ContactLost, silence
}

// Problem returns a status text if this queen is out of contact; empty: it is not.
func (k *Keeper) Problem() string {
	cut, silence := k.outOfContact()
	if !cut {
		return ""
	}
	return fmt.Sprintf("the queen that answers has been without a leader for %s: it accepts only tokens that it verified within %s", silence.Round(time.Second), k.grace())
}

// catchUps merges the catch-ups of concurrent callers into one call to the leader.
type catchUps struct {
	turn  chan struct{} // full while a call runs; guards below
	began time.Time     // start of the latest successful call
}

// catchUpTogether is catchUp for requests from any API client: however many arrive, only one call
// at a time goes to the leader. It takes at most registry.LookPatience.
func (k *Keeper) catchUpTogether(ctx context.Context) error {
	arrived := time.Now()
	ctx, cancel := context.WithTimeout(ctx, registry.LookPatience)
	defer cancel()
	c := &k.catching
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.turn }()
	if c.began.After(arrived) { // by another caller, meanwhile
		return nil
	}
	began := time.Now()
	if err := k.registry.CatchUp(ctx); err != nil {
		return err
	}
	c.began = began
	return nil
}
