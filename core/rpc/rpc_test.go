package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kinds is every kind of core.
var kinds = []core.Kind{
	core.Internal, core.Invalid, core.NotFound, core.Conflict, core.InUse, core.Unavailable, core.Overloaded, core.TooLarge, core.Integrity,
	core.Unsupported, core.Unauthenticated, core.Forbidden, core.Cancelled, core.DeadlineExceeded, core.WorkerLost,
}

// service answers Check and Watch with functions. gRPC's health service is used because it has a
// request and a stream.
type service struct {
	health.UnimplementedHealthServer
	check func(ctx context.Context, text string) (health.HealthCheckResponse_ServingStatus, error)
	watch func(text string, s health.Health_WatchServer) error
}

func (s *service) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	st, err := s.check(ctx, r.GetService())
	if err != nil {
		return nil, err
	}
	return &health.HealthCheckResponse{Status: st}, nil
}

func (s *service) Watch(r *health.HealthCheckRequest, stream health.Health_WatchServer) error {
	return s.watch(r.GetService(), stream)
}

// start serves s over a pipe until the test ends.
func start(t testing.TB, s *service, log hclog.Logger, opts ...grpc.ServerOption) health.HealthClient {
	t.Helper()
	p := rpc.NewPipe()
	server := rpc.NewServer(log, opts...)
	health.RegisterHealthServer(server, s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, server, p.Listener(), time.Second) }()
	c, err := rpc.Client(p)
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, c.Close())
		cancel()
		must.NoError(t, <-done)
		_, err := p.Dial(context.Background())
		must.ErrorIs(t, err, net.ErrClosed)
	})
	return health.NewHealthClient(c)
}

// recv reads a stream to its end and returns the error that ended it.
func recv(s health.Health_WatchClient, err error) (n int, _ error) {
	for ; err == nil; n++ {
		_, err = s.Recv()
	}
	return n - 1, err
}

// The caller gets the error that a handler returns: kind, message and hint, of a request and of a
// stream.
func TestErrorsSurvive(t *testing.T) {
	t.Parallel()
	var next atomic.Pointer[error]
	c := start(t, &service{
		check: func(context.Context, string) (health.HealthCheckResponse_ServingStatus, error) {
			return 0, *next.Load()
		},
		watch: func(_ string, s health.Health_WatchServer) error {
			return errors.Join(s.Send(&health.HealthCheckResponse{}), *next.Load())
		},
	}, hclog.NewNullLogger())
	type want struct {
		err           error
		kind          core.Kind
		message, hint string
	}
	cases := []want{
		{errors.New("plain"), core.Internal, "plain", ""},
		{fmt.Errorf("wait: %w", context.Canceled), core.Cancelled, "wait: context canceled", ""},
		{context.DeadlineExceeded, core.DeadlineExceeded, "context deadline exceeded", ""},
		{status.Error(codes.NotFound, "from a plugin"), core.NotFound, "from a plugin", ""},
		{fmt.Errorf("fetch x: %w", status.Error(codes.DataLoss, "cut")), core.Integrity, "fetch x: cut", ""},
		{status.Error(codes.AlreadyExists, ""), core.Conflict, "AlreadyExists", ""},
		{fmt.Errorf("above: %w", core.Errorf(core.InUse, "op: below").Hint("Do %d%%.", 5)), core.InUse, "above: op: below", "Do 5%."},
		{core.WithKind(errors.New("new\nline, ü, 蜂, \x01 and no \xff UTF-8"), core.Invalid), core.Invalid, "new\nline, ü, 蜂, \x01 and no � UTF-8", ""},
		{core.WithKind(errors.New("x"), "a_kind_of_tomorrow"), "a_kind_of_tomorrow", "x", ""},
	}
	for _, k := range kinds {
		cases = append(cases,
			want{core.Errorf(k, "without hint"), k, "without hint", ""},
			want{core.Errorf(k, "doing: with hint").Hint("Look at: %s", k), k, "doing: with hint", "Look at: " + string(k)})
	}
	for _, tt := range cases {
		next.Store(&tt.err)
		_, unary := c.Check(t.Context(), &health.HealthCheckRequest{})
		n, stream := recv(c.Watch(t.Context(), &health.HealthCheckRequest{}))
		must.Eq(t, 1, n)
		for _, got := range []error{unary, stream, rpc.FromStatus(rpc.ToStatus(tt.err)), rpc.FromStatus(rpc.ToStatus(rpc.FromStatus(rpc.ToStatus(tt.err))))} {
			must.Eq(t, tt.kind, core.KindOf(got), must.Sprint(tt.err))
			must.Eq(t, tt.message, got.Error())
			must.Eq(t, tt.hint, core.HintOf(got))
		}
	}

	long := core.WithHint(core.WithKind(errors.New(strings.Repeat("ü", 1<<20)), core.Invalid), "%s", strings.Repeat("x", 1<<20))
	next.Store(&long)
	_, err := c.Check(t.Context(), &health.HealthCheckRequest{})
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.Between(t, 16<<10, len(err.Error()), 17<<10)
	must.Between(t, 16<<10, len(core.HintOf(err)), 17<<10)
}

