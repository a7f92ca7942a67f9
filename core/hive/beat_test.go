package hive

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// recorder is a queen's end of lines that records when reports arrive.
type recorder struct {
	queenv1.UnimplementedRegistryServiceServer
	start time.Time
	conn  *grpc.ClientConn

	mu       sync.Mutex // guards below
	at       []time.Duration
	reports  []*queenv1.LinkRequest
	next     time.Duration
	err      error // returned on every line
	delay    time.Duration
	follower bool
	late     time.Duration // delay between answering a report and registering it
	view     *queenv1.ClusterView
	retire   []string
	opened   int
	standing int
}

func (r *recorder) Link(s grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	r.set(func(r *recorder) { r.opened++; r.standing++ })
	defer r.set(func(r *recorder) { r.standing-- })
	for {
		req, err := s.Recv()
		if err != nil {
			return nil // the hive hung up
		}
		r.mu.Lock()
		r.at = append(r.at, time.Since(r.start))
		r.reports = append(r.reports, req)
		err, delay, late := r.err, r.delay, r.late
		resp := &queenv1.LinkResponse{Seq: req.GetSeq(), Registered: !r.follower && late == 0, Next: durationpb.New(r.next), Cluster: r.view, Retire: r.retire}
		r.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-s.Context().Done():
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(resp); err != nil {
			return err
		}
		if late > 0 {
			time.Sleep(late)
			resp.Registered = true
			if err := s.Send(resp); err != nil {
				return err
			}
		}
	}
}

func (r *recorder) set(f func(*recorder)) { r.mu.Lock(); defer r.mu.Unlock(); f(r) }

func (r *recorder) times() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Duration(nil), r.at...)
}

func (r *recorder) count() int { return len(r.times()) }

// lines returns how many lines are connected, and how many have been opened.
func (r *recorder) lines() (standing, opened int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.standing, r.opened
}

func (r *recorder) last() *queenv1.LinkRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reports[len(r.reports)-1]
}

// fleet implements Queens for a test.
type fleet struct {
	mu      sync.Mutex // guards below
	queens  map[QueenAddress]*recorder
	list    []QueenAddress
	changed chan struct{}
	resets  int
	views   []*queenv1.ClusterView
	stock   *queenv1.Inventory
	stocked uint64 // change count of the inventory
}

func (f *fleet) inventory() (*queenv1.Inventory, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stock, f.stocked
}

func (f *fleet) List() []QueenAddress { f.mu.Lock(); defer f.mu.Unlock(); return f.list }

func (f *fleet) Changed() <-chan struct{} { f.mu.Lock(); defer f.mu.Unlock(); return f.changed }

func (f *fleet) Conn(q QueenAddress) (grpc.ClientConnInterface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.queens[q]; ok {
		return r.conn, nil
	}
	return nil, core.Errorf(core.Unavailable, "no way to %s", q.ID)
}

func (f *fleet) Reset(QueenAddress) { f.mu.Lock(); defer f.mu.Unlock(); f.resets++ }

func (f *fleet) SetView(v *queenv1.ClusterView) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views = append(f.views, v)
}

func (f *fleet) setList(list ...QueenAddress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	close(f.changed)
	f.changed = make(chan struct{})
}

// beating runs a beater with lines to the recorders, which are queens q0, q1, …, in a synctest
// bubble.
func beating(t *testing.T, run func(t *testing.T, b *beater, f *fleet), recorders ...*recorder) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{queens: map[QueenAddress]*recorder{}, changed: make(chan struct{})}
		var wg sync.WaitGroup
		var ends []func()
		for i, r := range recorders {
			pipe := rpc.NewPipe()
			server := rpc.NewServer(hclog.NewNullLogger())
			queenv1.RegisterRegistryServiceServer(server, r)
			conn, err := rpc.Client(pipe)
			must.NoError(t, err)
			r.conn, r.start = conn, time.Now()
			wg.Go(func() { _ = server.Serve(pipe.Listener()) })
			ends = append(ends, func() { _ = conn.Close(); server.Stop() })
			a := QueenAddress{ID: fmt.Sprintf("q%d", i), RPCAddress: "there"}
			f.queens[a] = r
			f.list = append(f.list, a)
		}
		b := newBeater(hclog.NewNullLogger(), f, func(context.Context) *queenv1.LinkRequest { return &queenv1.LinkRequest{} }, func(string) {})
		b.inventory = f.inventory
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		wg.Go(func() { defer close(ran); b.run(ctx) })
		defer func() {
			told := time.Now()
			cancel()
			<-ran
			test.LessEq(t, endPatience, time.Since(told))
			for _, end := range ends {
				end()
			}
			wg.Wait()
			time.Sleep(2 * time.Second) // for handlers that sleep
		}()
		run(t, b, f)
	})
}

