package hive

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// answerTimeout is how long a queen may take to answer a report before its connection counts as
	// stuck. A queen answers without waiting for anything.
	answerTimeout = 4 * time.Second
	lineRetry     = 25 * time.Millisecond // doubles with every failure
	lineRetryMost = time.Second
	reportLeast   = 50 * time.Millisecond // between two reports, whatever the queen asks for
	reportMost    = time.Hour
	reportDefault = time.Second // unless the queen asks for another interval
)

// QueenAddress is a queen that the hive keeps a line to.
type QueenAddress struct {
	ID         string // Node.ID
	RPCAddress string // host:port; it may be empty where Conn needs none
}

// Queens is how a hive reaches the queens, and where it passes their views of the cluster. Methods
// are called concurrently.
type Queens interface {
	// List returns the queens to keep a line to.
	List() []QueenAddress
	// Changed returns a channel that is closed when List has changed. Get the channel before
	// calling List.
	Changed() <-chan struct{}
	// Conn returns the connection to a queen of the list. It does not block; the hive must not
	// close the connection. Its errors must be classified, as those of rpc.Client are.
	Conn(q QueenAddress) (grpc.ClientConnInterface, error)
	// Reset reports that the connection to a queen is stuck or cannot be established: the next Conn
	// shall dial anew, and List may return another address.
	Reset(q QueenAddress)
	// SetView passes on a queen's view of the cluster. An older view never follows a newer one.
	SetView(v *queenv1.ClusterView)
}

// OneQueen returns the Queens of a hive that has only the queen at the other end of conn.
func OneQueen(conn grpc.ClientConnInterface) Queens { return oneQueen{conn} }

type oneQueen struct{ conn grpc.ClientConnInterface }

func (o oneQueen) List() []QueenAddress                                { return []QueenAddress{{}} }
func (o oneQueen) Changed() <-chan struct{}                            { return nil }
func (o oneQueen) Conn(QueenAddress) (grpc.ClientConnInterface, error) { return o.conn, nil }
func (o oneQueen) Reset(QueenAddress)                                  {}
func (o oneQueen) SetView(*queenv1.ClusterView)                        {}

// line is the hive's line to one queen. It reports at once when something changed and otherwise at
// the queen's interval, one report at a time: changes before the answer go into the next report.
type line struct {
	b       *beater
	queen   QueenAddress
	cancel  context.CancelFunc
	changed chan struct{} // capacity one
	loaded  chan struct{} // capacity one
	ending  chan struct{} // closed when the hive ends
	ended   chan struct{} // closed after the last report
	told    uint64        // change count of the state reported last; guarded by beater.mu, as are the next two
	took    uint64        // change count of the state that the queen took in last
	stands  bool          // connected: the queen has answered
}

func newLine(b *beater, q QueenAddress, cancel context.CancelFunc) *line {
	return &line{
		b: b, queen: q, cancel: cancel,
		changed: make(chan struct{}, 1), loaded: make(chan struct{}, 1), ending: make(chan struct{}), ended: make(chan struct{}),
	}
}

var (
	errStuck = errors.New("the queen does not answer")
	errEnded = errors.New("the hive has ended")
)

// run opens the line, and reopens it whenever it breaks, until ctx or the hive ends.
func (l *line) run(ctx context.Context) {
	defer close(l.ended)
	log := l.b.log.With("queen", l.queen.ID, "address", l.queen.RPCAddress)
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for failures := 0; ; {
		answered, err := l.talk(ctx)
		if ctx.Err() != nil || errors.Is(err, errEnded) {
			return
		}
		if answered {
			if failures >= loudFailures {
				log.Info("a queen was reached again")
			}
			failures = 0
		}
		failures++
		if errors.Is(err, errStuck) || failures >= lostFailures && core.KindOf(err) == core.Unavailable {
			l.b.queens.Reset(l.queen)
		}
		switch {
		case failures == 1:
			log.Debug("the line to a queen broke", "error", err)
		case failures == loudFailures && core.KindOf(err) == core.Conflict:
			log.Error("a queen refuses this hive; workers go on and the hive keeps trying", "error", err)
		case failures == loudFailures:
			log.Warn("a queen cannot be reached; workers go on and the hive keeps trying", "error", err)
		}
		timer.Reset(retryAfter(failures))
		select {
		case <-timer.C:
		case <-l.ending:
			return // an unreachable queen is not notified
		case <-ctx.Done():
			return
		}
	}
}

// lostFailures is the number of failed attempts after which a queen may have moved.
const lostFailures = 3

// loudFailures is the number of failed attempts after which a warning is logged: about two seconds.
const loudFailures = 7

