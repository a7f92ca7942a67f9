package tokens

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/setting"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/fsm"
)

// follower is the keeper of a queen that receives registry updates only while it is connected.
type follower struct {
	*Keeper
	t       *testing.T
	leader  *memregistry.Registry
	replica *memregistry.Replica
}

func newFollower(t *testing.T, grace time.Duration) *follower {
	t.Helper()
	f := &follower{t: t, leader: memregistry.New()}
	must.NoError(t, f.leader.Write(t.Context(), "test", fsm.InitCluster(core.Cluster{ID: "0123456789abcdef"}, nil, nil)))
	f.replica = f.leader.Follow()
	f.Keeper = New(Options{Registry: f.replica, Logger: coretest.Logger(t), Grace: grace})
	return f
}

// token creates a token at the leader.
func (f *follower) token() (text, id string) {
	f.t.Helper()
	id, hash, text := token.New()
	must.NoError(f.t, f.leader.Write(f.t.Context(), "test", fsm.PutToken(core.Token{ID: id, Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: time.Unix(1, 0)})))
	return text, id
}

func (f *follower) authorize(text string) error {
	_, err := f.Authorize(f.t.Context(), text, core.ScopeInfer)
	return err
}

// A token just created at another queen is accepted: this queen catches up before it refuses one.
// Wrong tokens cannot cause more than one call to the leader at a time.
func TestAuthorizeTokenMadeElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(t, time.Hour)
		f.replica.Connect(false) // its replica is behind, as it is for some milliseconds after each write
		text, id := f.token()
		_, known := f.replica.View().Token(nil, id)
		must.False(t, known)
		f.replica.Connect(true)
		must.NoError(t, f.authorize(text))
		must.Positive(t, f.replica.Asked())

		asked := f.replica.Asked()
		must.NoError(t, f.authorize(text)) // from the replica alone
		_, _, wrong := token.New()
		parsed, err := token.Parse(text)
		must.NoError(t, err)
		forged := strings.Replace(wrong, strings.Split(wrong, "_")[1], parsed.ID, 1)
		must.Eq(t, core.Unauthenticated, core.KindOf(f.authorize(forged))) // the token could have been rotated elsewhere
		must.Eq(t, asked+1, f.replica.Asked())
		asked = f.replica.Asked()

		var wg sync.WaitGroup
		for range 100 {
			_, _, wrong := token.New()
			wg.Go(func() { must.Eq(t, core.Unauthenticated, core.KindOf(f.authorize(wrong))) })
		}
		wg.Wait()
		must.LessEq(t, asked+2, f.replica.Asked())

		// Without a leader, a token cannot be called wrong.
		f.replica.Connect(false)
		began := time.Now()
		err = f.authorize(wrong)
		mustFail(t, err, core.Unavailable, "no leader can confirm it")
		must.LessEq(t, registry.LookPatience, time.Since(began))
	})
}

// A secret just created at another queen is accepted, and one removed there is refused as soon as
// this queen has learned of it.
func TestAuthorizeRotatedElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(t, time.Hour)
		text, id := f.token()
		must.NoError(t, f.authorize(text))
		f.replica.Connect(false)
		hash, renewed := token.Renew(id)
		must.NoError(t, f.leader.Write(t.Context(), "test", fsm.RotateToken(id, hash, 0)))
		f.replica.Connect(true)
		must.NoError(t, f.authorize(renewed))
		must.Eq(t, core.Unauthenticated, core.KindOf(f.authorize(text)))
	})
}

// The cluster's setting, as in the queen's replica, overrides the queen's configuration.
func TestAuthorizeClusterGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const own, shared = time.Minute, 10 * time.Minute
		f := newFollower(t, own)
		text, _ := f.token()
		must.NoError(t, f.leader.Write(t.Context(), "test", fsm.PutSetting(setting.TokenGrace.Name, shared.String())))
		must.NoError(t, f.authorize(text))
		f.replica.Connect(false)
		must.NoError(t, f.leader.Write(t.Context(), "test", fsm.ResetSetting(setting.TokenGrace.Name))) // it does not learn of this
		time.Sleep(shared - time.Second)
		must.NoError(t, f.authorize(text))
		time.Sleep(2 * time.Second)
		mustFail(t, f.authorize(text), core.Unavailable, "has not verified for 10m0s")

		f.replica.Connect(true)
		time.Sleep(ContactLost)
		must.NoError(t, f.authorize(text))
		f.replica.Connect(false)
		time.Sleep(own + ContactLost)
		mustFail(t, f.authorize(text), core.Unavailable, "has not verified for 1m0s")
	})
}
