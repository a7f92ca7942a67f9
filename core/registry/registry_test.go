package registry_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// open runs a single node until the end of the bubble and returns its registry.
func open(t *testing.T) *registry.Registry {
	t.Helper()
	r, _ := openNode(t)
	return r
}

// openNode also returns the node.
func openNode(t *testing.T) (*registry.Registry, *node.Node) {
	t.Helper()
	n, err := node.Open(node.Options{ID: "q1"})
	must.NoError(t, err)
	r := registry.New(n)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	led := make(chan struct{})
	wg.Go(func() {
		_ = r.Run(ctx, func(ctx context.Context) error { close(led); <-ctx.Done(); return nil })
	})
	t.Cleanup(func() { cancel(); wg.Wait(); must.NoError(t, n.Shutdown()) })
	<-led
	return r, n
}

// leader answers the calls that are forwarded to the leader.
type leader struct {
	grpc.ClientConnInterface
	r        *registry.Registry
	calls    []string
	requests []string // request ids of the writes
	fail     error
	mute     bool // it never answers
}

func (l *leader) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	l.calls = append(l.calls, method)
	if l.mute {
		<-ctx.Done()
		return ctx.Err()
	}
	switch req := req.(type) {
	case *queenv1.ApplyRequest:
		var c raftv1.Command
		if err := proto.Unmarshal(req.GetCommand(), &c); err != nil {
			return err
		}
		l.requests = append(l.requests, c.GetRequestId())
		result, err := l.r.Apply(ctx, c.GetRequestId(), &c)
		if err != nil {
			return err
		}
		proto.Merge(resp.(proto.Message), &queenv1.ApplyResponse{Index: result.Index})
	case *queenv1.ReadIndexRequest:
		proto.Merge(resp.(proto.Message), &queenv1.ReadIndexResponse{Index: l.r.AppliedIndex(), Leader: "q9"})
	}
	return l.fail
}

func TestRegistryAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		must.NoError(t, r.Write(t.Context(), "a hive", fsm.SyncHive(core.Hive{ID: "h1"}, nil)))
		_, ok := r.View().Hive(nil, "h1")
		must.True(t, ok)
		must.NoError(t, r.CatchUp(t.Context()))
		info, err := r.Sync(t.Context(), core.ConsistencyDefault)
		must.NoError(t, err)
		must.Eq(t, "q1", info.Leader)
		_, err = r.Sync(t.Context(), "sometimes")
		must.Eq(t, core.Invalid, core.KindOf(err))

		// Before takeover it serves only stale reads.
		r.Attach(func() bool { return false }, nil)
		_, err = r.Sync(t.Context(), core.ConsistencyDefault)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		info, err = r.Sync(t.Context(), core.ConsistencyStale)
		must.NoError(t, err)
		must.True(t, info.Stale)
	})
}

// A queen that does not lead writes and catches up through the leader.
func TestRegistryThroughLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		l := &leader{r: r}
		r.Attach(func() bool { return false }, l)
		must.NoError(t, r.Write(t.Context(), "a hive", fsm.SyncHive(core.Hive{ID: "h1"}, nil)))
		must.Eq(t, []string{queenv1.ClusterService_Apply_FullMethodName}, l.calls)
		_, ok := r.View().Hive(nil, "h1")
		must.True(t, ok)
		info, err := r.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		must.Eq(t, "q9", info.Leader)

		// On a miss, the registry catches up with the leader and looks again.
		l.calls = nil
		looks := 0
		_, err = registry.LookUp(t.Context(), r, func() (int, error) {
			looks++
			return 0, core.Errorf(core.NotFound, "not there")
		})
		must.Eq(t, core.NotFound, core.KindOf(err))
		must.Eq(t, 2, looks)
		must.Len(t, 1, l.calls)

		l.fail = core.Errorf(core.Unavailable, "no leader")
		began := time.Now()
		must.Error(t, r.Write(t.Context(), "", fsm.RemoveHive("h1")))
		must.Error(t, r.CatchUp(t.Context()))
		must.Eq(t, 0, time.Since(began))
	})
}

// A silent leader is not waited for indefinitely; a mere second look-up gets less time than an
// explicit read.
func TestSilentLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		r.Attach(func() bool { return false }, &leader{mute: true})
		took := func(f func() error) (time.Duration, error) {
			began := time.Now()
			err := f()
			return time.Since(began), err
		}
		for _, c := range []core.Consistency{core.ConsistencyDefault, core.ConsistencyLinearizable} {
			d, err := took(func() error { _, err := r.Sync(t.Context(), c); return err })
			must.Eq(t, 5*time.Second, d)
			must.Eq(t, core.Unavailable, core.KindOf(err))
			must.ErrorContains(t, err, "did not answer within 5s")
			must.StrContains(t, core.HintOf(err), "stale")
		}
		d, err := took(func() error { return r.CatchUp(t.Context()) })
		must.Eq(t, 5*time.Second, d)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		d, err = took(func() error {
			_, err := registry.LookUp(t.Context(), r, func() (int, error) { return 0, core.Errorf(core.NotFound, "not there") })
			return err
		})
		must.Eq(t, registry.LookPatience, d)
		must.Eq(t, core.NotFound, core.KindOf(err))

		// A caller with less patience gets its own deadline error.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d, err = took(func() error { _, err := r.Sync(ctx, core.ConsistencyDefault); return err })
		must.Eq(t, time.Second, d)
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
	})
}

// The channel of a view's query closes at the next change of its result.
func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		ws := registry.WatchSet{}
		must.Len(t, 0, r.View().Hives(ws))
		must.Eq(t, core.DeadlineExceeded, core.KindOf(registry.WaitUntil(t.Context(), ws, time.Now().Add(time.Second))))
		must.NoError(t, r.Write(t.Context(), "", fsm.SyncHive(core.Hive{ID: "h1"}, nil)))
		must.NoError(t, registry.Wait(t.Context(), ws))
		must.Eq(t, core.DeadlineExceeded, core.KindOf(registry.WaitUntil(t.Context(), nil, time.Now())), must.Sprint("nothing to wait for"))
		r.Attach(func() bool { return true }, &leader{r: r})
		_, err := r.Cluster()
		must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint("the registry does not know its cluster yet"))
	})
}
