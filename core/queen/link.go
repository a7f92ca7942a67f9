package queen

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// incumbentWait is how long a hive that has a line has for a sign of life when another agent with
// its id wants one.
const incumbentWait = 500 * time.Millisecond

// registryService answers hives. Its errors are classified; the gRPC server of core/rpc carries
// them.
type registryService struct {
	queenv1.UnimplementedRegistryServiceServer
	q *Queen
}

// line is the queen's end of a hive's line. Its fields are guarded by Queen.mu.
type line struct {
	pulse       *pulse
	incarnation uint64
	wake        chan struct{} // there is something to send or to end for; holds one

	seq        uint64               // of the newest report
	registered uint64               // of the newest report that the registry has, as far as this leader knows
	hurry      bool                 // the hive shall report at once
	view       *queenv1.ClusterView // as last sent
	heard      chan struct{}        // closed by the next report; nil: nobody waits for one
	over       error                // why it shall end; nil: it shall not
}

func (l *line) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// endLocked ends the line for a reason.
func (l *line) endLocked(err error) {
	if l.over == nil {
		l.over = err
		l.wakeUp()
	}
}

// Link is the line of one hive. It ends with Conflict when the hive has started again since or
// another agent has its id, with Invalid for a report that no hive sends, with Unavailable when the
// queen ends.
func (s *registryService) Link(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	q := s.q
	first, err := stream.Recv()
	if err != nil {
		return lineEnd(err)
	}
	r, err := reportOf(first, q.opts.Now())
	if err != nil {
		return err
	}
	if peer, ok := rpc.Peer(stream.Context()); ok && peer.ID != r.hive.ID {
		return core.Errorf(core.Forbidden, "node %s tells of hive %s", peer.ID, r.hive.ID).Hint("A hive's id is that of its node: remove node-id from its data_dir, or let it join again.")
	}
	l, err := q.openLine(stream.Context(), r.hive)
	if err != nil {
		return err
	}
	defer q.closeLine(l)
	if err := q.take(l, first.GetSeq(), r, first.GetEnding()); err != nil {
		return err
	}
	// It ends when this method has returned, which ends the stream's context: Run waits for it.
	received := make(chan error, 1)
	if !q.reader(func() { received <- q.receive(stream, l) }) {
		return q.ending()
	}
	for {
		select {
		case <-l.wake:
			resp, over := q.answer(l)
			if over != nil {
				return over
			}
			if err := stream.Send(resp); err != nil {
				return lineEnd(err)
			}
		case err := <-received:
			return err
		case <-q.ended:
			return q.ending()
		}
	}
}

// lineEnd is the error of a stream; its regular end is none.
func lineEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return core.WithKind(err, core.KindOf(err))
}

func (q *Queen) ending() error {
	return core.Errorf(core.Unavailable, "queen %s is shutting down", q.opts.ID).Hint("The hive tries again by itself.")
}

// reader starts a goroutine that Run waits for; false: Run has ended.
func (q *Queen) reader(f func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-q.ended:
		return false
	default:
		q.readers.Go(f)
		return true
	}
}

// receive takes reports in until the line ends.
func (q *Queen) receive(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse], l *line) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return lineEnd(err)
		}
		r, err := reportOf(req, q.opts.Now())
		if err != nil {
			return err
		}
		if r.hive.ID != l.pulse.id || r.hive.Incarnation != l.incarnation {
			return invalidReport("the line of hive %s, start %d, tells of hive %s, start %d", l.pulse.id, l.incarnation, r.hive.ID, r.hive.Incarnation)
		}
		if err := q.take(l, req.GetSeq(), r, req.GetEnding()); err != nil {
			return err
		}
	}
}

// openLine makes the line the one of its hive. A line that the same start of the hive has is taken
// to be broken. Where another start has one, that one stays if it gives a sign of life. Errors:
// Conflict.
func (q *Queen) openLine(ctx context.Context, h core.Hive) (*line, error) {
	for asked := false; ; asked = true {
		q.mu.Lock()
		p := q.pulseLocked(h.ID)
		old := p.line
		if old != nil && old.incarnation > h.Incarnation {
			q.mu.Unlock()
			return nil, olderStart(h, old.incarnation)
		}
		if old == nil || old.incarnation == h.Incarnation || asked || p.suspect != "" {
			l := &line{pulse: p, incarnation: h.Incarnation, wake: make(chan struct{}, 1)}
			if old == nil {
				q.lines++
			} else {
				old.endLocked(core.Errorf(core.Unavailable, "hive %s has a newer line to this queen", h.ID).Hint("The hive uses that one."))
			}
			p.line = l
			q.mu.Unlock()
			return l, nil
		}
		if old.heard == nil {
			old.heard = make(chan struct{})
		}
		heard := old.heard
		old.hurry = true
		old.wakeUp()
		q.mu.Unlock()
		timer := time.NewTimer(incumbentWait)
		select {
		case <-heard:
			timer.Stop()
			q.mu.Lock()
			there := p.line == old
			q.mu.Unlock()
			if !there {
				continue
			}
			q.log.Error("a second agent uses the identity of a hive; it is refused", "hive", h.ID, "name", h.Name)
			return nil, core.Errorf(core.Conflict, "hive %s (%s) is here already: another agent has the same identity", h.ID, h.Name).Hint(
				"Stop one of the two agents, or give it a data_dir of its own.")
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, core.FromContext(ctx)
		}
	}
}

