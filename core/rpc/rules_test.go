package rpc_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// served lists the packages whose services queens or hives serve.
var served = []protoreflect.FullName{"rbee.queen.v1", "rbee.hive.v1", "rbee.job.v1"} // constant

// mayCall lists the permitted callers: a for anyone, h for hives, q for queens. It repeats the
// rules so that a changed rule is noticed.
var mayCall = map[string]string{ // constant
	"/rbee.queen.v1.RegistryService/Link":              "h",
	"/rbee.queen.v1.BlobService/Claim":                 "h",
	"/rbee.queen.v1.ClusterService/Apply":              "q",
	"/rbee.queen.v1.ClusterService/ReadIndex":          "q",
	"/rbee.queen.v1.ClusterService/TransferLeadership": "q",
	"/rbee.queen.v1.ClusterService/RemoveQueen":        "q",
	"/rbee.queen.v1.ClusterService/LeaveNode":          "q",
	"/rbee.queen.v1.ClusterService/Announce":           "q",
	"/rbee.queen.v1.ClusterService/Sight":              "q",
	"/rbee.queen.v1.ClusterService/Kept":               "q",
	"/rbee.queen.v1.ClusterService/Admit":              "q",
	"/rbee.queen.v1.ClusterService/Settle":             "q",
	"/rbee.queen.v1.ClusterService/SaveSnapshot":       "q",
	"/rbee.queen.v1.ClusterService/RestoreSnapshot":    "q",
	"/rbee.queen.v1.JoinService/Join":                  "a",
	"/rbee.queen.v1.JoinService/Standing":              "a",
	"/rbee.queen.v1.JoinService/Renew":                 "hq",
	"/rbee.hive.v1.HiveService/Ask":                    "q",
	"/rbee.hive.v1.HiveService/FindBlob":               "q",
	"/rbee.hive.v1.AgentService/Leave":                 "q",
	"/rbee.job.v1.JobService/Submit":                   "q",
	"/rbee.job.v1.JobService/Get":                      "q",
	"/rbee.job.v1.JobService/List":                     "q",
	"/rbee.job.v1.JobService/Cancel":                   "q",
	"/rbee.job.v1.JobService/Events":                   "q",
}

func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	all := map[string]protoreflect.MethodDescriptor{}
	for _, pkg := range served {
		protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(f protoreflect.FileDescriptor) bool {
			for i := range f.Services().Len() {
				s := f.Services().Get(i)
				for j := range s.Methods().Len() {
					all[fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name())] = s.Methods().Get(j)
				}
			}
			return true
		})
	}
	must.Greater(t, 20, len(all))
	return all
}

// This fails for a new method that has no rule or that cannot be forwarded to the leader.
func TestEveryMethodHasARule(t *testing.T) {
	t.Parallel()
	for method, d := range methods(t) {
		rule, ok := rpc.RuleOf(method)
		must.True(t, ok, must.Sprintf("%s has no rbee.options.v1.rule", method))
		must.False(t, rule.GetLeader() && d.IsStreamingClient() && d.IsStreamingServer(), must.Sprintf("%s: the leader's methods do not talk both ways", method))
		_, ok = mayCall[method]
		must.True(t, ok, must.Sprintf("%s is not in the table of this test", method))
	}
	for _, method := range []string{"/grpc.health.v1.Health/Check", "/rbee.queen.v1.JoinService/Nothing", "/rbee.queen.v1.JoinService", "nonsense", ""} {
		_, ok := rpc.RuleOf(method)
		must.False(t, ok)
	}
}

func registerAll(s *grpc.Server) {
	queenv1.RegisterRegistryServiceServer(s, queenv1.UnimplementedRegistryServiceServer{})
	queenv1.RegisterBlobServiceServer(s, queenv1.UnimplementedBlobServiceServer{})
	queenv1.RegisterClusterServiceServer(s, queenv1.UnimplementedClusterServiceServer{})
	queenv1.RegisterJoinServiceServer(s, queenv1.UnimplementedJoinServiceServer{})
	hivev1.RegisterHiveServiceServer(s, hivev1.UnimplementedHiveServiceServer{})
	hivev1.RegisterAgentServiceServer(s, hivev1.UnimplementedAgentServiceServer{})
	jobv1.RegisterJobServiceServer(s, jobv1.UnimplementedJobServiceServer{})
	health.RegisterHealthServer(s, &service{})
}

// call calls a method and returns its error. The servers of these tests implement nothing, so an
// admitted call is Unsupported.
func call(ctx context.Context, c grpc.ClientConnInterface, method string, d protoreflect.MethodDescriptor) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if !d.IsStreamingClient() && !d.IsStreamingServer() {
		return c.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: d.IsStreamingServer(), ClientStreams: d.IsStreamingClient()}, method)
	if err != nil {
		return err
	}
	_ = s.SendMsg(&emptypb.Empty{}) // RecvMsg returns the reason
	_ = s.CloseSend()               // as above
	return s.RecvMsg(&emptypb.Empty{})
}

