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

// ending is something of a token that is over after a while.
type ending struct {
	key     string // another one for each such time
	life    time.Duration
	began   time.Time // by the wall's clock
	index   uint64    // raft index that it began at
	command *raftv1.Command
	done    string // for the log
}

// endingsOf returns what is to end of a token.
func endingsOf(t core.Token) []ending {
	var out []ending
	life := time.Duration(t.TTL)
	if t.UsedBy != "" {
		life += usedTokenStays
	}
	if life > 0 {
		// Its use gives a join token another end.
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

// Expire deletes tokens, and former secrets of tokens, when their time is over. Only the leader
// looks at a clock, and at the wall's only once, when it takes over: from then on a token lives by
// the monotonic clock, so that a wall clock that jumps expires nothing.
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
					if e.index <= before { // it was there before this queen led: nothing but the wall clock tells for how long
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

// end ends what is over and returns when to look again.
func (k *Keeper) end(ctx context.Context, t core.Token, e ending, at time.Time) time.Duration {
	if wait := time.Until(at); wait > 0 {
		return wait
	}
	if err := k.registry.Write(ctx, "expire token "+t.ID, e.command); err != nil {
		if ctx.Err() == nil {
			k.log.Error("cannot end a token whose time is over, trying again", "token", t.ID, "error", err)
		}
		return tokenRetry
	}
	k.log.Info(e.done, "token", t.ID, "name", t.Name)
	return maxTokenTimeout
}
