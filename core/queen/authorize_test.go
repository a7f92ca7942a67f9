package queen

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/queen/tokens"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/fsm"
)

// follower is a queen that receives registry updates only while it is connected.
type follower struct {
	t       *testing.T
	q       *Queen
	leader  *Queen
	asked   atomic.Int64 // calls to the leader
	connect func(on bool)
	log     bytes.Buffer
}

func newFollower(t *testing.T, grace time.Duration) *follower {
	t.Helper()
	members := newQueens(t, 3)
	leader := leaderOf(t, members)
	m := members[0]
	if m == leader {
		m = members[1]
	}
	f := &follower{t: t, leader: leader.q}
	must.NoError(t, f.leader.Registry.Write(t.Context(), "test", fsm.InitCluster(core.Cluster{ID: "0123456789abcdef"}, nil, nil)))
	var mu sync.Mutex
	on := true
	f.connect = func(now bool) {
		mu.Lock()
		on = now
		mu.Unlock()
		for _, o := range members {
			switch {
			case o == m:
			case now:
				o.trans.Connect(m.trans.LocalAddr(), m.trans)
				m.trans.Connect(o.trans.LocalAddr(), o.trans)
			default:
				o.trans.Disconnect(m.trans.LocalAddr())
				m.trans.Disconnect(o.trans.LocalAddr())
			}
		}
	}
	for _, ok := m.q.Registry.View().Cluster(nil); !ok; _, ok = m.q.Registry.View().Cluster(nil) {
		time.Sleep(time.Millisecond)
	}
	f.q = New(Options{
		Registry: registry.New(m.node), ID: m.q.opts.ID, Logger: hclog.New(&hclog.LoggerOptions{Output: &f.log}),
		HiveConn: func(string) (grpc.ClientConnInterface, error) {
			return nil, core.Errorf(core.Unavailable, "no way")
		},
		TokenGrace: &grace,
		Network: &membership.Network{Gossip: &gossipstub.Pool{}, Self: leaderConn{leader: func() *Queen {
			f.asked.Add(1)
			time.Sleep(10 * time.Millisecond) // latency to the leader
			mu.Lock()
			defer mu.Unlock()
			if !on {
				return m.q // which is not the leader
			}
			return f.leader
		}}},
	})
	return f
}

// token creates a token at the leader.
func (f *follower) token() (text, id string) {
	f.t.Helper()
	id, hash, text := token.New()
	must.NoError(f.t, f.leader.Registry.Write(f.t.Context(), "test", fsm.PutToken(core.Token{ID: id, Kind: core.TokenAPI, SecretHash: hash, Scopes: core.Scopes(), CreatedAt: time.Unix(1, 0)})))
	return text, id
}

func (f *follower) authorize(text string) error {
	_, err := f.q.Tokens.Authorize(f.t.Context(), text, core.ScopeInfer)
	return err
}

// A queen that is cut off learns of no revocation. For a bounded time it accepts the tokens that it
// recently verified, and reports that it does; it accepts no others.
func TestAuthorizeOutOfContact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const grace = 5 * time.Minute
		f := newFollower(t, grace)
		used, usedID := f.token()
		idle, _ := f.token()
		must.NoError(t, f.authorize(used))
		must.NoError(t, f.authorize(idle))
		time.Sleep(grace)
		must.NoError(t, f.authorize(used))
		f.connect(false)
		must.NoError(t, f.leader.Registry.Write(t.Context(), "test", fsm.DeleteToken(usedID))) // it does not learn of this
		time.Sleep(tokens.ContactLost / 2)
		must.NoError(t, f.authorize(used)) // as during an election
		must.Eq(t, "", f.q.Tokens.Problem())

		time.Sleep(tokens.ContactLost)
		must.NoError(t, f.authorize(used))
		mustFail(t, f.authorize(idle), core.Unavailable, "without a leader for", "token_grace")
		must.StrContains(t, f.q.Tokens.Problem(), "it accepts only tokens that it verified within 5m0s")
		must.StrContains(t, f.log.String(), "no contact with a leader")
		for range 10 {
			time.Sleep(grace / 10)
			_ = f.authorize(used) // a use accepted out of contact does not count as verification
		}
		mustFail(t, f.authorize(used), core.Unavailable, "without a leader for")
		must.Eq(t, 1, strings.Count(f.log.String(), "no contact with a leader"))

		f.connect(true)
		time.Sleep(tokens.ContactLost)
		must.NoError(t, f.authorize(idle))
		mustFail(t, f.authorize(used), core.Unauthenticated)
		must.Eq(t, "", f.q.Tokens.Problem())
		must.StrContains(t, f.log.String(), "in contact with a leader again")
	})
}
