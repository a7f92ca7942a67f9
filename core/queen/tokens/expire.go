package tokens

import (
	"context"
	"maps"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// ending is a part of a token that expires.
type ending struct {
	key     string // unique per expiry
	life    time.Duration
	began   time.Time // by the wall clock
	index   uint64    // raft index at the start
	command *raftv1.Command
	done    string // for the log
}

// endingsOf returns the parts of a token that will expire.
func endingsOf(t core.Token) []ending {
	var out []ending
	life := time.Duration(t.TTL)
	if t.UsedBy != "" {
		life += usedTokenStays
	}
	if life > 0 {
		// Using a join token changes its expiry.
		out = append(out, ending{t.ID + "/" + t.UsedBy, life, t.CreatedAt, t.CreateIndex, fsm.DeleteToken(t.ID), "token expired"})
	}
	if t.Overlap > 0 {
		out = append(out, ending{
			t.ID + "/secret/" + string(t.PreviousSecretHash), time.Duration(t.Overlap), t.RotatedAt, t.ModifyIndex,
			fsm.EndOverlap(t.ID, t.PreviousSecretHash), "former secret of a token expired",
		})
	}
	return out
}

// Expire deletes tokens, and former secrets of tokens, when they expire. Only the leader looks at a
// clock, and at the wall clock only once, when it takes over: from then on tokens live by the
// monotonic clock, so that a jump of the wall clock expires nothing.
func (k *Keeper) Expire(ctx context.Context) error {
	deadlines := map[string]time.Time{}
	before := k.registry.View().AppliedIndex()
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		next := maxTokenTimeout
		there := map[string]bool{}
		for _, t := range k.registry.View().Tokens(ws) {
			for _, e := range endingsOf(t) {
				there[e.key] = true
				at, ok := deadlines[e.key]
				if !ok {
					left := e.life
					if e.index <= before { // it predates this leadership: only the wall clock can tell its age
						left = min(max(e.life-k.opts.Now().Sub(e.began), 0), e.life)
					}
					at = time.Now().Add(left)
					deadlines[e.key] = at
				}
				next = min(next, k.end(ctx, t, e, at))
			}
		}
		maps.DeleteFunc(deadlines, func(key string, _ time.Time) bool { return !there[key] })
		_ = registry.WaitUntil(ctx, ws, time.Now().Add(next))
	}
	return nil
}

// end ends what has expired and returns when to check again.
func (k *Keeper) end(ctx context.Context, t core.Token, e ending, at time.Time) time.Duration {
	if wait := time.Until(at); wait > 0 {
		return wait
	}
	if err := k.registry.Write(ctx, "expire token "+t.ID, e.command); err != nil {
		if ctx.Err() == nil {
			k.log.Error("failed to expire a token, retrying", "token", t.ID, "error", err)
		}
		return tokenRetry
	}
	k.log.Info(e.done, "token", t.ID, "name", t.Name)
	return maxTokenTimeout
}
