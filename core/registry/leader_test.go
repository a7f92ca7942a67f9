package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
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
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// role is a raft node in a cluster that another queen may lead.
type role struct {
	registry.Raft
	leader   string
	leads    func() bool
	problem  error
	readFail error
}

func (r *role) LastContact() time.Duration { return 3 * time.Second }

func (r *role) Leader() string     { return r.leader }
func (r *role) IsLeader() bool     { return r.leads() }
func (r *role) DiskProblem() error { return r.problem }
func (r *role) ReadIndex(ctx context.Context, verify bool) (uint64, error) {
	if r.readFail != nil {
		return 0, r.readFail
	}
	return r.Raft.ReadIndex(ctx, verify)
}

// A queen that does not lead refuses what only the leader may answer, and names the leader or
// explains why there is none.
func TestNotLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		own := &role{Raft: r.Raft, leads: func() bool { return false }}
		r.Raft = own
		s := r.Service(hclog.NewNullLogger())
		for name, c := range map[string]struct {
			leader  string
			problem error
			hint    string
		}{
			"another leads":    {"q7", nil, "queen q7"},
			"nobody leads":     {"", nil, "being elected"},
			"it led":           {"q1", nil, "being elected"},
			"its disk is full": {"", core.Errorf(core.Unavailable, "no room").Hint("Make room."), "Make room."},
			"a leader is told": {"q7", core.Errorf(core.Unavailable, "no room").Hint("Make room."), "queen q7"},
		} {
			own.leader, own.problem = c.leader, c.problem
			_, apply := s.Apply(t.Context(), &queenv1.ApplyRequest{})
			_, read := s.ReadIndex(t.Context(), &queenv1.ReadIndexRequest{})
			_, sync := r.Sync(t.Context(), core.ConsistencyLinearizable)
			for _, err := range []error{apply, read, sync, s.SaveSnapshot(nil, nil), s.RestoreSnapshot(nil), r.NotLeader()} {
				must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(name))
				if !errors.Is(err, sync) { // its hint also suggests a stale read
					must.StrContains(t, core.HintOf(err), c.hint, must.Sprint(name))
				}
			}
		}
		must.False(t, r.Leads())
		must.NoError(t, r.CatchUp(t.Context()), must.Sprint("a single queen has every entry"))
	})
}

func TestLeaderService(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		s := r.Service(hclog.NewNullLogger())
		ctx := t.Context()
		data, err := fsm.Encode(fsm.SyncHive(core.Hive{ID: "h1"}, nil))
		must.NoError(t, err)
		resp, err := s.Apply(ctx, &queenv1.ApplyRequest{Command: data})
		must.NoError(t, err)
		must.Eq(t, r.AppliedIndex(), resp.GetIndex())
		must.Positive(t, resp.GetIndex())
		_, ok := r.View().Hive(nil, "h1")
		must.True(t, ok)
		for _, verify := range []bool{false, true} {
			read, err := s.ReadIndex(ctx, &queenv1.ReadIndexRequest{Verify: verify})
			must.NoError(t, err)
			must.Eq(t, r.AppliedIndex(), read.GetIndex())
			must.Eq(t, "q1", read.GetLeader())
		}
		_, err = s.Apply(ctx, &queenv1.ApplyRequest{Command: []byte{0xff}})
		must.Eq(t, core.Invalid, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "same version")
		_, err = s.Apply(ctx, &queenv1.ApplyRequest{Command: []byte{}})
		must.Error(t, err)
		must.Eq(t, "aaaaaaaa", registry.NodeOf("aaaaaaaa.01234567"))
	})
}

