package queen

import (
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// writeInterval is between two writes that follow from reports or silence: 200 entries of the
	// log each second at most.
	writeInterval = 5 * time.Millisecond
	// retryWrite is the pause after a write that failed.
	retryWrite = 50 * time.Millisecond
)

// registry is the replicated registry as this queen has it now.
func (q *Queen) registry() *state.Snapshot { return q.opts.Node.State().Snapshot() }

// apply writes a command to raft and returns when it is in force, or refused.
func (q *Queen) apply(ctx context.Context, requestID string, c *raftv1.Command) error {
	if len(requestID) <= fsm.MaxIDBytes { // it only helps people who read logs
		c.RequestId = requestID
	}
	_, err := q.opts.Node.Apply(ctx, c)
	return err
}

func (q *Queen) notLeader() error {
	err := core.Errorf(core.Unavailable, "this queen does not lead the cluster")
	if leader := q.opts.Node.Leader(); leader != "" && leader != q.opts.ID {
		return core.WithHint(err, "Ask the leader, queen %s.", leader)
	}
	if problem := q.opts.Node.DiskProblem(); problem != nil {
		return problem
	}
	return core.WithHint(err, "Try again in a moment: a leader is being elected.")
}

// lead does the leader's duties until ctx ends. node.Run calls it when the registry holds
// everything that was committed before.
func (q *Queen) lead(ctx context.Context) error {
	q.takeOver()
	defer q.stepDown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		if q.opts.Pinger != nil {
			q.pingSilent(ctx)
		}
	}()
	q.write(ctx)
	cancel()
	<-pinging
	return nil
}

// dirtyLocked has the last report of a hive written.
func (q *Queen) dirtyLocked(p *pulse) {
	if p.dirty {
		return
	}
	p.dirty = true
	q.dirty = append(q.dirty, p)
	wake(q.wake)
}

// goneLocked has a hive written as down, or removed.
func (q *Queen) goneLocked(p *pulse, forget bool) {
	p.forget = forget
	if p.gone {
		return
	}
	p.gone = true
	q.gone = append(q.gone, p)
	wake(q.wake)
}

// write writes what reports and silence change, in batches, until ctx ends. It alone does: of two
// writes for one hive the later is the newer.
func (q *Queen) write(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select { // the first of several writes waits for nothing
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		restored := q.opts.Node.State().Abandoned()
		wait := writeInterval
		switch batch, gone := q.nextWrite(); {
		case len(batch) > 0:
			if !q.writeReports(ctx, batch) {
				wait = retryWrite
			}
		case gone != nil:
			if !q.giveUp(ctx, gone) {
				wait = retryWrite
			}
		default:
			select {
			case <-q.wake:
				wait = 0
			case <-restored:
				q.takeOver() // the registry is another one
				wait = 0
			case <-ctx.Done():
				return
			}
		}
		pause.Reset(wait)
	}
}

// pending is a report that is being written.
type pending struct {
	pulse  *pulse
	report *report
	ownIDs bool // another hive has a worker with an id of this report
}

func (b pending) state() fsm.HiveState {
	return fsm.HiveState{Hive: b.report.hive, Workers: b.report.workers, OwnIDs: b.ownIDs}
}

// sharesIDs reports whether another hive has a worker with an id of this report. The ids are
// random, so that one of the two hives copied it; neither can keep the other out by that.
func (r *report) sharesIDs(registry *state.Snapshot) bool {
	return slices.ContainsFunc(r.workers, func(w core.Worker) bool {
		return slices.ContainsFunc(registry.WorkersWithID(nil, w.ID), func(other core.Worker) bool { return other.Hive != r.hive.ID })
	})
}

// nextWrite takes out what is to be written next: reports first, for they are of the living.
func (q *Queen) nextWrite() ([]pending, *pulse) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if batch := q.nextReportsLocked(); len(batch) > 0 {
		return batch, nil
	}
	for len(q.gone) > 0 {
		p := q.gone[0]
		q.gone = q.gone[1:]
		p.gone = false
		if q.pulses[p.id] == p && (p.line == nil || p.suspect != "") {
			p.writing = true
			return nil, p
		}
	}
	return nil, nil
}

