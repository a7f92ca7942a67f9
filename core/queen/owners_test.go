package queen

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
)

// silentConn is the connection to a dark machine: a call lasts as long as its caller waits.
type silentConn struct {
	grpc.ClientConnInterface
	asked func()
}

func (s silentConn) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	s.asked()
	<-ctx.Done()
	return ctx.Err()
}

// Jobs of a queen without a hive are requested from that queen, unless gossip reports it as gone:
// then no caller waits for it, and it is listed as a problem.
func TestJobsOfGoneQueen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards asked
		asked := 0
		s := newSecured(t, withJobs, func(o *Options) {
			o.Network.Conn = func(node, _ string, _ core.Role) (grpc.ClientConnInterface, error) {
				return silentConn{asked: func() {
					if node == "bbbbbbbb" {
						mu.Lock()
						defer mu.Unlock()
						asked++
					}
				}}, nil
			}
		})
		resp, err := s.tryJoin(newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleQueen), string(core.RoleQueen)))
		must.NoError(t, err)
		must.NotNil(t, resp)
		s.newHive("h1").mustBeat()
		const id = "01jd0000000000000000000000-bbbbbbbb"

		_, problems, err := s.q.Jobs.Listed(t.Context())
		must.NoError(t, err)
		must.Eq(t, 1, asked)
		must.StrContains(t, strings.Join(problems, "\n"), "queen beta: ")
		_, err = s.q.Jobs.Job(t.Context(), id)
		mustFail(t, err, core.Unavailable, "did not answer in time")

		asked = 0
		s.gossip.Set(gossip.Member{ID: "bbbbbbbb", Queen: true, Status: gossip.Failed})
		_, problems, err = s.q.Jobs.Listed(t.Context())
		must.NoError(t, err)
		must.SliceContains(t, problems, "queen beta has failed")
		_, err = s.q.Jobs.Job(t.Context(), id)
		mustFail(t, err, core.Unavailable, "queen beta, which owns job "+id+", is gone")
		_, err = s.q.Jobs.Job(t.Context(), "01jd0000000000000000000000-cccccccc")
		mustFail(t, err, core.NotFound, "not part of the cluster")
		must.Zero(t, asked)
	})
}
