package liveness

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// incumbentWait bounds the wait for a sign of life from a linked hive when another agent with its
// id wants a link.
const incumbentWait = 500 * time.Millisecond

// Link is the queen's end of a hive's link. Monitor.mu guards its fields.
type Link struct {
	m           *Monitor
	peer        *peer
	incarnation uint64
	wake        chan struct{} // something to send, or a reason to end; holds one

	taken      bool                 // a report was accepted
	seq        uint64               // sequence number of the newest report
	registered uint64               // number of the newest report in the registry, as far as this leader knows
	hurry      bool                 // ask the hive to report at once
	view       *queenv1.ClusterView // as last sent
	heard      chan struct{}        // closed by the next report; nil: not waited for
	over       error                // reason to end; nil: stay open
}

func (l *Link) wakeUp() { wake(l.wake) }

// endLocked ends the link for a reason.
func (l *Link) endLocked(err error) {
	if l.over == nil {
		l.over = err
		l.wakeUp()
	}
}

// Serve runs the link of one hive. It ends with Conflict when the hive has restarted since or
// another agent has its id, with Invalid for a malformed report, with Unavailable when the queen
// stops.
func (m *Monitor) Serve(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return linkEnd(err)
	}
	r, err := ReportOf(first, m.opts.Now())
	if err != nil {
		return err
	}
	if peer, ok := rpc.Peer(stream.Context()); ok && peer.ID != r.Hive.ID {
		return core.Errorf(core.Forbidden, "node %s reports as hive %s", peer.ID, r.Hive.ID).Hint("A hive's id is that of its node: remove node-id from its data_dir, or let it join again.")
	}
	l, err := m.Open(stream.Context(), r.Hive)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Take(first.GetSeq(), r, first.GetEnding()); err != nil {
		return err
	}
	// The reader ends after this method has returned, as that ends the stream's context.
	received := make(chan error, 1)
	if !m.reader(func() { received <- m.receive(stream, l) }) {
		return m.ending()
	}
	for {
		select {
		case <-l.wake:
			resp, over := l.Answer()
			if over != nil {
				return over
			}
			if err := stream.Send(resp); err != nil {
				return linkEnd(err)
			}
		case err := <-received:
			return err
		case <-m.ended:
			return m.ending()
		}
	}
}

// linkEnd converts the end of a stream to an error; a regular end is nil.
func linkEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return core.WithKind(err, core.KindOf(err))
}

func (m *Monitor) ending() error {
	return core.Errorf(core.Unavailable, "queen %s is shutting down", m.opts.ID).Hint("The hive retries automatically.")
}

// reader starts a goroutine that Close waits for; false: Close was already called.
func (m *Monitor) reader(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.ended:
		return false
	default:
		m.readers.Go(f)
		return true
	}
}

// receive accepts reports until the link ends.
func (m *Monitor) receive(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse], l *Link) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return linkEnd(err)
		}
		r, err := ReportOf(req, m.opts.Now())
		if err != nil {
			return err
		}
		if r.Hive.ID != l.peer.id || r.Hive.Incarnation != l.incarnation {
			return invalidReport("the link of hive %s, start %d, tells of hive %s, start %d", l.peer.id, l.incarnation, r.Hive.ID, r.Hive.Incarnation)
		}
		if err := l.Take(req.GetSeq(), r, req.GetEnding()); err != nil {
			return err
		}
	}
}

