package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// queen is one of several queens that forward calls to the leader.
type queen struct {
	queenv1.UnimplementedClusterServiceServer
	queenv1.UnimplementedJoinServiceServer
	*node
	pipe  *rpc.Pipe
	local *grpc.ClientConn // connects from the queen's own process
	pool  *rpc.Pool

	handled atomic.Int64
	apply   func(ctx context.Context, command string) error
}

func (q *queen) Apply(ctx context.Context, r *queenv1.ApplyRequest) (*queenv1.ApplyResponse, error) {
	q.handled.Add(1)
	if q.apply != nil {
		if err := q.apply(ctx, string(r.GetCommand())); err != nil {
			return nil, err
		}
	}
	return &queenv1.ApplyResponse{Index: 7}, nil
}

func (q *queen) Join(ctx context.Context, _ *queenv1.JoinRequest) (*queenv1.JoinResponse, error) {
	peer, known := rpc.Peer(ctx)
	return &queenv1.JoinResponse{Cluster: fmt.Sprintf("at %s: peer %q %t, caller %q, host %q", q.id.Node().ID, peer.ID, known, rpc.Caller(ctx), rpc.CallerHost(ctx))}, nil
}

func (q *queen) Renew(ctx context.Context, _ *queenv1.RenewRequest) (*queenv1.RenewResponse, error) {
	return &queenv1.RenewResponse{Certificate: []byte(rpc.Caller(ctx))}, nil
}

func (q *queen) SaveSnapshot(_ *queenv1.SaveSnapshotRequest, s grpc.ServerStreamingServer[queenv1.SaveSnapshotResponse]) error {
	q.handled.Add(1)
	for i := range 100 {
		if err := s.Send(&queenv1.SaveSnapshotResponse{Data: fmt.Append(nil, i, ",")}); err != nil {
			return err
		}
	}
	if q.apply != nil {
		return q.apply(s.Context(), "")
	}
	return nil
}

func (q *queen) RestoreSnapshot(s grpc.ClientStreamingServer[queenv1.RestoreSnapshotRequest, queenv1.RestoreSnapshotResponse]) error {
	q.handled.Add(1)
	var n uint64
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&queenv1.RestoreSnapshotResponse{Index: n})
		}
		if err != nil {
			return err
		}
		if string(m.GetData()) == "bad" {
			return core.Errorf(core.Integrity, "it is damaged").Hint("Take another.")
		}
		n += uint64(len(m.GetData()))
	}
}

// queens are three queens with a fake leader election.
type queens struct {
	all []*queen
	mu  sync.Mutex // guards leader
	led string     // node id; empty: none
	// seen overrides which queen a queen takes for the leader.
	seen map[string]string
}

func (q *queens) lead(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.led = id
}

func (q *queens) think(who, leads string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seen[who] = leads
}

func (q *queens) leader(self string) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l, ok := q.seen[self]; ok {
		return l
	}
	return q.led
}

func startQueens(t testing.TB, ca *pki.CA) *queens {
	t.Helper()
	qs := &queens{seen: map[string]string{}, led: "00000001"}
	for _, id := range []string{"00000001", "00000002", "00000003"} {
		q := &queen{node: listen(t, identity(t, ca, id, core.RoleQueen)), pipe: rpc.NewPipe()}
		q.pool = rpc.NewPool(rpc.PoolOptions{Identity: q.id})
		t.Cleanup(func() { _ = q.pool.Close() })
		qs.all = append(qs.all, q)
	}
	for _, q := range qs.all {
		self := q.id.Node().ID
		q.serve(t, rpc.ServerOptions{Forward: &rpc.Forwarder{
			Leader: func(context.Context) (string, string, bool, error) {
				id := qs.leader(self)
				for _, other := range qs.all {
					if other.id.Node().ID == id {
						return id, other.addr, id == self, nil
					}
				}
				return "", "", false, core.Errorf(core.Unavailable, "nobody leads")
			},
			Conn: func(id, address string) (grpc.ClientConnInterface, error) {
				return q.pool.Conn(id, address, core.RoleQueen)
			},
		}}, q.pipe, func(s *grpc.Server) {
			queenv1.RegisterClusterServiceServer(s, q)
			queenv1.RegisterJoinServiceServer(s, q)
		})
		var err error
		q.local, err = rpc.Client(q.pipe)
		must.NoError(t, err)
		t.Cleanup(func() { _ = q.local.Close() })
	}
	return qs
}