func ready(b *beater) bool { return isDone(b.ready) }

func TestReportsKeepTheQueensPace(t *testing.T) {
	r := &recorder{next: time.Second}
	beating(t, func(t *testing.T, _ *beater, _ *fleet) {
		time.Sleep(2500 * time.Millisecond)
		must.Eq(t, []time.Duration{0, time.Second, 2 * time.Second}, r.times())
		must.Eq(t, 3, r.last().GetSeq())

		// A long interval is never exceeded, and hives that started together drift apart.
		r.set(func(r *recorder) { r.next, r.at = 100*time.Second, nil })
		time.Sleep(1000 * time.Second)
		must.Between(t, 10, r.count(), 13)
		at := r.times()
		for i := 1; i < len(at); i++ {
			must.LessEq(t, 100*time.Second, at[i]-at[i-1])
		}
	}, r)
}

func TestChangesAreToldAtOnceAndTogether(t *testing.T) {
	r := &recorder{next: time.Second, delay: 400 * time.Millisecond}
	beating(t, func(t *testing.T, b *beater, _ *fleet) {
		time.Sleep(5500 * time.Millisecond)
		before := r.count()
		for range 100 {
			b.bump()
		}
		time.Sleep(200 * time.Millisecond) // one report is in flight: these go into the next
		for range 100 {
			b.bump()
		}
		must.NoError(t, b.flush(t.Context()))
		at := r.times()[before:]
		must.Eq(t, []time.Duration{5500 * time.Millisecond, 5900 * time.Millisecond}, at)
		must.Eq(t, 6300*time.Millisecond, time.Since(r.start))
		time.Sleep(300 * time.Millisecond)
		must.Len(t, before+2, r.times())
	}, r)
}

// A change of load is reported soon, but a busy hive of a large cluster does not report all the
// time.
func TestLoadReportedSoon(t *testing.T) {
	r := &recorder{next: time.Second}
	beating(t, func(t *testing.T, b *beater, _ *fleet) {
		time.Sleep(600 * time.Millisecond)
		b.bumpLoad()
		synctest.Wait()
		must.Eq(t, []time.Duration{0, 600 * time.Millisecond}, r.times())
		for range 99 { // the next report is due 10 ms after the last one
			b.bumpLoad()
			time.Sleep(10 * time.Millisecond)
		}
		must.Eq(t, []time.Duration{0, 600 * time.Millisecond, 850 * time.Millisecond, 1100 * time.Millisecond, 1350 * time.Millisecond}, r.times())
		// A flush does not wait for that interval.
		now := time.Now()
		b.bumpLoad()
		must.NoError(t, b.flush(t.Context()))
		must.Eq(t, 0, time.Since(now))

		r.set(func(r *recorder) { r.next = 200 * time.Second })
		time.Sleep(time.Minute)
		before := r.count()
		for range 6000 {
			b.bumpLoad()
			time.Sleep(10 * time.Millisecond)
		}
		must.Between(t, 12, r.count()-before, 13)
	}, r)
}

func TestReadyWithTheFirstRegisteredReport(t *testing.T) {
	r := &recorder{next: time.Minute, err: core.Errorf(core.Unavailable, "no")}
	beating(t, func(t *testing.T, b *beater, _ *fleet) {
		time.Sleep(10 * time.Second)
		must.False(t, ready(b))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(b.flush(ctx)))
		r.set(func(r *recorder) { r.err, r.follower = nil, true })
		time.Sleep(2 * time.Second)
		must.False(t, ready(b)) // taken in, but not by a leader
		r.set(func(r *recorder) { r.follower, r.late = false, time.Second })
		b.bump()
		time.Sleep(500 * time.Millisecond)
		must.False(t, ready(b))
		must.NoError(t, b.flush(t.Context()))
		must.True(t, ready(b))
	}, r)
}

