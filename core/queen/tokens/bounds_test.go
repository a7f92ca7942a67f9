package tokens

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/fsm"
)

func (k *keeper) apiToken(change ...func(*core.TokenRequest)) core.NewToken {
	k.t.Helper()
	r := core.TokenRequest{Kind: core.TokenAPI, Name: "ci", Scopes: []core.Scope{core.ScopeInfer}}
	for _, f := range change {
		f(&r)
	}
	made, err := k.CreateToken(k.t.Context(), r)
	must.NoError(k.t, err)
	return made
}

func (k *keeper) taken(text string) bool {
	k.t.Helper()
	_, err := k.Authorize(k.t.Context(), text, core.ScopeInfer)
	if err != nil {
		must.Eq(k.t, core.Unauthenticated, core.KindOf(err))
	}
	return err == nil
}

func TestTokenOfModels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, func(o *Options) {
			o.Target = func(_ context.Context, name string) (string, error) {
				switch name {
				case "gpt", "hf.co/a/b:Q4", "b":
					return "hf.co/a/b:Q4", nil
				}
				return "", core.Errorf(core.NotFound, "no model %q", name).Hint("b")
			}
		})
		made := k.apiToken(func(r *core.TokenRequest) {
			r.Models, r.Priority = []string{"gpt", "b"}, "normal"
			r.Limits = []core.Limit{{Of: core.LimitRequests, Count: 100, Per: time.Minute}}
		})
		must.Eq(t, []string{"hf.co/a/b:Q4"}, made.Models, must.Sprint("an alias means the model that it has now"))
		must.Eq(t, core.PriorityNormal, made.Priority)
		known, err := k.Authorize(t.Context(), made.Secret, core.ScopeAny)
		must.NoError(t, err)
		must.Eq(t, made.Limits, known.Limits)
		must.True(t, known.MayAsk("hf.co/a/b:Q4"))
		must.False(t, known.MayAsk("other"))

		_, err = k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, Models: []string{"nothing"}})
		mustFail(t, err, core.NotFound)
		for _, scopes := range [][]core.Scope{{core.ScopeInfer, core.ScopeOperate}, {core.ScopeInfer, core.ScopeAdmin}, {core.ScopeRead}} {
			_, err := k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: scopes, Models: []string{"b"}})
			mustFail(t, err, core.Invalid, "models and limits are for tokens with the scope infer")
			_, err = k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: scopes, Limits: made.Limits})
			mustFail(t, err, core.Invalid, "lift its own limits")
		}
		_, err = k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenJoin, Models: made.Models})
		mustFail(t, err, core.Invalid, "a join token has no models")
		_, err = k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, Priority: "urgent"})
		mustFail(t, err, core.Invalid, "low, normal or high")
	})
}

// Both secrets are accepted during the overlap, by the leader's clock, and only the new one after
// it.
func TestRotate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t)
		made := k.apiToken(func(r *core.TokenRequest) { r.TTL = core.Duration(30 * 24 * time.Hour) })
		overlap := core.Duration(time.Hour)
		renewed, err := k.RotateToken(t.Context(), made.ID[:6], core.RotateRequest{Overlap: &overlap})
		must.NoError(t, err)
		must.Eq(t, made.ID, renewed.ID)
		must.Eq(t, made.TTL, renewed.TTL)
		must.Eq(t, overlap, renewed.Overlap)
		must.NotEq(t, made.Secret, renewed.Secret)
		must.True(t, k.taken(made.Secret))
		must.True(t, k.taken(renewed.Secret))

		time.Sleep(time.Hour - time.Second)
		must.True(t, k.taken(made.Secret))
		time.Sleep(2 * time.Second)
		must.False(t, k.taken(made.Secret))
		must.True(t, k.taken(renewed.Secret))

		again, err := k.RotateToken(t.Context(), "ci", core.RotateRequest{})
		must.NoError(t, err)
		must.Eq(t, core.Duration(core.DefaultTokenOverlap), again.Overlap)
		last, err := k.RotateToken(t.Context(), made.ID, core.RotateRequest{Overlap: new(core.Duration)})
		must.NoError(t, err)
		must.False(t, k.taken(renewed.Secret))
		must.False(t, k.taken(again.Secret), must.Sprint("an overlap of 0 refuses the former secret at once"))
		must.True(t, k.taken(last.Secret))

		time.Sleep(30 * 24 * time.Hour)
		must.False(t, k.taken(last.Secret), must.Sprint("a rotated token ends when it did before"))

		long := core.Duration(core.MaxTokenOverlap + time.Second)
		_, err = k.RotateToken(t.Context(), made.ID, core.RotateRequest{Overlap: &long})
		mustFail(t, err, core.Invalid, "720h")
		parsed, err := token.Parse(k.joinToken())
		must.NoError(t, err)
		_, err = k.RotateToken(t.Context(), parsed.ID, core.RotateRequest{})
		mustFail(t, err, core.Conflict, "join token")
	})
}

// A new leader ends an overlap that began before it led.
func TestRotateOutlastsLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t)
		made := k.apiToken()
		hash, _ := token.Renew(made.ID)
		must.NoError(t, k.registry.Write(t.Context(), "test", fsm.RotateToken(made.ID, hash, time.Hour)))
		time.Sleep(40 * time.Minute)
		next := &keeper{New(Options{Registry: k.registry, Grace: DefaultGrace}), t}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { must.NoError(t, next.Expire(ctx)) })
		time.Sleep(19 * time.Minute)
		must.True(t, next.taken(made.Secret))
		time.Sleep(2 * time.Minute)
		must.False(t, next.taken(made.Secret))
		cancel()
		wg.Wait()
	})
}

// A token in constant use costs one write per TokenUsePrecision, an unused one none.
func TestLastUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t)
		busy, idle := k.apiToken(), k.apiToken()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { k.Run(ctx) })
		before := k.registry.View().AppliedIndex()
		for range 60 {
			must.True(t, k.taken(busy.Secret))
			must.False(t, k.taken(idle.Secret[:len(idle.Secret)-2]+"aa"), must.Sprint("a wrong secret is no use"))
			time.Sleep(time.Minute)
		}
		writes := k.registry.View().AppliedIndex() - before
		must.Between(t, 5, writes, 7)
		used, _ := k.registry.View().Token(nil, busy.ID)
		must.LessEq(t, core.TokenUsePrecision+tellUses, time.Since(used.LastUsedAt))
		unused, _ := k.registry.View().Token(nil, idle.ID)
		must.True(t, unused.LastUsedAt.IsZero())

		must.True(t, k.taken(idle.Secret))
		time.Sleep(2 * tellUses)
		unused, _ = k.registry.View().Token(nil, idle.ID)
		must.False(t, unused.LastUsedAt.IsZero())
		before = k.registry.View().AppliedIndex()
		time.Sleep(24 * time.Hour)
		must.LessEq(t, before+1, k.registry.View().AppliedIndex(), must.Sprint("a cluster that nobody asks writes nothing"))
		cancel()
		wg.Wait()
	})
}