func apply(ctx context.Context, c grpc.ClientConnInterface, command string) error {
	_, err := queenv1.NewClusterServiceClient(c).Apply(ctx, &queenv1.ApplyRequest{Command: []byte(command)})
	return err
}

// A call on any queen is answered by the leader, once, and its error is unchanged.
func TestForward(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	qs := startQueens(t, ca)
	leader := qs.all[0]
	leader.apply = func(ctx context.Context, command string) error {
		if peer, ok := rpc.Peer(ctx); !ok || peer.ID == "" || rpc.Caller(ctx) != peer.ID {
			// a queen that forwards its own call is both
			return core.Errorf(core.Internal, "peer %q, caller %q", peer.ID, rpc.Caller(ctx))
		}
		if kind, ok := strings.CutPrefix(command, "fail "); ok {
			return core.Errorf(core.Kind(kind), "it went wrong").Hint("Do this.")
		}
		return nil
	}
	for _, q := range qs.all {
		must.NoError(t, apply(t.Context(), q.local, "x"))
		for _, kind := range kinds {
			err := apply(t.Context(), q.local, "fail "+string(kind))
			must.Eq(t, &core.Failure{Kind: kind, Message: "it went wrong", Hint: "Do this."}, core.FailureOf(err))
		}
	}
	must.Eq(t, int64(3+3*len(kinds)), leader.handled.Load())
	must.Zero(t, qs.all[1].handled.Load())
	must.Zero(t, qs.all[2].handled.Load())

	// Streams.
	follower := queenv1.NewClusterServiceClient(qs.all[1].local)
	save := func() (string, error) {
		s, err := follower.SaveSnapshot(t.Context(), &queenv1.SaveSnapshotRequest{})
		must.NoError(t, err)
		var all []byte
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return string(all), nil
			}
			if err != nil {
				return string(all), err
			}
			all = append(all, m.GetData()...)
		}
	}
	all, err := save()
	must.NoError(t, err)
	must.StrHasSuffix(t, "98,99,", all)
	leader.apply = func(context.Context, string) error {
		return core.Errorf(core.Integrity, "half of it").Hint("Again.")
	}
	all, err = save()
	must.StrHasSuffix(t, "98,99,", all)
	must.Eq(t, &core.Failure{Kind: core.Integrity, Message: "half of it", Hint: "Again."}, core.FailureOf(err))

	restore := func(parts ...string) (uint64, error) {
		s, err := follower.RestoreSnapshot(t.Context())
		must.NoError(t, err)
		for _, p := range parts {
			if s.Send(&queenv1.RestoreSnapshotRequest{Data: []byte(p)}) != nil {
				break
			}
		}
		r, err := s.CloseAndRecv()
		return r.GetIndex(), err
	}
	n, err := restore("one", "two", "three")
	must.NoError(t, err)
	must.Eq(t, 11, n)
	n, err = restore()
	must.NoError(t, err)
	must.Zero(t, n)
	_, err = restore("one", "bad", "three")
	must.Eq(t, &core.Failure{Kind: core.Integrity, Message: "it is damaged", Hint: "Take another."}, core.FailureOf(err))

	// Streams on the leader itself.
	s, err := queenv1.NewClusterServiceClient(leader.local).SaveSnapshot(t.Context(), &queenv1.SaveSnapshotRequest{})
	must.NoError(t, err)
	_, err = s.Recv()
	must.NoError(t, err)
}