func (q *Queen) nextReportsLocked() []pending {
	registry := q.registry()
	var batch []pending
	states := make([]fsm.HiveState, 0, min(len(q.dirty), fsm.MaxHivesPerCommand))
	rest := q.dirty
	for len(rest) > 0 && len(batch) < fsm.MaxHivesPerCommand {
		p := rest[0]
		rest = rest[1:]
		p.dirty = false
		switch same, old := p.report.registered(registry); {
		case same:
			p.registeredLocked()
			continue
		case p.line == nil && old != nil && old.Status == core.HiveDown:
			continue // it is older than what is known since
		}
		p.writing = true
		batch = append(batch, pending{p, p.report, p.report.sharesIDs(registry)})
		states = append(states, batch[len(batch)-1].state())
	}
	if fits := fsm.FitSyncHives(states); fits < len(batch) {
		for _, b := range batch[fits:] {
			b.pulse.writing, b.pulse.dirty = false, true
			rest = append(rest, b.pulse)
		}
		batch = batch[:fits]
	}
	q.dirty = rest
	if len(q.dirty) == 0 {
		q.dirty = nil // lets go of the array
	}
	return batch
}

// writeReports writes reports in one entry of the log, and says whether that worked, whatever
// became of each of them.
func (q *Queen) writeReports(ctx context.Context, batch []pending) bool {
	var errs []error
	var err error
	if len(batch) == 1 {
		h := batch[0].report.hive
		err = q.apply(ctx, "report "+h.ID, fsm.SyncHiveState(batch[0].state()))
		errs = []error{err}
		if k := core.KindOf(err); k == core.Conflict || k == core.Forbidden || k == core.Invalid {
			err = nil // this one was refused: no other attempt will do better
		}
	} else {
		states := make([]fsm.HiveState, 0, len(batch))
		for _, b := range batch {
			states = append(states, b.state())
		}
		var result fsm.Result
		result, err = q.opts.Node.Apply(ctx, fsm.SyncHives(states))
		errs = result.Errs
		if err == nil && len(errs) != len(batch) {
			err = core.Errorf(core.Internal, "write reports: %d hives were written, %d answers came", len(batch), len(errs))
		}
	}
	if err != nil && ctx.Err() == nil {
		q.log.Warn("cannot write what hives report, trying again", "hives", len(batch), "error", err)
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	for i, b := range batch {
		p := b.pulse
		p.writing = false
		if q.pulses[p.id] != p || !q.leading {
			continue
		}
		switch {
		case err != nil:
			q.dirtyLocked(p)
		case errs[i] != nil:
			q.log.Error("what a hive reports is refused", "hive", p.id, "error", errs[i])
			if p.line != nil {
				p.line.endLocked(errs[i])
			}
		case p.report == b.report:
			p.registeredLocked()
			q.confirmLocked(p.id, p.report, true)
		default: // it has reported since
			q.dirtyLocked(p)
		}
	}
	return err == nil
}

// registeredLocked tells the hive that the registry has its last report.
func (p *pulse) registeredLocked() {
	if p.line != nil && p.line.registered != p.line.seq {
		p.line.registered = p.line.seq
		p.line.wakeUp()
	}
}

// giveUp writes that a silent hive is down, or removes one that was down for long, and says whether
// that worked.
func (q *Queen) giveUp(ctx context.Context, p *pulse) bool {
	h := q.registry().PeekHive(nil, p.id)
	q.mu.Lock()
	forget := p.forget
	q.mu.Unlock()
	var err error
	switch {
	case h == nil:
	case h.Status == core.HiveDown && !forget:
	case h.Status == core.HiveDown:
		err = q.apply(ctx, "forget "+p.id, fsm.RemoveHive(p.id))
	default:
		err = q.apply(ctx, "silent "+p.id, fsm.SetHiveStatus(p.id, core.HiveDown, h.Incarnation))
	}
	if err != nil && core.KindOf(err) != core.NotFound {
		if ctx.Err() == nil {
			q.log.Error("cannot write that a hive is gone, trying again", "hive", p.id, "error", err)
		}
	} else {
		err = nil
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	p.writing = false
	if q.pulses[p.id] != p || !q.leading {
		return err == nil
	}
	delete(q.silent, p.id)
	p.graceUntil = time.Time{}
	q.changedLocked()
	switch {
	case p.line != nil && p.suspect == "": // it has reported meanwhile
		q.dirtyLocked(p)
	case err != nil:
		q.goneLocked(p, forget)
	case p.line == nil && (h == nil || forget && h.Status == core.HiveDown):
		q.dropLocked(p)
		q.log.Info("hive is forgotten", "hive", q.hiveLabel(p.id))
	default:
		q.log.Warn("hive is down, its workers are gone", "hive", q.hiveLabel(p.id))
		if p.line != nil { // whatever hangs at its end shall open a new one when it lives
			p.line.endLocked(core.Errorf(core.Unavailable, "hive %s was silent for too long", p.id))
		}
		p.forgetAt = time.Now().Add(ForgetAfter)
		q.scheduleLocked(p)
	}
	return err == nil
}