func olderStart(h core.Hive, registered uint64) error {
	return core.Errorf(core.Conflict, "hive %s (%s) has started again since: this is start %d, start %d is registered", h.ID, h.Name, h.Incarnation, registered).Hint(
		"Two agents use one hive identity. Stop one of them, or give it a data_dir of its own.")
}

// closeLine notes that a line has ended: until the hive has another one it is suspect.
func (q *Queen) closeLine(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := l.pulse
	if p.line != l {
		return
	}
	p.line = nil
	q.lines--
	if l.heard != nil {
		close(l.heard) // whoever waits looks at what is now
		l.heard = nil
	}
	if p.report == nil && p.graceUntil.IsZero() {
		q.dropLocked(p) // nothing is known of it but this
		return
	}
	q.suspectLocked(p, "the line to its hive broke")
	p.suspectAt = time.Time{}
	p.forgetAt = time.Now().Add(ForgetAfter)
	q.scheduleLocked(p)
}

// take takes a report in. It is in the registry, or about to be, where this queen leads. Errors:
// Invalid, Conflict; Unavailable for a line that is over.
func (q *Queen) take(l *line, seq uint64, r *report, ending bool) error {
	if !fsm.Knows(q.MinFSM(), "Worker.capabilities") {
		// Commands leave them out, so that a report with them would never be in the registry.
		for i := range r.workers {
			r.workers[i].Capabilities = ""
		}
	}
	registry := q.registry()
	same, old := r.registered(registry)
	switch {
	case old != nil && r.hive.Incarnation < old.Incarnation:
		return olderStart(r.hive, old.Incarnation)
	case same:
		r.share(registry, old)
	default:
		if err := r.check(); err != nil {
			return err
		}
	}

	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	p := l.pulse
	if l.over != nil || p.line != l {
		return errors.Join(l.over) // Link says it
	}
	first := p.report == nil
	p.report, p.heard = r, now
	l.seq, l.hurry = seq, false
	p.next = q.intervalLocked()
	if l.heard != nil {
		close(l.heard)
		l.heard = nil
	}
	cleared := q.confirmLocked(p.id, r, same)
	p.graceUntil, p.forgetAt, p.downAt = time.Time{}, time.Time{}, time.Time{}
	cleared = q.trustLocked(p) || cleared
	p.suspectAt = now.Add(p.next + SuspectGrace)
	if ending {
		p.suspectAt = time.Time{}
		q.suspectLocked(p, "the agent of its hive is shutting down")
	}
	if q.leading {
		if !ending && q.opts.Pinger == nil {
			p.downAt = q.downAtLocked(p)
		}
		if same && !p.dirty && !p.writing {
			l.registered = seq
		} else {
			q.dirtyLocked(p)
		}
	}
	if first || cleared {
		q.changedLocked()
	}
	q.scheduleLocked(p)
	l.wakeUp()
	return nil
}

// intervalLocked is when a hive shall report next, at the latest.
func (q *Queen) intervalLocked() time.Duration {
	return max(BeatInterval, time.Duration(q.lines)*time.Second/MaxBeatsPerSecond)
}

// answer is what the line's hive is to know now; over: the line ends.
func (q *Queen) answer(l *line) (resp *queenv1.LinkResponse, over error) {
	q.mu.Lock()
	if l.over != nil {
		q.mu.Unlock()
		return nil, l.over
	}
	resp = &queenv1.LinkResponse{Seq: l.seq, Registered: q.leading && l.registered == l.seq, Next: durationpb.New(l.pulse.next)}
	if l.hurry {
		resp.Next = durationpb.New(0)
	}
	if l.view != q.told {
		l.view, resp.Cluster = q.told, q.told
	}
	q.mu.Unlock()
	q.registry().EachWorkerOfHive(nil, l.pulse.id, func(w *core.Worker) bool {
		if w.State == core.WorkerRetiring {
			resp.Retire = append(resp.Retire, w.ID)
		}
		return true
	})
	return resp, nil
}

// setView tells all hives what they must know of the cluster, if that is news.
func (q *Queen) setView(v *queenv1.ClusterView) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if same := proto.Equal(withoutIndex(v), withoutIndex(q.told)); same {
		return
	}
	q.told = v
	for _, p := range q.pulses {
		if p.line != nil {
			p.line.wakeUp()
		}
	}
}

func withoutIndex(v *queenv1.ClusterView) *queenv1.ClusterView {
	if v == nil {
		return nil
	}
	return &queenv1.ClusterView{Queens: v.GetQueens(), Revoked: v.GetRevoked(), GossipKeys: v.GetGossipKeys()}
}