// A command that cannot be encoded is refused before it is proposed, and a valid one carries its
// description.
func TestWriteThroughLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		l := &leader{r: r}
		r.Attach(func() bool { return false }, l)
		err := r.Write(t.Context(), "", fsm.PutAlias(core.Alias{Name: "\xff"}))
		must.Eq(t, core.Invalid, core.KindOf(err))
		must.SliceEmpty(t, l.calls)
		looks := 0
		_, err = registry.LookUp(t.Context(), r, func() (int, error) { looks++; return 3, nil })
		must.NoError(t, err)
		must.Eq(t, 1, looks)
		must.SliceEmpty(t, l.calls, must.Sprint("what is found needs no leader"))
		must.NoError(t, r.Write(t.Context(), "to rest", fsm.SyncHive(core.Hive{ID: "h1"}, nil)))
		must.NoError(t, r.Write(t.Context(), strings.Repeat("x", fsm.MaxIDBytes), fsm.RemoveHive("h1")))
		must.NoError(t, r.Write(t.Context(), strings.Repeat("x", fsm.MaxIDBytes+1), fsm.RemoveHive("h1")))
		must.Eq(t, []string{"to rest", strings.Repeat("x", fsm.MaxIDBytes), ""}, l.requests)
	})
}

// The leader's errors are passed on unchanged; only a missing answer is reported as silence.
func TestLeaderRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		r.Attach(func() bool { return false }, &leader{r: r, fail: core.Errorf(core.Unavailable, "out of order")})
		_, err := r.Sync(t.Context(), core.ConsistencyDefault)
		must.ErrorContains(t, err, "out of order")
		must.StrContains(t, core.HintOf(err), "--stale")
		must.ErrorContains(t, r.CatchUp(t.Context()), "out of order")
		_, err = r.Sync(t.Context(), core.Consistency(strings.Repeat("x", 60)))
		must.ErrorContains(t, err, `"`+strings.Repeat("x", 40)+`"`)

		// A hit needs no leader, and without a leader there is no second look-up.
		looks := 0
		look := func(err error) func() (int, error) { return func() (int, error) { looks++; return 3, err } }
		v, err := registry.LookUp(t.Context(), r, look(nil))
		must.NoError(t, err)
		must.Eq(t, 3, v)
		_, err = registry.LookUp(t.Context(), r, look(core.Errorf(core.Invalid, "no name")))
		must.Eq(t, core.Invalid, core.KindOf(err))
		_, err = registry.LookUp(t.Context(), r, look(core.Errorf(core.NotFound, "nothing")))
		must.Eq(t, core.NotFound, core.KindOf(err))
		must.Eq(t, 3, looks)
	})
}

// A leader deposed during a look-up asks the next one; one that still leads returns its read error.
func TestReadWhileLeadershipIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		l := &leader{r: r}
		r.Attach(func() bool { return true }, l)
		info, err := r.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		must.Eq(t, "q1", info.Leader)
		must.NoError(t, r.CatchUp(t.Context()))
		must.Zero(t, r.Silence())
		must.SliceEmpty(t, l.calls)

		asked := 0
		own := &role{Raft: r.Raft, leads: func() bool { asked++; return true }, readFail: core.Errorf(core.Unavailable, "no majority")}
		r.Raft = own
		_, err = r.Sync(t.Context(), core.ConsistencyLinearizable)
		must.ErrorContains(t, err, "no majority")
		must.SliceEmpty(t, l.calls)
		n := asked
		own.leads = func() bool { asked++; return asked < n+n } // lost at the last check
		info, err = r.Sync(t.Context(), core.ConsistencyLinearizable)
		must.NoError(t, err)
		must.Eq(t, "q9", info.Leader)
		must.Len(t, 1, l.calls)
		own.leads = func() bool { return false }
		must.Eq(t, 3*time.Second, r.Silence())
		own.leads = func() bool { return true }
		must.Zero(t, r.Silence(), must.Sprint("a leader hears itself"))
		own.leads = func() bool { return false }
		r.Attach(func() bool { return false }, nil)
		must.Zero(t, r.Silence(), must.Sprint("a single queen waits for no other"))
	})
}

// upload is a snapshot upload to the leader that breaks off.
type upload struct {
	grpc.ServerStream
	parts [][]byte
	fail  error
}

func (u *upload) Context() context.Context { return context.Background() }
func (u *upload) Recv() (*queenv1.RestoreSnapshotRequest, error) {
	if len(u.parts) == 0 {
		return nil, u.fail
	}
	part := u.parts[0]
	u.parts = u.parts[1:]
	return &queenv1.RestoreSnapshotRequest{Data: part}, nil
}
func (u *upload) SendAndClose(*queenv1.RestoreSnapshotResponse) error { return nil }

