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
	// ContactLost is the time without a word of a leader after which a queen no longer takes its
	// registry's word for a token. An election is over long before.
	ContactLost = 10 * time.Second
)

// Authorize says whose an API token is. A token that this queen's replica has is looked up there
// alone. One that it does not have may have been made at another queen a moment ago: the queen
// catches up with the leader before it refuses it. A queen that has heard of no leader for
// ContactLost would not hear of a revocation either: it takes a token only for
// Options.Grace after it proved it last. Errors: Unauthenticated for a token that is
// unknown, revoked or for something else; Forbidden when it lacks the scope; Unavailable when this
// queen cannot tell. No error tells anything of the token.
func (k *Keeper) Authorize(ctx context.Context, text string, scope core.Scope) (core.Token, error) {
	p, err := token.Parse(text)
	if err != nil || p.Kind != core.TokenAPI {
		return core.Token{}, core.Errorf(core.Unauthenticated, "this is not an API token").Hint(
			"Send one that `rbee token create` made; a join token only takes a machine into the cluster.")
	}
	if _, err := k.registry.Cluster(); err != nil {
		return core.Token{}, err // just begun or joined: nobody can tell yet
	}
	t, ok := k.known(p)
	if !ok { // it, or its new secret, may be from another queen, a moment ago
		if err := k.catchUpTogether(ctx); err != nil {
			return core.Token{}, core.Errorf(core.Unavailable, "this queen does not know the token, and no leader says whether there is one").Hint(
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

// known returns the API token that the replica has with this very secret, or the one before it.
func (k *Keeper) known(p token.Parsed) (core.Token, bool) {
	t, ok := k.registry.View().Token(nil, p.ID)
	return t, ok && t.Kind == core.TokenAPI && (p.Matches(t.SecretHash) || p.Matches(t.PreviousSecretHash))
}

// proofs is when a queen last took a token while it was in contact with a leader.
type proofs struct {
	mu     sync.Mutex // guards below
	at     map[string]time.Time
	warned bool // that it is out of contact
}

// proved reports why a token that the registry has may not be taken: out of contact it must have
// been proved lately. What the registry had when this queen started counts as proved then. Errors:
// Unavailable.
func (k *Keeper) proved(id string) error {
	now := time.Now()
	cut, silence := k.outOfContact()
	p := &k.proofs
	p.mu.Lock()
	if p.at == nil || !cut && len(p.at) > 2*maxTokens { // most of them are of tokens that are gone
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
		k.log.Warn("no contact with a leader: tokens are taken only if they were proved lately", "silence", silence.Round(time.Second), "grace", k.grace())
	case news:
		k.log.Info("in contact with a leader again: all tokens of the registry are taken")
	}
	if !ok {
		last = k.since
	}
	if cut && now.Sub(last) > k.grace() {
		return core.Errorf(core.Unavailable, "this queen has been without a leader for %s and no longer takes tokens that it has not proved for %s",
			silence.Round(time.Second), k.grace()).Hint("Ask another queen. `rbee status` there says what is missing; `rbee operator setting set token_grace` is for how long.")
	}
	return nil
}

// grace returns for how long this queen takes a token after it proved it last while it is out of
// contact: the cluster's setting as its replica has it, or else the queen's own.
func (k *Keeper) grace() time.Duration {
	if grace, set := registry.Setting(k.registry, setting.TokenGrace); set {
		return grace
	}
	return k.opts.Grace
}

// outOfContact reports whether this queen would hear of no revocation, and for how long it has
// heard of no leader.
func (k *Keeper) outOfContact() (bool, time.Duration) {
	silence := k.registry.Silence()
	return silence > ContactLost, silence
}

// Problem says in the status that this queen is out of contact; empty: it is not.
func (k *Keeper) Problem() string {
	cut, silence := k.outOfContact()
	if !cut {
		return ""
	}
	return fmt.Sprintf("the queen that answers has been without a leader for %s: it takes only tokens that it proved within %s", silence.Round(time.Second), k.grace())
}

// catchUps has many callers catch up with the leader at once by one question to it.
type catchUps struct {
	turn  chan struct{} // full while somebody asks; guards below
	began time.Time     // when the latest question that was answered was asked
}

// catchUpTogether is catchUp for requests of whoever reaches the API: however many come, one
// question at a time goes to the leader. It takes at most registry.LookPatience.
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