func TestNil(t *testing.T) {
	t.Parallel()
	must.NoError(t, rpc.ToStatus(nil))
	must.NoError(t, rpc.FromStatus(nil))
}

// Every code has a kind, every kind a code, and a kind with its own code survives even without
// details.
func TestCodes(t *testing.T) {
	t.Parallel()
	shared := map[core.Kind]core.Kind{core.InUse: core.Conflict, core.WorkerLost: core.Unavailable}
	for _, k := range kinds {
		want := k
		if other, ok := shared[k]; ok {
			want = other
		}
		must.Eq(t, want, rpc.KindOfCode(rpc.CodeOf(k)))
		must.NotEq(t, codes.OK, rpc.CodeOf(k))
	}
	must.Eq(t, codes.OK, rpc.CodeOf(""))
	for c, want := range map[codes.Code]core.Kind{
		codes.OK: "", codes.Unknown: core.Internal, codes.Internal: core.Internal, codes.AlreadyExists: core.Conflict, codes.Aborted: core.Conflict,
		codes.FailedPrecondition: core.Conflict, codes.ResourceExhausted: core.Overloaded, codes.Unimplemented: core.Unsupported, 99: core.Internal,
	} {
		must.Eq(t, want, rpc.KindOfCode(c))
	}
}

// Details of another domain are not taken for a kind.
func TestForeignDetails(t *testing.T) {
	t.Parallel()
	st, err := status.New(codes.NotFound, "gone").WithDetails(&errdetails.ErrorInfo{Domain: "elsewhere", Reason: "forbidden", Metadata: map[string]string{"hint": "x"}})
	must.NoError(t, err)
	must.Eq(t, core.NotFound, core.KindOf(rpc.FromStatus(st.Err())))
	must.Eq(t, "", core.HintOf(rpc.FromStatus(st.Err())))
}

// gRPC's own errors are classified, too.
func TestGRPCErrors(t *testing.T) {
	t.Parallel()
	c := start(t, &service{
		check: func(ctx context.Context, text string) (health.HealthCheckResponse_ServingStatus, error) {
			if text == "wait" {
				<-ctx.Done()
			}
			return 0, ctx.Err()
		},
		watch: func(_ string, s health.Health_WatchServer) error {
			<-s.Context().Done()
			err := s.Send(&health.HealthCheckResponse{})
			must.Eq(t, core.Cancelled, core.KindOf(err)) // classified for the handler too
			return err
		},
	}, hclog.NewNullLogger())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Check(ctx, &health.HealthCheckRequest{Service: "wait"})
	must.Eq(t, core.DeadlineExceeded, core.KindOf(err))

	ctx, cancel = context.WithCancel(t.Context())
	s, err := c.Watch(ctx, &health.HealthCheckRequest{})
	must.NoError(t, err)
	cancel()
	_, err = s.Recv()
	must.Eq(t, core.Cancelled, core.KindOf(err))

	_, err = c.List(t.Context(), &health.HealthListRequest{})
	must.Eq(t, core.Unsupported, core.KindOf(err))

	_, err = c.Check(t.Context(), &health.HealthCheckRequest{Service: strings.Repeat("x", rpc.MaxMessageBytes-100)})
	must.NoError(t, err)
	_, err = c.Check(t.Context(), &health.HealthCheckRequest{Service: strings.Repeat("x", rpc.MaxMessageBytes+1)})
	must.Eq(t, core.Overloaded, core.KindOf(err)) // gRPC's ResourceExhausted

	p := rpc.NewPipe()
	must.NoError(t, p.Close())
	must.NoError(t, p.Close())
	cc, err := rpc.Client(p)
	must.NoError(t, err)
	_, err = health.NewHealthClient(cc).Check(t.Context(), &health.HealthCheckRequest{})
	must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
	must.NoError(t, cc.Close())
}