// The leader knows the original caller, and lets only queens name one.
func TestForwardCaller(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	qs := startQueens(t, ca)
	fingerprint, err := pki.Fingerprint(ca.CertPEM())
	must.NoError(t, err)
	hivePool := rpc.NewPool(rpc.PoolOptions{Identity: identity(t, ca, "0000000a", core.RoleHive)})
	t.Cleanup(func() { _ = hivePool.Close() })
	forged := metadata.AppendToOutgoingContext(t.Context(), "rbee-caller", "00000003", "rbee-caller-address", "192.0.2.1")
	for i, q := range qs.all {
		through := fmt.Sprintf("at 00000001: peer %q true", q.id.Node().ID)
		if i == 0 {
			through = `at 00000001: peer "" false`
		}
		stranger, err := rpc.JoinConn(t.Context(), q.addr, fingerprint)
		must.NoError(t, err)
		for _, ctx := range []context.Context{t.Context(), forged, metadata.AppendToOutgoingContext(forged, "rbee-forwarded", "1")} {
			if i > 0 || ctx != forged {
				r, err := queenv1.NewJoinServiceClient(stranger).Join(ctx, &queenv1.JoinRequest{})
				must.NoError(t, err)
				must.Eq(t, through+`, caller "", host "127.0.0.1"`, r.GetCluster())
			}
		}
		must.NoError(t, stranger.Close())

		hive, err := hivePool.Conn(q.id.Node().ID, q.addr, core.RoleQueen)
		must.NoError(t, err)
		for _, ctx := range []context.Context{t.Context(), forged, metadata.AppendToOutgoingContext(forged, "rbee-forwarded", "1")} {
			r, err := queenv1.NewJoinServiceClient(hive).Renew(ctx, &queenv1.RenewRequest{})
			must.NoError(t, err)
			must.Eq(t, "0000000a", string(r.GetCertificate()))
		}
		// the queen that receives the call applies the rule
		must.Eq(t, core.Forbidden, core.KindOf(apply(forged, hive, "x")))
	}
	must.Zero(t, qs.all[0].handled.Load())

	// The leader trusts a queen.
	queen, err := qs.all[2].pool.Conn("00000001", qs.all[0].addr, core.RoleQueen)
	must.NoError(t, err)
	r, err := queenv1.NewJoinServiceClient(queen).Join(metadata.AppendToOutgoingContext(forged, "rbee-forwarded", "1"), &queenv1.JoinRequest{})
	must.NoError(t, err)
	must.Eq(t, `at 00000001: peer "00000003" true, caller "00000003", host "192.0.2.1"`, r.GetCluster())
}

