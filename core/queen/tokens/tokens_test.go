package tokens

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/fsm"
)

// keeper is the token keeper of the leading queen, in a bubble, until its end.
type keeper struct {
	*Keeper
	t *testing.T
}

func newKeeper(t *testing.T, change ...func(*Options)) *keeper {
	t.Helper()
	id, hash, _ := token.New()
	made, err := pki.Init(t.TempDir(), pki.InitOptions{
		Name: "desk", NodeID: "aaaaaaaa", NodeName: "alpha", RPCAddress: "10.0.0.1:7834", Roles: []core.Role{core.RoleQueen}, Now: time.Now(),
		Token: core.Token{ID: id, Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: time.Now()},
	})
	must.NoError(t, err)
	seed, err := made.Identity.Seed()
	must.NoError(t, err)
	r := memregistry.New()
	c := core.Cluster{ID: made.Identity.Cluster(), CACertificates: seed.CAPEM, SealedCAKey: seed.SealedCAKey, SealedGossipKeys: seed.SealedGossipKeys}
	must.NoError(t, r.Write(t.Context(), "test", fsm.InitCluster(c, nil, nil)))
	o := Options{Registry: r, Logger: coretest.Logger(t), Grace: DefaultGrace}
	for _, f := range change {
		f(&o)
	}
	k := &keeper{New(o), t}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { must.NoError(t, k.Expire(ctx)) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	synctest.Wait() // it leads: a token created from now on is newer
	return k
}

func (k *keeper) joinToken() string {
	k.t.Helper()
	made, err := k.CreateToken(k.t.Context(), core.TokenRequest{Kind: core.TokenJoin, Roles: []core.Role{core.RoleHive}})
	must.NoError(k.t, err)
	return made.Secret
}

func mustFail(t *testing.T, err error, kind core.Kind, parts ...string) {
	t.Helper()
	must.Error(t, err)
	must.Eq(t, kind, core.KindOf(err), must.Sprint(err))
	must.NotEq(t, "", core.HintOf(err), must.Sprintf("no hint: %v", err))
	for _, p := range parts {
		must.StrContains(t, err.Error()+" | "+core.HintOf(err), p)
	}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t)
		reader, err := k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Name: "ci", Scopes: []core.Scope{core.ScopeRead, core.ScopeInfer, core.ScopeRead}})
		must.NoError(t, err)
		must.Eq(t, []core.Scope{core.ScopeInfer, core.ScopeRead}, reader.Scopes)
		for _, scope := range core.Scopes() {
			_, err := k.Authorize(t.Context(), reader.Secret, scope)
			if scope == core.ScopeInfer || scope == core.ScopeRead {
				must.NoError(t, err)
				continue
			}
			mustFail(t, err, core.Forbidden, "lacks the scope")
		}
		other, _, _ := strings.Cut(reader.Secret[len("rbee_"):], "_")
		_, _, wrong := token.New()
		forged := "rbee_" + other + "_" + wrong[strings.LastIndex(wrong, "_")+1:]
		for _, text := range []string{"", "x", wrong, forged, k.joinToken(), strings.ToUpper(reader.Secret)} {
			_, err := k.Authorize(t.Context(), text, core.ScopeRead)
			mustFail(t, err, core.Unauthenticated)
			if text != "" && text != "x" {
				must.StrNotContains(t, err.Error()+core.HintOf(err), text)
			}
		}
		gone, err := k.RevokeToken(t.Context(), reader.ID[:6])
		must.NoError(t, err)
		must.Eq(t, reader.ID, gone.ID)
		_, err = k.Authorize(t.Context(), reader.Secret, core.ScopeRead)
		mustFail(t, err, core.Unauthenticated, "revoked")
		_, err = k.RevokeToken(t.Context(), reader.Secret)
		mustFail(t, err, core.NotFound)
		must.StrNotContains(t, err.Error(), reader.Secret)

		// The registry does not contain the secret.
		list, err := k.Tokens(t.Context())
		must.NoError(t, err)
		must.Len(t, 1, list) // the join token
		for _, tok := range list {
			must.Len(t, 32, tok.SecretHash)
		}
	})
}

func TestTokenRequestsAreChecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t)
		for name, r := range map[string]core.TokenRequest{
			"no kind":          {},
			"no scope":         {Kind: core.TokenAPI},
			"unknown scope":    {Kind: core.TokenAPI, Scopes: []core.Scope{"root"}},
			"api with roles":   {Kind: core.TokenAPI, Scopes: core.Scopes(), Roles: []core.Role{core.RoleHive}},
			"join with scopes": {Kind: core.TokenJoin, Scopes: core.Scopes()},
			"unknown role":     {Kind: core.TokenJoin, Roles: []core.Role{"king"}},
			"long life":        {Kind: core.TokenJoin, TTL: core.Duration(25 * time.Hour)},
			"negative life":    {Kind: core.TokenAPI, Scopes: core.Scopes(), TTL: core.Duration(-time.Hour)},
			"half a second":    {Kind: core.TokenAPI, Scopes: core.Scopes(), TTL: core.Duration(time.Second / 2)},
			"long name":        {Kind: core.TokenAPI, Scopes: core.Scopes(), Name: strings.Repeat("x", 101)},
			"control":          {Kind: core.TokenAPI, Scopes: core.Scopes(), Name: "a\nb"},
		} {
			_, err := k.CreateToken(t.Context(), r)
			mustFail(t, err, core.Invalid)
			must.NotEq(t, "", core.HintOf(err), must.Sprint(name))
		}
	})
}

// Tokens live by the leader's monotonic clock: a wall clock that jumps by an hour or a day neither
// ends one nor prolongs it.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var wall time.Duration // error of the wall clock
		var mu sync.Mutex
		k := newKeeper(t, func(o *Options) {
			o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(wall) }
		})
		jump := func(d time.Duration) { mu.Lock(); wall = d; mu.Unlock() }
		short, err := k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: core.Scopes(), TTL: core.Duration(time.Hour)})
		must.NoError(t, err)
		forever, err := k.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenAPI, Scopes: core.Scopes()})
		must.NoError(t, err)
		valid := func() bool {
			_, err := k.Authorize(t.Context(), short.Secret, core.ScopeRead)
			return err == nil
		}
		jump(25 * time.Hour)
		time.Sleep(59 * time.Minute)
		must.True(t, valid())
		jump(-25 * time.Hour)
		time.Sleep(2 * time.Minute)
		must.False(t, valid())
		_, err = k.Authorize(t.Context(), forever.Secret, core.ScopeAdmin)
		must.NoError(t, err)
	})
}