func TestStreamEndsWithEOF(t *testing.T) {
	t.Parallel()
	c := start(t, &service{watch: func(_ string, s health.Health_WatchServer) error {
		return s.Send(&health.HealthCheckResponse{})
	}}, hclog.NewNullLogger())
	n, err := recv(c.Watch(t.Context(), &health.HealthCheckRequest{}))
	must.Eq(t, 1, n)
	must.True(t, err == io.EOF) //nolint:errorlint // itself, as every reader of a stream compares it
}

// A handler that panics fails its own request only; the stack is in the log and not in the answer.
func TestPanic(t *testing.T) {
	t.Parallel()
	var out syncBuffer
	c := start(t, &service{
		check: func(_ context.Context, text string) (health.HealthCheckResponse_ServingStatus, error) {
			if text == "panic" {
				panic("secret detail")
			}
			return health.HealthCheckResponse_SERVING, nil
		},
		watch: func(string, health.Health_WatchServer) error { panic("secret detail") },
	}, hclog.New(&hclog.LoggerOptions{Output: &out}))
	_, unary := c.Check(t.Context(), &health.HealthCheckRequest{Service: "panic"})
	_, stream := recv(c.Watch(t.Context(), &health.HealthCheckRequest{}))
	for _, err := range []error{unary, stream} {
		must.Eq(t, core.Internal, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "report")
		must.StrNotContains(t, err.Error(), "secret")
	}
	must.Eq(t, 2, strings.Count(out.String(), "secret detail"))
	must.StrContains(t, out.String(), "rpc_test.go")
	r, err := c.Check(t.Context(), &health.HealthCheckRequest{})
	must.NoError(t, err)
	must.Eq(t, health.HealthCheckResponse_SERVING, r.GetStatus())
}

// Serve lets a running request finish, cuts one that takes longer than the grace, and accepts no
// new one.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		takes, want time.Duration
		kind        core.Kind
	}{
		{"in time", 5 * time.Second, 5 * time.Second, ""},
		{"too late", time.Minute, 10 * time.Second, core.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := rpc.NewPipe()
				server := rpc.NewServer(hclog.NewNullLogger())
				health.RegisterHealthServer(server, &service{
					check: func(ctx context.Context, _ string) (health.HealthCheckResponse_ServingStatus, error) {
						select {
						case <-time.After(tt.takes):
							return health.HealthCheckResponse_SERVING, nil
						case <-ctx.Done():
							return 0, ctx.Err()
						}
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- rpc.Serve(ctx, server, p.Listener(), 10*time.Second) }()
				cc, err := rpc.Client(p)
				must.NoError(t, err)
				answer := make(chan error, 1)
				go func() {
					_, err := health.NewHealthClient(cc).Check(t.Context(), &health.HealthCheckRequest{})
					answer <- err
				}()
				synctest.Wait()
				begin := time.Now()
				cancel()
				must.Eq(t, tt.kind, core.KindOf(<-answer))
				must.NoError(t, <-done)
				must.Eq(t, tt.want, time.Since(begin))
				must.NoError(t, cc.Close())
			})
		})
	}
}

