package tokens

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

const (
	// tellUses is how often a queen checks whether to report the use of tokens to the registry.
	tellUses = time.Minute
	// tellTimeout bounds the write: a queen that cannot write now retries the next time.
	tellTimeout = 10 * time.Second
)

// uses holds the times when this queen last accepted tokens, by Token.ID.
type uses struct {
	mu sync.Mutex // guards below
	at map[string]time.Time
}

// note records the use of a token that the registry has.
func (u *uses) note(id string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at == nil {
		u.at = map[string]time.Time{}
	}
	u.at[id] = now
}

// Run reports the use of tokens to the registry until ctx ends. Requests write nothing: the last
// use of a token in constant use is written once per core.TokenUsePrecision, together with those of
// all others, and not at all while there is no leader.
func (k *Keeper) Run(ctx context.Context) {
	t := time.NewTicker(tellUses)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			k.tell(ctx)
		}
	}
}

// tell writes the uses that the registry should have.
func (k *Keeper) tell(ctx context.Context) {
	if k.registry.Alone() {
		return
	}
	view := k.registry.View()
	due := map[string]time.Time{}
	k.uses.mu.Lock()
	for id, at := range k.uses.at {
		t, ok := view.Token(nil, id)
		switch {
		case !ok:
			delete(k.uses.at, id)
		case at.Sub(t.LastUsedAt) >= core.TokenUsePrecision && len(due) < fsm.MaxTokenUses:
			due[id] = at
		}
	}
	k.uses.mu.Unlock()
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := k.registry.Write(ctx, "uses of tokens", fsm.TouchTokens(due)); err != nil {
		k.log.Debug("failed to record the use of tokens", "error", err)
		return
	}
	// Entries updated meanwhile stay for the next time.
	k.uses.mu.Lock()
	defer k.uses.mu.Unlock()
	maps.DeleteFunc(k.uses.at, func(id string, at time.Time) bool { return at.Equal(due[id]) })
}