// Each method is called by each kind of caller: exactly those in the table are admitted.
func TestRoleMatrix(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	pipe := rpc.NewPipe()
	n := listen(t, identity(t, ca, "00000001", core.RoleHive)) // callers in its own process count only as a hive
	n.serve(t, rpc.ServerOptions{}, pipe, registerAll)
	alonePipe := rpc.NewPipe()
	alone := rpc.NewNodeServer(rpc.ServerOptions{Self: pki.Node{ID: "00000009"}})
	registerAll(alone)
	served := make(chan error, 1)
	go func() { served <- alone.Serve(alonePipe.Listener()) }()
	t.Cleanup(func() { alone.Stop(); <-served })

	fingerprint, err := pki.Fingerprint(ca.CertPEM())
	must.NoError(t, err)
	queenNode := listen(t, identity(t, ca, "00000002", core.RoleQueen)) // joining calls a queen
	queenNode.serve(t, rpc.ServerOptions{}, nil, registerAll)
	stranger, err := rpc.JoinConn(t.Context(), queenNode.addr, fingerprint)
	must.NoError(t, err)
	t.Cleanup(func() { _ = stranger.Close() })

	callers := map[string]struct {
		conn  *grpc.ClientConn
		roles string
		known bool
	}{"stranger": {stranger, "a", false}}
	for name, roles := range map[string][]core.Role{"h": {core.RoleHive}, "q": {core.RoleQueen}, "hq": both} {
		pool := rpc.NewPool(rpc.PoolOptions{Identity: identity(t, ca, "0000000a", roles...)})
		t.Cleanup(func() { _ = pool.Close() })
		conn, err := pool.Conn("00000001", n.addr, core.RoleHive)
		must.NoError(t, err)
		callers["remote "+name] = struct {
			conn  *grpc.ClientConn
			roles string
			known bool
		}{conn, "a" + name, true}
	}
	for name, p := range map[string]*rpc.Pipe{"h": pipe, "hq": alonePipe} {
		conn, err := rpc.Client(p)
		must.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		callers["in process "+name] = struct {
			conn  *grpc.ClientConn
			roles string
			known bool
		}{conn, "a" + name, true}
	}
	for who, c := range callers {
		for method, d := range methods(t) {
			want := core.Unsupported
			if !strings.ContainsAny(c.roles, mayCall[method]) {
				want = core.Forbidden
				if !c.known {
					want = core.Unauthenticated
				}
			}
			err := call(t.Context(), c.conn, method, d)
			must.Eq(t, want, core.KindOf(err), must.Sprintf("%s calls %s: %v", who, method, err))
			// Metadata cannot give a caller another identity.
			err = call(metadata.AppendToOutgoingContext(t.Context(), "rbee-caller", "00000002", "rbee-forwarded", "1"), c.conn, method, d)
			if !strings.Contains(c.roles, "q") {
				must.Eq(t, want, core.KindOf(err), must.Sprintf("%s forges %s: %v", who, method, err))
			}
		}
		// A method without a rule refuses all callers.
		_, err := health.NewHealthClient(c.conn).Check(t.Context(), &health.HealthCheckRequest{})
		must.Eq(t, core.Forbidden, core.KindOf(err), must.Sprint(err))
		w, err := health.NewHealthClient(c.conn).Watch(t.Context(), &health.HealthCheckRequest{})
		must.NoError(t, err)
		_, err = w.Recv()
		must.Eq(t, core.Forbidden, core.KindOf(err), must.Sprint(err))
	}
	must.Greater(t, 0, n.refused.all()[rpc.ReasonWrongRole])
	must.Greater(t, 0, queenNode.refused.all()[rpc.ReasonNoCertificate])
}

// A revoked node's next call is refused, even before its connection is cut.
func TestRevokedCalls(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", both...))
	n.serve(t, rpc.ServerOptions{Revoked: n.revoked.has}, nil, registerAll)
	pool := rpc.NewPool(rpc.PoolOptions{Identity: identity(t, ca, "00000002", both...)})
	t.Cleanup(func() { _ = pool.Close() })
	conn, err := pool.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	list := func() error {
		_, err := jobv1.NewJobServiceClient(conn).List(t.Context(), &jobv1.ListRequest{})
		return err
	}
	must.Eq(t, core.Unsupported, core.KindOf(list()))
	n.revoked.add("00000002")
	must.Eq(t, core.Forbidden, core.KindOf(list()))
	must.Eq(t, 1, n.refused.all()[rpc.ReasonRevoked])
	n.mux.CloseRevoked()
	eventually(t, time.Second, "the connection is cut", func() bool { return core.KindOf(list()) == core.Unavailable })
}

// A server refuses connections without a handshake.
func TestServerRefusesPlainConnection(t *testing.T) {
	t.Parallel()
	s := rpc.NewNodeServer(rpc.ServerOptions{})
	registerAll(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = jobv1.NewJobServiceClient(c).List(t.Context(), &jobv1.ListRequest{})
	must.Eq(t, codes.Unavailable, status.Code(err), must.Sprint(err))
}