// A call waits for a leader and reaches it, even if the queen that it was forwarded to no longer
// leads.
func TestForwardWaitsForLeader(t *testing.T) {
	t.Parallel()
	qs := startQueens(t, newCA(t))
	for name, before := range map[string]func(){
		"nobody leads":        func() { qs.lead("") },
		"the wrong one leads": func() { qs.lead("00000001"); qs.think("00000002", "00000003") },
		"the leader is gone":  func() { qs.lead("00000001") },
	} {
		if name == "the leader is gone" {
			qs = startQueens(t, newCA(t)) // no node is connected to it
			qs.all[0].stop()
		}
		for _, stream := range []bool{false, true} {
			before()
			handled := qs.all[0].handled.Load() + qs.all[2].handled.Load()
			done := make(chan error, 1)
			go func() {
				if !stream {
					done <- apply(t.Context(), qs.all[1].local, "x")
					return
				}
				s, err := queenv1.NewClusterServiceClient(qs.all[1].local).SaveSnapshot(t.Context(), &queenv1.SaveSnapshotRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				done <- err
			}()
			timer := time.NewTimer(200 * time.Millisecond)
			select {
			case err := <-done:
				t.Fatalf("%s: %v", name, err)
			case <-timer.C:
			}
			qs.mu.Lock()
			clear(qs.seen)
			qs.led = "00000003"
			qs.mu.Unlock()
			begin := time.Now()
			must.NoError(t, <-done, must.Sprint(name))
			must.Less(t, 4*time.Second, time.Since(begin))
			must.Eq(t, handled+1, qs.all[0].handled.Load()+qs.all[2].handled.Load())
		}
	}
}

// Without a leader a call fails after five seconds; a forwarded call fails at once.
func TestNoLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := rpc.NewPipe()
		s := rpc.NewNodeServer(rpc.ServerOptions{Forward: &rpc.Forwarder{
			Leader: func(context.Context) (string, string, bool, error) {
				return "", "", false, core.Errorf(core.Unavailable, "nobody leads")
			},
		}})
		registerAll(s)
		served := make(chan error, 1)
		go func() { served <- s.Serve(p.Listener()) }()
		c, err := rpc.Client(p)
		must.NoError(t, err)
		for ctx, want := range map[context.Context]time.Duration{
			t.Context(): 5 * time.Second,
			metadata.AppendToOutgoingContext(t.Context(), "rbee-forwarded", "1"): 0,
		} {
			for _, call := range []func() error{
				func() error { return apply(ctx, c, "x") },
				func() error {
					s, err := queenv1.NewClusterServiceClient(c).SaveSnapshot(ctx, &queenv1.SaveSnapshotRequest{})
					must.NoError(t, err)
					_, err = s.Recv()
					return err
				},
				func() error {
					s, err := queenv1.NewClusterServiceClient(c).RestoreSnapshot(ctx)
					must.NoError(t, err)
					_, err = s.CloseAndRecv()
					return err
				},
			} {
				begin := time.Now()
				err := call()
				must.Eq(t, core.Unavailable, core.KindOf(err))
				must.StrContains(t, err.Error(), "there is no leader")
				must.NotEq(t, "", core.HintOf(err))
				must.Between(t, want, time.Since(begin), want+50*time.Millisecond)
			}
		}
		must.NoError(t, c.Close())
		s.Stop()
		must.NoError(t, <-served)
		time.Sleep(time.Minute)
	})
}

// Two queens that each take the other for the leader do not forward a call back and forth.
func TestForwardLoop(t *testing.T) {
	t.Parallel()
	qs := startQueens(t, newCA(t))
	qs.think("00000001", "00000002")
	qs.think("00000002", "00000001")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	must.Error(t, apply(ctx, qs.all[0].local, "x"))
	must.Zero(t, qs.all[0].handled.Load()+qs.all[1].handled.Load())
}

// If the leader disconnects during a call, no queen repeats the call, and the caller learns that
// the outcome is unknown.
func TestLeaderLostDuringCall(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(qs *queens){
		"its connection is cut": func(qs *queens) { qs.all[0].mux.CloseNode("00000002") },
		"another one leads":     func(qs *queens) { qs.lead("00000003") },
		"this one leads":        func(qs *queens) { qs.lead("00000002") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			qs := startQueens(t, newCA(t))
			qs.all[0].apply = func(ctx context.Context, _ string) error {
				<-ctx.Done()
				return ctx.Err()
			}
			done := make(chan error, 1)
			go func() { done <- apply(t.Context(), qs.all[1].local, "x") }()
			eventually(t, 5*time.Second, "it has the call", func() bool { return qs.all[0].handled.Load() == 1 })
			begin := time.Now()
			lose(qs)
			err := <-done
			must.Less(t, 4*time.Second, time.Since(begin))
			must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
			must.StrContains(t, core.HintOf(err), "unknown")
			must.Eq(t, 1, qs.all[0].handled.Load()+qs.all[1].handled.Load()+qs.all[2].handled.Load())
		})
	}
}

func BenchmarkForward(b *testing.B) {
	qs := startQueens(b, newCA(b))
	for name, q := range map[string]*queen{"local": qs.all[0], "forwarded": qs.all[1]} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := apply(b.Context(), q.local, "x"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
