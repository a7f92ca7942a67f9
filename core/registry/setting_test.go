package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/setting"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Settings that this version does not know, or whose values it does not accept, are listed and can
// be reset: another version set them.
func TestSettings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := open(t)
		ctx, name := t.Context(), setting.TokenGrace.Name
		list := r.Settings()
		must.Len(t, len(setting.All()), list)
		at := slices.IndexFunc(list, func(v core.Setting) bool { return v.Name == name })
		unset := core.Setting{Name: name, Values: setting.TokenGrace.Values, Doc: setting.TokenGrace.Doc}
		must.Eq(t, unset, list[at])

		v, err := r.Set(ctx, name, "5m")
		must.NoError(t, err)
		must.Eq(t, "5m", v.Value)
		must.True(t, v.Set)
		must.Eq(t, "", v.Problem)
		must.NoError(t, r.Write(ctx, "", fsm.PutSetting("zzz", "later")))
		list = r.Settings()
		must.Len(t, len(setting.All())+1, list)
		must.Eq(t, v, list[at])
		last := list[len(list)-1]
		must.Eq(t, core.Setting{Name: "zzz", Value: "later", Set: true, Problem: last.Problem}, last)
		must.StrContains(t, last.Problem, "does not know")

		must.NoError(t, r.Write(ctx, "", fsm.PutSetting(name, "soon")))
		must.StrContains(t, r.Settings()[at].Problem, "does not accept")
		_, set := registry.Setting(r, setting.TokenGrace)
		must.False(t, set)
		v, err = r.Reset(ctx, name)
		must.NoError(t, err)
		must.Eq(t, unset, v)
		v, err = r.Reset(ctx, "zzz")
		must.NoError(t, err)
		must.Eq(t, core.Setting{Name: "zzz"}, v)
		must.Len(t, len(setting.All()), r.Settings())

		_, err = r.Reset(ctx, "zzz")
		must.Eq(t, core.NotFound, core.KindOf(err))
		_, err = r.Set(ctx, "zzz", "1")
		must.Eq(t, core.NotFound, core.KindOf(err))
		_, err = r.Set(ctx, name, "soon")
		must.Eq(t, core.Invalid, core.KindOf(err))
		must.Len(t, len(setting.All()), r.Settings())
	})
}

// streams serves the snapshots of a registry.
type streams struct {
	queenv1.UnimplementedClusterServiceServer
	s *registry.LeaderService
}

func (s streams) SaveSnapshot(r *queenv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[queenv1.SaveSnapshotResponse]) error {
	return s.s.SaveSnapshot(r, stream)
}

func (s streams) RestoreSnapshot(stream grpc.ClientStreamingServer[queenv1.RestoreSnapshotRequest, queenv1.RestoreSnapshotResponse]) error {
	return s.s.RestoreSnapshot(stream)
}

// serve returns a connection to an in-memory server.
func serve(t *testing.T, s queenv1.ClusterServiceServer) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	queenv1.RegisterClusterServiceServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///leader", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); must.NoError(t, <-done) })
	return conn
}

// A snapshot longer than one message reaches the leader, and returns from it, whole.
func TestSnapshotsThroughLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		leads, n := openNode(t)
		follows := registry.New(n) // holds the same state as the leader
		conn := serve(t, streams{s: leads.Service(hclog.NewNullLogger())})
		follows.Attach(func() bool { return false }, conn)
		ctx := t.Context()
		for i := range 300 {
			a := core.Alias{Name: fmt.Sprint("a", i), Model: strings.Repeat("m", 1000)}
			must.NoError(t, leads.Write(ctx, "", fsm.PutAlias(a)))
		}
		var theirs, ours bytes.Buffer
		must.NoError(t, follows.SaveSnapshot(ctx, &theirs))
		must.NoError(t, leads.SaveSnapshot(ctx, &ours))
		must.Eq(t, ours.Len(), theirs.Len())
		info, err := registry.InspectSnapshot(bytes.NewReader(theirs.Bytes()))
		must.NoError(t, err)
		must.Greater(t, 300_000, theirs.Len())

		must.NoError(t, leads.Write(ctx, "", fsm.DeleteAlias("a0")))
		restored, err := follows.RestoreSnapshot(ctx, bytes.NewReader(theirs.Bytes()))
		must.NoError(t, err)
		must.Eq(t, info, restored)
		_, ok := leads.View().Alias(nil, "a0")
		must.True(t, ok)

		must.NoError(t, leads.Write(ctx, "", fsm.InitCluster(core.Cluster{ID: "c1", Name: "hill"}, nil, nil)))
		_, err = follows.RestoreSnapshot(ctx, bytes.NewReader(theirs.Bytes())) // of no cluster
		must.Eq(t, core.Conflict, core.KindOf(err))
		_, err = registry.InspectSnapshot(iotest.ErrReader(errors.New("gone")))
		must.Eq(t, core.Invalid, core.KindOf(err))

		leads.Attach(func() bool { return false }, nil)
		must.Error(t, follows.SaveSnapshot(ctx, &theirs))
		_, err = follows.RestoreSnapshot(ctx, bytes.NewReader(ours.Bytes()))
		must.Error(t, err)
	})
}