// A connection of the pipe honours deadlines, and ends for both sides when one closes it.
func TestPipe(t *testing.T) {
	t.Parallel()
	p := rpc.NewPipe()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := p.Dial(ctx) // nobody accepts
	must.Eq(t, core.DeadlineExceeded, core.KindOf(err))

	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := p.Listener().Accept()
		accepted <- c
	}()
	client, err := p.Dial(t.Context())
	must.NoError(t, err)
	server := <-accepted
	must.NoError(t, client.SetReadDeadline(time.Now().Add(5*time.Millisecond)))
	_, err = client.Read(make([]byte, 1))
	timeout, ok := errors.AsType[net.Error](err)
	must.True(t, ok && timeout.Timeout(), must.Sprint(err))
	must.NoError(t, client.SetReadDeadline(time.Time{}))

	_, err = server.Write([]byte("last words"))
	must.NoError(t, err)
	must.NoError(t, server.Close())
	data, err := io.ReadAll(client)
	must.NoError(t, err)
	must.Eq(t, "last words", string(data))
	_, err = client.Write([]byte("x"))
	must.Error(t, err)
	must.NoError(t, client.Close())
	must.NoError(t, p.Close())
	_, err = p.Listener().Accept()
	must.ErrorIs(t, err, net.ErrClosed)
}

// Many requests and streams at once over one connection.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := start(t, &service{
		check: func(_ context.Context, text string) (health.HealthCheckResponse_ServingStatus, error) {
			return 0, core.Errorf(core.InUse, "%s", text)
		},
		watch: func(text string, s health.Health_WatchServer) error {
			for range 100 {
				if err := s.Send(&health.HealthCheckResponse{}); err != nil {
					return err
				}
			}
			return core.Errorf(core.WorkerLost, "%s", text)
		},
	}, hclog.NewNullLogger())
	errs := make(chan error, 32)
	for i := range cap(errs) {
		go func() {
			text := fmt.Sprint(i)
			_, unary := c.Check(t.Context(), &health.HealthCheckRequest{Service: text})
			n, stream := recv(c.Watch(t.Context(), &health.HealthCheckRequest{Service: text}))
			if core.KindOf(unary) != core.InUse || unary.Error() != text || n != 100 || core.KindOf(stream) != core.WorkerLost || stream.Error() != text {
				errs <- fmt.Errorf("%w, %d, %w", unary, n, stream)
				return
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		must.NoError(t, <-errs)
	}
}

// Any status from the wire becomes an error with a kind.
func FuzzFromStatus(f *testing.F) {
	for _, k := range kinds {
		data, err := proto.Marshal(status.Convert(rpc.ToStatus(core.Errorf(k, "op: text").Hint("hint"))).Proto())
		must.NoError(f, err)
		f.Add(data)
	}
	bad, err := proto.Marshal(&spb.Status{Code: 5, Details: []*anypb.Any{{TypeUrl: "type.googleapis.com/google.rpc.ErrorInfo", Value: []byte{0xff}}, {TypeUrl: "x"}}})
	must.NoError(f, err)
	f.Add(bad)
	f.Fuzz(func(t *testing.T, data []byte) {
		var s spb.Status
		if proto.Unmarshal(data, &s) != nil {
			return
		}
		err := rpc.FromStatus(status.ErrorProto(&s))
		must.Eq(t, s.GetCode() == 0, err == nil)
		if err != nil {
			must.NotEq(t, "", core.KindOf(err))
			must.NotEq(t, "", err.Error())
			again := rpc.FromStatus(rpc.ToStatus(err))
			if len(err.Error())+len(core.HintOf(err))+len(core.KindOf(err)) < 1000 {
				must.Eq(t, core.FailureOf(err), core.FailureOf(again))
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	c := start(b, &service{check: func(context.Context, string) (health.HealthCheckResponse_ServingStatus, error) {
		return health.HealthCheckResponse_SERVING, nil
	}}, hclog.NewNullLogger())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Check(b.Context(), &health.HealthCheckRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}

// syncBuffer is a buffer for a logger that other goroutines use.
type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