// failing is a writer that always fails.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// fullOnce fails on the first chunk.
type fullOnce struct{ fail error }

func (f *fullOnce) Write(b []byte) (int, error) {
	err := f.fail
	f.fail = nil
	return len(b), err
}

// A snapshot that arrives incomplete, or cannot be written, is an error.
func TestSnapshotBreaksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := openNode(t)
		must.NoError(t, r.Write(t.Context(), "", fsm.SyncHive(core.Hive{ID: "h1"}, nil)))
		s := r.Service(hclog.NewNullLogger())
		broken := errors.New("broken")
		must.ErrorIs(t, s.RestoreSnapshot(&upload{parts: [][]byte{[]byte("x")}, fail: broken}), broken)
		must.Error(t, s.RestoreSnapshot(&upload{parts: [][]byte{[]byte("no snapshot")}, fail: io.EOF}))
		_, ok := r.View().Hive(nil, "h1")
		must.True(t, ok)

		must.ErrorIs(t, r.SaveSnapshot(t.Context(), failing{broken}), broken)
		follows := registry.New(n)
		conn := serve(t, streams{s: s})
		follows.Attach(func() bool { return false }, conn)
		must.ErrorIs(t, follows.SaveSnapshot(t.Context(), failing{broken}), broken)
		must.ErrorIs(t, follows.SaveSnapshot(t.Context(), &fullOnce{fail: broken}), broken)
		var kept bytes.Buffer
		must.NoError(t, follows.SaveSnapshot(t.Context(), &kept))
		r.Attach(func() bool { return false }, nil)
		_, err := follows.RestoreSnapshot(t.Context(), bytes.NewReader(kept.Bytes()))
		must.ErrorContains(t, err, "does not lead")
		must.NoError(t, conn.Close())
		_, err = follows.RestoreSnapshot(t.Context(), bytes.NewReader(kept.Bytes()))
		must.Error(t, err)
		must.Error(t, follows.SaveSnapshot(t.Context(), io.Discard))
	})
}

// caller is a context that knows how many still wait for its end.
type caller struct {
	context.Context
	done    chan struct{}
	waiting atomic.Int64
}

func (c *caller) Done() <-chan struct{} { return c.done }

// AfterFunc is what package context calls to derive another context.
func (c *caller) AfterFunc(func()) (stop func() bool) {
	c.waiting.Add(1)
	return sync.OnceValue(func() bool { c.waiting.Add(-1); return true })
}

// A call releases the context of its own deadline when it returns: callers' contexts are
// long-lived.
func TestDeadlinesReleased(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := openNode(t)
		follows := registry.New(n)
		l := &leader{r: r}
		follows.Attach(func() bool { return false }, l)
		streaming := registry.New(n)
		streaming.Attach(func() bool { return false }, serve(t, streams{s: r.Service(hclog.NewNullLogger())}))
		broken := errors.New("broken")
		for name, f := range map[string]func(ctx context.Context) error{
			"Sync":    func(ctx context.Context) error { _, err := follows.Sync(ctx, core.ConsistencyDefault); return err },
			"CatchUp": follows.CatchUp,
			"LookUp": func(ctx context.Context) error {
				looks := 0
				_, err := registry.LookUp(ctx, follows, func() (int, error) {
					if looks++; looks == 1 {
						return 0, core.Errorf(core.NotFound, "not yet")
					}
					return 0, nil
				})
				return err
			},
			"WaitUntil": func(ctx context.Context) error {
				changed := make(chan struct{})
				close(changed)
				return registry.WaitUntil(ctx, registry.WatchSet{changed: {}}, time.Now().Add(time.Hour))
			},
			"SaveSnapshot": func(ctx context.Context) error {
				if err := streaming.SaveSnapshot(ctx, &fullOnce{fail: broken}); !errors.Is(err, broken) {
					return errors.New("it did not break off")
				}
				return nil
			},
		} {
			ctx := &caller{Context: t.Context(), done: make(chan struct{})}
			must.NoError(t, f(ctx), must.Sprint(name))
			synctest.Wait()
			must.Zero(t, ctx.waiting.Load(), must.Sprint(name))
		}
	})
}