// Open makes a new link the current one of its hive. A link of the same start of the hive counts as
// broken. A link of another start stays if that gives a sign of life. Errors: Conflict.
func (m *Monitor) Open(ctx context.Context, h core.Hive) (*Link, error) {
	for asked := false; ; asked = true {
		m.mu.Lock()
		p := m.peerLocked(h.ID)
		old := p.link
		if old != nil && old.incarnation > h.Incarnation {
			m.mu.Unlock()
			return nil, olderStart(h, old.incarnation)
		}
		if old == nil || old.incarnation == h.Incarnation || asked || p.suspect != "" {
			l := &Link{m: m, peer: p, incarnation: h.Incarnation, wake: make(chan struct{}, 1)}
			if old == nil {
				m.links++
			} else {
				old.endLocked(core.Errorf(core.Unavailable, "hive %s has a newer link to this queen", h.ID).Hint("The hive uses that one."))
			}
			p.link = l
			m.publishLocked(p.id)
			m.mu.Unlock()
			return l, nil
		}
		if old.heard == nil {
			old.heard = make(chan struct{})
		}
		heard := old.heard
		old.hurry = true
		old.wakeUp()
		m.mu.Unlock()
		timer := time.NewTimer(incumbentWait)
		select {
		case <-heard:
			timer.Stop()
			m.mu.Lock()
			there := p.link == old
			m.mu.Unlock()
			if !there {
				continue
			}
			m.log.Error("a second agent uses the identity of a hive; it is refused", "hive", h.ID, "name", h.Name)
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

// Close marks the link as ended: the hive is suspect until it has another one.
func (l *Link) Close() {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	p := l.peer
	if p.link != l {
		return
	}
	p.link = nil
	m.links--
	if l.heard != nil {
		close(l.heard) // waiters check the current state
		l.heard = nil
	}
	if p.report == nil && p.graceUntil.IsZero() {
		m.dropLocked(p) // no other information about it exists
		return
	}
	m.publishLocked(p.id)
	m.suspectLocked(p, "the link to its hive broke")
	p.suspectAt = time.Time{}
	p.forgetAt = time.Now().Add(ForgetAfter)
	m.scheduleLocked(p)
}

// Take accepts a report. If this queen leads, the registry has it or soon will. ending marks the
// hive's last report. Errors: Invalid, Conflict; Unavailable for a link that has ended.
func (l *Link) Take(seq uint64, r *Report, ending bool) error {
	m := l.m
	if !fsm.Knows(m.opts.MinFSM(), "Worker.capabilities") {
		// Commands omit these fields for older queens: with them, a report would never match the
		// registry.
		for i := range r.Workers {
			r.Workers[i].Capabilities, r.Workers[i].Replica = "", ""
		}
	}
	registry := m.opts.Registry.View()
	same, old := r.registered(registry)
	switch {
	case old != nil && r.Hive.Incarnation < old.Incarnation:
		return olderStart(r.Hive, old.Incarnation)
	case same:
		r.share(registry, old)
	default:
		if err := r.check(); err != nil {
			return err
		}
	}

	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	p := l.peer
	if l.over != nil || p.link != l {
		return errors.Join(l.over) // Serve returns it
	}
	first := p.report == nil
	if r.told || !l.taken { // otherwise the inventory is unchanged
		m.stock.put(p.id, r.inventory)
	}
	r.inventory = nil // the report outlives it
	p.report, p.heard, l.taken = r, now, true
	l.seq, l.hurry = seq, false
	p.next = m.intervalLocked()
	if l.heard != nil {
		close(l.heard)
		l.heard = nil
	}
	cleared := m.failures.confirm(p.id, r, same)
	p.graceUntil, p.forgetAt, p.downAt = time.Time{}, time.Time{}, time.Time{}
	cleared = m.trustLocked(p) || cleared
	p.suspectAt = now.Add(p.next + SuspectGrace)
	if ending {
		p.suspectAt = time.Time{}
		m.suspectLocked(p, "the agent of its hive is shutting down")
	}
	if m.leading {
		if !ending && m.opts.Pinger == nil {
			p.downAt = m.downAtLocked(p)
		}
		if same && !p.dirty && !p.writing {
			l.registered = seq
		} else {
			m.backlog.report(p)
		}
	}
	m.publishLocked(p.id)
	if first || cleared {
		m.changedLocked()
	}
	m.scheduleLocked(p)
	l.wakeUp()
	return nil
}

// intervalLocked returns the longest time until a hive's next report.
func (m *Monitor) intervalLocked() time.Duration {
	return max(ReportInterval, time.Duration(m.links)*time.Second/MaxReportsPerSecond)
}

// Answer returns what to send to the link's hive now; over: the link ends.
func (l *Link) Answer() (resp *queenv1.LinkResponse, over error) {
	m := l.m
	m.mu.Lock()
	if l.over != nil {
		m.mu.Unlock()
		return nil, l.over
	}
	resp = &queenv1.LinkResponse{Seq: l.seq, Registered: m.leading && l.registered == l.seq, Next: durationpb.New(l.peer.next)}
	if l.hurry {
		resp.Next = durationpb.New(0)
	}
	if l.view != m.told {
		l.view, resp.Cluster = m.told, m.told
	}
	m.mu.Unlock()
	m.opts.Registry.View().EachWorkerOfHive(nil, l.peer.id, func(w *core.Worker) bool {
		if w.State == core.WorkerRetiring {
			resp.Retire = append(resp.Retire, w.ID)
		}
		return true
	})
	resp.Uses = m.usesOf(l.peer.id)
	if m.opts.Tenancy != nil {
		resp.Tenancy = m.opts.Tenancy()
	}
	return resp, nil
}

// usesOf returns how this queen uses the workers of a hive, in wire form.
func (m *Monitor) usesOf(hive string) []*queenv1.Use {
	if m.opts.Uses == nil {
		return nil
	}
	uses := m.opts.Uses(hive)
	out := make([]*queenv1.Use, 0, len(uses))
	for _, u := range uses {
		p := &queenv1.Use{Worker: u.Worker, Nonce: u.Nonce, InFlight: int32(min(u.InFlight, math.MaxInt32)), Since: durationpb.New(time.Since(u.Last))}
		if u.KeepAlive != nil {
			p.KeepAlive = durationpb.New(*u.KeepAlive)
		}
		out = append(out, p)
	}
	return out
}

// Nudge sends a hive the current use of its workers at once.
func (m *Monitor) Nudge(hive string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.peers[hive]; ok && p.link != nil {
		p.link.wakeUp()
	}
}

// SetView sends all hives their view of the cluster, if it has changed.
func (m *Monitor) SetView(v *queenv1.ClusterView) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if same := proto.Equal(withoutIndex(v), withoutIndex(m.told)); same {
		return
	}
	m.told = v
	for _, p := range m.peers {
		if p.link != nil {
			p.link.wakeUp()
		}
	}
}

func withoutIndex(v *queenv1.ClusterView) *queenv1.ClusterView {
	if v == nil {
		return nil
	}
	return &queenv1.ClusterView{Queens: v.GetQueens(), Revoked: v.GetRevoked(), GossipKeys: v.GetGossipKeys()}
}