// retryAfter grows with the failures and is spread by a quarter, so that many hives do not
// reconnect at once.
func retryAfter(failures int) time.Duration {
	d := lineRetryMost
	if failures < 6 {
		d = min(lineRetry<<(failures-1), lineRetryMost)
	}
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// talk reports over one stream until it breaks. answered reports whether the queen has taken a
// report in.
func (l *line) talk(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)

	defer l.b.broke(l)
	// A report without an answer ends everything, including a Send that hangs.
	stuck := time.AfterFunc(answerTimeout, func() { cancel(errStuck) })
	defer stuck.Stop()
	conn, err := l.b.queens.Conn(l.queen)
	if err != nil {
		return false, err
	}
	if c, ok := conn.(interface{ ResetConnectBackoff() }); ok {
		c.ResetConnectBackoff() // we back off ourselves
	}
	stream, err := queenv1.NewRegistryServiceClient(conn).Link(ctx)
	if err != nil {
		return false, because(ctx, err)
	}
	answers := make(chan *queenv1.LinkResponse)
	broken := make(chan error, 1)
	wg.Go(func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case answers <- resp:
			case <-ctx.Done():
				return
			}
		}
	})

	t := teller{line: l, stream: stream, stuck: stuck}
	t.timer = time.NewTimer(reportMost)
	defer t.timer.Stop()
	ending := l.ending
	t.tell(ctx)
	for {
		select {
		case resp := <-answers:
			answered = true
			t.answered(resp)
			if t.said && t.waiting == 0 && (resp.GetRegistered() || !t.leader) {
				return true, errEnded
			}
		case <-t.timer.C:
			t.due(ctx)
		case <-l.changed:
			t.due(ctx)
		case <-l.loaded:
			t.hurry()
		case <-ending:
			ending = nil
			t.final = true
			t.due(ctx)
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				err = core.Errorf(core.Unavailable, "queen %s hung up", l.queen.ID)
			}
			return answered, because(ctx, err)
		case <-ctx.Done():
			return answered, because(ctx, ctx.Err())
		}
	}
}

// because returns the cause that ended ctx, if it has ended, and otherwise err.
func because(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStuck) {
		return core.WithKind(errStuck, core.Unavailable)
	}
	return err
}

// teller is the reporting side of one stream.
type teller struct {
	*line
	stream grpc.BidiStreamingClient[queenv1.LinkRequest, queenv1.LinkResponse]
	stuck  *time.Timer
	timer  *time.Timer // when to report next

	seq     uint64    // of the last report
	stock   uint64    // change count of the inventory reported last over this stream
	counts  [2]uint64 // change counts of the last report and the one before
	waiting uint64    // sequence number of the report in flight; 0: none
	missed  bool      // something changed meanwhile
	busier  bool      // the load changed meanwhile
	sent    time.Time
	next    time.Duration // as the queen asked
	spread  bool          // reports are already spread over the interval
	leader  bool          // the queen has registered a report
	final   bool          // the hive ends
	said    bool          // and the last report has told the queen
}

// due sends a report now, or as soon as the queen has answered the one in flight.
func (t *teller) due(ctx context.Context) {
	if t.waiting != 0 {
		t.missed = true
		return
	}
	t.tell(ctx)
}

// hurry schedules a report of the load, no sooner than the spacing allows.
func (t *teller) hurry() {
	if t.waiting != 0 {
		t.busier = true
		return
	}
	spacing := min(max(t.next/loadSpacing, loadSpacingLeast), loadSpacingMost)
	if wait := time.Until(t.sent.Add(spacing)); wait < time.Until(t.sent.Add(t.next)) {
		t.timer.Reset(max(wait, 0))
	}
}

func (t *teller) tell(ctx context.Context) {
	// Changes from here on go into another report.
	for _, c := range []chan struct{}{t.changed, t.loaded} {
		select {
		case <-c:
		default:
		}
	}
	t.seq++
	t.counts[t.seq%2] = t.b.telling(t.line)
	req := t.b.report(ctx)
	req.Seq, req.Ending = t.seq, t.final
	if t.b.inventory != nil {
		if v, count := t.b.inventory(); count != t.stock {
			req.Inventory, t.stock = v, count
		}
	}
	t.waiting, t.missed, t.busier, t.said, t.sent = t.seq, false, false, t.final, time.Now()
	t.timer.Reset(reportMost)
	t.stuck.Reset(answerTimeout)
	_ = t.stream.Send(req) // Recv returns the reason of a failure
}

func (t *teller) answered(resp *queenv1.LinkResponse) {
	if resp.GetSeq() >= t.waiting {
		t.waiting = 0
		t.stuck.Stop()
	}
	if seq := resp.GetSeq(); seq == t.seq || seq+1 == t.seq {
		t.b.took(t.line, t.counts[seq%2])
	}
	if seq := resp.GetSeq(); resp.GetRegistered() && (seq == t.seq || seq+1 == t.seq) {
		t.leader = true
		t.b.accepted(t.counts[seq%2])
	}
	for _, id := range resp.GetRetire() {
		t.b.retire(id)
	}
	if v := resp.GetCluster(); v != nil {
		t.b.viewed(v)
	}
	if t.b.told != nil {
		t.b.told(t.queen.ID, resp)
	}
	if t.waiting != 0 {
		return
	}
	t.next = reportDefault
	if resp.GetNext() != nil {
		t.next = min(max(resp.GetNext().AsDuration(), reportLeast), reportMost)
	}
	at := t.next
	if t.next > reportDefault {
		// Hives that connected at once shall not report at once for long.
		part := 0.9 + 0.1*rand.Float64()
		if !t.spread {
			part, t.spread = 0.05+0.95*rand.Float64(), true
		}
		at = time.Duration(float64(t.next) * part)
	}
	if t.missed {
		at = 0
	}
	t.timer.Reset(max(time.Until(t.sent.Add(at)), 0))
	if t.busier && !t.missed {
		t.busier = false
		t.hurry()
	}
}