// Every queen has its own line: an unreachable one does not disturb the others.
func TestLinePerQueen(t *testing.T) {
	leader, follower, dead := &recorder{next: time.Second}, &recorder{next: 2 * time.Second, follower: true}, &recorder{err: core.Errorf(core.Unavailable, "no")}
	beating(t, func(t *testing.T, b *beater, f *fleet) {
		synctest.Wait()
		must.True(t, ready(b))
		b.bump()
		must.NoError(t, b.flush(t.Context()))
		synctest.Wait()
		must.Eq(t, 2, leader.count())
		must.Eq(t, 2, follower.count())

		// Retries begin at once and back off to a second, whatever changes meanwhile.
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			b.bump()
		}
		at := dead.times()
		must.Less(t, 40*time.Millisecond, at[1])
		must.Between(t, 50, len(at), 85) // one minute
		for i := len(at) - 3; i < len(at); i++ {
			must.Between(t, 750*time.Millisecond, at[i]-at[i-1], 1250*time.Millisecond)
		}

		// Leadership moves.
		leader.set(func(r *recorder) { r.follower = true })
		follower.set(func(r *recorder) { r.follower = false })
		b.bump()
		must.NoError(t, b.flush(t.Context()))

		// A queen that leaves the list loses its line, a new one gets one at once.
		standing, _ := leader.lines()
		must.Eq(t, 1, standing)
		f.setList(QueenAddress{ID: "q1", RPCAddress: "there"})
		synctest.Wait()
		standing, _ = leader.lines()
		must.Eq(t, 0, standing)
		standing, opened := follower.lines()
		must.Eq(t, 1, standing)
		must.Eq(t, 1, opened)
		before := leader.count()
		f.setList(QueenAddress{ID: "q1", RPCAddress: "there"}, QueenAddress{ID: "q0", RPCAddress: "there"})
		synctest.Wait()
		must.Eq(t, before+1, leader.count())
		must.Eq(t, 1, leader.last().GetSeq())
		_, opened = follower.lines()
		must.Eq(t, 1, opened)
	}, leader, follower, dead)
}

func TestSilentQueenRedialled(t *testing.T) {
	r := &recorder{next: time.Second, delay: time.Hour}
	beating(t, func(t *testing.T, b *beater, f *fleet) {
		time.Sleep(answerTimeout + 100*time.Millisecond)
		must.GreaterEq(t, 2, r.count())
		f.mu.Lock()
		must.Eq(t, 1, f.resets)
		f.mu.Unlock()
		r.set(func(r *recorder) { r.delay = 0 })
		<-b.ready
	}, r)
}

func TestEndReported(t *testing.T) {
	leader, follower, mute := &recorder{next: time.Minute, late: 100 * time.Millisecond}, &recorder{next: time.Minute, follower: true}, &recorder{delay: time.Hour}
	t.Cleanup(func() {
		for _, r := range []*recorder{leader, follower} {
			must.True(t, r.last().GetEnding())
			must.False(t, r.reports[0].GetEnding())
			standing, _ := r.lines()
			must.Eq(t, 0, standing)
		}
	})
	beating(t, func(t *testing.T, b *beater, _ *fleet) {
		<-b.ready
		time.Sleep(time.Second)
		b.bump() // then it ends at once: the change is still reported
	}, leader, follower, mute)
}

// Views of the cluster from queens are passed on, unless they are older than one already passed on.
func TestViewsAreInOrder(t *testing.T) {
	view := func(index uint64) *queenv1.ClusterView { return &queenv1.ClusterView{Index: index} }
	r, late := &recorder{next: time.Second, view: view(10)}, &recorder{next: time.Second, follower: true}
	beating(t, func(t *testing.T, _ *beater, f *fleet) {
		time.Sleep(500 * time.Millisecond) // from here on halfway between two reports
		r.set(func(r *recorder) { r.view = nil })
		late.set(func(r *recorder) { r.view = view(9) })
		time.Sleep(time.Second)
		late.set(func(r *recorder) { r.view = view(10) })
		time.Sleep(time.Second)
		late.set(func(r *recorder) { r.view = view(11) })
		time.Sleep(time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		var got []uint64
		for _, v := range f.views {
			got = append(got, v.GetIndex())
		}
		must.Eq(t, []uint64{10, 10, 11}, got)
	}, r, late)
}
